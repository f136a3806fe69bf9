/*
 * provider_lease.c
 *		Provider leases as calls, as answers and as rows of the ledger.
 *
 * Two kinds of environment have something made for a lease: sandbox, by the
 * provider that its config names, and plugin, by the plugin's driver that its
 * config names.  They differ in what is read from the environment (the Target
 * below) and in what the lease's metadata says:
 *
 *	sandbox		the keys of the config and of the provider's own metadata, and
 *				above them what is ours to say
 *	plugin		what is ours to say, and everything that the plugin said,
 *				unchanged, under providerMetadata
 *
 * Whatever is done to the provider lease later is done by the ledger's row: by
 * the plugin and with the config that made it, and with the metadata that its
 * lease was given, whatever has become of the environment or the lease since.
 */
#include "postgres.h"

#include <math.h>

#include "hostlink/call_size.h"
#include "catalog/pg_type.h"
#include "secrets/secret_references.h"
#include "hostlink/blocking_calls.h"
#include "environments/drivers.h"
#include "ledger/instance.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "miscadmin.h"
#include "environments/plugin_rows.h"
#include "environments/provider_lease.h"
#include "shared/protocol.h"
#include "environments/provider_plugin.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "environments/builtin_providers.h"
#include "environments/canonical_config.h"
#include "rights/tables.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

/* What a plugin has beyond its provider's time, and what it has at most. */
#define PROVIDER_MARGIN_MS 30000
#define MAX_PROVIDER_MS (15 * 60 * 1000)

/* What an environment says about who makes its provider leases. */
typedef struct Target
{
	bool of_plugin;         /* driver plugin, else sandbox */
	json_t *config;         /* as the provider gets it, with references to secrets */
	const char *driver_key; /* of these two in UTF-8 */
	const char *plugin_key; /* NULL: whichever plugin has the provider */
	const char *policy;
} Target;

static const char *
lease_policy(const json_t *config, const pg_uuid_t *workspace_id)
{
	const char *policy = json_string_value(json_object_get(config, "leasePolicy"));

	if (policy == NULL)
		policy = json_is_true(json_object_get(config, "reuseLease")) ? "reuse_by_environment"
		                                                             : "ephemeral";
	if (strcmp(policy, "reuse_by_execution_workspace") == 0 && workspace_id == NULL)
		policy = "ephemeral";
	return policy;
}

bool
provider_policy_reuses(const char *policy)
{
	return strncmp(policy, "reuse_", strlen("reuse_")) == 0;
}

static void
read_target(const Environment *environment, const pg_uuid_t *workspace_id, Target *target)
{
	json_t *canonical = config_canonical(environment->driver, environment->config);

	target->of_plugin = strcmp(environment->driver, "plugin") == 0;
	if (target->of_plugin)
	{
		target->config = json_object_get(canonical, "driverConfig");
		target->driver_key = json_string_value(json_object_get(canonical, "driverKey"));
		target->plugin_key = json_string_value(json_object_get(canonical, "pluginKey"));
		target->policy = "ephemeral";
		return;
	}
	target->config = canonical;
	target->driver_key = json_string_value(json_object_get(canonical, "provider"));
	target->plugin_key = NULL;
	target->policy = lease_policy(canonical, workspace_id);
	/* Providers know this key only. */
	json_object_set_new(canonical, "reuseLease",
	                    json_boolean(provider_policy_reuses(target->policy)));
}

/* environment_leases.provider */
static const char *
target_provider(const Target *target)
{
	if (target->of_plugin)
		return text_from_utf8(psprintf("plugin:%s:%s", target->plugin_key, target->driver_key));
	return text_from_utf8(target->driver_key);
}

const char *
provider_of(const Environment *environment)
{
	Target target;

	read_target(environment, NULL, &target);
	return target_provider(&target);
}

/* Whether a call is for a provider in the driver host itself. */
static bool
is_of_host(const json_t *params)
{
	const char *driver_key = json_string_value(json_object_get(params, "driverKey"));

	return json_object_get(params, "pluginKey") == NULL && driver_key != NULL &&
	       provider_is_builtin(driver_key);
}

