/*
 * already_there.h
 *		What the target of a transfer has already, and so need not be sent.
 */
#ifndef ENVRT_FILES_ALREADY_THERE_H
#define ENVRT_FILES_ALREADY_THERE_H

#include <stdbool.h>
#include <sys/stat.h>

/* Reads the other end's list from stdin. */
extern void known_read(void);

/* Or only what it begins with: whoever writes it must not wait for us. */
extern void known_read_first(void);

/* All is sent, whatever is known. */
extern void known_force(void);

/* Whether it has this, as it is; path: of the entry.  Of its permissions the mask's count. */
extern bool known_is_equal(const char *path, const struct stat *info, mode_t mask);

/* Whether the target is there, and who unpacks reads headers of pax. */
extern bool known_has_target(void);
extern bool known_reads_pax(void);

/* Reads the source's list from stdin, and answers on stdout what of it is to be sent to path. */
extern void known_choose(const char *path);

/* A list to stdout: who reads what follows it, its records, its end. */
extern void known_write_reader(void);
extern void known_write(const char *path, const struct stat *info);
extern void known_write_end(void);

#endif
