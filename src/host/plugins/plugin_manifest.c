/*
 * plugin_manifest.c
 *		What a plugin says about itself.
 *
 * The plugin was put there by the machine's administrator, so it is trusted to
 * run code, but its manifest may still be wrong: it is checked as a whole, and
 * one that is wrong in any of the fields used here is refused, with words that
 * say what to correct; where the seed's application has words for that, they
 * are the same.  Fields that are not used are not looked at; the whole
 * manifest goes to the worker as it is.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "plugins/plugin_manifest.h"

#define MAX_NAME 200
#define MAX_DISPLAY_NAME 100
#define MAX_DRIVERS 100
#define MAX_CAPABILITIES 200
#define CAPABILITY "environment.drivers.register"

/* A text that can stand in messages and in an environment variable. */
static bool
is_text(const json_t *value, size_t max)
{
	const char *text = json_string_value(value);

	if (text == NULL || text[0] == '\0' || strlen(text) != json_string_length(value) ||
	    strlen(text) > max)
		return false;
	for (; *text != '\0'; text++)
		if (iscntrl((unsigned char) *text))
			return false;
	return true;
}

/* A name that can stand in a file's name as well. */
static bool
plugin_manifest_is_key(const json_t *value)
{
	const char *text = json_string_value(value);

	if (!is_text(value, MAX_NAME) || strchr("._-", *text) != NULL)
		return false;
	return text[strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789._-")] == '\0';
}

bool
plugin_path_stays_inside(const char *path)
{
	if (path[0] == '/' || path[0] == '\0')
		return false;
	while (*path != '\0')
	{
		size_t length = strcspn(path, "/");

		if (length == 2 && strncmp(path, "..", 2) == 0)
			return false;
		path += length;
		path += strspn(path, "/");
	}
	return true;
}

bool
plugin_path_is_for_node(const char *path)
{
	static const char *const endings[] = {".js", ".mjs", ".cjs"};

	for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++)
	{
		size_t length = strlen(endings[i]);

		if (strlen(path) > length && strcmp(path + strlen(path) - length, endings[i]) == 0)
			return true;
	}
	return false;
}

bool
plugin_manifest_has_capability(const PluginManifest *manifest, const char *capability)
{
	size_t index;
	json_t *value;

	json_array_foreach(json_object_get(manifest->json, "capabilities"), index, value)
	{
		if (json_is_string(value) && strcmp(json_string_value(value), capability) == 0)
			return true;
	}
	return false;
}

/* All return what is wrong, to be freed, or NULL. */

static char *
check_capabilities(const PluginManifest *manifest)
{
	const json_t *list = json_object_get(manifest->json, "capabilities");
	size_t index;
	json_t *value;

	if (list == NULL || json_is_null(list))
		return NULL;
	if (!json_is_array(list) || json_array_size(list) > MAX_CAPABILITIES)
		return xformat("capabilities is no list of at most %d texts", MAX_CAPABILITIES);
	json_array_foreach((json_t *) list, index, value)
	{
		if (!is_text(value, MAX_NAME))
			return xformat("capabilities is no list of at most %d texts", MAX_CAPABILITIES);
	}
	return NULL;
}

static char *
take_driver(PluginManifest *manifest, const json_t *entry)
{
	const json_t *key = json_object_get(entry, "driverKey");
	const json_t *accepts = json_object_get(entry, "acceptsLeaseId");
	const json_t *schema = json_object_get(entry, "configSchema");
	const json_t *name = json_object_get(entry, "displayName");
	const json_t *kind_value = json_object_get(entry, "kind");
	const char *kind = kind_value == NULL ? "environment_driver" : json_string_value(kind_value);
	PluginDriver *driver = &manifest->drivers[manifest->driver_count];

	if (!json_is_object(entry) || !json_is_string(key) || json_string_length(key) == 0)
		return xformat("an environment driver has no driverKey");
	if (!plugin_manifest_is_key(key))
		return xformat("Environment driver key must start with a lowercase alphanumeric and "
		               "contain only lowercase letters, digits, dots, hyphens, or underscores");
	driver->key = json_string_value(key);
	if (kind == NULL ||
	    (strcmp(kind, "sandbox_provider") != 0 && strcmp(kind, "environment_driver") != 0))
		return xformat("the kind of environment driver \"%s\" is neither \"sandbox_provider\" nor "
		               "\"environment_driver\"",
		               driver->key);
	if (name != NULL && !is_text(name, MAX_DISPLAY_NAME))
		return xformat("displayName of environment driver \"%s\" is no text of at most %d bytes",
		               driver->key, MAX_DISPLAY_NAME);
	if (schema != NULL && !json_is_object(schema))
		return xformat("configSchema of environment driver \"%s\" is no object", driver->key);
	if (accepts != NULL && !json_is_boolean(accepts))
		return xformat("acceptsLeaseId of environment driver \"%s\" is no boolean", driver->key);
	if (plugin_manifest_driver(manifest, driver->key) != NULL)
		return xformat("Duplicate environment driver keys: %s", driver->key);
	driver->sandbox_provider = strcmp(kind, "sandbox_provider") == 0;
	driver->accepts_lease_id = json_is_true(accepts);
	manifest->driver_count++;
	return NULL;
}

