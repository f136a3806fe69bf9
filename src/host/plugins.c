/*
 * plugins.c
 *		The plugins that are installed, and which of them has a driver.
 *
 * The directories of the path are read when a plugin is first needed after
 * they were set, and again when none was found, so that a plugin that has just
 * been installed works without anybody being told; but not more often than
 * once a second, since any caller can ask for what does not exist.
 *
 * A scan makes a new list.  A plugin whose folder and manifest are as they
 * were is taken over with its worker; one that has gone or changed is let go:
 * it answers what it has been asked, and then its worker ends.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "memory.h"
#include "plugins.h"
#include "protocol.h"
#include "timer.h"

#define RESCAN_MS 1000

typedef struct PluginList
{
	Plugin **plugins; /* by folder */
	size_t count;
} PluginList;

static char **directories;
static size_t directory_count;
static PluginList installed;
static bool stale = true;
static uint64_t scanned_at;

/*
 * Scanning
 */

static int
compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* The folders in all directories, sorted. */
static char **
list_folders(size_t *count)
{
	char **folders = NULL;

	*count = 0;
	for (size_t i = 0; i < directory_count; i++)
	{
		DIR *directory = opendir(directories[i]);
		const struct dirent *entry;

		if (directory == NULL)
		{
			log_message(LOG_WARNING, "could not read the plugin directory %s: %s", directories[i],
			            strerror(errno));
			continue;
		}
		while ((entry = readdir(directory)) != NULL)
		{
			if (entry->d_name[0] == '.')
				continue;
			folders = xrealloc(folders, (*count + 1) * sizeof *folders);
			folders[(*count)++] = xformat("%s/%s", directories[i], entry->d_name);
		}
		closedir(directory);
	}
	if (*count > 0)
		qsort(folders, *count, sizeof *folders, compare_texts);
	return folders;
}

static Plugin *
find_by_id(const PluginList *list, const char *id)
{
	for (size_t i = 0; i < list->count; i++)
		if (strcmp(plugin_manifest(list->plugins[i])->id, id) == 0)
			return list->plugins[i];
	return NULL;
}

/* Takes the manifest. */
static Plugin *
take_over_or_make(const PluginList *old, PluginManifest *manifest)
{
	Plugin *known = find_by_id(old, manifest->id);

	if (known != NULL && strcmp(plugin_manifest(known)->folder, manifest->folder) == 0 &&
	    json_equal(plugin_manifest(known)->json, manifest->json))
	{
		plugin_manifest_free(manifest);
		return plugin_keep(known);
	}
	return plugin_new(manifest);
}

static void
take_folder(PluginList *list, const PluginList *old, const char *folder)
{
	char *problem = NULL;
	PluginManifest *manifest = plugin_manifest_read(folder, &problem);
	const Plugin *rival;

	if (manifest == NULL)
	{
		if (problem != NULL)
			log_message(LOG_WARNING, "the plugin in %s is left out: %s", folder, problem);
		free(problem);
		return;
	}
	rival = find_by_id(list, manifest->id);
	if (rival != NULL)
	{
		log_message(LOG_WARNING, "the plugin in %s is left out: %s has the same id \"%s\"", folder,
		            plugin_manifest(rival)->folder, manifest->id);
		plugin_manifest_free(manifest);
		return;
	}
	list->plugins = xrealloc(list->plugins, (list->count + 1) * sizeof *list->plugins);
	list->plugins[list->count++] = take_over_or_make(old, manifest);
}

static void
list_clear(PluginList *list)
{
	for (size_t i = 0; i < list->count; i++)
		plugin_release(list->plugins[i]);
	free(list->plugins);
	memset(list, 0, sizeof *list);
}

static void
scan(void)
{
	PluginList old = installed;
	size_t count;
	char **folders = list_folders(&count);

	memset(&installed, 0, sizeof installed);
	for (size_t i = 0; i < count; i++)
	{
		take_folder(&installed, &old, folders[i]);
		free(folders[i]);
	}
	free(folders);
	list_clear(&old);
	stale = false;
	scanned_at = now_ms();
}

/*
 * The path
 */

static void
clear_path(void)
{
	for (size_t i = 0; i < directory_count; i++)
		free(directories[i]);
	free(directories);
	directories = NULL;
	directory_count = 0;
}

void
plugins_add_directory(const char *directory)
{
	if (directory[0] != '/')
	{
		log_message(LOG_WARNING, "the plugin directory \"%s\" is left out: no absolute path",
		            directory);
		return;
	}
	directories = xrealloc(directories, (directory_count + 1) * sizeof *directories);
	directories[directory_count++] = xstrdup(directory);
	stale = true;
}

void
plugins_set_path(const json_t *list)
{
	size_t index;
	json_t *value;

	clear_path();
	json_array_foreach((json_t *) list, index, value)
	{
		if (json_is_string(value))
			plugins_add_directory(json_string_value(value));
		else
			log_message(LOG_WARNING, "an element of the plugin path is no text: left out");
	}
	stale = true;
	/* Nobody may come to need one, so those that are gone must be let go here. */
	if (installed.count > 0)
		scan();
}

/*
 * Looking up
 */

static Plugin *
find(const char *plugin_key, const char *driver_key)
{
	for (size_t i = 0; i < installed.count; i++)
	{
		const PluginManifest *manifest = plugin_manifest(installed.plugins[i]);
		const PluginDriver *driver = plugin_manifest_driver(manifest, driver_key);

		if (driver != NULL &&
		    (plugin_key != NULL ? strcmp(manifest->id, plugin_key) == 0 : driver->sandbox_provider))
			return installed.plugins[i];
	}
	return NULL;
}

Plugin *
plugins_find(const char *plugin_key, const char *driver_key, HostError **error)
{
	Plugin *plugin;

	if (stale)
		scan();
	plugin = find(plugin_key, driver_key);
	if (plugin == NULL && directory_count > 0 && now_ms() >= scanned_at + RESCAN_MS)
	{
		scan();
		plugin = find(plugin_key, driver_key);
	}
	if (plugin != NULL)
		return plugin;
	if (plugin_key == NULL)
		*error = error_new("42704",
		                   "Sandbox provider \"%s\" is not registered as a built-in provider and "
		                   "no matching plugin is available.",
		                   driver_key);
	else
	{
		*error = error_new("42704", "Plugin \"%s\" does not declare environment driver \"%s\".",
		                   plugin_key, driver_key);
		if (find_by_id(&installed, plugin_key) == NULL)
			error_detail(*error, "No plugin of that key is installed.");
	}
	(*error)->code = RPC_METHOD_NOT_FOUND;
	return NULL;
}

json_t *
plugins_describe(void)
{
	json_t *rows = json_array();

	for (size_t i = 0; i < installed.count; i++)
		json_array_append_new(rows, plugin_describe(installed.plugins[i]));
	return rows;
}

void
plugins_close(void)
{
	list_clear(&installed);
	clear_path();
}