/*
 * What a call to a provider may take.  Only who has made the environment knows how long its
 * provider needs, for images to be built, say; so its config has the word, as in the application:
 * these two are how long a plugin waits for its provider, and it needs a moment to say that it has
 * waited in vain.
 */
void
provider_set_limit(json_t *params)
{
	static const char *const keys[] = {"timeoutMs", "bridgeRequestTimeoutMs"};
	const json_t *config = json_object_get(params, "config");
	double longest = 0;
	json_int_t limit = envrt_provider_timeout;

	for (int i = 0; i < (int) lengthof(keys) && !is_of_host(params); i++)
		longest = Max(longest, json_number_value(json_object_get(config, keys[i])));
	if (longest > 0)
		limit = (json_int_t) Min(longest + PROVIDER_MARGIN_MS, MAX_PROVIDER_MS);
	json_object_set_new(params, "limits", json_pack("{s:I}", "callMs", limit));
}

int64
provider_patience(const json_t *params)
{
	return 2 * json_integer_value(json_object_get(json_object_get(params, "limits"), "callMs"));
}

json_t *
provider_environment_params(const Environment *environment, const char *driver_key,
                            const char *plugin_key, json_t *config)
{
	json_t *params = json_guard(json_object_new());

	json_object_set_new(params, "driverKey", json_string(driver_key));
	json_object_set_new(params, "companyId", json_string(uuid_text(environment->company_id)));
	if (environment->id != NULL)
		json_object_set_new(params, "environmentId", json_string(uuid_text(environment->id)));
	json_object_set(params, "config", config);
	if (plugin_key != NULL)
		json_object_set_new(params, "pluginKey", json_string(plugin_key));
	provider_set_limit(params);
	return params;
}

bool
provider_is_known(const Environment *environment)
{
	Target target;

	read_target(environment, NULL, &target);
	return target.of_plugin || provider_plugin_is_known(target.driver_key);
}

json_t *
provider_create_row(const AcquireRequest *request, json_t **params)
{
	const Environment *environment = request->environment;
	Target target;
	const char *plugin_key;
	bytea *secrets;
	json_t *values;
	json_t *filled;
	json_t *row = json_guard(json_object_new());

	read_target(environment, request->workspace_id, &target);
	plugin_key = target.of_plugin ? target.plugin_key : provider_plugin(target.driver_key);
	filled = config_resolve_secrets(target.config, environment->company_id, &values);
	secrets = config_seal_secrets(request->key, values);
	json_object_set_new(row, "lease_id", json_string(uuid_text(request->key)));
	json_object_set_new(row, "holder_id", json_string(uuid_text(request->lease_id)));
	json_object_set_new(row, "company_id", json_string(uuid_text(environment->company_id)));
	json_object_set_new(row, "environment_id", json_string(uuid_text(environment->id)));
	if (strcmp(target.policy, "reuse_by_execution_workspace") == 0)
		json_object_set_new(row, "execution_workspace_id",
		                    json_string(uuid_text(request->workspace_id)));
	json_object_set_new(row, "driver", json_string(environment->driver));
	json_object_set_new(row, "driver_key", json_string(target.driver_key));
	if (plugin_key != NULL)
		json_object_set_new(row, "plugin_key", json_string(plugin_key));
	json_object_set_new(row, "lease_policy", json_string(target.policy));
	json_object_set(row, "config", target.config);
	if (secrets != NULL)
		json_object_set_new(
		    row, "secrets",
		    json_string(DatumGetCString(DirectFunctionCall1(byteaout, PointerGetDatum(secrets)))));

	*params = provider_environment_params(environment, target.driver_key, plugin_key, filled);
	/* What is on this machine goes with its database. */
	if (plugin_key == NULL && instance_ledger_name(MyDatabaseId) != NULL)
		json_object_set_new(*params, "ledger", json_string(instance_ledger_name(MyDatabaseId)));
	plugins_restrict(*params);
	json_object_set(*params, PARAMS_SECRETS, values);
	json_object_set_new(*params, "runId", json_string(uuid_text(request->run_id)));
	json_object_set_new(*params, "leaseId", json_string(uuid_text(request->key)));
	json_object_set_new(*params, "fence", json_integer(1));
	if (request->workspace_mode != NULL)
		json_object_set_new(*params, "workspaceMode",
		                    json_string(text_to_utf8(request->workspace_mode)));
	return row;
}