static char *
take_drivers(PluginManifest *manifest)
{
	const json_t *list = json_object_get(manifest->json, "environmentDrivers");
	char *problem = NULL;

	if (list == NULL || json_is_null(list))
		return NULL;
	if (!json_is_array(list))
		return xformat("environmentDrivers is no list");
	if (json_array_size(list) > MAX_DRIVERS)
		return xformat("environmentDrivers has more than %d entries", MAX_DRIVERS);
	if (json_array_size(list) > 0 && !plugin_manifest_has_capability(manifest, CAPABILITY))
		return xformat("Capability '%s' is required when environmentDrivers are declared",
		               CAPABILITY);
	manifest->drivers = xcalloc(json_array_size(list) + 1, sizeof *manifest->drivers);
	for (size_t i = 0; problem == NULL && i < json_array_size(list); i++)
		problem = take_driver(manifest, json_array_get(list, i));
	return problem;
}

static char *
take_names(PluginManifest *manifest)
{
	const json_t *id = json_object_get(manifest->json, "id");
	const json_t *version = json_object_get(manifest->json, "version");
	const json_t *name = json_object_get(manifest->json, "displayName");
	const json_t *api = json_object_get(manifest->json, "apiVersion");

	if (!json_is_string(id) || json_string_length(id) == 0)
		return xformat("id is missing or no text");
	if (!plugin_manifest_is_key(id))
		return xformat("Plugin id must start with a lowercase alphanumeric and contain only "
		               "lowercase letters, digits, dots, hyphens, or underscores");
	manifest->id = json_string_value(id);
	if (api != NULL && (!json_is_integer(api) || json_integer_value(api) != 1))
		return xformat("apiVersion is not 1");
	if (!is_text(version, MAX_NAME))
		return xformat("version is missing or no valid text");
	manifest->version = json_string_value(version);
	if (name != NULL && !is_text(name, MAX_DISPLAY_NAME))
		return xformat("displayName is no text of at most %d bytes", MAX_DISPLAY_NAME);
	manifest->display_name = name ? json_string_value(name) : manifest->id;
	return NULL;
}

static char *
take_all(PluginManifest *manifest, const char *text, size_t length)
{
	const json_t *worker;
	json_error_t error;
	char *problem;

	if (length > PLUGIN_MANIFEST_MAX)
		return xformat("it has more than %d bytes", PLUGIN_MANIFEST_MAX);
	manifest->json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
	if (manifest->json == NULL)
		return xformat("line %d: %s", error.line, error.text);
	if (!json_is_object(manifest->json))
		return xformat("it is no object");
	problem = take_names(manifest);
	if (problem == NULL)
		problem = check_capabilities(manifest);
	if (problem != NULL)
		return problem;
	worker = json_object_get(json_object_get(manifest->json, "entrypoints"), "worker");
	if (!is_text(worker, MAX_NAME))
		return xformat("entrypoints.worker is missing or no valid path");
	if (!plugin_path_stays_inside(json_string_value(worker)))
		return xformat("entrypoints.worker must be a path within the folder");
	manifest->worker = xformat("%s/%s", manifest->folder, json_string_value(worker));
	manifest->node = plugin_path_is_for_node(manifest->worker);
	return take_drivers(manifest);
}

PluginManifest *
plugin_manifest_parse(const char *folder, const char *text, size_t length, char **problem,
                      char **id)
{
	PluginManifest *manifest = xcalloc(1, sizeof *manifest);

	*id = NULL;
	manifest->folder = xstrdup(folder);
	*problem = take_all(manifest, text, length);
	if (*problem == NULL)
		return manifest;
	if (manifest->id != NULL)
		*id = xstrdup(manifest->id);
	plugin_manifest_free(manifest);
	return NULL;
}

void
plugin_manifest_free(PluginManifest *manifest)
{
	free(manifest->folder);
	free(manifest->worker);
	free(manifest->stamp);
	free(manifest->drivers);
	json_decref(manifest->json);
	free(manifest);
}

const PluginDriver *
plugin_manifest_driver(const PluginManifest *manifest, const char *key)
{
	for (size_t i = 0; i < manifest->driver_count; i++)
		if (strcmp(manifest->drivers[i].key, key) == 0)
			return &manifest->drivers[i];
	return NULL;
}
