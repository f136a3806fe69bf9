/*
 * provider_leases.c
 *		What users do with the provider leases behind their leases.
 *
 * envrt_resume_lease, envrt_destroy_lease, envrt_await_cleanup,
 * envrt_retry_cleanup, envrt_forget_provider_lease and envrt_claim_instance.
 *
 * The ledger is the scheduler's to write, so what changes it is asked of the
 * scheduler (ledger_request.c), is done at once, and stays when the caller's
 * transaction is rolled back.  envrt_destroy_lease is no exception: the mark
 * that what is behind the lease is to be destroyed, not kept for reuse, costs
 * a reuse at most when the destroy itself is rolled back.
 *
 * Waiting is for what the scheduler commits, so it looks with the newest
 * snapshot, at every isolation level.
 */
#include "postgres.h"

#include "access/xact.h"
#include "arguments.h"
#include "catalog/pg_type.h"
#include "driver_call.h"
#include "drivers.h"
#include "fault_points.h"
#include "funcapi.h"
#include "json.h"
#include "ledger_hints.h"
#include "ledger_request.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "plugins.h"
#include "provider_lease.h"
#include "settings.h"
#include "shared_state.h"
#include "storage/condition_variable.h"
#include "tables.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "waiting.h"

PG_FUNCTION_INFO_V1(envrt_resume_lease);
PG_FUNCTION_INFO_V1(envrt_destroy_lease);
PG_FUNCTION_INFO_V1(envrt_await_cleanup);
PG_FUNCTION_INFO_V1(envrt_retry_cleanup);
PG_FUNCTION_INFO_V1(envrt_forget_provider_lease);
PG_FUNCTION_INFO_V1(envrt_claim_instance);

static void
report_no_lease(const pg_uuid_t *lease_id)
{
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
	                errmsg("Lease \"%s\" not found.", uuid_text(lease_id)),
	                hint_visible_rows(TABLE_ENVIRONMENT_LEASES)));
}

static Jsonb *
lease_id_content(const pg_uuid_t *lease_id)
{
	JsonbObject content;

	jsonb_object_begin(&content);
	jsonb_object_string(&content, "lease_id", uuid_text(lease_id));
	return jsonb_object_end(&content);
}

/* The driver and the status of a lease that the caller can see. */
static void
look_at_lease(const ApiCall *call, const pg_uuid_t *lease_id, char **driver, char **provider,
              char **status)
{
	static Statement find = {
	    "SELECT coalesce(l.metadata OPERATOR(pg_catalog.->>) 'driver', e.driver), l.provider, "
	    "l.status FROM @environment_leases@ l JOIN @environments@ e ON e.id "
	    "OPERATOR(pg_catalog.=) l.environment_id WHERE l.id OPERATOR(pg_catalog.=) $1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(lease_id)};

	if (!caller_can_see(call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
	    statement_execute(&find, values, NULL) == 0)
		report_no_lease(lease_id);
	*driver = result_text(0, 1);
	*provider = result_text(0, 2);
	*status = result_text(0, 3);
}

/* ERROR for drivers that have nothing on the far side to resume or destroy. */
static void
require_provider(const char *driver, const char *provider, const char *operation)
{
	if ((strcmp(driver, "sandbox") != 0 && strcmp(driver, "plugin") != 0) ||
	    (provider != NULL && strcmp(provider, "fake") == 0))
		ereport(
		    ERROR,
		    (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
		     errmsg("Environment driver \"%s\" does not support lease %s.", driver, operation),
		     errhint("There is nothing on the far side; envrt_release_lease() ends the lease.")));
}

static void
report_not_active(const pg_uuid_t *lease_id, const char *status)
{
	ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
	                errmsg("Lease \"%s\" is not active (status: %s).", uuid_text(lease_id), status),
	                errhint("Acquire a new lease.")));
}

/*
 * envrt_resume_lease(lease_id)
 */
