/*
 * active_lease.c
 *		Calls to the driver of an active lease.
 *
 * Which driver it is says the lease, whatever its environment has become
 * meanwhile.  What a driver needs to know is for ssh in the environment, which
 * must still be one of ssh, and for providers in the ledger.
 *
 * The lease's row is the user's: whoever may update it can name another
 * environment in it.  So what a call is about must be of the lease's company,
 * whoever makes the call, a backend at once or the scheduler later.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "environments/drivers.h"
#include "environments/environments.h"
#include "base/json.h"
#include "leases/active_lease.h"
#include "environments/plugin_rows.h"
#include "environments/provider_lease.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

void
called_lease_load(const ApiCall *call, const pg_uuid_t *lease_id, CalledLease *lease)
{
	static Statement find = {
	    "SELECT l.company_id, l.environment_id, coalesce(l.metadata ->> 'driver', e.driver), "
	    "l.provider, l.provider_lease_id, l.metadata, l.status,"
	    " l.heartbeat_run_id, l.execution_workspace_id, l.expires_at"
	    " FROM @environment_leases@ l JOIN @environments@ e ON e.id = l.environment_id WHERE l.id "
	    "= $1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(lease_id)};
	Datum metadata;
	Datum expires_at;
	bool isnull;

	if (!caller_can_see(call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
	    statement_execute(&find, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Lease \"%s\" not found.", uuid_text(lease_id)),
		                hint_visible_rows(TABLE_ENVIRONMENT_LEASES)));
	if (strcmp(result_text(0, 7), "active") != 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("Lease \"%s\" is not active (status: %s).", uuid_text(lease_id),
		                       result_text(0, 7)),
		                errhint("Acquire a new lease.")));
	lease->id = lease_id;
	lease->company_id = result_uuid(0, 1);
	lease->environment_id = result_uuid(0, 2);
	lease->driver = result_text(0, 3);
	lease->provider = result_text(0, 4);
	lease->provider_lease_id = result_text(0, 5);
	metadata = result_typed(0, 6, JSONBOID, &isnull);
	lease->metadata = isnull ? NULL : DatumGetJsonbPCopy(metadata);
	lease->run_id = result_uuid(0, 8);
	lease->workspace_id = result_uuid(0, 9);
	expires_at = result_typed(0, 10, TIMESTAMPTZOID, &isnull);
	lease->expires_at = isnull ? DT_NOEND : DatumGetTimestampTz(expires_at);
}

bool
called_lease_is_fake(const CalledLease *lease)
{
	return strcmp(lease->driver, "sandbox") == 0 && lease->provider != NULL &&
	       strcmp(lease->provider, "fake") == 0;
}

bool
called_lease_is_bubblewrap(const CalledLease *lease)
{
	return strcmp(lease->driver, "sandbox") == 0 && lease->provider != NULL &&
	       strcmp(lease->provider, "bubblewrap") == 0 &&
	       (lease->metadata == NULL || jsonb_string_member(lease->metadata, "pluginKey") == NULL);
}

bool
called_lease_is_of_plugin(const CalledLease *lease)
{
	return strcmp(lease->driver, "plugin") == 0 ||
	       (strcmp(lease->driver, "sandbox") == 0 && !called_lease_is_fake(lease) &&
	        !called_lease_is_bubblewrap(lease));
}

/* `what` is of the company that has what the lease says to be its own. */
static void
require_company(const pg_uuid_t *lease_id, const pg_uuid_t *own, const char *what,
                const char *company_id)
{
	if (company_id == NULL || strcmp(company_id, uuid_text(own)) != 0)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("The %s of lease \"%s\" does not belong to its company.", what,
		                       uuid_text(lease_id)),
		                errhint("The lease or its environment has been changed since the lease was "
		                        "acquired: acquire a new lease.")));
}

void
called_lease_require_row(const pg_uuid_t *lease_id, const pg_uuid_t *company_id, const json_t *row)
{
	require_company(lease_id, company_id, "provider lease",
	                json_string_value(json_object_get(row, "company_id")));
}

void
called_lease_require_same(const CalledLease *lease, const pg_uuid_t *company_id,
                          const pg_uuid_t *environment_id)
{
	if (memcmp(lease->company_id, company_id, UUID_LEN) != 0 ||
	    memcmp(lease->environment_id, environment_id, UUID_LEN) != 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("Lease \"%s\" has been given another environment meanwhile.",
		                       uuid_text(lease->id)),
		                errdetail("What was asked for was for environment \"%s\".",
		                          uuid_text(environment_id)),
		                errhint("Acquire a lease of that environment, and ask again.")));
}

json_t *
called_lease_params(const ApiCall *call, const CalledLease *lease, const char *operation)
{
	if (strcmp(lease->driver, "ssh") == 0)
	{
		Environment *environment = environment_load(call, lease->environment_id);

		if (strcmp(environment->driver, "ssh") != 0)
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			                errmsg("Expected SSH environment config for driver \"%s\".",
			                       environment->driver),
			                errhint("The environment has got another driver since the lease was "
			                        "acquired: acquire a new lease.")));
		require_company(lease->id, lease->company_id, "environment",
		                uuid_text(environment->company_id));
		return ssh_driver.call_params(environment);
	}
	if (strcmp(lease->driver, "sandbox") == 0 || strcmp(lease->driver, "plugin") == 0)
	{
		json_t *row = provider_row(lease->id, false);
		json_t *params;

		if (row == NULL)
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			                errmsg("this server has no provider lease of lease \"%s\"",
			                       uuid_text(lease->id)),
			                errhint("See envrt.stat_cleanup for what was left alone.")));
		called_lease_require_row(lease->id, lease->company_id, row);
		params = provider_call_params(row);
		plugins_restrict(params);
		return params;
	}
	ereport(ERROR,
	        (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
	         errmsg("Environment driver \"%s\" does not support %s.", lease->driver, operation),
	         errhint("Leases of ssh, sandbox and plugin environments do.")));
}

/* As JavaScript writes it: "2026-01-31T12:00:00.000Z". */
static char *
time_to_json(TimestampTz time)
{
	struct pg_tm tm;
	fsec_t fraction;

	if (timestamp2tm(time, NULL, &tm, &fraction, NULL, NULL) != 0)
		ereport(ERROR,
		        (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
	return psprintf("%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year, tm.tm_mon, tm.tm_mday,
	                tm.tm_hour, tm.tm_min, tm.tm_sec, (int) (fraction / 1000));
}

/*
 * What is behind it says the ledger, where there is a row: that of the lease is the user's, who may
 * have written another's into it.
 */
json_t *
called_lease_json(const CalledLease *lease, const json_t *params)
{
	json_t *json = json_object_new();
	json_t *metadata = lease->metadata != NULL ? json_from_jsonb(lease->metadata) : NULL;
	json_t *given = json_object_get(params, "leaseMetadata");
	json_t *id = json_object_get(params, "providerLeaseId");

	if (id != NULL)
		json_object_set(json, "providerLeaseId", id);
	else
		json_object_set_new(json, "providerLeaseId",
		                    lease->provider_lease_id != NULL
		                        ? json_string(text_to_utf8(lease->provider_lease_id))
		                        : json_null());
	if (given != NULL && !json_is_object(metadata))
		metadata = given;
	else if (given != NULL)
		json_object_update(metadata, given);
	if (metadata != NULL)
		json_object_set(json, "metadata", metadata);
	json_object_set_new(json, "expiresAt",
	                    TIMESTAMP_NOT_FINITE(lease->expires_at)
	                        ? json_null()
	                        : json_string(time_to_json(lease->expires_at)));
	return json;
}
