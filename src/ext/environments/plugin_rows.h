/*
 * plugin_rows.h
 *		Plugins as this database knows them; see plugin_rows.c.
 */
#ifndef ENVRT_PLUGIN_ROWS_H
#define ENVRT_PLUGIN_ROWS_H

#include "postgres.h"

#include "shared/json_library.h"
#include "utils/uuid.h"

/* The id of the plugin's row, or what it will be when there is one; the key in UTF-8. */
extern pg_uuid_t *plugin_id(const char *plugin_key);

/*
 * A call's params (driverKey and pluginKey) by what this database says of its
 * plugins: ERROR 55000 when the plugin is not to be used here; plugins that a
 * provider is not to be taken from are named to the driver host.
 */
extern void plugins_restrict(json_t *params);

/* What a plugin declares, as the driver host has read it. */
typedef struct PluginDriverRow
{
	const char *plugin_key; /* UTF-8 */
	json_t *declaration;
} PluginDriverRow;

/*
 * plugin_driver_find
 *		The driver that a config means, among the plugins that are installed.
 *
 * plugin_key NULL: the provider driver_key of whichever plugin has it and may
 * be used here.  False when there is none; *problem then is the message to
 * give, and *sqlstate its state.  Asks the driver host.
 */
extern bool plugin_driver_find(const char *plugin_key, const char *driver_key,
                               PluginDriverRow *found, char **problem, int *sqlstate);

#endif
