/*
 * plugin_registry.c
 *		The plugins that are installed, and which of them has a driver.
 *
 * The directories of the path are read when a plugin is first needed after
 * they were set, and again when none was found, so that a plugin that has just
 * been installed works without anybody being told; but not more often than
 * once a second, since any caller can ask for what does not exist.
 *
 * A reading makes a new list, folder by folder in the order of their paths.
 * It takes no time, unless a manifest is a program that has to be run: then it
 * goes on when that has ended, and who needs a plugin that is not installed
 * waits; as does everybody when the path has changed.  What the program
 * said, or that it failed, is kept with the folder, so that it is run again only
 * when one of the files has changed, or everything is to be read anew.
 *
 * When the list is complete it takes the old one's place.  A plugin whose
 * folder, manifest and worker are as they were is taken over with its process;
 * one that has gone or changed is let go: it answers what it has been asked,
 * and then its worker ends.  What is wrong with a folder is logged when it is
 * new, and stays in the list for people to see.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "plugins/manifest_program.h"
#include "base/memory.h"
#include "plugins/plugin_folder.h"
#include "plugins/plugin_registry.h"
#include "shared/protocol.h"
#include "base/timer.h"

#define RESCAN_MS 1000
#define MAX_SHOWN 9000

/* All manifests of a list, which is one line, of limited size, with room for the rest. */
#define MAX_MANIFESTS (ENVRT_MAX_LINE / 2)

/* A folder with a plugin, good or bad. */
typedef struct PluginEntry
{
	char *folder;
	Plugin *plugin; /* NULL: invalid */
	char *key;      /* of an invalid one, if it could be read */
	char *problem;
	size_t distinct; /* so many bytes of the problem are the same each time */
	char *stamp;     /* what the program's text was made of */
	char *text;      /* what the program said, or NULL */
	bool failed;     /* the program said nothing of use */
} PluginEntry;

typedef struct PluginList
{
	PluginEntry *entries; /* by folder */
	size_t count;
} PluginList;

/* A directory of the path, or a folder that is still to be read. */
typedef struct Place
{
	char *root;
	char *path;
} Place;

struct PluginsWaiter
{
	PluginsWaiter *next;
	PluginsWaiter *previous;
	void (*ready)(void *data);
	void *data;
	uint64_t reading; /* whose end it waits for */
};

static char **directories;
static size_t directory_count;
static PluginList installed;
static bool stale = true;
static bool path_changed; /* what is installed may not be meant any more */
static uint64_t read_at;

/* The reading under way. */
static struct
{
	bool active;
	bool anew; /* programs are run even if nothing has changed */
	PluginList list;
	Place *places;
	size_t count;
	size_t next;
	PluginFolder *folder; /* whose program runs */
	ManifestProgram *program;
} reading;
static bool read_again; /* when it is done */
static uint64_t readings_begun;
static uint64_t readings_done;
static Timer *tell_timer;
static PluginsWaiter *first_waiter;

static void plugin_registry_read_on(void);

/*
 * Lists
 */

static void
entry_clear(PluginEntry *entry)
{
	if (entry->plugin != NULL)
		plugin_release(entry->plugin);
	free(entry->folder);
	free(entry->key);
	free(entry->problem);
	free(entry->stamp);
	free(entry->text);
}

static void
list_clear(PluginList *list)
{
	for (size_t i = 0; i < list->count; i++)
		entry_clear(&list->entries[i]);
	free(list->entries);
	memset(list, 0, sizeof *list);
}

static PluginEntry *
find_by_folder(const PluginList *list, const char *folder)
{
	for (size_t i = 0; i < list->count; i++)
		if (strcmp(list->entries[i].folder, folder) == 0)
			return &list->entries[i];
	return NULL;
}

static Plugin *
find_by_id(const PluginList *list, const char *id)
{
	for (size_t i = 0; i < list->count; i++)
	{
		Plugin *plugin = list->entries[i].plugin;

		if (plugin != NULL && strcmp(plugin_manifest(plugin)->id, id) == 0)
			return plugin;
	}
	return NULL;
}

/*
 * Reading
 */

static int
compare_places(const void *a, const void *b)
{
	return strcmp(((const Place *) a)->path, ((const Place *) b)->path);
}

