/*
 * plugin_config.c
 *		Has a plugin validate a config, and takes the secrets out of it.
 *
 * The plugin is given the config as it will be given it in any call, with the
 * values of secrets in place, and may answer with a config that it likes
 * better, which still has these values.  Before that is stored, each value
 * must be out of it again:
 *
 *	1.	Where the given config has a reference and the answer any string, the
 *		value or what the plugin has made of it, the reference comes back.
 *	2.	What the plugin's configSchema marks as a secret and is a raw string
 *		becomes a secret of the company, in the caller's transaction, and a
 *		reference takes its place.  (A string that is the id of a secret is
 *		a reference already.)
 *	3.	A value that the plugin has copied elsewhere as it is becomes the same
 *		reference; and if it is a part of another string, or of a name, the config
 *		can't be stored.  (A value that the plugin puts elsewhere in another shape, cut
 *		or encoded say, is not recognized.)
 *
 * Provider and lease policy of a sandbox are ours to say, not the plugin's.
 */
#include "postgres.h"

#include "secrets/secret_references.h"
#include "secrets/secret_values.h"
#include "hostlink/blocking_calls.h"
#include "environments/drivers.h"
#include "base/json.h"
#include "miscadmin.h"
#include "environments/plugin_config.h"
#include "environments/plugin_rows.h"
#include "shared/protocol.h"
#include "environments/provider_lease.h"
#include "secrets/secret_fields.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "environments/builtin_providers.h"
#include "environments/canonical_config.h"

/* Shorter ones are found within too many strings by accident. */
#define MIN_CONTAINED 8

bool
plugin_config_concerns(const char *driver, const json_t *canonical)
{
	if (strcmp(driver, "plugin") == 0)
		return true;
	return strcmp(driver, "sandbox") == 0 &&
	       !provider_is_builtin(json_string_value(json_object_get(canonical, "provider")));
}

/* Values with what is to take their place, where they are known to be: pairs [value, reference]. */
typedef struct Secrets
{
	PluginConfig *config;
	json_t *pairs;
} Secrets;

static void
add_pair(Secrets *secrets, const json_t *value, const json_t *reference)
{
	json_array_append_new(secrets->pairs, json_pack("[O, O]", value, reference));
}

/* Of visitors of secret fields: raw values that must not be seen. */
static json_t *
hide_raw(void *data, const char *path, const json_t *string)
{
	PluginConfig *config = data;

	if (!config_is_secret_id(config->company_id, string))
		json_object_set(config->hidden, psprintf("raw:%s", path), unconstify(json_t *, string));
	return NULL;
}

/* The same: what is raw becomes a secret. */
static json_t *
store_raw(void *data, const char *path, const json_t *string)
{
	Secrets *secrets = data;
	const PluginConfig *config = secrets->config;
	json_t *reference;
	size_t i;
	json_t *pair;

	if (json_string_length(string) == 0 || config_is_secret_id(config->company_id, string))
		return NULL;
	json_array_foreach(secrets->pairs, i, pair)
	{
		if (json_equal(json_array_get(pair, 0), unconstify(json_t *, string)))
			return json_array_get(pair, 1);
	}
	reference = config_store_secret(config->company_id, config->driver, config->environment_name,
	                                path, string);
	add_pair(secrets, string, reference);
	return reference;
}

/* Step 1: `now` has the shape of `given` where the plugin has left it alone. */
static json_t *
restore(Secrets *secrets, json_t *given, json_t *values, json_t *now)
{
	const char *key;
	size_t index;
	json_t *member;
	json_t *other;
	void *next;

	if (secret_is_reference(given) || config_is_secret_id(secrets->config->company_id, given))
	{
		json_t *reference = json_is_string(given) ? config_reference_of_id(given) : given;
		json_t *value = json_object_get(values, config_reference_name(reference));

		if (value == NULL)
			return NULL;
		add_pair(secrets, value, reference);
		return json_is_string(now) ? given : NULL;
	}
	if (json_is_object(given))
	{
		json_object_foreach_safe(given, next, key, member)
		{
			other = restore(secrets, member, values, json_object_get(now, key));
			if (other != NULL)
				json_object_set(now, key, other);
		}
	}
	else if (json_is_array(given))
	{
		json_array_foreach(given, index, member)
		{
			other = restore(secrets, member, values, json_array_get(now, index));
			if (other != NULL)
				json_array_set(now, index, other);
		}
	}
	return NULL;
}

