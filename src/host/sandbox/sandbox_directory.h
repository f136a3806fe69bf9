/*
 * sandbox_directory.h
 *		Where sandboxes have their folders, and whether they may be there.
 */
#ifndef ENVRT_HOST_SANDBOX_DIRECTORY_H
#define ENVRT_HOST_SANDBOX_DIRECTORY_H

#include <stdbool.h>

#include <jansson.h>

#include "base/host_error.h"

/* What the launcher says (configure), and for the command line the directory alone. */
extern void sandbox_place_configure(const json_t *params);
extern void sandbox_place_set_directory(const char *directory);
extern void sandbox_place_clear(void);

/* A copy of the settings, for one that works in another thread. */
typedef struct SandboxPlace
{
	char *directory; /* NULL: sandboxes are off */
	char *data_directory;
	json_t *hidden; /* paths that no sandbox may see; NULL: none */
	bool any_file_system;
} SandboxPlace;

extern SandboxPlace *sandbox_place_now(void);
extern void sandbox_place_free(SandboxPlace *place);

/*
 * Blocking.  Whether there may be sandboxes: NULL, and the directory's
 * descriptor; else the error.
 */
extern HostError *sandbox_place_open(const SandboxPlace *place, int *fd);

#endif
