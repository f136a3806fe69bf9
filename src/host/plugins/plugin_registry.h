/*
 * plugin_registry.h
 *		The plugins that are installed, and which of them has a driver.
 */
#ifndef ENVRT_HOST_PLUGIN_REGISTRY_H
#define ENVRT_HOST_PLUGIN_REGISTRY_H

#include <stdbool.h>

#include <jansson.h>

#include "plugins/plugin.h"

/* Where they are: a list of absolute directories. */
extern void plugins_set_path(const json_t *directories);

/* One more directory, for the command line. */
extern void plugins_add_directory(const char *directory);

/*
 * The directories are read in the background, since manifests can be programs.
 * Whoever needs a plugin asks first whether it is known where it would be, and
 * waits if not.
 */
typedef struct PluginsWaiter PluginsWaiter;

/* Starts to read them if they must be for this one; false: there is nothing to wait for. */
extern bool plugins_must_wait_for(const char *plugin_key, const char *driver_key);

/* The same for all of them, as they were read last; with again, they are read anew. */
extern bool plugins_must_wait(bool again);

/* Calls ready(data) once they have been read, from the event loop. */
extern PluginsWaiter *plugins_wait(void (*ready)(void *data), void *data);
extern void plugins_wait_no_more(PluginsWaiter *waiter);

/*
 * Who has a driver: the plugin of that key, or any plugin's sandbox provider
 * when the key is NULL, but none whose key is in the list `off` (NULL: any).
 * The plugin is the registry's.  NULL with *error set.
 */
extern Plugin *plugins_find(const char *plugin_key, const char *driver_key, const json_t *off,
                            HostError **error);

/* NULL when there is none of that key. */
extern Plugin *plugins_find_by_key(const char *plugin_key);

/* Those that can be used, for envrt/stats. */
extern json_t *plugins_describe(void);

/* All, with their manifests, and those that are invalid. */
extern json_t *plugins_list(void);

/* Forgets them all. */
extern void plugins_close(void);

#endif
