/*
 * sandbox_seccomp.h
 *		Which system calls a sandbox has.
 */
#ifndef ENVRT_HOST_SANDBOX_SECCOMP_H
#define ENVRT_HOST_SANDBOX_SECCOMP_H

#include <stdbool.h>

/*
 * Writes the filter that allows what is known, and the one that refuses some
 * uses of it: both are to be loaded.  False: not possible here.
 */
extern bool sandbox_seccomp_write_allowed(int fd);
extern bool sandbox_seccomp_write_refused(int fd);

#endif
