/*
 * plugins.h
 *		The plugins that are installed, and which of them has a driver.
 */
#ifndef ENVRT_HOST_PLUGINS_H
#define ENVRT_HOST_PLUGINS_H

#include <jansson.h>

#include "plugin.h"

/* Where they are: a list of absolute directories. */
extern void plugins_set_path(const json_t *directories);

/* One more directory, for the command line. */
extern void plugins_add_directory(const char *directory);

/*
 * Who has a driver: the plugin of that key, or any plugin's sandbox provider
 * when the key is NULL.  The plugin is the registry's.  NULL with *error set.
 */
extern Plugin *plugins_find(const char *plugin_key, const char *driver_key, HostError **error);

extern json_t *plugins_describe(void);

/* Forgets them all. */
extern void plugins_close(void);

#endif