/* The row as a request: with the environment's config as it is, which JSON libraries may round. */
Jsonb *
provider_row_content(const AcquireRequest *request, const json_t *row)
{
	JsonbObject raw;
	Jsonb *rest = jsonb_from_json(row);

	jsonb_object_begin(&raw);
	jsonb_object_jsonb(&raw, "environment_config", request->environment->config);
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(rest),
	                                          JsonbPGetDatum(jsonb_object_end(&raw))));
}

/* An ISO 8601 time, as providers give it; DT_NOEND when it is none. */
static TimestampTz
parse_time(const char *text)
{
	struct pg_tm tm = {0};
	double seconds;
	int used = 0;
	int zone = 0;
	int hours = 0;
	int minutes = 0;
	fsec_t fraction;
	TimestampTz result;

	if (text == NULL ||
	    sscanf(text, "%4d-%2d-%2dT%2d:%2d:%lf%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
	           &tm.tm_min, &seconds, &used) != 6 ||
	    tm.tm_year < 1970 || tm.tm_mon < 1 || tm.tm_mon > 12 || tm.tm_mday < 1 ||
	    tm.tm_mday > day_tab[isleap(tm.tm_year)][tm.tm_mon - 1] || tm.tm_hour < 0 ||
	    tm.tm_hour > 23 || tm.tm_min < 0 || tm.tm_min > 59 || !(seconds >= 0 && seconds < 60))
		return DT_NOEND;
	text += used;
	if ((*text == '+' || *text == '-') &&
	    sscanf(text + 1, "%2d:%2d%n", &hours, &minutes, &used) == 2)
	{
		zone = (*text == '+' ? -1 : 1) * (hours * 60 + minutes) * 60;
		text += 1 + used;
	}
	else if (*text == 'Z')
		text++;
	else
		return DT_NOEND;
	tm.tm_sec = (int) seconds;
	fraction = (fsec_t) rint((seconds - tm.tm_sec) * USECS_PER_SEC);
	if (*text != '\0' || tm2timestamp(&tm, fraction, &zone, &result) != 0)
		return DT_NOEND;
	return result;
}

json_t *
provider_row_name(const AcquireRequest *request)
{
	json_t *row = json_guard(json_object_new());

	json_object_set_new(row, "lease_id", json_string(uuid_text(request->key)));
	json_object_set_new(row, "holder_id", json_string(uuid_text(request->lease_id)));
	return row;
}

json_t *
provider_learnt(const AcquireRequest *request, const json_t *result, const AcquiredLease *lease)
{
	json_t *row = provider_row_name(request);
	Target target;

	read_target(request->environment, request->workspace_id, &target);
	json_object_set(row, "provider_lease_id", json_object_get(result, "providerLeaseId"));
	json_object_set(row, "metadata", lease->json_metadata);
	if (lease->expires_at != DT_NOEND)
		json_object_set_new(row, "expires_at", json_string(timestamptz_to_str(lease->expires_at)));
	json_object_set(row, "plugin_key", json_object_get(result, "pluginKey"));
	json_object_set_new(row, "driver_key", json_string(target.driver_key));
	return row;
}

