/*
 * resolve.c
 *		Host names to addresses, without blocking.
 *
 * An address needs no lookup and is answered at once.  A name goes to
 * getaddrinfo() in one of libuv's threads; these can't be interrupted, so a
 * lookup that is cancelled is only disowned, and there are enough threads that
 * some hanging ones don't hold others up (main.c).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "base/memory.h"
#include "ssh/resolve.h"

struct Resolve
{
	uv_getaddrinfo_t request;
	Resolved resolved; /* NULL: nobody waits any more */
	void *data;
};

static void
looked_up(uv_getaddrinfo_t *request, int status, struct addrinfo *addresses)
{
	Resolve *resolve = request->data;

	if (resolve->resolved != NULL)
		resolve->resolved(resolve->data, addresses,
		                  status < 0          ? uv_strerror(status)
		                  : addresses == NULL ? "it has no address"
		                                      : NULL);
	uv_freeaddrinfo(addresses);
	free(resolve);
}

Resolve *
resolve_start(const char *host, int port, Resolved resolved, void *data)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC,
	                         .ai_socktype = SOCK_STREAM,
	                         .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
	struct addrinfo *addresses = NULL;
	char service[16];
	Resolve *resolve;
	int status;

	snprintf(service, sizeof service, "%d", port);
	if (getaddrinfo(host, service, &hints, &addresses) == 0)
	{
		resolved(data, addresses, NULL);
		freeaddrinfo(addresses);
		return NULL;
	}
	hints.ai_flags = AI_NUMERICSERV;
	resolve = xcalloc(1, sizeof *resolve);
	resolve->request.data = resolve;
	resolve->resolved = resolved;
	resolve->data = data;
	status = uv_getaddrinfo(uv_default_loop(), &resolve->request, looked_up, host, service, &hints);
	if (status < 0)
	{
		free(resolve);
		resolved(data, NULL, uv_strerror(status));
		return NULL;
	}
	return resolve;
}

void
resolve_cancel(Resolve *resolve)
{
	if (resolve == NULL)
		return;
	resolve->resolved = NULL;
	/* Takes it back if no thread has begun it; looked_up() runs either way. */
	uv_cancel((uv_req_t *) &resolve->request);
}
