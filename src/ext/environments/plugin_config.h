/*
 * plugin_config.h
 *		Configs that a plugin has a say in; see plugin_config.c.
 */
#ifndef ENVRT_PLUGIN_CONFIG_H
#define ENVRT_PLUGIN_CONFIG_H

#include "postgres.h"

#include "shared/json_library.h"
#include "rights/tables.h"
#include "utils/uuid.h"

typedef struct PluginConfig
{
	const ApiCall *call;
	const pg_uuid_t *company_id;
	const char *driver;           /* sandbox or plugin */
	const char *environment_name; /* NULL: nothing is to be stored */
	json_t *canonical;            /* as given; references in it have been checked */

	/* Set by plugin_config_validate. */
	json_t *config; /* the whole config as it is to be (guarded); NULL: as given */
	json_t *hidden; /* values in it and behind it that nobody is to see (guarded) */
} PluginConfig;

/* Whether an environment with such a canonical config is a plugin's. */
extern bool plugin_config_concerns(const char *driver, const json_t *canonical);

/*
 * Has the plugin validate the config; ERROR 22023 when it doesn't like it.
 * When there is no plugin to ask: ERROR 42704 or 55000 if `required`, else nothing.
 */
extern void plugin_config_validate(PluginConfig *config, bool required);

#endif
