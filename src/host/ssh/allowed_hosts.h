/*
 * allowed_hosts.h
 *		Where ssh may connect: envrt.allowed_hosts.
 */
#ifndef ENVRT_HOST_ALLOWED_HOSTS_H
#define ENVRT_HOST_ALLOWED_HOSTS_H

#include <stdbool.h>

#include <jansson.h>
#include <sys/socket.h>

typedef struct AllowedHosts AllowedHosts;

/* From a JSON array of strings; NULL and an empty array allow every host. */
extern AllowedHosts *allowed_hosts_new(const json_t *entries);
extern void allowed_hosts_free(AllowedHosts *allowed);

/* Whether a host of this name may be connected to, whatever its address. */
extern bool allowed_hosts_name(const AllowedHosts *allowed, const char *name);

/* Whether this address may be connected to, whatever name led there. */
extern bool allowed_hosts_address(const AllowedHosts *allowed, const struct sockaddr *address);

/* Whether there is any address that allowed_hosts_address could say yes to. */
extern bool allowed_hosts_any_address(const AllowedHosts *allowed);

#endif
