/*
 * sandbox_program.h
 *		Where bwrap finds the program of a sandbox's first process.
 */
#ifndef ENVRT_HOST_SANDBOX_PROGRAM_H
#define ENVRT_HOST_SANDBOX_PROGRAM_H

#include "sandbox/sandbox_directory.h"

/* Blocking.  Its path, to be freed; NULL: it can't be there.  fd: of the place. */
extern char *sandbox_program_path(const SandboxPlace *place, int fd);

#endif
