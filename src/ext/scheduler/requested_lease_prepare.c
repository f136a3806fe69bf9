/*
 * requested_lease_prepare.c
 *		The first half of serving a requested lease: what its driver is called with.
 *
 * A transaction looks at environment and run again, and writes the ledger's row, so
 * that what the call may make is known before it is made.  Whatever holds the
 * request up is said in it, and it stays queued.
 */
#include "postgres.h"

#include "hostlink/async_calls.h"
#include "base/fault_points.h"
#include "ledger/ledger.h"
#include "environments/plugin_rows.h"
#include "environments/provider_lease.h"
#include "scheduler/requested_lease_prepare.h"

/* Write the ledger's row; false when what is wanted is held. */
static bool
requested_leases_reserve(RequestedLease *lease, const AcquireRequest *of, const json_t *row)
{
	LedgerRequest request = {.verb = LEDGER_CREATE};
	ApiCall ledger;

	if (strncmp(json_string_value(json_object_get(row, "lease_policy")), "reuse_", 6) == 0)
		request.verb = LEDGER_REUSE;
	request.content = provider_row_content(of, row);
	ledger_enter(&ledger);
	ledger_execute(&request);
	api_leave(&ledger);
	if (request.reply.outcome != LEDGER_CREATED && request.reply.outcome != LEDGER_CLAIMED)
	{
		/* Another execution workspace of it may have something. */
		if (strcmp(json_string_value(json_object_get(row, "lease_policy")),
		           "reuse_by_environment") == 0)
			lease->held_up = HELD_UP_BY_HOLDER;
		return false;
	}
	lease->in_ledger = true;
	lease->resumed = request.reply.outcome == LEDGER_CLAIMED;
	if (lease->resumed)
		lease->key = request.reply.lease_id;
	return true;
}

/* The params of a call about what the lease has claimed (guarded). */
static json_t *
requested_lease_row_params(const RequestedLease *lease, const char **provider_lease_id)
{
	json_t *row = provider_row(&lease->key, true);
	json_t *params;

	if (row == NULL)
		elog(ERROR, "ledger row \"%s\" has vanished", uuid_text(&lease->key));
	*provider_lease_id = json_string_value(json_object_get(row, "provider_lease_id"));
	params = provider_call_params(row);
	plugins_restrict(params);
	return params;
}

/* As provider_create_row(), and writes the row; NULL: what is wanted is held. */
static json_t *
requested_lease_provider_params(RequestedLease *lease, const AcquireRequest *request)
{
	json_t *params;
	json_t *row = provider_create_row(request, &params);
	const char *id;

	if (lease->awaited != NULL)
		json_object_set(row, "provider_lease_id", lease->awaited);
	if (!requested_leases_reserve(lease, request, row))
		return NULL;
	if (!lease->resumed)
		return params;
	params = requested_lease_row_params(lease, &id);
	if (id != NULL)
		lease->provider_lease_id = MemoryContextStrdup(TopMemoryContext, id);
	return params;
}

/* The params of the driver's call (guarded); NULL: it is not to be called now. */
static json_t *
requested_lease_driver_params(RequestedLease *lease, const AcquireRequest *request,
                              const Driver *driver, int64 *timeout_ms)
{
	json_t *params;

	/* Nothing is to be in the ledger that can't be asked for. */
	if (driver_client_instance() == NULL)
		ereport(ERROR,
		        (errcode(ERRCODE_LOCK_NOT_AVAILABLE), errmsg("the driver host is not running")));
	run_check(request->run_id, request->environment->company_id, RUN_LOOK);
	lease->call.environment_id = *request->environment->id;
	snprintf(lease->call.provider, sizeof(lease->call.provider), "%s:%s", driver->name,
	         driver->makes_provider_leases ? provider_of(request->environment) : "");
	if (!in_flight_allows(&acquire_calls, &lease->call, NIL))
	{
		lease->held_up = HELD_UP_BY_LIMIT;
		return NULL;
	}
	if (!driver->makes_provider_leases)
		return driver->acquire_params(request, timeout_ms);
	if (!provider_is_known(request->environment))
	{
		lease->held_up = HELD_UP_BY_PLUGINS;
		return NULL;
	}
	params = requested_lease_provider_params(lease, request);
	if (params != NULL)
		*timeout_ms = provider_patience(params) + 1000;
	return params;
}

bool
requested_lease_prepare(RequestedLease *lease, json_t **params, int64 *timeout_ms)
{
	ApiCall call;
	AcquireRequest request;
	LeaseArguments arguments;
	AcquiredLease acquired = {.expires_at = DT_NOEND};
	json_t *made = NULL;

	owner_begin(&call);
	if (requested_lease_load_request(&call, &lease->call.lease_id, &request, &arguments))
	{
		const Driver *driver =
		    driver_find(request.environment->driver, request.environment->config);
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		lease->config =
		    (Jsonb *) PG_DETOAST_DATUM_COPY(JsonbPGetDatum(request.environment->config));
		MemoryContextSwitchTo(previous);
		request.key = &lease->key;
		lease->waits = true;
		if (driver->calls_outside)
			made = requested_lease_driver_params(lease, &request, driver, timeout_ms);
		else
		{
			requested_lease_lock_rows(&request);
			driver->acquire(&request, &acquired);
			lease_insert(&request, &acquired, &arguments);
			requested_lease_delete_request(&lease->call.lease_id);
			lease->waits = false;
		}
	}
	if (made != NULL)
	{
		lease->values = provider_take_secrets(made);
		*params = json_incref(made);
	}
	FAULT_POINT("request-before-commit");
	ledger_commit(&call, true);
	return made != NULL;
}

void
requested_lease_prepare_again(RequestedLease *lease, json_t **params, int64 *timeout_ms)
{
	ApiCall call;
	const char *id;
	json_t *made;

	owner_begin(&call);
	made = requested_lease_row_params(lease, &id);
	lease->values = provider_take_secrets(made);
	*params = json_incref(made);
	*timeout_ms = provider_patience(made) + 1000;
	ledger_commit(&call, false);
}
