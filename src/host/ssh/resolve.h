/*
 * resolve.h
 *		Host names to addresses, without blocking.
 */
#ifndef ENVRT_HOST_RESOLVE_H
#define ENVRT_HOST_RESOLVE_H

#include <netdb.h>

typedef struct Resolve Resolve;

/* addresses is NULL and problem says why, or the other way round; both are the resolver's. */
typedef void (*Resolved)(void *data, const struct addrinfo *addresses, const char *problem);

/*
 * Looks up the stream addresses of a host.  resolved() runs once, from the
 * event loop or before this returns (then the result is NULL).
 */
extern Resolve *resolve_start(const char *host, int port, Resolved resolved, void *data);

/* Forgets it: resolved() will not run. */
extern void resolve_cancel(Resolve *resolve);

#endif
