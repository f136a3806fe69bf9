/*
 * ssh_destination.h
 *		Where to log in, as whom and with what.
 */
#ifndef ENVRT_HOST_SSH_DESTINATION_H
#define ENVRT_HOST_SSH_DESTINATION_H

#include <stdbool.h>

#include <jansson.h>
#include <sodium.h>

#include "base/host_error.h"

typedef struct SshDestination
{
	int references;
	char *company_id;
	char *host; /* without brackets */
	int port;
	char *username;
	char *workspace_path;
	char *private_key;
	char *known_hosts; /* or NULL */
	bool strict;
	char *target; /* user@host:port */

	/* Equal for two destinations that may share a session, and only then. */
	unsigned char pool_key[crypto_generichash_BYTES];
} SshDestination;

/* From the params of a call; NULL with *error set. */
extern SshDestination *ssh_destination_new(const json_t *params, HostError **error);
extern SshDestination *ssh_destination_keep(SshDestination *destination);
extern void ssh_destination_release(SshDestination *destination);

#endif
