/*
 * worker_request.c
 *		What a client's call becomes for the worker of a plugin, and what its answer is.
 *
 * The same for calls that end with their client (plugin_call.c), and for those
 * that make and end leases (lease_operation.c).
 */
#include <string.h>

#include "calls/call_limits.h"
#include "plugins/plugin_registry.h"
#include "plugins/worker_request.h"

json_t *
plugin_params(const json_t *params)
{
	static const char *const own[] = {"limits",    "hostInstance", "identify", "keep",
	                                  "pluginKey", "pluginsOff",   "secrets"};
	json_t *copy = json_copy((json_t *) params);

	for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
		json_object_del(copy, own[i]);
	return copy;
}

json_t *
plugin_secrets(const json_t *params)
{
	json_t *secrets = json_object_get(params, "secrets");

	return json_is_object(secrets) ? json_incref(secrets) : NULL;
}

/* A command may take as long as it was given, and the call its own time besides. */
uint64_t
plugin_limit(const char *method, const json_t *params)
{
	const json_t *command = json_object_get(params, "timeoutMs");
	uint64_t limit = call_limits(params).call_ms;

	if (strcmp(method, "environmentExecute") == 0 && json_is_integer(command) &&
	    json_integer_value(command) > 0)
		limit += (uint64_t) json_integer_value(command);
	return limit;
}

Plugin *
plugin_for(const json_t *params, HostError **error)
{
	return plugins_find(json_string_value(json_object_get(params, "pluginKey")),
	                    json_string_value(json_object_get(params, "driverKey")),
	                    json_object_get(params, "pluginsOff"), error);
}

json_t *
plugin_lease(const Plugin *plugin, const char *method, const json_t *result, HostError **error)
{
	const PluginManifest *manifest = plugin_manifest(plugin);
	const json_t *id = json_object_get(result, "providerLeaseId");
	json_t *lease;

	if (!json_is_string(id) && !json_is_null(id))
	{
		*error = error_new("38000", "Plugin \"%s\" answered %s with what is no lease", manifest->id,
		                   method);
		(*error)->outcome = OUTCOME_UNKNOWN;
		return NULL;
	}
	lease = json_copy((json_t *) result);
	json_object_set_new(lease, "pluginKey", json_string(manifest->id));
	json_object_set_new(lease, "pluginVersion", json_string(manifest->version));
	return lease;
}

bool
plugin_can_tell_leases(const Plugin *plugin, const char *driver_key)
{
	const PluginDriver *driver = plugin_manifest_driver(plugin_manifest(plugin), driver_key);

	return plugin_supports(plugin, "environmentListLeases") ||
	       (driver != NULL && driver->accepts_lease_id);
}