Datum
envrt_resume_lease(PG_FUNCTION_ARGS)
{
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	MemoryContext context = CurrentMemoryContext;
	ApiCall call;
	char *driver;
	char *provider;
	char *status;
	json_t *row;
	json_t *params;
	json_t *error;
	json_t *result;
	json_t *answer;
	static const char *const keys[] = {"providerLeaseId", "metadata", "expiresAt"};
	Jsonb *jsonb;

	api_enter(&call, "envrt_resume_lease()");
	look_at_lease(&call, lease_id, &driver, &provider, &status);
	require_provider(driver, provider, "resume");
	if (strcmp(status, "active") != 0)
		report_not_active(lease_id, status);
	row = provider_row(lease_id, false);
	if (row == NULL)
		ereport(ERROR,
		        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		         errmsg("this server has no provider lease of lease \"%s\"", uuid_text(lease_id)),
		         errhint("See envrt.stat_cleanup for what was left alone.")));
	params = provider_call_params(row);
	if (strcmp(driver, "plugin") == 0 &&
	    !json_is_string(json_object_get(params, "providerLeaseId")))
		ereport(
		    ERROR,
		    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		     errmsg("Plugin environment lease \"%s\" does not have a provider lease id to resume.",
		            uuid_text(lease_id))));
	plugins_restrict(params);
	result = provider_call("environmentResumeLease", params, provider_patience(params), &error);
	if (error != NULL)
		driver_host_raise(error);
	answer = json_guard(json_object_new());
	for (int i = 0; i < (int) lengthof(keys); i++)
	{
		json_t *value = json_object_get(result, keys[i]);

		json_object_set_new(answer, keys[i], value != NULL ? json_incref(value) : json_null());
	}
	MemoryContextSwitchTo(context);
	jsonb = jsonb_from_json(answer);
	api_leave(&call);
	PG_RETURN_JSONB_P(jsonb);
}

/*
 * envrt_destroy_lease(lease_id)
 */
Datum
envrt_destroy_lease(PG_FUNCTION_ARGS)
{
	static Statement destroy = {
	    "UPDATE @environment_leases@ SET status = 'failed', released_at = $2, last_used_at = $2,"
	    " updated_at = $2, cleanup_status = 'pending'"
	    " WHERE id OPERATOR(pg_catalog.=) $1"
	    " AND coalesce(status, '') OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained'])"
	    " RETURNING *",
	    2,
	    {UUIDOID, TIMESTAMPTZOID},
	};
	static Statement find = {
	    "SELECT status FROM @environment_leases@ WHERE id OPERATOR(pg_catalog.=) $1", 1, {UUIDOID}};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	Datum values[2] = {UUIDPGetDatum(lease_id)};
	ApiCall call;
	char *driver;
	char *provider;
	char *status;
	LedgerReply reply;
	Datum result;

	api_enter(&call, "envrt_destroy_lease()");
	look_at_lease(&call, lease_id, &driver, &provider, &status);
	require_provider(driver, provider, "destroy");
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	FAULT_POINT("destroy-before-update");
	if (statement_write(TABLE_ENVIRONMENT_LEASES, &destroy, values, NULL) == 0)
	{
		/* As it is now: it may just have been ended. */
		if (statement_execute_latest(&find, values, NULL) > 0)
			status = result_text(0, 1);
		ereport(
		    ERROR,
		    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		     errmsg("Lease \"%s\" is not active (status: %s).", uuid_text(lease_id), status),
		     errhint(
		         "It has ended already: envrt_await_cleanup() says what became of what it held.")));
	}
	result = result_row_datum(fcinfo);
	ledger_ask(LEDGER_DOOM, lease_id_content(lease_id), 0, &reply);
	FAULT_POINT("destroy-after-update");
	api_leave(&call);
	PG_RETURN_DATUM(result);
}

/*
 * envrt_await_cleanup(lease_id, timeout)
 */
Datum
envrt_await_cleanup(PG_FUNCTION_ARGS)
{
	static Statement look = {
	    "SELECT status, cleanup_status FROM @environment_leases@ WHERE id OPERATOR(pg_catalog.=) "
	    "$1",
	    1,
	    {UUIDOID},
	};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	MemoryContext context = CurrentMemoryContext;
	Datum values[1] = {UUIDPGetDatum(lease_id)};
	ApiCall call;
	Waiting waiting;
	char *status = NULL;
	text *result = NULL;

	waiting_begin(&waiting, fcinfo, 1);
	api_enter(&call, "envrt_await_cleanup()");
	do
	{
		if (!caller_can_see_now(&call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
		    statement_execute_latest(&look, values, NULL) == 0)
			report_no_lease(lease_id);
		status = result_text(0, 2);
		if (strcmp(result_text(0, 1), "active") == 0)
			ereport(ERROR,
			        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			         errmsg("Lease \"%s\" is active.", uuid_text(lease_id)),
			         hint_given(lease_id)
			             ? errhint("It was ended in this transaction: commit before waiting.")
			             : errhint("Release it first.")));
		SPI_freetuptable(SPI_tuptable);
		if (status == NULL || strcmp(status, "pending") != 0)
			break;
		if (hint_given(lease_id))
			ereport(
			    ERROR,
			    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			     errmsg("Lease \"%s\" was ended in this very transaction.", uuid_text(lease_id)),
			     errhint("Cleanup begins after the commit: wait in a later transaction.")));
	}
	while (waiting_wait(&waiting));
	waiting_end();
	if (status != NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(context);

		result = cstring_to_text(status);
		MemoryContextSwitchTo(previous);
	}
	api_leave(&call);
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(result);
}

