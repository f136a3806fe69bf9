/*
 * known.h
 *		What the target of a transfer has already, and so need not be sent.
 */
#ifndef ENVRT_FILES_KNOWN_H
#define ENVRT_FILES_KNOWN_H

#include <stdbool.h>
#include <sys/stat.h>

/* Reads the other end's list from stdin. */
extern void known_read(void);

/* Or doesn't: whoever writes it must not wait for us. */
extern void known_refuse(void);

/* Whether it has this file, as it is; path: of the entry. */
extern bool known_is_equal(const char *path, const struct stat *info);

/* Reads the source's list from stdin, and answers on stdout what of it is to be sent to path. */
extern void known_choose(const char *path);

/* One record of a list, to stdout. */
extern void known_write(const char *path, const struct stat *info);
extern void known_write_end(void);

#endif