static void
list_places(void)
{
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
			reading.places = xrealloc(reading.places, (reading.count + 1) * sizeof *reading.places);
			reading.places[reading.count++] = (Place){
			    .root = xstrdup(directories[i]),
			    .path = xformat("%s/%s", directories[i], entry->d_name),
			};
		}
		closedir(directory);
	}
	if (reading.count > 0)
		qsort(reading.places, reading.count, sizeof *reading.places, compare_places);
}

/* Takes the manifest. */
static Plugin *
take_over_or_make(PluginManifest *manifest)
{
	Plugin *known = find_by_id(&installed, manifest->id);
	const PluginManifest *old = known ? plugin_manifest(known) : NULL;

	if (old != NULL && strcmp(old->folder, manifest->folder) == 0 &&
	    strcmp(old->worker, manifest->worker) == 0 && strcmp(old->stamp, manifest->stamp) == 0 &&
	    json_equal(old->json, manifest->json))
	{
		plugin_manifest_free(manifest);
		return plugin_keep(known);
	}
	return plugin_new(manifest);
}

static PluginEntry *
plugin_registry_add_entry(const PluginFolder *folder)
{
	PluginList *list = &reading.list;
	PluginEntry *entry;

	list->entries = xrealloc(list->entries, (list->count + 1) * sizeof *list->entries);
	entry = &list->entries[list->count++];
	*entry = (PluginEntry){
	    .folder = xstrdup(folder->path),
	    .stamp = folder->stamp ? xstrdup(folder->stamp) : NULL,
	};
	return entry;
}

/* Takes the problem and the key; words, which differ from time to time, go with the problem. */
static void
add_invalid(const PluginFolder *folder, char *problem, const char *words, char *key)
{
	const PluginEntry *before = find_by_folder(&installed, folder->path);
	PluginEntry *entry = plugin_registry_add_entry(folder);

	entry->distinct = strlen(problem);
	entry->problem = problem;
	if (words[0] != '\0')
	{
		entry->problem = xformat("%s: %s", problem, words);
		free(problem);
	}
	entry->key = key;
	if (before == NULL || before->problem == NULL || before->distinct != entry->distinct ||
	    strncmp(before->problem, entry->problem, entry->distinct) != 0)
		log_message(LOG_WARNING, "the plugin in %s is left out: %s", folder->path, entry->problem);
}

/* A manifest as text, of a file or of a program. */
static void
plugin_registry_take_text(const PluginFolder *folder, const char *text, size_t length)
{
	char *problem = NULL;
	char *id = NULL;
	PluginManifest *manifest = plugin_folder_manifest(folder, text, length, &problem, &id);
	const Plugin *rival;

	if (manifest == NULL)
	{
		add_invalid(folder, problem, "", id);
		return;
	}
	rival = find_by_id(&reading.list, manifest->id);
	if (rival != NULL)
	{
		add_invalid(
		    folder,
		    xformat("%s has the same id \"%s\"", plugin_manifest(rival)->folder, manifest->id), "",
		    xstrdup(manifest->id));
		plugin_manifest_free(manifest);
		return;
	}
	plugin_registry_add_entry(folder)->plugin = take_over_or_make(manifest);
}

static void
program_ended(void *data, const char *text, size_t length, const char *problem, const char *words)
{
	PluginFolder *folder = reading.folder;
	PluginEntry *entry;

	(void) data;
	reading.program = NULL;
	reading.folder = NULL;
	if (text == NULL)
	{
		add_invalid(folder, xstrdup(problem), words, NULL);
		reading.list.entries[reading.list.count - 1].failed = true;
	}
	else
	{
		plugin_registry_take_text(folder, text, length);
		entry = &reading.list.entries[reading.list.count - 1];
		entry->text = xstrndup(text, length);
	}
	plugin_folder_free(folder);
	plugin_registry_read_on();
}

/* True when it goes on later. */
static bool
run_program(PluginFolder *folder)
{
	const PluginEntry *before = find_by_folder(&installed, folder->path);
	bool same = !reading.anew && before != NULL && before->stamp != NULL &&
	            strcmp(before->stamp, folder->stamp) == 0;

	if (same && before->failed)
	{
		PluginEntry *entry = plugin_registry_add_entry(folder);

		entry->problem = xstrdup(before->problem);
		entry->distinct = before->distinct;
		entry->failed = true;
		return false;
	}
	if (same && before->text != NULL)
	{
		plugin_registry_take_text(folder, before->text, strlen(before->text));
		reading.list.entries[reading.list.count - 1].text = xstrdup(before->text);
		return false;
	}
	reading.folder = folder;
	reading.program = manifest_program_start(folder->path, folder->script, program_ended, NULL);
	return true;
}

