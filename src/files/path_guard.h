/*
 * path_guard.h
 *		Finding the place of a transfer in the file system, and what must be left alone.
 */
#ifndef ENVRT_FILES_PATH_GUARD_H
#define ENVRT_FILES_PATH_GUARD_H

#include <stdbool.h>
#include <sys/stat.h>

/* Directories within directories; each is a descriptor. */
#define MAX_DEPTH 500

/*
 * NULL: paths are absolute, and links in them are followed when no transfer can have made them.
 * Else they are below it, without links.
 */
extern void place_set_base(const char *path);
extern bool place_is_workspace(void);

/* A file or directory that is never read or written, with all that is below it, nor made. */
extern void place_protect(const char *path);

/* The same for all in a directory whose names begin with a dot. */
extern void place_protect_hidden(const char *path);

extern bool place_is_protected(const struct stat *info);

/* Fails when it is one of these itself; path is for the text. */
extern void place_check(const struct stat *info, const char *path);

/* So does this when it is the name of one of these, that there is or not. */
extern void place_check_new(int directory, const char *name, const char *path);

/* So does this when what has this name is one of these, or a link to one. */
extern void place_check_name(int directory, const char *name, const char *path);

/* A directory to be read, or a regular file; fails when there is neither.  Its info. */
extern int place_open_source(const char *path, struct stat *info);

/* What is below a directory, by a path that leads through no link; -1: errno. */
extern int place_open_below(int directory, const char *path, int flags);

/* A directory that may be written into later on; -1: there is none. */
extern int place_open_existing(const char *path);

/* A directory to write into, made when missing; *made: it was. */
extern int place_open_target(const char *path, bool *made);

/*
 * The directory to write a file into, and *name, its name there (to be freed): `path`
 * itself, or when that is a directory, own_name in it.
 */
extern int place_open_parent(const char *path, const char *own_name, char **name);

#endif
