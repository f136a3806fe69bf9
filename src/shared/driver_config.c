/*
 * driver_config.c
 *		The config rules of each driver: validation and the canonical stored shape.
 *
 * The rules, their texts, the order of the checks and the coercions are those
 * of the seed application, which wrote them with a schema library of
 * TypeScript; whoever moves a config from there finds the same answers.  So
 * numbers are coerced as JavaScript's Number() does ("2222", "", null and true
 * are numbers), strings are trimmed of what JavaScript calls white space, an
 * object of the wrong kind counts as an empty one, and unknown keys are
 * reported after everything else.
 *
 * Every rule is run, so that a person sees all that is wrong at once: each
 * reader takes the object, a key and the issues, adds to the issues, and
 * returns a value that does for going on.  The result is thrown away at the
 * end when there was an issue.
 *
 * Beyond the seed: names of hosts and users must not hold white space or
 * control characters (they go into provider lease ids, logs and views), and
 * no field of the built-in drivers may hold U+0000, which PostgreSQL can't
 * store and C would cut at.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "shared/driver_config.h"
#include "shared/config_values.h"

#define MAX_TIMEOUT_MS 86400000

#define KEY_RULE                                                                                   \
	"key must start with a lowercase alphanumeric and contain only lowercase letters, digits, "    \
	"dots, hyphens, or underscores"

/* As long as a host name can be. */
/* With host and username it is a lease's id at its provider, which is in an index. */
#define MAX_WORKSPACE_PATH 1400

/* Sets a key that was read; an unread one has an issue, or there was no memory. */
static bool
store(json_t *result, const char *key, json_t *value)
{
	return json_object_set_new(result, key, value) == 0;
}

static bool
normalize_ssh(json_t *config, json_t *result, ConfigIssues *issues)
{
	static const char *const known[] = {"host",       "port",
	                                    "username",   "remoteWorkspacePath",
	                                    "privateKey", "privateKeySecretRef",
	                                    "knownHosts", "strictHostKeyChecking",
	                                    NULL};
	json_t *port;
	json_t *path;
	json_t *key;
	bool complete;

	complete = store(result, "host", config_read_name(config, "host", "host", issues));

	port = config_read_integer(config, "port", 1, 65535, issues);
	if (port == NULL && json_object_get(config, "port") == NULL)
		port = json_integer(22);
	complete &= store(result, "port", port);

	complete &= store(result, "username", config_read_name(config, "username", "username", issues));

	path = config_read_required_string(config, "remoteWorkspacePath",
	                                   "SSH environments require a remote workspace path.", issues);
	if (path != NULL && json_string_value(path)[0] != '/')
		config_add_issue(issues, "remoteWorkspacePath",
		                 "SSH remote workspace path must be absolute.");
	if (path != NULL && json_string_length(path) > MAX_WORKSPACE_PATH)
		config_add_issue(issues, "remoteWorkspacePath",
		                 "SSH remote workspace path must not be longer than %d bytes.",
		                 MAX_WORKSPACE_PATH);
	complete &= store(result, "remoteWorkspacePath", path);

	key = json_object_get(config, "privateKey");
	if (key != NULL && !json_is_null(key))
		config_add_type_issue(issues, "privateKey", "null", key);
	complete &= store(result, "privateKey", json_null());

	complete &= store(result, "privateKeySecretRef", config_read_secret_reference(config, issues));
	complete &= store(result, "knownHosts", config_read_known_hosts(config, issues));
	complete &= store(result, "strictHostKeyChecking",
	                  config_read_boolean(config, "strictHostKeyChecking", true, issues));
	config_check_unknown_keys(config, known, "", issues);
	return complete;
}

static bool
normalize_fake(json_t *config, json_t *result, ConfigIssues *issues)
{
	static const char *const known[] = {"provider", "image", "reuseLease", NULL};
	json_t *provider = json_object_get(config, "provider");
	json_t *image;
	bool complete;

	/* A blank one means the same as none; anything but a string is a mistake. */
	if (provider != NULL && !json_is_string(provider))
		config_add_issue(issues, "provider", "Invalid literal value, expected \"fake\"");
	complete = store(result, "provider", json_string("fake"));

	if (json_object_get(config, "image") == NULL)
		image = json_string("ubuntu:24.04");
	else
		image = config_read_required_string(config, "image",
		                                    "Fake sandbox environments require an image.", issues);
	complete &= store(result, "image", image);
	complete &=
	    store(result, "reuseLease", config_read_boolean(config, "reuseLease", false, issues));
	config_check_unknown_keys(config, known, "", issues);
	return complete;
}

/* ^[a-z0-9][a-z0-9._-]*$ */
static bool
is_key(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		char c = text[i];

		if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
			continue;
		if (i > 0 && (c == '.' || c == '_' || c == '-'))
			continue;
		return false;
	}
	return length > 0;
}

