/*
 * target.h
 *		Hosts and URLs as targets; see target.c.
 */
#ifndef ENVRT_TARGET_H
#define ENVRT_TARGET_H

#include <stdbool.h>
#include <stddef.h>

/*
 * api_origin
 *		Reduces an http(s) URL to its origin: "HTTP://Host:80/x" becomes
 *		"http://host".  False when it is no http(s) URL or has characters that
 *		an origin can't have.
 */
extern bool api_origin(const char *url, char *origin, size_t size);

/*
 * ssh_target
 *		"user@host:port", IPv6 hosts in brackets, as providerLeaseId and views
 *		show it.
 */
extern void ssh_target(const char *username, const char *host, int port, char *buffer, size_t size);

#endif
