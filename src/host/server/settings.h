/*
 * settings.h
 *		What the launcher tells the host about its settings.
 */
#ifndef ENVRT_HOST_SETTINGS_H
#define ENVRT_HOST_SETTINGS_H

#include <stdint.h>

#include <jansson.h>

#include "ssh/allowed_hosts.h"

typedef struct Settings
{
	uint64_t ssh_idle_timeout_ms;
	uint64_t ssh_keepalive_ms; /* 0: never */
	unsigned ssh_sessions_per_host;
	AllowedHosts *allowed_hosts; /* NULL: every host */
} Settings;

extern Settings settings;

extern void settings_configure(const json_t *params);

#endif