/* The lease as the ledger is asked about it; a lease that the caller can't see does not exist. */
static void
require_visible(const ApiCall *call, const pg_uuid_t *lease_id)
{
	if (!caller_can_see(call, TABLE_ENVIRONMENT_LEASES, lease_id))
		report_no_lease(lease_id);
}

/*
 * envrt_retry_cleanup(lease_id)
 */
Datum
envrt_retry_cleanup(PG_FUNCTION_ARGS)
{
	static Statement pending = {
	    "UPDATE @environment_leases@ SET cleanup_status = 'pending', updated_at = $2 WHERE id "
	    "OPERATOR(pg_catalog.=) $1 AND cleanup_status OPERATOR(pg_catalog.=) 'failed'",
	    2,
	    {UUIDOID, TIMESTAMPTZOID},
	};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	Datum values[2] = {UUIDPGetDatum(lease_id), TimestampTzGetDatum(GetCurrentTimestamp())};
	ApiCall call;
	LedgerReply reply;

	api_enter(&call, "envrt_retry_cleanup()");
	require_visible(&call, lease_id);
	ledger_ask(LEDGER_RETRY, lease_id_content(lease_id), 0, &reply);
	if (reply.outcome != LEDGER_DONE)
		ereport(ERROR,
		        (errcode(ERRCODE_UNDEFINED_OBJECT),
		         errmsg("there is nothing to clean up for lease \"%s\"", uuid_text(lease_id)),
		         errhint("envrt.stat_cleanup shows what is being cleaned up.")));
	/* Locked until we commit, so what comes of it is reported after this. */
	statement_write(TABLE_ENVIRONMENT_LEASES, &pending, values, NULL);
	api_leave(&call);
	PG_RETURN_VOID();
}

/*
 * envrt_forget_provider_lease(lease_id)
 */
Datum
envrt_forget_provider_lease(PG_FUNCTION_ARGS)
{
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	ApiCall call;
	LedgerReply reply;

	api_enter(&call, "envrt_forget_provider_lease()");
	require_visible(&call, lease_id);
	ledger_ask(LEDGER_FORGET, lease_id_content(lease_id), 0, &reply);
	if (reply.outcome == LEDGER_NOT_FOUND)
		ereport(ERROR,
		        (errcode(ERRCODE_UNDEFINED_OBJECT),
		         errmsg("the ledger has no provider lease of lease \"%s\"", uuid_text(lease_id)),
		         errhint("envrt.stat_cleanup shows the ledger.")));
	if (reply.outcome == LEDGER_WRONG_STATE)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("provider lease \"%s\" is %s, not unresolved or failed",
		                       uuid_text(lease_id), reply.message),
		                errhint("Only what envrt can't settle by itself can be forgotten.")));
	api_leave(&call);
	PG_RETURN_VOID();
}

/*
 * envrt_claim_instance(action)
 */
Datum
envrt_claim_instance(PG_FUNCTION_ARGS)
{
	char *action = text_argument(fcinfo, 0, "action");
	ApiCall call;
	JsonbObject content;
	LedgerReply reply;

	if (strcmp(action, "take_over") != 0 && strcmp(action, "forget") != 0)
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		         errmsg("action \"%s\" is not one", action), errhint("Use take_over or forget.")));
	if (!superuser())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("must be superuser to claim an instance")));
	api_enter(&call, "envrt_claim_instance()");
	jsonb_object_begin(&content);
	ledger_ask(strcmp(action, "forget") == 0 ? LEDGER_FORGET_FOREIGN : LEDGER_TAKE_OVER,
	           jsonb_object_end(&content), 0, &reply);
	api_leave(&call);
	PG_RETURN_INT64(reply.count);
}
