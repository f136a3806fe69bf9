/*
 * sandbox_config.c
 *		What an environment's config says about its sandboxes.
 *
 * The rules are those of src/shared/driver_config.c, by which the extension has checked
 * the config before it was stored.  They are applied again with each call: what is
 * not checked here would be trusted.
 */
#include <stdlib.h>
#include <string.h>

#include "shared/driver_config.h"
#include "shared/jsonrpc.h"
#include "base/memory.h"
#include "shared/protocol.h"
#include "sandbox/sandbox_config.h"

static uint64_t default_memory_mb = 1024;
static uint64_t default_processes = 256;

#define DEFAULT_FILE_MB 1024
#define DEFAULT_WORKSPACE_MB 4096

static void
take_default(const json_t *params, const char *key, json_int_t min, json_int_t max, uint64_t *value)
{
	const json_t *number = json_object_get(params, key);

	if (json_is_integer(number) && json_integer_value(number) >= min &&
	    json_integer_value(number) <= max)
		*value = (uint64_t) json_integer_value(number);
}

void
sandbox_config_configure(const json_t *params)
{
	take_default(params, "sandboxMemoryMb", 16, 1048576, &default_memory_mb);
	take_default(params, "sandboxProcesses", 1, 32768, &default_processes);
}

/* NULL and the issues, when it is not valid. */
static json_t *
normalize(const json_t *config, ConfigIssues *issues)
{
	json_t *copy = json_is_object(config) ? json_copy((json_t *) config) : json_object();
	json_t *stored;

	/* Without the key it would be another provider's. */
	if (json_object_get(copy, "provider") == NULL)
		json_object_set_new(copy, "provider", json_string("bubblewrap"));
	stored = config_normalize("sandbox", copy, issues);
	json_decref(copy);
	return stored;
}

json_t *
sandbox_config_issues(const json_t *config, json_t **stored)
{
	json_t *texts = json_array();
	ConfigIssues issues;

	*stored = normalize(config, &issues);
	for (int i = 0; i < issues.count; i++)
	{
		char text[512];

		config_issue_text(&issues.issue[i], text, sizeof text);
		json_array_append_new(texts, json_string(text));
	}
	return texts;
}

static HostError *
sandbox_config_invalid(const char *text)
{
	HostError *error = error_new("22023", "%s", text);

	error->code = RPC_INVALID_PARAMS;
	error->outcome = OUTCOME_ABSENT;
	return error;
}

static uint64_t
sandbox_config_number(const json_t *stored, const char *key, uint64_t otherwise)
{
	const json_t *value = json_object_get(stored, key);

	return json_is_integer(value) ? (uint64_t) json_integer_value(value) : otherwise;
}

/* References to secrets have been resolved by the extension. */
static HostError *
check_env(const json_t *env)
{
	const char *name;
	json_t *value;

	json_object_foreach((json_t *) env, name, value)
	{
		HostError *error;
		char *text;

		if (json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value))
			continue;
		text = xformat("env.%s: Expected a text without NUL", name);
		error = sandbox_config_invalid(text);
		free(text);
		return error;
	}
	return NULL;
}

SandboxConfig *
sandbox_config_new(const json_t *config, HostError **error)
{
	ConfigIssues issues;
	json_t *stored = normalize(config, &issues);
	const char *provider = json_string_value(json_object_get(stored, "provider"));
	const char *image;
	SandboxConfig *result;

	if (stored == NULL || provider == NULL || strcmp(provider, "bubblewrap") != 0)
	{
		char text[512] = "provider: Expected \"bubblewrap\"";

		if (issues.count > 0)
			config_issue_text(&issues.issue[0], text, sizeof text);
		json_decref(stored);
		*error = sandbox_config_invalid(text);
		return NULL;
	}
	*error = check_env(json_object_get(stored, "env"));
	if (*error != NULL)
	{
		json_decref(stored);
		return NULL;
	}
	result = xcalloc(1, sizeof *result);
	image = json_string_value(json_object_get(stored, "image"));
	result->image = image ? xstrdup(image) : NULL;
	result->memory_mb = sandbox_config_number(stored, "memoryMb", default_memory_mb);
	result->processes = sandbox_config_number(stored, "maxProcesses", default_processes);
	result->cpu_seconds = sandbox_config_number(stored, "cpuSeconds", 0);
	result->workspace_mb = sandbox_config_number(stored, "workspaceMb", DEFAULT_WORKSPACE_MB);
	result->file_mb = sandbox_config_number(stored, "maxFileMb", DEFAULT_FILE_MB);
	if (result->file_mb > result->workspace_mb)
		result->file_mb = result->workspace_mb;
	result->reuse = json_is_true(json_object_get(stored, "reuseLease"));
	result->env = json_incref(json_object_get(stored, "env"));
	json_decref(stored);
	return result;
}

void
sandbox_config_free(SandboxConfig *config)
{
	if (config == NULL)
		return;
	free(config->image);
	json_decref(config->env);
	free(config);
}