static void
free_places(void)
{
	for (size_t i = 0; i < reading.count; i++)
	{
		free(reading.places[i].root);
		free(reading.places[i].path);
	}
	free(reading.places);
	reading.places = NULL;
	reading.count = reading.next = 0;
}

static void
tell_waiters(void *data)
{
	(void) data;
	while (first_waiter != NULL && first_waiter->reading <= readings_done)
	{
		PluginsWaiter *waiter = first_waiter;
		void (*ready)(void *) = waiter->ready;
		void *its_data = waiter->data;

		plugins_wait_no_more(waiter);
		ready(its_data);
	}
}

static void
read_start(bool anew)
{
	if (reading.active)
	{
		read_again = true;
		reading.anew = reading.anew || anew;
		return;
	}
	reading.active = true;
	reading.anew = anew;
	readings_begun++;
	stale = false;
	list_places();
	plugin_registry_read_on();
}

static void
plugin_registry_read_done(void)
{
	PluginList old = installed;
	bool anew = reading.anew;

	free_places();
	installed = reading.list;
	memset(&reading.list, 0, sizeof reading.list);
	list_clear(&old);
	reading.active = false;
	readings_done = readings_begun;
	read_at = now_ms();
	if (!read_again)
		path_changed = false;
	/* Also when the next reading begins: they don't wait for that one. */
	timer_start(&tell_timer, 0, tell_waiters, NULL);
	if (read_again)
	{
		read_again = false;
		read_start(anew);
	}
}

static void
plugin_registry_read_on(void)
{
	while (reading.next < reading.count)
	{
		const Place *place = &reading.places[reading.next++];
		PluginFolder *folder = plugin_folder_look(place->root, place->path);

		switch (folder->kind)
		{
			case FOLDER_EMPTY:
				break;
			case FOLDER_BAD:
				add_invalid(folder, xstrdup(folder->problem), "", NULL);
				break;
			case FOLDER_TEXT:
				plugin_registry_take_text(folder, folder->text.data ? folder->text.data : "",
				                          folder->text.length);
				break;
			case FOLDER_PROGRAM:
				if (run_program(folder))
					return;
				break;
		}
		plugin_folder_free(folder);
	}
	plugin_registry_read_done();
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
	stale = path_changed = true;
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
	stale = path_changed = true;
	/* Nobody may come to need one, so those that are gone must be let go here. */
	if (installed.count > 0 || reading.active)
		read_start(false);
}

/*
 * Waiting
 */

static bool
is_among(const json_t *keys, const char *key)
{
	size_t index;
	json_t *value;

	json_array_foreach((json_t *) keys, index, value)
	{
		if (json_is_string(value) && strcmp(json_string_value(value), key) == 0)
			return true;
	}
	return false;
}

/* One that is among those `off` is not there. */
static Plugin *
plugin_registry_find(const char *plugin_key, const char *driver_key, const json_t *off)
{
	for (size_t i = 0; i < installed.count; i++)
	{
		Plugin *plugin = installed.entries[i].plugin;
		const PluginManifest *manifest = plugin ? plugin_manifest(plugin) : NULL;
		const PluginDriver *driver = manifest ? plugin_manifest_driver(manifest, driver_key) : NULL;

		if (driver != NULL && !is_among(off, manifest->id) &&
		    (plugin_key != NULL ? strcmp(manifest->id, plugin_key) == 0 : driver->sandbox_provider))
			return plugin;
	}
	return NULL;
}

bool
plugins_must_wait_for(const char *plugin_key, const char *driver_key)
{
	bool found = plugin_registry_find(plugin_key, driver_key, NULL) != NULL;

	if (!reading.active &&
	    (stale || (directory_count > 0 && now_ms() >= read_at + RESCAN_MS && !found)))
		read_start(false);
	/* A slow manifest of one plugin must not hold up the others. */
	return reading.active && (!found || path_changed);
}

bool
plugins_must_wait(bool again)
{
	if (again || (stale && !reading.active))
		read_start(again);
	/* Until more is known, what was installed is. */
	return reading.active && (again || path_changed);
}

