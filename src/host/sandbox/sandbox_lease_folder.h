/*
 * sandbox_lease_folder.h
 *		The folders of leases.
 *
 * All of it blocks, and belongs into a thread of its own.  fd is of the sandbox
 * directory; ids are uuids.
 */
#ifndef ENVRT_HOST_SANDBOX_LEASE_FOLDER_H
#define ENVRT_HOST_SANDBOX_LEASE_FOLDER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/host_error.h"

#define SANDBOX_ID_LENGTH 36

/* A uuid as PostgreSQL writes it. */
extern bool sandbox_is_id(const char *text);

/* A directory of the host's own there, made when it is not there; -1: errno. */
extern int sandbox_folder_open_own(int fd, const char *name);

/* NULL, or the error: there is no such image. */
extern HostError *sandbox_folder_check_image(int fd, const char *image);

/* Makes it, or leaves it as it is; image: NULL for none; ledger: whose it is, NULL: not known. */
extern HostError *sandbox_folder_make(int fd, const char *id, const char *image,
                                      const char *ledger);

extern bool sandbox_folder_exists(int fd, const char *id);

/* *existed: there was one.  When it returns nothing is left, or the error. */
extern HostError *sandbox_folder_remove(int fd, const char *id, bool *existed);

/* Takes away what removals that a crash has ended have left. */
extern void sandbox_folder_sweep(int fd);

typedef struct SandboxFolder
{
	char id[SANDBOX_ID_LENGTH + 1];
	char image[129]; /* "": none */
} SandboxFolder;

/* What one is known to have been made with; false: there is none. */
extern bool sandbox_folder_read(int fd, SandboxFolder *folder);

/* Whether it was made for that ledger. */
extern bool sandbox_folder_is_of(int fd, const char *id, const char *ledger);

/* All there are, to be freed. */
extern SandboxFolder *sandbox_folder_list(int fd, size_t *count);

#endif