/* How long what the provider makes is kept; without it, reuseLease says. */
static void
check_lease_policy(const json_t *config, ConfigIssues *issues)
{
	static const char *const policies[] = {"ephemeral", "reuse_by_environment",
	                                       "reuse_by_execution_workspace", "retain_on_failure"};
	const json_t *value = json_object_get(config, "leasePolicy");

	if (value == NULL)
		return;
	for (size_t i = 0; json_is_string(value) && i < sizeof policies / sizeof policies[0]; i++)
		if (strcmp(json_string_value(value), policies[i]) == 0)
			return;
	config_add_issue(issues, "leasePolicy",
	                 "Expected ephemeral, reuse_by_environment, reuse_by_execution_workspace or "
	                 "retain_on_failure");
}

/* The provider brings its own rules for the keys that are not named here. */
static bool
normalize_plugin_sandbox(json_t *config, const char *provider, size_t length, json_t *result,
                         ConfigIssues *issues)
{
	const char *key;
	json_t *value;
	bool complete;

	if (!is_key(provider, length))
		config_add_issue(issues, "provider", "Sandbox provider " KEY_RULE);
	complete = store(result, "provider", json_stringn(provider, length));
	if (json_object_get(config, "timeoutMs") != NULL)
		complete &= store(result, "timeoutMs",
		                  config_read_integer(config, "timeoutMs", 1, MAX_TIMEOUT_MS, issues));
	complete &=
	    store(result, "reuseLease", config_read_boolean(config, "reuseLease", false, issues));
	check_lease_policy(config, issues);
	json_object_foreach(config, key, value)
	{
		if (strcmp(key, "provider") != 0 && strcmp(key, "timeoutMs") != 0 &&
		    strcmp(key, "reuseLease") != 0)
			complete &= store(result, key, json_deep_copy(value));
	}
	return complete;
}

/* A folder's name: one path component, and none that is hidden or means another. */
static bool
is_image_name(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		char c = text[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
		      (i > 0 && (c == '.' || c == '_' || c == '-'))))
			return false;
	}
	return length > 0 && length <= 128;
}

static bool
is_environment_name(const char *name)
{
	if (!((*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || *name == '_'))
		return false;
	for (; *name != '\0'; name++)
		if (!((*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || *name == '_' ||
		      (*name >= '0' && *name <= '9')))
			return false;
	return true;
}

/* Variables for every command; values are text or references to secrets. */
static json_t *
read_variables(json_t *config, ConfigIssues *issues)
{
	json_t *variables = json_object_get(config, "env");
	const char *name;
	json_t *value;
	int before = issues->count;

	if (variables == NULL)
		return NULL;
	if (!json_is_object(variables))
	{
		config_add_type_issue(issues, "env", "object", variables);
		return NULL;
	}
	json_object_foreach(variables, name, value)
	{
		const char *text;
		size_t length;

		if (!is_environment_name(name))
			config_add_issue(issues, "env", "Invalid environment variable key: %.100s", name);
		else if (!json_is_object(value))
			(void) config_string_bytes(value, "env", &text, &length, issues);
	}
	return issues->count == before ? json_deep_copy(variables) : NULL;
}

/* The sandboxes that envrt makes by itself. */
static bool
normalize_bubblewrap(json_t *config, json_t *result, ConfigIssues *issues)
{
	static const char *const known[] = {"provider",   "image",        "network",     "memoryMb",
	                                    "cpuSeconds", "maxProcesses", "maxFileMb",   "workspaceMb",
	                                    "timeoutMs",  "reuseLease",   "leasePolicy", "env",
	                                    NULL};
	static const struct
	{
		const char *key;
		double min;
		double max;
	} numbers[] = {{"memoryMb", 16, 1048576},   {"cpuSeconds", 1, 86400},
	               {"maxProcesses", 1, 32768},  {"maxFileMb", 1, 1048576},
	               {"workspaceMb", 1, 1048576}, {"timeoutMs", 1, MAX_TIMEOUT_MS}};
	json_t *image = json_object_get(config, "image");
	json_t *network;
	const char *text;
	size_t length;
	bool complete = store(result, "provider", json_string("bubblewrap"));

	if (image != NULL && !json_is_null(image))
	{
		if (config_string_bytes(image, "image", &text, &length, issues) &&
		    !is_image_name(text, length))
			config_add_issue(
			    issues, "image",
			    "image must be the name of a folder among the images: letters, digits, dots, "
			    "hyphens and underscores");
		complete &= store(result, "image", json_incref(image));
	}
	network = config_read_boolean(config, "network", false, issues);
	if (json_is_true(network))
		config_add_issue(
		    issues, "network",
		    "Sandboxes have no network: with the host's, a command could log in as the "
		    "server");
	complete &= store(result, "network", network);
	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
		if (json_object_get(config, numbers[i].key) != NULL)
			complete &= store(result, numbers[i].key,
			                  config_read_integer(config, numbers[i].key, numbers[i].min,
			                                      numbers[i].max, issues));
	complete &=
	    store(result, "reuseLease", config_read_boolean(config, "reuseLease", false, issues));
	check_lease_policy(config, issues);
	if (json_object_get(config, "leasePolicy") != NULL)
		complete &=
		    store(result, "leasePolicy", json_incref(json_object_get(config, "leasePolicy")));
	if (json_object_get(config, "env") != NULL)
		complete &= store(result, "env", read_variables(config, issues));
	config_check_unknown_keys(config, known, "", issues);
	return complete;
}

static bool
normalize_sandbox(json_t *config, json_t *result, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, "provider");
	const char *provider = "";
	size_t length = 0;

	if (json_is_string(value))
	{
		provider = json_string_value(value);
		length = json_string_length(value);
		config_js_trim(&provider, &length);
	}
	if (length == 0 || (length == 4 && memcmp(provider, "fake", 4) == 0))
		return normalize_fake(config, result, issues);
	if (length == 10 && memcmp(provider, "bubblewrap", 10) == 0)
		return normalize_bubblewrap(config, result, issues);
	return normalize_plugin_sandbox(config, provider, length, result, issues);
}

/* A string of at least one character, not trimmed. */
static json_t *
read_plugin_key(json_t *config, const char *key, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, key);
	const char *text;
	size_t length;

	if (value == NULL)
	{
		config_add_issue(issues, key, "Required");
		return NULL;
	}
	if (!config_string_bytes(value, key, &text, &length, issues))
		return NULL;
	if (length == 0)
		config_add_issue(issues, key, "String must contain at least 1 character(s)");
	return json_incref(value);
}