/* See the head of this file. */
static json_t *
lease_metadata(const AcquireRequest *request, const Target *target, const json_t *result,
               bool resumed)
{
	json_t *of_provider = json_object_get(result, "metadata");
	const char *plugin_key = json_string_value(json_object_get(result, "pluginKey"));
	json_t *metadata;

	if (!json_is_object(of_provider))
		of_provider = json_guard(json_object_new());
	if (target->of_plugin)
	{
		metadata = json_guard(json_object_new());
		json_object_set(metadata, "providerMetadata", of_provider);
		json_object_set_new(metadata, "driverKey", json_string(target->driver_key));
	}
	else
	{
		metadata = json_guard(json_deep_copy(target->config));
		json_object_update(metadata, of_provider);
		json_object_set(metadata, "provider", json_object_get(target->config, "provider"));
		json_object_set(metadata, "reuseLease", json_object_get(target->config, "reuseLease"));
		json_object_del(metadata, "leasePolicy");
		json_object_set(metadata, "leasePolicy", json_object_get(target->config, "leasePolicy"));
		json_object_del(metadata, "resumedLease");
		json_object_del(metadata, "replacedLease");
		json_object_del(metadata, "sandboxProviderPlugin");
		json_object_del(metadata, "pluginId");
		json_object_del(metadata, "pluginKey");
		if (plugin_key != NULL)
			json_object_set_new(metadata, "sandboxProviderPlugin", json_true());
	}
	json_object_set_new(metadata, "driver", json_string(request->environment->driver));
	json_object_set_new(metadata, "executionWorkspaceMode",
	                    request->workspace_mode != NULL
	                        ? json_string(text_to_utf8(request->workspace_mode))
	                        : json_null());
	if (plugin_key != NULL)
	{
		json_object_set_new(metadata, "pluginKey", json_string(plugin_key));
		json_object_set_new(metadata, "pluginId", json_string(uuid_text(plugin_id(plugin_key))));
	}
	if (resumed)
		json_object_set_new(metadata, "resumedLease", json_true());
	if (request->replaced != NULL)
		json_object_set(metadata, "replacedLease", request->replaced);
	return metadata;
}

ResumeVerdict
provider_judge_resume(const char *provider_lease_id, const json_t *result, const json_t *error,
                      const char **reason)
{
	const json_t *id = json_object_get(result, "providerLeaseId");
	json_int_t code = json_integer_value(json_object_get(error, "code"));
	const char *outcome =
	    json_string_value(json_object_get(json_object_get(error, "data"), "outcome"));

	*reason = json_string_value(json_object_get(error, "message"));
	if (error != NULL)
	{
		if (*reason == NULL)
			*reason = "the driver failed";
		/* It has no word for it, and never will have. */
		if (code == RPC_METHOD_NOT_IMPLEMENTED)
			return RESUME_GONE;
		/* The driver host's own word, of what it has ended or would have here. */
		return outcome != NULL && strcmp(outcome, "absent") == 0 ? RESUME_GONE : RESUME_FAILED;
	}
	*reason = "the provider says that it has expired";
	if (json_is_true(json_object_get(json_object_get(result, "metadata"), "expired")))
		return RESUME_GONE;
	*reason = "the provider says that it is gone";
	if (json_is_null(id))
		return provider_lease_id == NULL ? RESUME_DONE : RESUME_GONE;
	*reason = "the provider answered without a lease";
	if (!json_is_string(id))
		return RESUME_FAILED;
	*reason = "the provider resumed another provider lease";
	if (provider_lease_id != NULL && strcmp(json_string_value(id), provider_lease_id) != 0)
		return RESUME_OTHER;
	return RESUME_DONE;
}

void
provider_report_not_resumed(const char *environment_name, const char *reason, const json_t *error)
{
	const char *detail =
	    json_string_value(json_object_get(json_object_get(error, "data"), "detail"));

	ereport(
	    ERROR,
	    (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
	     errmsg("could not resume the sandbox of environment \"%s\": %s", environment_name,
	            text_from_utf8(reason)),
	     detail != NULL ? errdetail_internal("%s", text_from_utf8(detail))
	                    : errdetail("lease_acquire_failed"),
	     errhint("It is kept with all that is in it: try again when its provider is well. If it is "
	             "of no use any more, set the environment's status to archived, then to active.")));
}

json_t *
provider_stray_row(const AcquireRequest *request, const json_t *result, json_t **params)
{
	json_t *id = json_object_get(result, "providerLeaseId");
	json_t *row;

	if (!json_is_string(id) || !provider_id_is_storable(id))
		return NULL;
	row = provider_create_row(request, params);
	json_object_set(row, "provider_lease_id", id);
	json_object_set(row, "metadata", json_object_get(result, "metadata"));
	json_object_set_new(row, "environment_config", json_object_new());
	return row;
}

