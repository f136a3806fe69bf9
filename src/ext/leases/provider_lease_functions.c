/*
 * provider_lease_functions.c
 *		What users do with the provider leases behind their leases.
 *
 * envrt_resume_lease, envrt_destroy_lease, envrt_await_cleanup,
 * envrt_retry_cleanup, envrt_forget_provider_lease and envrt_claim_instance.
 *
 * The ledger is the scheduler's to write, so what changes it is asked of the
 * scheduler (requests.c), is done at once, and stays when the caller's
 * transaction is rolled back.  envrt_destroy_lease is no exception: the mark
 * that what is behind the lease is to be destroyed, not kept for reuse, costs
 * a reuse at most when the destroy itself is rolled back.
 *
 * Waiting is for what the scheduler commits, so it looks with the newest
 * snapshot, at every isolation level.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "catalog/pg_type.h"
#include "hostlink/blocking_calls.h"
#include "environments/drivers.h"
#include "base/fault_points.h"
#include "funcapi.h"
#include "base/json.h"
#include "leases/active_lease.h"
#include "ledger/scheduler_wake.h"
#include "ledger/requests.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "environments/plugin_rows.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/condition_variable.h"
#include "rights/tables.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "ledger/waiting.h"

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

/*
 * The lease as the ledger is asked about it.  The company limits what is found to rows of that
 * one: who sees rows of one company only may have written another one's lease id into his.
 */
static Jsonb *
lease_id_content(const pg_uuid_t *lease_id, const pg_uuid_t *company_id)
{
	JsonbObject content;

	jsonb_object_begin(&content);
	jsonb_object_string(&content, "lease_id", uuid_text(lease_id));
	if (company_id != NULL)
		jsonb_object_string(&content, "company_id", uuid_text(company_id));
	return jsonb_object_end(&content);
}

typedef struct LookedAt
{
	char *driver;
	char *provider;
	char *status;
	pg_uuid_t *company_id;
} LookedAt;