/* Step 3: no part of what is stored may be one of the values. */
static void
refuse_part(const Secrets *secrets, const char *text, size_t length)
{
	size_t i;
	json_t *pair;

	json_array_foreach(secrets->pairs, i, pair)
	{
		const json_t *value = json_array_get(pair, 0);
		size_t value_length = json_string_length(value);

		if (value_length < MIN_CONTAINED ||
		    memmem(text, length, json_string_value(value), value_length) == NULL)
			continue;
		ereport(ERROR,
		        (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		         errmsg("the plugin put a secret into another field of its normalized config"),
		         errhint("Its author should mark the field as \"format\": \"secret-ref\" in the "
		                 "driver's configSchema.")));
	}
}

/* The same, for one string. */
static json_t *
take_copy(const Secrets *secrets, const json_t *string)
{
	size_t i;
	json_t *pair;

	json_array_foreach(secrets->pairs, i, pair)
	{
		if (json_string_length(string) > 0 && json_equal(json_array_get(pair, 0), string))
			return json_array_get(pair, 1);
	}
	refuse_part(secrets, json_string_value(string), json_string_length(string));
	return NULL;
}

/* The same, for all of it; names that the caller has given are no secrets. */
static json_t *
take_copies(const Secrets *secrets, json_t *value, const json_t *given)
{
	const char *key;
	size_t index;
	json_t *member;
	json_t *other;
	void *next;

	CHECK_FOR_INTERRUPTS();
	if (json_is_string(value))
		return take_copy(secrets, value);
	if (json_is_array(value))
	{
		json_array_foreach(value, index, member)
		{
			if ((other = take_copies(secrets, member, json_array_get(given, index))) != NULL)
				json_array_set(value, index, other);
		}
	}
	else if (json_is_object(value))
	{
		json_object_foreach_safe(value, next, key, member)
		{
			const json_t *of_given = json_object_get(given, key);

			if (of_given == NULL)
				refuse_part(secrets, key, strlen(key));
			if ((other = take_copies(secrets, member, of_given)) != NULL)
				json_object_set(value, key, other);
		}
	}
	return NULL;
}

/* "errors" or "warnings" of an answer, as far as they are a list. */
static json_t *
list_of(const json_t *result, const char *key)
{
	json_t *list = json_object_get(result, key);

	return json_is_array(list) ? json_incref(list) : json_array();
}

static void
report_rejected(const PluginConfig *config, const char *subject, const json_t *result)
{
	json_t *detail = json_guard(json_pack("{s:o, s:o}", "errors", list_of(result, "errors"),
	                                      "warnings", list_of(result, "warnings")));
	const char *first;

	config_mask_secrets(detail, config->hidden);
	first = json_string_value(json_array_get(json_object_get(detail, "errors"), 0));
	ereport(ERROR,
	        (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
	         first != NULL ? errmsg_internal("%s", text_from_utf8(first))
	                       : errmsg_internal("%s rejected its config.", subject),
	         errdetail_internal("%s", JsonbToCString(NULL, &jsonb_from_json(detail)->root, 0))));
}

