/*
 * unpack.h
 *		Puts an archive from stdin at a path; see unpack.c.
 */
#ifndef ENVRT_FILES_UNPACK_H
#define ENVRT_FILES_UNPACK_H

#include <stdbool.h>
#include <stdint.h>

/* Of the permissions of what comes from a workspace: it is writable for nobody but its owner. */
#define WORKSPACE_MODE 0755

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
