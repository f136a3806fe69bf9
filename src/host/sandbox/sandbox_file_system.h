/*
 * sandbox_file_system.h
 *		The file system that a sandbox sees, as bwrap's arguments.
 */
#ifndef ENVRT_HOST_SANDBOX_FILE_SYSTEM_H
#define ENVRT_HOST_SANDBOX_FILE_SYSTEM_H

#include <stdint.h>

#include "base/host_error.h"
#include "base/memory.h"
#include "sandbox/sandbox_directory.h"

/* What /tmp, /dev/shm and a workspace that is nobody's may hold. */
typedef struct SandboxSizes
{
	uint64_t tmp;
	uint64_t shm;
} SandboxSizes;

/*
 * Blocking.  Appends the arguments, each with its NUL.  fd: of the place.  image and lease (an id)
 * may be NULL: the machine's own /usr; a workspace that goes with the command.
 */
extern HostError *sandbox_root_arguments(const SandboxPlace *place, int fd, const char *image,
                                         const char *lease, const SandboxSizes *sizes,
                                         Bytes *arguments);

#endif