PluginsWaiter *
plugins_wait(void (*ready)(void *data), void *data)
{
	PluginsWaiter *waiter = xcalloc(1, sizeof *waiter);
	PluginsWaiter *last = first_waiter;

	waiter->ready = ready;
	waiter->data = data;
	waiter->reading = readings_begun + (read_again ? 1 : 0);
	/* Who came first is told first. */
	while (last != NULL && last->next != NULL)
		last = last->next;
	waiter->previous = last;
	if (last != NULL)
		last->next = waiter;
	else
		first_waiter = waiter;
	return waiter;
}

void
plugins_wait_no_more(PluginsWaiter *waiter)
{
	if (waiter->previous != NULL)
		waiter->previous->next = waiter->next;
	else
		first_waiter = waiter->next;
	if (waiter->next != NULL)
		waiter->next->previous = waiter->previous;
	free(waiter);
}

/*
 * Looking up
 */

Plugin *
plugins_find(const char *plugin_key, const char *driver_key, const json_t *off, HostError **error)
{
	Plugin *plugin = plugin_registry_find(plugin_key, driver_key, off);

	if (plugin != NULL)
		return plugin;
	if (plugin_key == NULL)
		*error = error_new("42704",
		                   "Sandbox provider \"%s\" is not registered as a built-in provider and "
		                   "no matching plugin is available.",
		                   driver_key);
	else
	{
		bool known = find_by_id(&installed, plugin_key) != NULL;

		*error = error_new("42704",
		                   known ? "Plugin \"%s\" does not declare environment driver \"%s\"."
		                         : "Plugin environment driver \"%s:%s\" is not ready.",
		                   plugin_key, driver_key);
		if (!known)
			error_detail(*error, "No plugin of that key is installed.");
	}
	(*error)->code = RPC_METHOD_NOT_FOUND;
	return NULL;
}

Plugin *
plugins_find_by_key(const char *plugin_key)
{
	return find_by_id(&installed, plugin_key);
}

/*
 * Describing
 */

json_t *
plugins_describe(void)
{
	json_t *rows = json_array();

	for (size_t i = 0; i < installed.count; i++)
		if (installed.entries[i].plugin != NULL)
			json_array_append_new(rows, plugin_describe(installed.entries[i].plugin));
	return rows;
}

static json_t *
describe_invalid(const PluginEntry *entry)
{
	/* Names of files can be anything. */
	char *folder = clean_text(entry->folder, strlen(entry->folder), MAX_SHOWN, false);
	char *problem = clean_text(entry->problem, strlen(entry->problem), MAX_SHOWN, true);
	json_t *row = json_pack("{s:s?, s:n, s:n, s:s, s:s, s:n, s:i, s:s, s:i, s:i, s:i, s:n, s:n}",
	                        "key", entry->key, "version", "displayName", "path", folder, "state",
	                        "invalid", "pid", "restarts", 0, "lastError", problem, "calls", 0,
	                        "failedCalls", 0, "activeCalls", 0, "startedAt", "manifest");

	free(folder);
	free(problem);
	return row;
}

json_t *
plugins_list(void)
{
	json_t *rows = json_array();
	size_t size = 0;

	for (size_t i = 0; i < installed.count; i++)
	{
		const PluginEntry *entry = &installed.entries[i];
		json_t *row;

		if (entry->plugin == NULL)
			row = describe_invalid(entry);
		else
		{
			json_t *manifest = plugin_manifest(entry->plugin)->json;

			row = plugin_describe(entry->plugin);
			size += json_dumpb(manifest, NULL, 0, JSON_COMPACT);
			if (size <= MAX_MANIFESTS)
				json_object_set(row, "manifest", manifest);
			else
				json_object_set_new(row, "manifest", json_null());
		}
		json_array_append_new(rows, row);
	}
	return rows;
}

void
plugins_close(void)
{
	timer_stop(&tell_timer);
	while (first_waiter != NULL)
		plugins_wait_no_more(first_waiter);
	if (reading.program != NULL)
		manifest_program_forget(reading.program);
	if (reading.folder != NULL)
		plugin_folder_free(reading.folder);
	free_places();
	list_clear(&reading.list);
	list_clear(&installed);
	clear_path();
}