/* What the plugin makes of the config (guarded); NULL: it has no opinion. */
static json_t *
plugin_config_ask(const PluginConfig *config, const PluginDriverRow *plugin, const char *driver_key,
                  json_t *filled)
{
	const char *driver_name =
	    strcmp(config->driver, "plugin") == 0
	        ? psprintf("Plugin environment driver \"%s:%s\"", plugin->plugin_key, driver_key)
	        : psprintf("Sandbox provider \"%s\"", driver_key);
	json_t *params = json_guard(json_pack("{s:s, s:s, s:O}", "driverKey", driver_key, "pluginKey",
	                                      plugin->plugin_key, "config", filled));
	json_t *error;
	json_t *result;

	provider_set_limit(params);
	/* Also what is raw: the driver host masks it in what the worker logs. */
	if (json_object_size(config->hidden) > 0)
		json_object_set_new(params, "secrets", config_secrets_by_id(config->hidden));
	result =
	    driver_host_try("environmentValidateConfig", params, provider_patience(params), &error);
	if (error != NULL)
	{
		json_int_t code = json_integer_value(json_object_get(error, "code"));

		if (code == RPC_METHOD_NOT_IMPLEMENTED || code == RPC_METHOD_NOT_FOUND)
			return NULL;
		config_mask_secrets(error, config->hidden);
		driver_host_raise(error);
	}
	if (!json_is_true(json_object_get(result, "ok")))
		report_rejected(config, text_from_utf8(driver_name), result);
	result = json_object_get(result, "normalizedConfig");
	return json_is_object(result) ? result : NULL;
}

/* The whole config around what the plugin has normalized (guarded). */
static json_t *
whole(const PluginConfig *config, json_t *normalized)
{
	static const char *const ours[] = {"provider", "leasePolicy"};
	json_t *copy;

	if (strcmp(config->driver, "plugin") == 0)
	{
		copy = json_guard(json_copy(config->canonical));
		json_object_set(copy, "driverConfig", normalized);
		return copy;
	}
	for (int i = 0; i < (int) lengthof(ours); i++)
	{
		json_object_del(normalized, ours[i]);
		json_object_set(normalized, ours[i], json_object_get(config->canonical, ours[i]));
	}
	return config_canonical_json("sandbox", normalized);
}

void
plugin_config_validate(PluginConfig *config, bool required)
{
	bool of_plugin = strcmp(config->driver, "plugin") == 0;
	const char *plugin_key =
	    of_plugin ? json_string_value(json_object_get(config->canonical, "pluginKey")) : NULL;
	const char *driver_key =
	    json_string_value(json_object_get(config->canonical, of_plugin ? "driverKey" : "provider"));
	json_t *given =
	    of_plugin ? json_object_get(config->canonical, "driverConfig") : config->canonical;
	Secrets secrets = {.config = config, .pairs = json_guard(json_array())};
	PluginDriverRow plugin;
	char *problem;
	int sqlstate;
	json_t *schema;
	json_t *values;
	json_t *filled;
	json_t *normalized;

	if (shared_state == NULL && !required)
		return;
	if (shared_state == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("Plugin environment config validation requires a running plugin "
		                       "worker manager."),
		                errhint("Add \"shared_preload_libraries = 'envrt'\" to postgresql.conf and "
		                        "restart the server.")));
	if (!plugin_driver_find(plugin_key, driver_key, &plugin, &problem, &sqlstate))
	{
		if (!required)
			return;
		ereport(ERROR, (errcode(sqlstate), errmsg_internal("%s", problem), errhint(PLUGINS_HINT)));
	}
	schema = json_object_get(plugin.declaration, "configSchema");
	(void) config_check_exposed(config->call, config->company_id, given, NULL, schema);
	filled = config_resolve_secrets(given, config->company_id, &values);
	config->hidden = json_guard(json_copy(values));
	secret_fields_visit(schema, filled, hide_raw, config);

	normalized = plugin_config_ask(config, &plugin, driver_key, filled);
	if (normalized == NULL)
		normalized = filled;
	normalized = json_guard(json_deep_copy(normalized));
	(void) restore(&secrets, given, values, normalized);
	/* The plugin may name any, and put one anywhere. */
	config_check_secrets(config->call, config->company_id, normalized);
	(void) config_check_exposed(config->call, config->company_id, normalized, given, schema);
	if (config->environment_name != NULL)
	{
		secret_fields_visit(schema, normalized, store_raw, &secrets);
		(void) take_copies(&secrets, normalized, given);
	}
	if (!json_equal(normalized, given))
		config->config = whole(config, normalized);
}
