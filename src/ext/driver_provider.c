/*
 * driver_provider.c
 *		The extension's side of sandboxes that a provider makes.
 *
 * What a provider makes, a provider lease, outlives the call and the
 * transaction that asked for it.  So an acquire goes through the ledger
 * (ledger.c) in these steps, of which each may be the last:
 *
 *	1.	This (sub)transaction gets its id, and a note that makes its end known.
 *	2.	The scheduler writes a row for it, or hands over one that is idle.
 *	3.	The provider makes or resumes.
 *	4.	The scheduler writes down what the provider said it is.
 *	5.	The lease is inserted (leases.c).
 *
 * Nothing is undone here when a step fails: the row is there, and what
 * becomes of it is decided when the transaction has ended.  Only where the
 * provider itself says that it made nothing, the row goes at once.
 *
 * Lease policies, by the config's leasePolicy or else reuseLease:
 *
 *	ephemeral						made for the lease, and gone with it
 *	reuse_by_environment			one for the environment and its config: after the
 *									lease it is idle, and the next lease resumes it
 *	reuse_by_execution_workspace	the same for each execution workspace; a lease
 *									without one is ephemeral
 *	retain_on_failure				ephemeral, but a lease that fails becomes
 *									retained and keeps it, until it is released,
 *									destroyed, or expires
 *
 * A reusable one that another lease holds is waited for as long as
 * envrt.reuse_wait_timeout says.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "config_secrets.h"
#include "driver_call.h"
#include "drivers.h"
#include "fault_points.h"
#include "json.h"
#include "ledger.h"
#include "ledger_hints.h"
#include "ledger_request.h"
#include "provider_lease.h"
#include "settings.h"
#include "shared_state.h"
#include "tables.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

/* How often one that can't be resumed is replaced before the acquire gives up. */
#define MAX_TRIES 3

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

static bool
policy_reuses(const char *policy)
{
	return strncmp(policy, "reuse_", strlen("reuse_")) == 0;
}

/* The environment's config as the provider gets it, with references to secrets. */
static json_t *
provider_config(const AcquireRequest *request, const char **policy)
{
	json_t *config = config_canonical("sandbox", request->environment->config);

	*policy = lease_policy(config, request->workspace_id);
	/* Providers know this key only. */
	json_object_set_new(config, "reuseLease", json_boolean(policy_reuses(*policy)));
	return config;
}

/* What every call about an environment has. */
static json_t *
call_params(const Environment *environment, const char *driver_key, json_t *config)
{
	json_t *params = json_guard(json_object_new());

	json_object_set_new(params, "driverKey", json_string(text_to_utf8(driver_key)));
	json_object_set_new(params, "companyId", json_string(uuid_text(environment->company_id)));
	if (environment->id != NULL)
		json_object_set_new(params, "environmentId", json_string(uuid_text(environment->id)));
	json_object_set(params, "config", config);
	json_object_set_new(params, "limits", json_pack("{s:i}", "callMs", envrt_provider_timeout));
	return params;
}

static const char *
config_provider(const json_t *config)
{
	return text_from_utf8(json_string_value(json_object_get(config, "provider")));
}

json_t *
provider_create_row(const AcquireRequest *request, json_t **params)
{
	const char *policy;
	json_t *config = provider_config(request, &policy);
	bytea *secrets;
	json_t *values;
	json_t *filled = config_resolve_secrets(config, request->environment->company_id, request->key,
	                                        &secrets, &values);
	json_t *row = json_guard(json_object_new());

	json_object_set_new(row, "lease_id", json_string(uuid_text(request->key)));
	json_object_set_new(row, "holder_id", json_string(uuid_text(request->lease_id)));
	json_object_set_new(row, "company_id",
	                    json_string(uuid_text(request->environment->company_id)));
	json_object_set_new(row, "environment_id", json_string(uuid_text(request->environment->id)));
	if (strcmp(policy, "reuse_by_execution_workspace") == 0)
		json_object_set_new(row, "execution_workspace_id",
		                    json_string(uuid_text(request->workspace_id)));
	json_object_set_new(row, "driver", json_string("sandbox"));
	json_object_set(row, "driver_key", json_object_get(config, "provider"));
	json_object_set_new(row, "lease_policy", json_string(policy));
	json_object_set(row, "config", config);
	if (secrets != NULL)
		json_object_set_new(
		    row, "secrets",
		    json_string(DatumGetCString(DirectFunctionCall1(byteaout, PointerGetDatum(secrets)))));

	*params = call_params(request->environment, config_provider(config), filled);
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
	fraction = (fsec_t) ((seconds - tm.tm_sec) * USECS_PER_SEC);
	if (*text != '\0' || tm2timestamp(&tm, fraction, &zone, &result) != 0)
		return DT_NOEND;
	return result;
}

