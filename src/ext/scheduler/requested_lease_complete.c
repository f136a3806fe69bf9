/*
 * requested_lease_complete.c
 *		The second half of serving a requested lease: from the driver's answer to the row.
 */
#include "postgres.h"

#include "hostlink/blocking_calls.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "utils/builtins.h"
#include "scheduler/requested_lease_complete.h"

/* A resume has made something else: have that destroyed, by a row of its own. */
static void
discard_other(const AcquireRequest *request, RequestedLease *lease)
{
	AcquireRequest stray = *request;
	json_t *params;
	json_t *row;

	stray.key = uuid_generate();
	row = provider_stray_row(&stray, lease->result, &params);
	if (row != NULL)
		(void) requested_lease_tell_ledger(LEDGER_STRAY, row);
}

/*
 * Step 3 (requested_leases.c), for an answer; false when it does not make a lease: the request is
 * there no more, or (*again) it is to be begun anew.
 */
bool
requested_lease_complete(RequestedLease *lease, bool *again)
{
	static Statement hold = {
	    "UPDATE envrt.provider_leases SET state = 'held', owner = NULL, updated_at = now() WHERE "
	    "lease_id = $1",
	    1,
	    {UUIDOID},
	};
	ApiCall call;
	AcquireRequest request;
	LeaseArguments arguments;
	AcquiredLease acquired = {.expires_at = DT_NOEND};
	bool wanted;

	*again = false;
	owner_begin(&call);
	wanted = requested_lease_load_request(&call, &lease->call.lease_id, &request, &arguments);
	if (wanted && lease->reason != NULL)
		provider_report_not_resumed(request.environment->name, lease->reason, lease->error);
	if (wanted && lease->error != NULL)
		driver_host_raise(lease->error);
	if (wanted)
	{
		const Driver *driver = driver_find(request.environment->driver, lease->config);
		Environment asked = *request.environment;
		json_t *learnt = NULL;

		request.key = &lease->key;
		/* What was made is what the environment was then. */
		asked.config = lease->config;
		request.environment = &asked;
		request.replaced = lease->replaced;
		if (lease->in_ledger)
		{
			provider_acquired(&request, lease->result, lease->resumed, &acquired);
			learnt = provider_learnt(&request, lease->result, &acquired);
			*again = requested_lease_tell_ledger(LEDGER_LEARN, learnt) == LEDGER_ENDING;
		}
		else
			driver->acquire_result(&request, lease->result, &acquired);
		if (*again)
		{
			json_decref(lease->awaited);
			lease->awaited = json_incref(json_object_get(learnt, "provider_lease_id"));
			wanted = false;
		}
		else
		{
			requested_lease_lock_rows(&request);
			lease_insert(&request, &acquired, &arguments);
			if (lease->in_ledger)
			{
				Datum values[1] = {UUIDPGetDatum(&lease->key)};
				ApiCall ledger;

				ledger_enter(&ledger);
				statement_execute(&hold, values, NULL);
				api_leave(&ledger);
			}
			requested_lease_delete_request(&lease->call.lease_id);
		}
	}
	FAULT_POINT("request-before-insert-commit");
	ledger_commit(&call, true);
	return wanted;
}

/* Whether the driver said for sure that it has made nothing. */
static bool
requested_leases_nothing_was_made(const RequestedLease *lease)
{
	const char *outcome =
	    json_string_value(json_object_get(json_object_get(lease->error, "data"), "outcome"));

	return lease->in_ledger && !lease->resumed && outcome != NULL && strcmp(outcome, "absent") == 0;
}

/* The request can't be met: keep what envrt_await_lease is to raise. */
void
requested_lease_write_failure(const RequestedLease *lease, const ErrorData *error)
{
	static Statement fail = {
	    "UPDATE envrt.lease_requests SET state = 'failed', sqlstate = $2, message = $3, detail = "
	    "$4, hint = $5, finished_at = now() WHERE lease_id = $1",
	    5,
	    {UUIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID},
	};
	Datum values[5] = {UUIDPGetDatum(&lease->call.lease_id)};
	char nulls[6] = "     ";
	ApiCall call;

	ledger_begin(&call);
	if (requested_leases_nothing_was_made(lease))
	{
		LedgerRequest forget = {.verb = LEDGER_NOTHING_MADE};
		JsonbObject content;

		jsonb_object_begin(&content);
		jsonb_object_string(&content, "lease_id", uuid_text(&lease->key));
		jsonb_object_string(&content, "holder_id", uuid_text(&lease->call.lease_id));
		forget.content = jsonb_object_end(&content);
		ledger_execute(&forget);
	}
	values[1] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[2] = CStringGetTextDatum(error->message);
	if (error->detail != NULL)
		values[3] = CStringGetTextDatum(error->detail);
	if (error->hint != NULL)
		values[4] = CStringGetTextDatum(error->hint);
	for (int i = 3; i < 5; i++)
		nulls[i] = values[i] == (Datum) 0 ? 'n' : ' ';
	if (statement_execute(&fail, values, nulls) == 0)
		ereport_without_effect("the request's failure", "envrt.lease_requests");
	ledger_commit(&call, false);
}

/* What an answer to a resume says has to be written first. */
void
requested_lease_write_resume(RequestedLease *lease, ResumeVerdict verdict)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		ApiCall call;
		AcquireRequest request;
		LeaseArguments arguments;

		owner_begin(&call);
		if (verdict == RESUME_GONE)
		{
			AcquireRequest of = {.key = &lease->key, .lease_id = &lease->call.lease_id};

			(void) requested_lease_tell_ledger(LEDGER_GONE, provider_row_name(&of));
		}
		else if (requested_lease_load_request(&call, &lease->call.lease_id, &request, &arguments))
			discard_other(&request, lease);
		ledger_commit(&call, true);
	}
	PG_CATCH();
	{
		ledger_abort("writing down what a provider has not resumed");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}