json_t *
provider_stray_of(const json_t *row, const json_t *result)
{
	static const char *const kept[] = {"company_id", "environment_id", "driver",
	                                   "driver_key", "plugin_key",     "config"};
	json_t *id = json_object_get(result, "providerLeaseId");
	json_t *stray = json_guard(json_object_new());
	const pg_uuid_t *key = uuid_generate();
	const char *company = json_string_value(json_object_get(row, "company_id"));
	const char *row_key = json_string_value(json_object_get(row, "lease_id"));
	const char *sealed = json_string_value(json_object_get(row, "secrets"));
	json_t *values;
	bytea *secrets = NULL;

	if (!json_is_string(id) || !provider_id_is_storable(id))
		return NULL;
	for (int i = 0; i < (int) lengthof(kept); i++)
		json_object_set(stray, kept[i], json_object_get(row, kept[i]));
	/* As its calls have them: the row's own ones, should one have been deleted since. */
	if (sealed != NULL)
	{
		(void) config_fill_secrets(
		    json_object_get(row, "config"),
		    DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(row_key))),
		    DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(company))),
		    DatumGetByteaP(DirectFunctionCall1(byteain, CStringGetDatum(sealed))), &values);
		secrets = config_seal_secrets(key, values);
	}
	if (secrets != NULL)
		json_object_set_new(
		    stray, "secrets",
		    json_string(DatumGetCString(DirectFunctionCall1(byteaout, PointerGetDatum(secrets)))));
	json_object_set_new(stray, "lease_id", json_string(uuid_text(key)));
	json_object_set(stray, "provider_lease_id", id);
	json_object_set(stray, "metadata", json_object_get(result, "metadata"));
	json_object_set_new(stray, "environment_config", json_object_new());
	return stray;
}

json_t *
provider_replaced(const char *provider_lease_id, const char *reason)
{
	return json_guard(
	    json_pack("{s:s?, s:s}", "providerLeaseId", provider_lease_id, "reason", reason));
}

bool
provider_id_is_storable(const json_t *id)
{
	const char *text = json_string_value(id);

	return strlen(text) == json_string_length(id) &&
	       strcmp(text_to_utf8(text_from_utf8(text)), text) == 0;
}

void
provider_acquired(const AcquireRequest *request, json_t *result, bool resumed, AcquiredLease *lease)
{
	const json_t *id = json_object_get(result, "providerLeaseId");
	Target target;

	read_target(request->environment, request->workspace_id, &target);
	lease->provider = target_provider(&target);
	if (json_is_false(id))
		ereport(ERROR,
		        (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		         errmsg("provider \"%s\" put a secret into the id of its lease", lease->provider),
		         errhint("What it has made is destroyed.")));
	if (!json_is_object(result) || (!json_is_string(id) && !json_is_null(id)))
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		                errmsg("provider \"%s\" answered without a lease", lease->provider)));
	if (json_is_string(id) && !provider_id_is_storable(id))
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		                errmsg("provider \"%s\" answered with an id that can't be stored",
		                       lease->provider),
		                errdetail("It has characters that this database's encoding does not have."),
		                errhint("What it has made is destroyed.")));
	if (!call_size_takes_metadata(json_object_get(result, "metadata")))
		ereport(ERROR,
		        (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		         errmsg("provider \"%s\" answered with too much metadata", lease->provider),
		         errdetail(
		             "It is longer than 1 MB, has more than 5000 values, or more than 50 levels."),
		         errhint("What it has made is destroyed.")));
	lease->provider_lease_id = json_is_string(id) ? text_from_utf8(json_string_value(id)) : NULL;
	lease->lease_policy = target.policy;
	lease->json_metadata = lease_metadata(request, &target, result, resumed);
	lease->metadata = jsonb_from_json(lease->json_metadata);
	lease->expires_at = parse_time(json_string_value(json_object_get(result, "expiresAt")));
}