static void
report_bad_answer(const char *provider)
{
	ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
	                errmsg("provider \"%s\" answered without a lease", provider)));
}

/* What names a row and the lease that asks. */
static json_t *
row_of(const AcquireRequest *request)
{
	json_t *row = json_guard(json_object_new());

	json_object_set_new(row, "lease_id", json_string(uuid_text(request->key)));
	json_object_set_new(row, "holder_id", json_string(uuid_text(request->lease_id)));
	return row;
}

json_t *
provider_learnt(const AcquireRequest *request, const json_t *result)
{
	json_t *row = row_of(request);
	json_t *metadata = json_object_get(result, "metadata");
	TimestampTz expires_at = parse_time(json_string_value(json_object_get(result, "expiresAt")));

	json_object_set(row, "provider_lease_id", json_object_get(result, "providerLeaseId"));
	if (json_is_object(metadata))
		json_object_set(row, "metadata", metadata);
	if (expires_at != DT_NOEND)
		json_object_set_new(row, "expires_at", json_string(timestamptz_to_str(expires_at)));
	json_object_set(row, "plugin_key", json_object_get(result, "pluginKey"));
	return row;
}

/*
 * The lease's metadata: the config's keys, the provider's own, and above
 * these what is ours to say.
 */
static Jsonb *
lease_metadata(const AcquireRequest *request, const json_t *config, const json_t *result,
               bool resumed)
{
	json_t *metadata = json_guard(json_deep_copy(config));
	json_t *of_provider = json_object_get(result, "metadata");
	json_t *plugin_key = json_object_get(result, "pluginKey");

	if (json_is_object(of_provider))
		json_object_update(metadata, of_provider);
	json_object_set_new(metadata, "driver", json_string("sandbox"));
	json_object_set_new(metadata, "executionWorkspaceMode",
	                    request->workspace_mode != NULL
	                        ? json_string(text_to_utf8(request->workspace_mode))
	                        : json_null());
	json_object_set(metadata, "provider", json_object_get(config, "provider"));
	json_object_set(metadata, "reuseLease", json_object_get(config, "reuseLease"));
	if (plugin_key != NULL)
	{
		json_object_set(metadata, "pluginKey", plugin_key);
		json_object_set_new(metadata, "sandboxProviderPlugin", json_true());
	}
	if (resumed)
		json_object_set_new(metadata, "resumedLease", json_true());
	return jsonb_from_json(metadata);
}

void
provider_acquired(const AcquireRequest *request, json_t *result, bool resumed, AcquiredLease *lease)
{
	const char *policy;
	json_t *config = provider_config(request, &policy);
	const json_t *id = json_object_get(result, "providerLeaseId");

	lease->provider = config_provider(config);
	if (!json_is_object(result) || (!json_is_string(id) && !json_is_null(id)))
		report_bad_answer(lease->provider);
	lease->provider_lease_id = json_is_string(id) ? text_from_utf8(json_string_value(id)) : NULL;
	lease->lease_policy = policy;
	lease->metadata = lease_metadata(request, config, result, resumed);
	lease->expires_at = parse_time(json_string_value(json_object_get(result, "expiresAt")));
}

