/*
 * files.h
 *		The two ends of a transfer.
 */
#ifndef ENVRT_FILES_FILES_H
#define ENVRT_FILES_FILES_H

#include <stdbool.h>
#include <stdint.h>

/* Of the permissions of what comes from a workspace: it is writable for nobody but its owner. */
#define WORKSPACE_MODE 0755

/*
 * Writes what is at path to stdout, as an archive.  A directory is the entry "."
 * and what is in it; a file is an entry called `name`.  seal: NULL, or the start of the
 * name of a last, empty entry, by which the other end knows that it has got all; it ends with
 * ".directory" or ".file".
 */
extern void files_pack(const char *path, const char *name, const char *seal);

/*
 * Writes to stdout what is at path; from now on files_pack() reads such a list
 * from stdin first, and leaves out what is there already (known.c).
 */
extern void files_list(const char *path);
extern void files_know(void);

/*
 * Reads such an archive from stdin and puts what it holds at path.  source: where in a workspace it
 * comes from, and then it is without what would have a git on this side run programs; or NULL.
 */
extern void files_unpack(const char *path, const char *source);

/*
 * The archive may have so many bytes, in which each entry counts for a block of the file system
 * more, and so do directories that only the names of others tell of, and what follows a hole.
 */
extern void files_limit(uint64_t max_bytes);

/* All ends: nothing temporary is to be left.  Safe in a signal handler. */
extern void files_abandon(void);

#endif
