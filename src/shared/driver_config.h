/*
 * driver_config.h
 *		The config rules of each driver: validation and the canonical stored shape.
 *
 * Both sides use it: the extension before it stores a config, the driver host
 * before it trusts one.
 */
#ifndef ENVRT_DRIVER_CONFIG_H
#define ENVRT_DRIVER_CONFIG_H

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

#endif
