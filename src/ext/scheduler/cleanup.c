/*
 * cleanup.c
 *		Cleanup: telling providers that their provider leases are not needed.
 *
 * The scheduler's part that meets the outside.  A row that is cleaning, or
 * idle past its time, is due at its next_attempt_at.  Its way:
 *
 *	1.	Taken in a batch: attempts and fence go up and next_attempt_at goes
 *		past the call's time limit, in a transaction; so a row in flight is not
 *		due, and a successor of this scheduler can tell what was begun.
 *	2.	Called, by async_calls.c, with nothing open in the database: many
 *		calls are in flight at once, limited per environment and provider, so
 *		that one that hangs holds up nobody but its like; and no company has
 *		more of them than its share (in_flight.c).  When more is due than a
 *		batch has room for, each company gets a part of it.
 *	3.	Answered: the row is deleted, or idle if it is kept for reuse, together
 *		with the lease's cleanup_status in one transaction; or tried again
 *		later, with backoff and jitter; or, after envrt.cleanup_attempts, left
 *		for envrt_retry_cleanup with cleanup_status failed.
 *
 * Where nobody can say whether the provider lease exists, the row becomes
 * unresolved.  Where the lease's row is locked, or a trigger on it fails, the
 * row stays as report until its cleanup_status can be set: the provider is
 * not told again.
 */
#include "postgres.h"

#include "secrets/secret_references.h"
#include "hostlink/async_calls.h"
#include "base/fault_points.h"
#include "ledger/ledger.h"
#include "scheduler/cleanup.h"
#include "environments/provider_lease.h"
#include "base/timer.h"
#include "utils/timestamp.h"
#include "scheduler/cleanup_choice.h"
#include "scheduler/cleanup_take.h"
#include "scheduler/cleanup_outcome.h"

static TimestampTz next_due; /* when no work is noted */

/* The answer, or that there is none; see async_calls.h. */
static void
cleanup_answered(void *data, const DriverAnswer *answer)
{
	Cleanup *cleanup = data;
	const char *outcome = json_string_value(json_object_get(answer->result, "outcome"));
	const char *message;
	const char *detail;

	if (answer->error != NULL)
	{
		config_mask_secrets(unconstify(json_t *, answer->error), cleanup->values);
		message = json_string_value(json_object_get(answer->error, "message"));
		detail =
		    json_string_value(json_object_get(json_object_get(answer->error, "data"), "detail"));
		cleanup->result = CLEANUP_ERROR;
		cleanup_set_error(cleanup, message != NULL ? message : "the driver failed", detail);
	}
	else if (answer->result == NULL)
	{
		cleanup->result = CLEANUP_LOST;
		strlcpy(cleanup->error, "the connection to the driver host was lost",
		        sizeof(cleanup->error));
	}
	else if (outcome != NULL && strcmp(outcome, "unknown") == 0)
	{
		cleanup->result = CLEANUP_UNKNOWN;
		strlcpy(cleanup->error,
		        "the provider was lost while it made this, and can't be asked what exists",
		        sizeof(cleanup->error));
	}
	else if (outcome != NULL && strcmp(outcome, "found") == 0)
	{
		cleanup->result = CLEANUP_FOUND;
		cleanup->found = json_incref(unconstify(json_t *, answer->result));
		provider_mask_answer(cleanup->found, NULL, cleanup->values);
	}
	else
		cleanup->result = CLEANUP_DONE;
	in_flight_answered(&cleanup_calls, &cleanup->call);
}

static void
cleanup_start(List *chosen)
{
	ListCell *cell;

	foreach (cell, chosen)
	{
		Cleanup *cleanup = lfirst(cell);

		in_flight_begin(&cleanup_calls, &cleanup->call);
		if (cleanup->params == NULL)
		{
			/* Only to be reported. */
			cleanup->result = CLEANUP_DONE;
			in_flight_answered(&cleanup_calls, &cleanup->call);
			continue;
		}
		FAULT_POINT("cleanup-before-call");
		if (!driver_client_call(cleanup->method, json_incref(cleanup->params),
		                        cleanup_call_timeout(cleanup), cleanup_answered, cleanup))
			cleanup_answered(cleanup, &(DriverAnswer){NULL, NULL});
	}
}

/* Start what is due; true when there is more. */
static bool
start_due(void)
{
	MemoryContext context =
	    AllocSetContextCreate(TopMemoryContext, "envrt cleanup", ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);
	TimestampTz now = GetCurrentTimestamp();
	List *chosen;
	List *taken = NIL;
	bool more = false;
	ListCell *cell;

	chosen = cleanup_try_choose(now, context, &more);
	MemoryContextSwitchTo(context);
	if (chosen != NIL)
	{
		if (cleanup_try_take(chosen, now))
			taken = chosen;
		else if (list_length(chosen) > 1)
			foreach (cell, chosen)
			{
				/* One of them is bad: the others must not suffer for it. */
				if (cleanup_try_take(list_make1(lfirst(cell)), now))
					taken = lappend(taken, lfirst(cell));
			}
		cleanup_start(taken);
	}
	more = more && taken != NIL;
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return more;
}

/*
 * When the next one becomes due.  What is due already waits for others of its
 * like, whose answers wake us; with none in flight it is tried again soon.
 */
static TimestampTz
find_next_due(void)
{
	static Statement find = {
	    "SELECT next_attempt_at FROM envrt.provider_leases"
	    " WHERE state = ANY (ARRAY['idle', 'cleaning'])"
	    " AND next_attempt_at > $5 AND" LEDGER_OWN " ORDER BY next_attempt_at LIMIT 1",
	    5,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID},
	};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz soon = TimestampTzPlusMilliseconds(now, REPORT_RETRY_MS);
	volatile TimestampTz due = DT_NOEND;

	PG_TRY();
	{
		ApiCall call;
		Datum values[5];
		bool isnull;

		ledger_begin(&call);
		ledger_own_arguments(values);
		values[4] = TimestampTzGetDatum(cleanup_calls.nin_flight > 0 ? now : DT_NOBEGIN);
		if (statement_execute(&find, values, NULL) > 0)
			due = DatumGetTimestampTz(result_datum(0, 1, &isnull));
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("looking when the next cleanup is due");
		due = soon;
	}
	PG_END_TRY();
	return due <= now ? soon : due;
}

/*
 * cleanup_tend
 *		Write down answers and start what is due; when to come again at the latest.
 */
TimestampTz
cleanup_tend(void)
{
	TimestampTz now = timer_now();

	if (!dlist_is_empty(&cleanup_calls.answered))
	{
		if (!cleanup_finish_answered())
			return TimestampTzPlusMilliseconds(now, REPORT_RETRY_MS);
		work_note(WORK_CLEANUPS);
	}
	if (!work_is_noted(WORK_CLEANUPS) && next_due > now)
		return next_due;
	/* Without a driver host nothing can be done; its coming wakes us. */
	if (driver_client_instance() == NULL)
		return driver_client_deadline();
	(void) work_take(WORK_CLEANUPS);
	while (start_due())
		CHECK_FOR_INTERRUPTS();
	next_due = timer_at(find_next_due());
	if (!dlist_is_empty(&cleanup_calls.answered))
		work_note(WORK_CLEANUPS);
	return work_is_noted(WORK_CLEANUPS) ? now : next_due;
}
