/*
 * ssh_settings.h
 *		The settings of connections by ssh; see ssh_settings.c.
 */
#ifndef ENVRT_HOST_SSH_SETTINGS_H
#define ENVRT_HOST_SSH_SETTINGS_H

#include <stdint.h>

#include <jansson.h>

#include "ssh/allowed_hosts.h"

typedef struct SshSettings
{
	uint64_t idle_timeout_ms;
	uint64_t keepalive_ms; /* 0: never */
	unsigned sessions_per_host;
	AllowedHosts *allowed_hosts; /* NULL: every host */
} SshSettings;

extern SshSettings ssh_settings;

extern void ssh_settings_configure(const json_t *params);

#endif
