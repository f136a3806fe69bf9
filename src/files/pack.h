/*
 * pack.h
 *		Writes what is at a path to stdout, as an archive; see pack.c.
 */
#ifndef ENVRT_FILES_PACK_H
#define ENVRT_FILES_PACK_H

/*
 * Writes what is at path to stdout, as an archive.  A directory is the entry "."
 * and what is in it; a file is an entry called `name`.  seal: NULL, or the start of the
 * name of a last, empty entry, by which the other end knows that it has got all; it ends with
 * ".directory" or ".file".
 */
extern void files_pack(const char *path, const char *name, const char *seal);

/*
 * Writes to stdout what is at path; from now on files_pack() reads such a list
 * from stdin first, and leaves out what is there already (already_there.c).
 */
extern void files_list(const char *path);
extern void files_know(void);

#endif