static bool
normalize_plugin(json_t *config, json_t *result, ConfigIssues *issues)
{
	static const char *const known[] = {"pluginKey", "driverKey", "driverConfig", NULL};
	json_t *driver_key;
	json_t *driver_config;
	bool complete;

	complete = store(result, "pluginKey", read_plugin_key(config, "pluginKey", issues));
	driver_key = read_plugin_key(config, "driverKey", issues);
	if (driver_key != NULL &&
	    !is_key(json_string_value(driver_key), json_string_length(driver_key)))
		config_add_issue(issues, "driverKey", "Environment driver " KEY_RULE);
	complete &= store(result, "driverKey", driver_key);

	driver_config = json_object_get(config, "driverConfig");
	if (driver_config == NULL)
		complete &= store(result, "driverConfig", json_object_new());
	else if (json_is_object(driver_config))
		complete &= store(result, "driverConfig", json_deep_copy(driver_config));
	else
		config_add_type_issue(issues, "driverConfig", "object", driver_config);
	config_check_unknown_keys(config, known, "", issues);
	return complete;
}

json_t *
config_normalize(const char *driver, json_t *config, ConfigIssues *issues)
{
	json_t *result;
	json_t *object;
	bool complete;

	memset(issues, 0, sizeof(*issues));
	if (strcmp(driver, "local") == 0)
		return json_is_object(config) ? json_deep_copy(config) : json_object_new();

	result = json_object_new();
	/* The seed reads anything but an object as an empty one. */
	object = json_is_object(config) ? json_incref(config) : json_object_new();
	if (result == NULL || object == NULL)
		complete = false;
	else if (strcmp(driver, "ssh") == 0)
		complete = normalize_ssh(object, result, issues);
	else if (strcmp(driver, "sandbox") == 0)
		complete = normalize_sandbox(object, result, issues);
	else if (strcmp(driver, "plugin") == 0)
		complete = normalize_plugin(object, result, issues);
	else
	{
		config_add_issue(issues, "driver", "Unsupported environment driver \"%s\".", driver);
		complete = false;
	}
	json_decref(object);

	if (complete && issues->count == 0)
		return result;
	json_decref(result);
	return NULL;
}

void
config_issue_text(const ConfigIssue *issue, char *buffer, size_t size)
{
	/* How the schema library's own texts start; they don't say which field. */
	static const char *const generic[] = {"Number must be ", "String must ", "Expected ",
	                                      "Invalid ",        "Required",     "Unrecognized key"};
	/* Both are limited by their own fields, and are UTF-8. */
	char text[sizeof(issue->path) + sizeof(issue->message) + 2];

	snprintf(text, sizeof(text), "%s", issue->message);
	for (size_t i = 0; i < sizeof(generic) / sizeof(generic[0]) && issue->path[0] != '\0'; i++)
	{
		if (strncmp(issue->message, generic[i], strlen(generic[i])) == 0)
			snprintf(text, sizeof(text), "%s: %s", issue->path, issue->message);
	}
	config_copy_utf8(buffer, size, text);
}