/* What is in the ledger for a key, or for the lease that holds it; not what another server made. */
json_t *
provider_row(const pg_uuid_t *lease_id, bool by_key)
{
#define READ_ROW                                                                                   \
	"SELECT to_jsonb(p) FROM envrt.provider_leases p WHERE" LEDGER_OWN_OF("p.") " AND p."
	static Statement find_key = {READ_ROW "lease_id = $5", 5, {LEDGER_OWN_TYPES, UUIDOID}};
	static Statement find_holder = {READ_ROW "holder_id = $5", 5, {LEDGER_OWN_TYPES, UUIDOID}};
	Datum values[5];
	ApiCall call;
	json_t *row = NULL;
	MemoryContext context = CurrentMemoryContext;
	int found;

	if (shared_state == NULL)
		ereport_not_preloaded();
	ledger_own_arguments(values);
	values[4] = UUIDPGetDatum(lease_id);
	ledger_enter(&call);
	found = statement_execute_latest(by_key ? &find_key : &find_holder, values, NULL);
	if (found > 0)
	{
		bool isnull;
		Jsonb *jsonb = DatumGetJsonbP(result_datum(0, 1, &isnull));
		MemoryContext previous = MemoryContextSwitchTo(context);

		row = json_from_jsonb(jsonb);
		MemoryContextSwitchTo(previous);
	}
	api_leave(&call);
	return row;
}

json_t *
provider_call_params(const json_t *row)
{
	json_t *params = json_guard(json_object_new());
	json_t *config = json_object_get(row, "config");
	const char *secrets = json_string_value(json_object_get(row, "secrets"));
	const char *key = json_string_value(json_object_get(row, "lease_id"));
	const char *company = json_string_value(json_object_get(row, "company_id"));
	static const char *const names[][2] = {{"driverKey", "driver_key"},
	                                       {"companyId", "company_id"},
	                                       {"environmentId", "environment_id"},
	                                       {"leaseId", "lease_id"},
	                                       {"fence", "fence"},
	                                       {"providerLeaseId", "provider_lease_id"}};

	if (secrets != NULL)
	{
		json_t *values;

		config = config_fill_secrets(
		    config, DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(key))),
		    DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(company))),
		    DatumGetByteaP(DirectFunctionCall1(byteain, CStringGetDatum(secrets))), &values);
		json_object_set(params, PARAMS_SECRETS, values);
	}
	json_object_set(params, "config", config);
	for (int i = 0; i < (int) lengthof(names); i++)
		json_object_set(params, names[i][0], json_object_get(row, names[i][1]));
	if (json_is_string(json_object_get(row, "plugin_key")))
		json_object_set(params, "pluginKey", json_object_get(row, "plugin_key"));
	if (json_is_object(json_object_get(row, "metadata")))
		json_object_set(params, "leaseMetadata", json_object_get(row, "metadata"));
	provider_set_limit(params);
	return params;
}

json_t *
provider_take_secrets(json_t *params)
{
	json_t *values = json_incref(json_object_get(params, PARAMS_SECRETS));

	json_object_del(params, PARAMS_SECRETS);
	/* A plugin's worker may ask for them; nobody else needs them twice. */
	if (json_object_size(values) > 0 && !is_of_host(params))
	{
		json_t *secrets = config_secrets_by_id(values);
		json_t *others = json_object_get(params, "secrets");

		if (others != NULL)
			json_object_update(secrets, others);
		json_object_set_new(params, "secrets", secrets);
	}
	return values;
}

/*
 * What names the provider lease must stay as it is, or it could never be
 * ended: a short secret that is in it by accident is no reason to change it.
 * With a true secret in it, it is false instead, and nobody uses it: the
 * driver host knows what it has made for the key.
 */
void
provider_mask_answer(json_t *result, json_t *error, const json_t *values)
{
	json_t *id = json_object_get(result, "providerLeaseId");

	id = config_holds_secret(id, values) ? json_false() : json_deep_copy(id);
	config_mask_secrets(result, values);
	config_mask_secrets(error, values);
	if (id != NULL)
		json_object_set_new(result, "providerLeaseId", id);
}

json_t *
provider_call(const char *method, json_t *params, int64 timeout_ms, json_t **error)
{
	json_t *values = provider_take_secrets(params);
	json_t *result;

	if (values != NULL)
		json_guard(values);
	result = driver_host_try(method, params, timeout_ms, error);
	provider_mask_answer(result, *error, values);
	return result;
}
