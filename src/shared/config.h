/*
 * config.h
 *		The config rules of each driver: validation and the canonical stored shape.
 *
 * Both sides use it: the extension before it stores a config, the driver host
 * before it trusts one.
 */
#ifndef ENVRT_CONFIG_H
#define ENVRT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

#include "shared/json_library.h"

#define CONFIG_MAX_ISSUES 16

typedef struct ConfigIssue
{
	char path[64];     /* the field, dotted: "privateKeySecretRef.secretId"; "" for the whole */
	char message[256]; /* the seed application's text, valid UTF-8 */
} ConfigIssue;

typedef struct ConfigIssues
{
	int count;
	ConfigIssue issue[CONFIG_MAX_ISSUES];
} ConfigIssues;

/*
 * config_normalize
 *		The canonical stored shape of a driver's config, as a new reference.
 *
 * NULL when it is not valid (issues.count > 0) or when out of memory
 * (issues.count == 0).  For a plugin-backed sandbox provider and for local,
 * keys that are not known pass through unchanged.
 *
 * config may be any JSON value.  A raw ssh privateKey is refused here; whoever
 * takes one from a user removes it first.
 */
extern json_t *config_normalize(const char *driver, json_t *config, ConfigIssues *issues);

/*
 * One line for a person: the first issue's message, led by its field when the
 * message does not itself say what is wrong with which field.
 */
extern void config_issue_text(const ConfigIssue *issue, char *buffer, size_t size);

/*
 * private_key_problem
 *		NULL when the text looks like a private key that envrt can use, else
 *		what is wrong with it and what to do (encrypted, a public key, no key
 *		at all).  A static string; never a part of the key.
 */
extern const char *private_key_problem(const char *text, size_t length);

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
