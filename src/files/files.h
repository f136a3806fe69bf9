/*
 * files.h
 *		The two ends of a transfer.
 */
#ifndef ENVRT_FILES_FILES_H
#define ENVRT_FILES_FILES_H

/*
 * Writes what is at path to stdout, as an archive.  A directory is the entry "."
 * and what is in it; a file is an entry called `name`.  seal: NULL, or the start of the
 * name of a last, empty entry, by which the other end knows that it has got all; it ends with
 * ".directory" or ".file".
 */
extern void files_pack(const char *path, const char *name, const char *seal);

/* Reads such an archive from stdin and puts what it holds at path. */
extern void files_unpack(const char *path);

/* All ends: nothing temporary is to be left.  Safe in a signal handler. */
extern void files_abandon(void);

#endif
