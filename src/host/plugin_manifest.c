/*
 * plugin_manifest.c
 *		What a plugin's folder says about the plugin.
 *
 * The folder was put there by the machine's administrator, so it is trusted to
 * run code, but its manifest may still be wrong: it is checked as a whole, and
 * one that is wrong in any of the fields used here is refused, with words that
 * say what to correct.  Fields that are not used are not looked at; the whole
 * manifest goes to the worker as it is.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "plugin_manifest.h"

#define MAX_BYTES (1024 * 1024)
#define MAX_NAME 200
#define CAPABILITY "environment.drivers.register"

/* A name that can stand in messages and in an environment variable. */
static bool
is_name(const json_t *value)
{
	const char *text = json_string_value(value);

	if (text == NULL || text[0] == '\0' || strlen(text) != json_string_length(value) ||
	    strlen(text) > MAX_NAME)
		return false;
	for (; *text != '\0'; text++)
		if (iscntrl((unsigned char) *text))
			return false;
	return true;
}

/* Whether a path stays within the folder that it starts from. */
static bool
stays_inside(const char *path)
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

static bool
is_for_node(const char *path)
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

static bool
has_capability(const json_t *capabilities)
{
	size_t index;
	json_t *value;

	json_array_foreach((json_t *) capabilities, index, value)
	{
		if (json_is_string(value) && strcmp(json_string_value(value), CAPABILITY) == 0)
			return true;
	}
	return false;
}

/* All return what is wrong, to be freed, or NULL. */

static char *
take_driver(PluginManifest *manifest, const json_t *entry)
{
	const json_t *key = json_object_get(entry, "driverKey");
	const json_t *accepts = json_object_get(entry, "acceptsLeaseId");
	const char *kind = json_string_value(json_object_get(entry, "kind"));
	PluginDriver *driver = &manifest->drivers[manifest->driver_count];

	if (!is_name(key))
		return xformat("an environment driver has no valid driverKey");
	driver->key = json_string_value(key);
	if (kind == NULL ||
	    (strcmp(kind, "sandbox_provider") != 0 && strcmp(kind, "environment_driver") != 0))
		return xformat("the kind of environment driver \"%s\" is neither \"sandbox_provider\" nor "
		               "\"environment_driver\"",
		               driver->key);
	if (accepts != NULL && !json_is_boolean(accepts))
		return xformat("acceptsLeaseId of environment driver \"%s\" is no boolean", driver->key);
	if (plugin_manifest_driver(manifest, driver->key) != NULL)
		return xformat("environment driver \"%s\" is declared twice", driver->key);
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
	if (json_array_size(list) > 0 &&
	    !has_capability(json_object_get(manifest->json, "capabilities")))
		return xformat("it declares environment drivers without the capability \"%s\"", CAPABILITY);
	manifest->drivers = xcalloc(json_array_size(list) + 1, sizeof *manifest->drivers);
	for (size_t i = 0; problem == NULL && i < json_array_size(list); i++)
		problem = take_driver(manifest, json_array_get(list, i));
	return problem;
}

static char *
take_all(PluginManifest *manifest, const char *text, size_t length)
{
	const json_t *id;
	const json_t *version;
	const json_t *worker;
	json_error_t error;

	manifest->json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
	if (manifest->json == NULL)
		return xformat("line %d: %s", error.line, error.text);
	if (!json_is_object(manifest->json))
		return xformat("it is no object");
	id = json_object_get(manifest->json, "id");
	if (!is_name(id))
		return xformat("id is missing or no valid name");
	manifest->id = json_string_value(id);
	version = json_object_get(manifest->json, "version");
	if (!is_name(version))
		return xformat("version is missing or no valid text");
	manifest->version = json_string_value(version);
	worker = json_object_get(json_object_get(manifest->json, "entrypoints"), "worker");
	if (!is_name(worker))
		return xformat("entrypoints.worker is missing or no valid path");
	if (!stays_inside(json_string_value(worker)))
		return xformat("entrypoints.worker must be a path within the folder");
	manifest->worker = xformat("%s/%s", manifest->folder, json_string_value(worker));
	manifest->node = is_for_node(manifest->worker);
	return take_drivers(manifest);
}

PluginManifest *
plugin_manifest_parse(const char *folder, const char *text, size_t length, char **problem)
{
	PluginManifest *manifest = xcalloc(1, sizeof *manifest);

	manifest->folder = xstrdup(folder);
	*problem = take_all(manifest, text, length);
	if (*problem == NULL)
		return manifest;
	plugin_manifest_free(manifest);
	return NULL;
}

/* The worker's file must be there, so that a wrong name shows at once. */
static char *
check_worker(const PluginManifest *manifest)
{
	struct stat about;

	if (stat(manifest->worker, &about) < 0)
		return xformat("its worker %s: %s", manifest->worker, strerror(errno));
	if (!S_ISREG(about.st_mode))
		return xformat("its worker %s is no file", manifest->worker);
	if (access(manifest->worker, manifest->node ? R_OK : X_OK) < 0)
		return xformat("its worker %s is not %s", manifest->worker,
		               manifest->node ? "readable" : "executable");
	return NULL;
}

static char *
read_file(const char *path, Bytes *text)
{
	/* Nothing that a folder can hold may block the host. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat about;
	char buffer[16384];
	ssize_t count = 0;
	char *problem = NULL;

	if (fd < 0)
		return xformat("%s", strerror(errno));
	if (fstat(fd, &about) < 0 || !S_ISREG(about.st_mode))
		problem = xformat("it is no file");
	while (problem == NULL && text->length <= MAX_BYTES &&
	       (count = read(fd, buffer, sizeof buffer)) > 0)
		bytes_append(text, buffer, (size_t) count);
	if (problem == NULL && count < 0)
		problem = xformat("%s", strerror(errno));
	if (problem == NULL && text->length > MAX_BYTES)
		problem = xformat("it has more than %d bytes", MAX_BYTES);
	close(fd);
	return problem;
}

PluginManifest *
plugin_manifest_read(const char *folder, char **problem)
{
	char *path = xformat("%s/%s", folder, PLUGIN_MANIFEST_NAME);
	PluginManifest *manifest = NULL;
	Bytes text = {0};

	*problem = NULL;
	if (access(path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR))
	{
		*problem = read_file(path, &text);
		if (*problem == NULL)
			manifest =
			    plugin_manifest_parse(folder, text.data ? text.data : "", text.length, problem);
		if (manifest != NULL && (*problem = check_worker(manifest)) != NULL)
		{
			plugin_manifest_free(manifest);
			manifest = NULL;
		}
	}
	bytes_free(&text);
	free(path);
	return manifest;
}

void
plugin_manifest_free(PluginManifest *manifest)
{
	free(manifest->folder);
	free(manifest->worker);
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