/* What is in the ledger for a key, or for the lease that holds it; not what another server made. */
json_t *
provider_row(const pg_uuid_t *lease_id, bool by_key)
{
#define READ_ROW                                                                                   \
	"SELECT pg_catalog.to_jsonb(p) FROM envrt.provider_leases p WHERE" LEDGER_OWN_OF("p.") " AND " \
	                                                                                       "p."
	static Statement find_key = {
	    READ_ROW "lease_id OPERATOR(pg_catalog.=) $5", 5, {LEDGER_OWN_TYPES, UUIDOID}};
	static Statement find_holder = {
	    READ_ROW "holder_id OPERATOR(pg_catalog.=) $5", 5, {LEDGER_OWN_TYPES, UUIDOID}};
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
	json_object_set_new(params, "limits", json_pack("{s:i}", "callMs", envrt_provider_timeout));
	return params;
}

json_t *
provider_take_secrets(json_t *params)
{
	json_t *values = json_incref(json_object_get(params, PARAMS_SECRETS));

	json_object_del(params, PARAMS_SECRETS);
	return values;
}

json_t *
provider_call(const char *method, json_t *params, int64 timeout_ms, json_t **error)
{
	json_t *values = provider_take_secrets(params);
	json_t *result;

	if (values != NULL)
		json_guard(values);
	result = driver_host_try(method, params, timeout_ms, error);
	config_mask_secrets(result, values);
	config_mask_secrets(*error, values);
	return result;
}

/* A request to the ledger about one row that must be there. */
static void
tell_ledger(LedgerVerb verb, const json_t *row)
{
	LedgerReply reply;

	ledger_ask(verb, jsonb_from_json(row), 0, &reply);
	if (reply.outcome != LEDGER_DONE)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("the provider lease was cleaned up while it was acquired"),
		                errdetail("lease_acquire_failed"), errhint("Try again.")));
}

/* Whether an error says for sure that nothing was made. */
static bool
nothing_was_made(const json_t *error)
{
	const char *outcome =
	    json_string_value(json_object_get(json_object_get(error, "data"), "outcome"));

	return outcome != NULL && strcmp(outcome, "absent") == 0;
}

/* Whether a resume's answer is about what was to be resumed. */
bool
provider_resumed(const json_t *row, const json_t *result)
{
	const json_t *id = json_object_get(row, "provider_lease_id");

	return json_is_null(id) || json_equal(id, json_object_get(result, "providerLeaseId"));
}

/* Have what was idle resumed; NULL, and it is discarded, when the provider can't. */
static json_t *
resume(const AcquireRequest *request)
{
	json_t *row = provider_row(request->key, true);
	json_t *error;
	json_t *result;

	if (row == NULL)
		return NULL;
	result = provider_call("environmentResumeLease", provider_call_params(row),
	                       2 * (int64) envrt_provider_timeout, &error);
	if (error != NULL || !provider_resumed(row, result))
	{
		json_t *failed = row_of(request);

		json_object_set_new(failed, "last_error",
		                    error != NULL
		                        ? json_incref(json_object_get(error, "message"))
		                        : json_string("the provider resumed another provider lease"));
		tell_ledger(LEDGER_RESUME_FAILED, failed);
		return NULL;
	}
	return result;
}

static json_t *
make(const AcquireRequest *request, json_t *params)
{
	json_t *error;
	json_t *result = provider_call("environmentAcquireLease", params,
	                               2 * (int64) envrt_provider_timeout, &error);

	if (error != NULL)
	{
		if (nothing_was_made(error))
			tell_ledger(LEDGER_NOTHING_MADE, row_of(request));
		driver_host_raise(error);
	}
	return result;
}

static void
report_busy(const AcquireRequest *request)
{
	ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
	                errmsg("The reusable provider lease of environment \"%s\" is held by another "
	                       "active lease.",
	                       request->environment->name),
	                errdetail("lease_acquire_failed"),
	                errhint("Try again when that lease has been released, have acquires wait by "
	                        "setting envrt.reuse_wait_timeout, or use an environment without "
	                        "reuseLease.")));
}

