/*
 * protected_paths.h
 *		What belongs to the server and is no tenant's; see protected_paths.c.
 */
#ifndef ENVRT_PROTECTED_PATHS_H
#define ENVRT_PROTECTED_PATHS_H

#include "postgres.h"

#include "shared/json_library.h"

extern void protect_path(json_t *list, const char *path);

/* Appends the files and folders that the server's settings name. */
extern void protect_settings(json_t *list);

#endif