/* Of a lease that the caller can see. */
static void
look_at_lease(const ApiCall *call, const pg_uuid_t *lease_id, LookedAt *lease)
{
	static Statement find = {
	    "SELECT coalesce(l.metadata ->> 'driver', e.driver), l.provider, l.status, l.company_id "
	    "FROM @environment_leases@ l JOIN @environments@ e ON e.id = l.environment_id WHERE l.id = "
	    "$1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(lease_id)};

	if (!caller_can_see(call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
	    statement_execute(&find, values, NULL) == 0)
		report_no_lease(lease_id);
	lease->driver = result_text(0, 1);
	lease->provider = result_text(0, 2);
	lease->status = result_text(0, 3);
	lease->company_id = result_uuid(0, 4);
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

/* The provider has resumed something else, which nobody would ever destroy. */
static void
destroy_stray(const pg_uuid_t *lease_id, const json_t *result)
{
	const json_t *row = provider_row(lease_id, false);
	json_t *stray = row != NULL ? provider_stray_of(row, result) : NULL;
	LedgerReply reply;

	if (stray != NULL)
		ledger_ask(LEDGER_STRAY, jsonb_from_json(stray), 0, &reply);
}

/* ERROR unless the answer to a resume says that the lease has what it had. */
static void
require_resumed(const CalledLease *lease, const json_t *params, const json_t *result,
                const json_t *error)
{
	const char *id = json_string_value(json_object_get(params, "providerLeaseId"));
	const char *reason;
	ResumeVerdict verdict = provider_judge_resume(id, result, error, &reason);

	if (verdict == RESUME_DONE)
		return;
	if (error != NULL)
		driver_host_raise(error);
	if (verdict == RESUME_OTHER)
		destroy_stray(lease->id, result);
	ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
	                errmsg("could not resume what is behind lease \"%s\": %s", uuid_text(lease->id),
	                       text_from_utf8(reason)),
	                errhint("If that stays so, release the lease and acquire a new one.")));
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
	CalledLease lease;
	json_t *params;
	json_t *error;
	json_t *result;
	json_t *answer;
	static const char *const keys[] = {"providerLeaseId", "metadata", "expiresAt"};
	Jsonb *jsonb;

	api_enter(&call, "envrt_resume_lease()");
	called_lease_load(&call, lease_id, &lease);
	require_provider(lease.driver, lease.provider, "resume");
	params = called_lease_params(&call, &lease, "lease resume");
	if (strcmp(lease.driver, "plugin") == 0 &&
	    !json_is_string(json_object_get(params, "providerLeaseId")))
		ereport(
		    ERROR,
		    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		     errmsg("Plugin environment lease \"%s\" does not have a provider lease id to resume.",
		            uuid_text(lease_id))));
	result = provider_call("environmentResumeLease", params, provider_patience(params), &error);
	require_resumed(&lease, params, result, error);
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
	    " WHERE id = $1"
	    " AND coalesce(status, '') = ANY (ARRAY['active', 'retained'])"
	    " RETURNING *",
	    2,
	    {UUIDOID, TIMESTAMPTZOID},
	};
	static Statement find = {"SELECT status FROM @environment_leases@ WHERE id = $1", 1, {UUIDOID}};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	Datum values[2] = {UUIDPGetDatum(lease_id)};
	ApiCall call;
	LookedAt lease;
	const json_t *row;
	LedgerReply reply;
	Datum result;

	api_enter(&call, "envrt_destroy_lease()");
	look_at_lease(&call, lease_id, &lease);
	require_provider(lease.driver, lease.provider, "destroy");
	row = provider_row(lease_id, false);
	if (row != NULL)
		called_lease_require_row(lease_id, lease.company_id, row);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	FAULT_POINT("destroy-before-update");
	if (statement_write(TABLE_ENVIRONMENT_LEASES, &destroy, values, NULL) == 0)
	{
		/* As it is now: it may just have been ended. */
		if (statement_execute_latest(&find, values, NULL) > 0)
			lease.status = result_text(0, 1);
		ereport(
		    ERROR,
		    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		     errmsg("Lease \"%s\" is not active (status: %s).", uuid_text(lease_id), lease.status),
		     errhint(
		         "It has ended already: envrt_await_cleanup() says what became of what it held.")));
	}
	result = result_row_datum(fcinfo);
	ledger_ask(LEDGER_DOOM, lease_id_content(lease_id, lease.company_id), 0, &reply);
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
	    "SELECT status, cleanup_status FROM @environment_leases@ WHERE id = $1",
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

/*
 * What is asked of the ledger about a lease that need not be there any more, for who sees all.
 * For others it is one that they can see, and of its company.
 */
static Jsonb *
visible_lease_content(const ApiCall *call, const pg_uuid_t *lease_id)
{
	static Statement find = {
	    "SELECT company_id FROM @environment_leases@ WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(lease_id)};

	caller_needs_select(call, TABLE_ENVIRONMENT_LEASES);
	if (!caller_is_restricted(call, TABLE_ENVIRONMENT_LEASES))
		return lease_id_content(lease_id, NULL);
	if (!caller_can_see(call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
	    statement_execute(&find, values, NULL) == 0)
		report_no_lease(lease_id);
	return lease_id_content(lease_id, result_uuid(0, 1));
}

/*
 * envrt_retry_cleanup(lease_id)
 */
Datum
envrt_retry_cleanup(PG_FUNCTION_ARGS)
{
	static Statement pending = {
	    "UPDATE @environment_leases@ SET cleanup_status = 'pending', updated_at = $2 WHERE id = $1 "
	    "AND cleanup_status = 'failed'",
	    2,
	    {UUIDOID, TIMESTAMPTZOID},
	};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	Datum values[2] = {UUIDPGetDatum(lease_id), TimestampTzGetDatum(GetCurrentTimestamp())};
	ApiCall call;
	LedgerReply reply;

	api_enter(&call, "envrt_retry_cleanup()");
	ledger_ask(LEDGER_RETRY, visible_lease_content(&call, lease_id), 0, &reply);
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
	ledger_ask(LEDGER_FORGET, visible_lease_content(&call, lease_id), 0, &reply);
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
