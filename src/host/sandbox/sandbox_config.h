/*
 * sandbox_config.h
 *		What an environment's config says about its sandboxes.
 */
#ifndef ENVRT_HOST_SANDBOX_CONFIG_H
#define ENVRT_HOST_SANDBOX_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/host_error.h"

typedef struct SandboxConfig
{
	char *image; /* NULL: none */
	uint64_t memory_mb;
	uint64_t processes;
	uint64_t cpu_seconds; /* 0: no limit */
	uint64_t file_mb;
	uint64_t workspace_mb;
	bool reuse;
	json_t *env; /* names and texts, or NULL */
} SandboxConfig;

/* Defaults of what a config does not say; from configure. */
extern void sandbox_config_configure(const json_t *params);

/* NULL with *error set when it is not valid. */
extern SandboxConfig *sandbox_config_new(const json_t *config, HostError **error);
extern void sandbox_config_free(SandboxConfig *config);

/* The issues of a config, as texts; empty when it is valid.  *stored: the canonical shape. */
extern json_t *sandbox_config_issues(const json_t *config, json_t **stored);

#endif
