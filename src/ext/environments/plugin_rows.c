/*
 * plugin_rows.c
 *		Plugins: what is installed on the machine, and what this database says of it.
 *
 * A plugin is installed by the machine's administrator, as a folder below
 * envrt.plugin_path; the driver host reads these folders and runs what is in
 * them, and takes nothing else from anybody.  A row of the shared table
 * plugins refers to such a plugin by its key and says whether it may be used
 * in this database: it can't while its status is another than ready.  A plugin
 * without a row may: the administrator put it there.  Whatever a row has as
 * path or manifest is for people; nothing here reads it.
 *
 * envrt_reload_plugins makes and updates the rows.  What a person has decided,
 * disabled or upgrade_pending, stays.
 *
 * The id of a plugin's row is in the metadata of its leases.  An acquire must
 * not wait for others who make that row in a transaction that stays open: so
 * it makes none, and where there is none it uses the id that the row will be
 * given, which follows from the key.
 *
 * Cleanup asks no row: what a plugin has made is ended by it also when the
 * plugin is disabled since.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "catalog/pg_type.h"
#include "base/compat.h"
#include "hostlink/blocking_calls.h"
#include "environments/drivers.h"
#include "funcapi.h"
#include "base/json.h"
#include "environments/plugin_rows.h"
#include "base/shared_state.h"
#include "environments/builtin_providers.h"
#include "rights/tables.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include <sodium.h>

PG_FUNCTION_INFO_V1(envrt_reload_plugins);
PG_FUNCTION_INFO_V1(envrt_restart_plugin);

/*
 * Reading folders takes as long as the disk does, and as the programs that
 * manifests can be: 15 s for each that hangs.  The wait can be cancelled.
 */
#define PLUGINS_TIMEOUT_MS (10 * 60 * 1000)

/* Where the scheduler must not wait for who has the table locked, it doesn't. */
static int
read_plugins(Statement *statement, Datum *values)
{
	int count;

	if (!am_scheduler)
		return statement_execute(statement, values, NULL);
	if (!statement_try_read(TABLE_PLUGINS, statement, values, NULL, &count))
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
		                errmsg("somebody has %s locked", shared_table(TABLE_PLUGINS))));
	return count;
}

/* The id of a row that envrt makes for the plugin: a UUID of version 8. */
static pg_uuid_t *
derived_id(const char *plugin_key)
{
	static const char label[] = "envrt.plugin.v1";
	pg_uuid_t *id = palloc(sizeof(pg_uuid_t));

	crypto_generichash(id->data, UUID_LEN, (const unsigned char *) plugin_key, strlen(plugin_key),
	                   (const unsigned char *) label, sizeof(label) - 1);
	id->data[6] = (id->data[6] & 0x0f) | 0x80;
	id->data[8] = (id->data[8] & 0x3f) | 0x80;
	return id;
}

pg_uuid_t *
plugin_id(const char *plugin_key)
{
	static Statement find = {
	    "SELECT id FROM @plugins@ WHERE plugin_key = $1",
	    1,
	    {TEXTOID},
	};
	Datum values[1] = {CStringGetTextDatum(text_from_utf8(plugin_key))};

	if (read_plugins(&find, values) > 0)
		return result_uuid(0, 1);
	return derived_id(plugin_key);
}

/* The keys of the plugins that are not to be used here (guarded, UTF-8). */
static json_t *
unusable_plugins(void)
{
	static Statement find = {
	    "SELECT plugin_key FROM @plugins@ WHERE status <> 'ready'",
	    0,
	    {0},
	};
	json_t *keys = json_guard(json_array());
	int count = read_plugins(&find, NULL);

	for (int row = 0; row < count; row++)
		json_array_append_new(keys, json_string(text_to_utf8(result_text(row, 1))));
	return keys;
}

static bool
plugin_rows_has_text(const json_t *array, const char *text)
{
	size_t i;
	json_t *entry;

	json_array_foreach(unconstify(json_t *, array), i, entry)
	{
		if (strcmp(json_string_value(entry), text) == 0)
			return true;
	}
	return false;
}

static char *
not_ready(const char *plugin_key, const char *driver_key)
{
	return text_from_utf8(
	    psprintf("Plugin environment driver \"%s:%s\" is not ready.", plugin_key, driver_key));
}

void
plugins_restrict(json_t *params)
{
	const char *plugin_key = json_string_value(json_object_get(params, "pluginKey"));
	const char *driver_key = json_string_value(json_object_get(params, "driverKey"));
	json_t *unusable;

	if (plugin_key == NULL && provider_is_builtin(driver_key))
		return;
	unusable = unusable_plugins();
	if (plugin_key != NULL && plugin_rows_has_text(unusable, plugin_key))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg_internal("%s", not_ready(plugin_key, driver_key)),
		                errhint("Its row in %s has another status than ready.",
		                        shared_table(TABLE_PLUGINS))));
	if (plugin_key == NULL && json_array_size(unusable) > 0)
		json_object_set(params, "pluginsOff", unusable);
}

