/*
 * await_lease.c
 *		envrt_await_lease: waits for a requested lease.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "ledger/ledger.h"
#include "ledger/waiting.h"
#include "scheduler/await_lease.h"

PG_FUNCTION_INFO_V1(envrt_await_lease);

/* Raise what made the request fail. */
static void
raise_failure(void)
{
	const char *state = result_text(0, 2);
	char *detail = result_text(0, 4);
	char *hint = result_text(0, 5);

	ereport(ERROR, (errcode(MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4])),
	                errmsg_internal("%s", result_text(0, 3)),
	                detail != NULL ? errdetail_internal("%s", detail) : 0,
	                hint != NULL ? errhint("%s", hint) : 0));
}

static void
report_own_request(const pg_uuid_t *lease_id)
{
	ereport(ERROR,
	        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
	         errmsg("Lease \"%s\" was requested in this very transaction.", uuid_text(lease_id)),
	         errhint("It is acquired after the commit: wait in a later transaction.")));
}

/*
 * envrt_await_lease(lease_id, timeout)
 */
Datum
envrt_await_lease(PG_FUNCTION_ARGS)
{
	static Statement find_request = {
	    "SELECT state, sqlstate, message, detail, hint, heartbeat_run_id FROM envrt.lease_requests "
	    "WHERE lease_id = $1",
	    1,
	    {UUIDOID},
	};
	static Statement find_lease = {
	    "SELECT * FROM @environment_leases@ WHERE id = $1", 1, {UUIDOID}};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	Datum values[1] = {UUIDPGetDatum(lease_id)};
	ApiCall call;
	Waiting waiting;
	Datum result;

	waiting_begin(&waiting, fcinfo, 1);
	api_enter(&call, "envrt_await_lease()");
	for (;;)
	{
		ApiCall ledger;
		bool queued;

		/* In this order: when the request is gone, the lease is there. */
		ledger_enter(&ledger);
		queued = statement_execute_latest(&find_request, values, NULL) > 0 &&
		         caller_can_see_now(&call, TABLE_HEARTBEAT_RUNS, result_uuid(0, 6));
		if (queued && statement_execute_latest(&find_request, values, NULL) > 0 &&
		    strcmp(result_text(0, 1), "failed") == 0)
			raise_failure();
		api_leave(&ledger);
		if (!queued)
			break;
		if (hint_given(lease_id))
			report_own_request(lease_id);
		if (!waiting_wait(&waiting))
			ereport(ERROR,
			        (errcode(ERRCODE_QUERY_CANCELED),
			         errmsg("Lease \"%s\" has not been acquired in time.", uuid_text(lease_id)),
			         errhint("It is still queued: wait again, or end its run.")));
	}
	waiting_end();
	if (!caller_can_see_now(&call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
	    statement_execute_latest(&find_lease, values, NULL) == 0)
	{
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Lease \"%s\" not found.", uuid_text(lease_id)),
		                hint_visible_rows(TABLE_ENVIRONMENT_LEASES)));
	}
	result = result_row_datum(fcinfo);
	api_leave(&call);
	PG_RETURN_DATUM(result);
}