static void
provider_acquire(const AcquireRequest *request, AcquiredLease *lease)
{
	json_t *params;
	json_t *row = provider_create_row(request, &params);
	bool reuses = policy_reuses(json_string_value(json_object_get(row, "lease_policy")));
	AcquireRequest asked = *request;
	FullTransactionId owner;
	json_t *result = NULL;
	bool resumed = false;

	driver_host_connect();
	owner = GetCurrentFullTransactionId();
	json_object_set_new(row, "owner",
	                    json_string(psprintf(UINT64_FORMAT, U64FromFullTransactionId(owner))));
	hint_forbid_prepare();
	hint_lease(request->lease_id);
	FAULT_POINT("acquire-before-ledger");
	for (int i = 0; result == NULL; i++)
	{
		LedgerReply reply;

		if (i == MAX_TRIES)
			ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
			                errmsg("nothing of environment \"%s\" could be resumed",
			                       request->environment->name),
			                errdetail("lease_acquire_failed")));
		ledger_ask(reuses ? LEDGER_REUSE : LEDGER_CREATE, provider_row_content(request, row),
		           envrt_reuse_wait_timeout, &reply);
		if (reply.outcome == LEDGER_BUSY)
			report_busy(request);
		FAULT_POINT("acquire-after-ledger");
		resumed = reply.outcome == LEDGER_CLAIMED;
		asked.key = resumed ? &reply.lease_id : request->key;
		result = resumed ? resume(&asked) : make(&asked, params);
		if (result != NULL)
		{
			FAULT_POINT("acquire-after-call");
			tell_ledger(LEDGER_LEARN, provider_learnt(&asked, result));
		}
	}
	provider_acquired(request, result, resumed, lease);
}

static void
provider_probe(const Environment *environment, ProbeResult *probe)
{
	json_t *config = config_canonical("sandbox", environment->config);
	const char *provider = config_provider(config);
	pg_uuid_t *key = uuid_generate();
	bytea *secrets;
	json_t *values;
	json_t *params;
	json_t *error;
	json_t *result;
	json_t *details = json_guard(json_object_new());
	const char *summary;

	params = call_params(
	    environment, provider,
	    config_resolve_secrets(config, environment->company_id, key, &secrets, &values));
	json_object_set(params, PARAMS_SECRETS, values);
	result = provider_call("environmentProbe", params, 2 * (int64) envrt_provider_timeout, &error);
	json_object_set(details, "provider", json_object_get(config, "provider"));
	if (error != NULL)
	{
		const char *state =
		    json_string_value(json_object_get(json_object_get(error, "data"), "sqlstate"));

		probe->ok = false;
		if (state != NULL && strcmp(state, "42704") == 0)
			probe->summary =
			    psprintf("Sandbox provider \"%s\" is not installed or its plugin worker is not "
			             "running.",
			             provider);
		else
		{
			probe->summary = psprintf("Sandbox provider \"%s\" probe failed.", provider);
			json_object_set(details, "error", json_object_get(error, "message"));
		}
		probe->details = jsonb_from_json(details);
		return;
	}
	probe->ok = json_is_true(json_object_get(result, "ok"));
	summary = json_string_value(json_object_get(result, "summary"));
	probe->summary = summary != NULL ? text_from_utf8(summary)
	                                 : psprintf("Sandbox provider \"%s\" probe %s.", provider,
	                                            probe->ok ? "passed" : "failed");
	json_object_set_new(details, "diagnostics",
	                    json_is_array(json_object_get(result, "diagnostics"))
	                        ? json_incref(json_object_get(result, "diagnostics"))
	                        : json_array());
	json_object_set_new(details, "metadata",
	                    json_is_object(json_object_get(result, "metadata"))
	                        ? json_incref(json_object_get(result, "metadata"))
	                        : json_object_new());
	probe->details = jsonb_from_json(details);
}

const Driver provider_driver = {
    .name = "sandbox",
    .calls_outside = true,
    .makes_provider_leases = true,
    .acquire = provider_acquire,
    .probe = provider_probe,
};