/* Of the driver host (guarded). */
static json_t *
installed_plugins(const char *method)
{
	return json_object_get(
	    driver_host_call(method, json_guard(json_object_new()), PLUGINS_TIMEOUT_MS), "plugins");
}

static const char *
plugin_rows_text_of(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static bool
is_invalid(const json_t *plugin)
{
	const char *state = plugin_rows_text_of(plugin, "state");

	return state != NULL && strcmp(state, "invalid") == 0;
}

/* A driver that the plugin's manifest declares, or NULL. */
static json_t *
declared_driver(const json_t *plugin, const char *driver_key, bool provider_only)
{
	json_t *drivers = json_object_get(json_object_get(plugin, "manifest"), "environmentDrivers");
	size_t i;
	json_t *driver;

	json_array_foreach(drivers, i, driver)
	{
		const char *key = plugin_rows_text_of(driver, "driverKey");
		const char *kind = plugin_rows_text_of(driver, "kind");

		if (key != NULL && strcmp(key, driver_key) == 0 &&
		    (!provider_only || (kind != NULL && strcmp(kind, "sandbox_provider") == 0)))
			return driver;
	}
	return NULL;
}

bool
plugin_driver_find(const char *plugin_key, const char *driver_key, PluginDriverRow *found,
                   char **problem, int *sqlstate)
{
	json_t *plugins = installed_plugins("envrt/plugins");
	json_t *unusable = unusable_plugins();
	bool known = false;
	size_t i;
	json_t *plugin;

	*sqlstate = ERRCODE_UNDEFINED_OBJECT;
	json_array_foreach(plugins, i, plugin)
	{
		const char *key = plugin_rows_text_of(plugin, "key");

		if (key == NULL || is_invalid(plugin) ||
		    (plugin_key != NULL && strcmp(plugin_key, key) != 0))
			continue;
		if (plugin_rows_has_text(unusable, key))
		{
			*sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
			continue;
		}
		known = true;
		found->plugin_key = key;
		found->declaration = declared_driver(plugin, driver_key, plugin_key == NULL);
		if (found->declaration != NULL)
			return true;
	}
	if (plugin_key == NULL)
	{
		*sqlstate = ERRCODE_UNDEFINED_OBJECT;
		*problem = text_from_utf8(
		    psprintf("Sandbox provider \"%s\" is not registered as a built-in provider and no "
		             "matching plugin is available.",
		             driver_key));
	}
	else if (known)
		*problem = text_from_utf8(psprintf(
		    "Plugin \"%s\" does not declare environment driver \"%s\".", plugin_key, driver_key));
	else
		*problem = not_ready(plugin_key, driver_key);
	return false;
}

/* A text of a manifest as a column's value. */
static Datum
text_column(const char *text, const char *otherwise)
{
	return CStringGetTextDatum(text != NULL ? text_from_utf8(text) : otherwise);
}

/* A folder that is left out for another has the same key: the row is the other's. */
static bool
is_shadowed(const json_t *plugins, const json_t *plugin)
{
	size_t i;
	json_t *other;

	if (!is_invalid(plugin))
		return false;
	json_array_foreach(unconstify(json_t *, plugins), i, other)
	{
		const char *key = plugin_rows_text_of(other, "key");

		if (key != NULL && !is_invalid(other) &&
		    strcmp(key, plugin_rows_text_of(plugin, "key")) == 0)
			return true;
	}
	return false;
}

static void
plugin_rows_write_row(const json_t *plugin, TimestampTz now)
{
	static Statement upsert = {
	    "INSERT INTO @plugins@ AS p (id, plugin_key, package_name, version, api_version, "
	    "categories, manifest_json, status, last_error, installed_at, updated_at)"
	    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)"
	    " ON CONFLICT (plugin_key) DO UPDATE SET package_name = EXCLUDED.package_name,"
	    " version = EXCLUDED.version, api_version = EXCLUDED.api_version,"
	    " categories = EXCLUDED.categories, manifest_json = EXCLUDED.manifest_json,"
	    " status = CASE WHEN p.status = ANY (ARRAY['disabled', 'upgrade_pending']) THEN p.status "
	    "ELSE EXCLUDED.status END,"
	    " last_error = EXCLUDED.last_error, updated_at = EXCLUDED.updated_at",
	    10,
	    {UUIDOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, JSONBOID, JSONBOID, TEXTOID, TEXTOID,
	     TIMESTAMPTZOID},
	};
	const char *key = plugin_rows_text_of(plugin, "key");
	const char *package = plugin_rows_text_of(json_object_get(plugin, "manifest"), "packageName");
	const char *error = plugin_rows_text_of(plugin, "lastError");
	json_t *manifest = json_object_get(plugin, "manifest");
	json_t *api_version = json_object_get(manifest, "apiVersion");
	json_t *categories = json_object_get(manifest, "categories");
	bool invalid = is_invalid(plugin);
	Datum values[10];

	if (!json_is_object(manifest))
		manifest = json_guard(json_object_new());
	if (!json_is_array(categories))
		categories = json_guard(json_array());
	values[0] = UUIDPGetDatum(derived_id(key));
	values[1] = text_column(key, "");
	values[2] = text_column(package != NULL ? package : key, "");
	values[3] = text_column(plugin_rows_text_of(plugin, "version"), "");
	values[4] =
	    Int32GetDatum(json_is_integer(api_version) ? (int32) json_integer_value(api_version) : 1);
	values[5] = JsonbPGetDatum(jsonb_from_json(categories));
	values[6] = JsonbPGetDatum(jsonb_from_json(manifest));
	values[7] = CStringGetTextDatum(invalid ? "error" : "ready");
	values[8] = invalid ? text_column(error, "") : (Datum) 0;
	values[9] = TimestampTzGetDatum(now);
	statement_write(TABLE_PLUGINS, &upsert, values, invalid ? NULL : "        n ");
}

