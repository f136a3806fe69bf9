/*
 * provider_probe.c
 *		Probes of sandboxes that a provider makes and of a plugin's driver.
 *
 * A probe that fails is an answer, not an error, and so is one that can't even
 * begin: no driver host in this server, no such plugin, a plugin that is not
 * to be used here.  The texts are the control plane's; where a plugin says
 * more than they do, it is in the details.
 */
#include "postgres.h"

#include "secrets/secret_references.h"
#include "hostlink/blocking_calls.h"
#include "environments/drivers.h"
#include "environments/provider_probe.h"
#include "base/json.h"
#include "environments/plugin_rows.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "environments/builtin_providers.h"
#include "environments/canonical_config.h"

static void
failed(ProbeResult *probe, json_t *details, char *summary)
{
	probe->ok = false;
	probe->summary = summary;
	probe->details = jsonb_from_json(details);
}

/* Asks, and fills in what is there to say; `subject` is what the texts are about. */
static void
provider_probe_ask(const Environment *environment, const char *driver_key, const char *plugin_key,
                   json_t *config, const char *subject, json_t *details, ProbeResult *probe)
{
	json_t *values;
	json_t *filled = config_resolve_secrets(config, environment->company_id, &values);
	json_t *params = provider_environment_params(environment, driver_key, plugin_key, filled);
	json_t *error;
	json_t *result;
	json_t *diagnostics;
	json_t *metadata;
	const char *summary;

	/* With what is raw in a config that is not stored, for the driver host to mask as well. */
	json_object_update(values, environment->unsaved_secrets);
	json_object_set(params, PARAMS_SECRETS, values);
	result = provider_call("environmentProbe", params, provider_patience(params), &error);
	if (error != NULL)
	{
		json_object_set(details, "error", json_object_get(error, "message"));
		failed(probe, details, psprintf("%s probe failed.", subject));
		return;
	}
	probe->ok = json_is_true(json_object_get(result, "ok"));
	summary = json_string_value(json_object_get(result, "summary"));
	probe->summary = summary != NULL
	                     ? text_from_utf8(summary)
	                     : psprintf("%s probe %s.", subject, probe->ok ? "passed" : "failed");
	diagnostics = json_object_get(result, "diagnostics");
	metadata = json_object_get(result, "metadata");
	json_object_set_new(details, "diagnostics",
	                    json_is_array(diagnostics) ? json_incref(diagnostics) : json_array());
	json_object_set_new(details, "metadata",
	                    json_is_object(metadata) ? json_incref(metadata) : json_object_new());
	/* Why it failed, and what to do; plugins have the other two for that. */
	if (plugin_key == NULL && provider_is_builtin(driver_key))
		json_object_update(details, json_object_get(result, "details"));
	probe->details = jsonb_from_json(details);
}

void
provider_probe(const Environment *environment, ProbeResult *probe)
{
	json_t *config = config_canonical("sandbox", environment->config);
	const char *key = json_string_value(json_object_get(config, "provider"));
	const char *provider = text_from_utf8(key);
	json_t *details = json_guard(json_object_new());
	PluginDriverRow plugin = {0};
	char *problem;
	int sqlstate;

	json_object_set_new(details, "provider", json_string(key));
	if (!provider_is_builtin(key))
	{
		if (shared_state == NULL)
		{
			failed(
			    probe, details,
			    psprintf("Sandbox provider \"%s\" requires a running provider plugin.", provider));
			return;
		}
		if (!plugin_driver_find(NULL, key, &plugin, &problem, &sqlstate))
		{
			failed(probe, details,
			       psprintf("Sandbox provider \"%s\" is not installed or its plugin worker is not "
			                "running.",
			                provider));
			return;
		}
		json_object_set_new(details, "pluginKey", json_string(plugin.plugin_key));
	}
	provider_probe_ask(environment, key, plugin.plugin_key, config,
	                   psprintf("Sandbox provider \"%s\"", provider), details, probe);
}

void
plugin_probe(const Environment *environment, ProbeResult *probe)
{
	json_t *config = config_canonical("plugin", environment->config);
	const char *plugin_key = json_string_value(json_object_get(config, "pluginKey"));
	const char *driver_key = json_string_value(json_object_get(config, "driverKey"));
	char *name = text_from_utf8(psprintf("%s:%s", plugin_key, driver_key));
	json_t *details = json_guard(json_object_new());
	PluginDriverRow plugin;
	char *problem;
	int sqlstate;

	json_object_set_new(details, "pluginKey", json_string(plugin_key));
	json_object_set_new(details, "driverKey", json_string(driver_key));
	if (shared_state == NULL)
		failed(probe, details,
		       psprintf("Plugin environment probes require a plugin worker manager for \"%s\".",
		                name));
	else if (!plugin_driver_find(plugin_key, driver_key, &plugin, &problem, &sqlstate))
		failed(probe, details, problem);
	else
		provider_probe_ask(environment, driver_key, plugin_key,
		                   json_object_get(config, "driverConfig"),
		                   psprintf("Plugin environment driver \"%s\"", name), details, probe);
}
