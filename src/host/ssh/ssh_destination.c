/*
 * ssh_destination.c
 *		Where to log in, as whom and with what.
 *
 * Made from a call's params and shared by reference between the call's command
 * and the session that connects for it, so that the private key is in memory
 * once and zeroed as soon as nobody can need it any more.
 *
 * The pool key decides who may share a session.  It covers the company, the
 * login, the key and what is demanded of the host key: whoever would have been
 * refused by the server, or would have refused the server, never gets a
 * session that somebody else opened.  It is a hash under a random key of this
 * process, so it says nothing about the private key.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shared/driver_config.h"
#include "shared/target.h"
#include "ssh/known_hosts.h"
#include "base/memory.h"
#include "ssh/ssh_destination.h"

static void
hash_text(crypto_generichash_state *state, const char *text)
{
	/* With its length first, so that no two lists of texts hash alike. */
	uint64_t length = text ? strlen(text) : UINT64_MAX;

	crypto_generichash_update(state, (const unsigned char *) &length, sizeof length);
	if (text != NULL)
		crypto_generichash_update(state, (const unsigned char *) text, length);
}

static void
make_pool_key(SshDestination *destination)
{
	static unsigned char key[crypto_generichash_KEYBYTES];
	static bool have_key = false;
	crypto_generichash_state state;
	char port[16];

	if (!have_key)
	{
		randombytes_buf(key, sizeof key);
		have_key = true;
	}
	snprintf(port, sizeof port, "%d", destination->port);
	crypto_generichash_init(&state, key, sizeof key, sizeof destination->pool_key);
	hash_text(&state, destination->company_id);
	hash_text(&state, destination->host);
	hash_text(&state, port);
	hash_text(&state, destination->username);
	hash_text(&state, destination->private_key);
	hash_text(&state, destination->known_hosts);
	hash_text(&state, destination->strict ? "strict" : "lax");
	crypto_generichash_final(&state, destination->pool_key, sizeof destination->pool_key);
	sodium_memzero(&state, sizeof state);
}

/* The canonical config, or NULL.  Its rules know no private key: that is filled in for the call. */
static json_t *
normal_config(const json_t *config, HostError **error)
{
	json_t *stored;
	json_t *normal;
	ConfigIssues issues = {0};
	char text[512];

	if (!json_is_object(config))
	{
		*error = error_new("22023", "the ssh driver's config is no object");
		return NULL;
	}
	stored = json_copy((json_t *) config);
	json_object_set_new(stored, "privateKey", json_null());
	normal = config_normalize("ssh", stored, &issues);
	json_decref(stored);
	if (normal == NULL && issues.count > 0)
	{
		config_issue_text(&issues.issue[0], text, sizeof text);
		*error = error_new("22023", "%s", text);
	}
	else if (normal == NULL)
		*error = error_new("53400", "out of memory");
	return normal;
}

static char *
text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? xstrdup(text) : NULL;
}

static char *
plain_host(const char *host)
{
	size_t length = strlen(host);

	if (length > 2 && host[0] == '[' && host[length - 1] == ']')
		return xstrndup(host + 1, length - 2);
	return xstrdup(host);
}

SshDestination *
ssh_destination_new(const json_t *params, HostError **error)
{
	const json_t *given = json_object_get(params, "config");
	json_t *config;
	SshDestination *destination;
	char target[1024];

	*error = NULL;
	config = normal_config(given, error);
	if (config == NULL)
		return NULL;
	destination = xcalloc(1, sizeof *destination);
	destination->references = 1;
	destination->company_id = text_of(params, "companyId");
	destination->host = plain_host(json_string_value(json_object_get(config, "host")));
	destination->port = (int) json_integer_value(json_object_get(config, "port"));
	destination->username = text_of(config, "username");
	destination->workspace_path = text_of(config, "remoteWorkspacePath");
	destination->private_key = text_of(given, "privateKey");
	destination->known_hosts = text_of(config, "knownHosts");
	destination->strict = !json_is_false(json_object_get(config, "strictHostKeyChecking"));
	ssh_target(destination->username, destination->host, destination->port, target, sizeof target);
	destination->target = xstrdup(target);
	json_decref(config);

	if (destination->private_key == NULL)
	{
		*error =
		    error_new("22023", "privateKey: there is no private key for %s", destination->target);
		error_hint(*error, "Give the config a privateKey, or a privateKeySecretRef to a secret.");
	}
	else if (destination->known_hosts != NULL &&
	         strlen(destination->known_hosts) > KNOWN_HOSTS_MAX_BYTES)
	{
		*error = error_new("22023", "knownHosts: longer than %d bytes", KNOWN_HOSTS_MAX_BYTES);
		error_hint(*error, "Keep only the lines about this host.");
	}
	if (*error != NULL)
	{
		ssh_destination_release(destination);
		return NULL;
	}
	make_pool_key(destination);
	return destination;
}

SshDestination *
ssh_destination_keep(SshDestination *destination)
{
	destination->references++;
	return destination;
}

void
ssh_destination_release(SshDestination *destination)
{
	if (destination == NULL || --destination->references > 0)
		return;
	free(destination->company_id);
	free(destination->host);
	free(destination->username);
	free(destination->workspace_path);
	secret_free(destination->private_key);
	free(destination->known_hosts);
	free(destination->target);
	free(destination);
}