/* The ids of the rows that row-level security lets the caller see. */
static ArrayType *
visible_plugins(const ApiCall *call)
{
	static Statement all = {"SELECT id FROM @plugins@", 0, {0}};
	int count = statement_execute(&all, NULL, NULL);
	pg_uuid_t *ids = palloc(sizeof(pg_uuid_t) * Max(count, 1));
	Datum *visible = palloc(sizeof(Datum) * Max(count, 1));
	int nvisible = 0;

	for (int row = 0; row < count; row++)
		ids[row] = *result_uuid(row, 1);
	for (int row = 0; row < count; row++)
	{
		if (caller_can_see(call, TABLE_PLUGINS, &ids[row]))
			visible[nvisible++] = UUIDPGetDatum(&ids[row]);
	}
	return construct_array(visible, nvisible, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
}

/*
 * envrt_reload_plugins()
 *		Has the driver host read the plugin folders again, and the rows say what it found.
 */
Datum
envrt_reload_plugins(PG_FUNCTION_ARGS)
{
	static Statement vanished = {
	    "UPDATE @plugins@ SET status = 'uninstalled', last_error = NULL, updated_at = $2"
	    " WHERE plugin_key <> ALL ($1)"
	    " AND status <> ALL (ARRAY['disabled', 'upgrade_pending', 'uninstalled'])",
	    2,
	    {TEXTARRAYOID, TIMESTAMPTZOID},
	};
	static Statement seen = {
	    "SELECT * FROM @plugins@ WHERE id = ANY ($1) ORDER BY plugin_key",
	    1,
	    {UUIDARRAYOID},
	};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TimestampTz now = GetCurrentTimestamp();
	ApiCall call;
	json_t *plugins;
	json_t *plugin;
	Datum *keys;
	Datum values[2];
	Datum *columns;
	bool *nulls;
	int nkeys = 0;
	int count;
	size_t i;

	compat_begin_result_set(fcinfo);
	api_enter(&call, "envrt_reload_plugins()");
	caller_needs_select(&call, TABLE_PLUGINS);
	plugins = installed_plugins("envrt/reloadPlugins");
	keys = palloc(sizeof(Datum) * Max(json_array_size(plugins), 1));
	json_array_foreach(plugins, i, plugin)
	{
		/* What has no key can't be referred to; the server log has it. */
		if (plugin_rows_text_of(plugin, "key") == NULL || is_shadowed(plugins, plugin))
			continue;
		plugin_rows_write_row(plugin, now);
		keys[nkeys++] = text_column(plugin_rows_text_of(plugin, "key"), "");
	}
	values[0] = PointerGetDatum(construct_array(keys, nkeys, TEXTOID, -1, false, TYPALIGN_INT));
	values[1] = TimestampTzGetDatum(now);
	statement_write(TABLE_PLUGINS, &vanished, values, NULL);
	values[0] = PointerGetDatum(visible_plugins(&call));
	count = statement_execute(&seen, values, NULL);
	columns = palloc0(sizeof(Datum) * rsinfo->setDesc->natts);
	nulls = palloc(sizeof(bool) * rsinfo->setDesc->natts);
	for (int row = 0; row < count; row++)
	{
		result_row(row, rsinfo->setDesc, columns, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, columns, nulls);
	}
	api_leave(&call);
	return (Datum) 0;
}

/*
 * envrt_restart_plugin(plugin_key)
 */
Datum
envrt_restart_plugin(PG_FUNCTION_ARGS)
{
	char *plugin_key = text_argument(fcinfo, 0, "plugin_key");
	ApiCall call;

	api_enter(&call, "envrt_restart_plugin()");
	(void) driver_host_call("envrt/restartPlugin",
	                        json_guard(json_pack("{s:s}", "key", text_to_utf8(plugin_key))),
	                        PLUGINS_TIMEOUT_MS);
	api_leave(&call);
	PG_RETURN_VOID();
}
