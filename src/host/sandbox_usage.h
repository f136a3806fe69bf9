/*
 * sandbox_usage.h
 *		How full workspaces are.
 */
#ifndef ENVRT_HOST_SANDBOX_USAGE_H
#define ENVRT_HOST_SANDBOX_USAGE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Blocking, for any thread.  Whether the workspace of a lease holds more than
 * this.  fd: of the sandbox directory.
 */
extern bool sandbox_usage_is_full(int fd, const char *lease, uint64_t limit);

/* The lease is over; all are. */
extern void sandbox_usage_forget(const char *lease);
extern void sandbox_usage_clear(void);

#endif
