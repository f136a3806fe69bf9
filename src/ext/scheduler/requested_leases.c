/*
 * requested_leases.c
 *		Leases that were requested by envrt_request_lease, and envrt_await_lease.
 *
 * A request is a row of envrt.lease_requests, written in the transaction that
 * asks, often by a trigger: it makes no outside call there, and a rollback
 * takes it back.  At commit the scheduler is woken and acquires the lease:
 *
 *	1.	In a transaction: look at environment and run again; for a provider
 *		lease write the ledger's row, without an owner, since no transaction is
 *		left open while the outside is awaited.  (The row names the plugin that is
 *		going to be asked, so the driver host has to have said which that is.)
 *	2.	Call the driver; many are in flight at once.
 *	3.	In a transaction: lock the run, look again, insert the lease, mark the
 *		ledger's row held and delete the request.
 *
 * Companies take turns (company_turns.c), and none has more calls in flight than its
 * share of them (fair_share.h).
 *
 * A request that can't be met becomes failed, with the error that
 * envrt_await_lease then raises.  What is locked by somebody is tried again; a
 * reusable provider lease that is held is waited for, and one that can't be
 * resumed now is tried again, as by an acquire (driver_provider.c).  When the scheduler or
 * the driver host is lost between 1 and 3, the request is still queued and is
 * begun anew under another key, while the row of the lost try is cleaned up
 * like any other whose lease is not there (settle.c).
 *
 * Run as the shared tables' owner, in a restricted operation: whether the
 * one who asked may have the lease was decided when it was requested.
 */
#include "postgres.h"

#include "ledger/company_turns.h"
#include "hostlink/async_calls.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "ledger/ledger.h"
#include "scheduler/requested_leases.h"
#include "base/settings.h"
#include "base/timer.h"
#include "utils/timestamp.h"
#include "scheduler/requested_lease_prepare.h"
#include "scheduler/requested_lease_complete.h"

/* In a round. */
#define BATCH 64
/* Of a company, read at once. */
#define PAGE 16
#define LIMITED_RETRY_MS 100
#define ROUND_MS 1000
#define LOCKED_RETRY_MS 500
#define LOST_RETRY_MS 1000

static const char serving[] = "acquiring a requested lease";

/* A pass looks at each queued request once, a page at a time: what must wait is in nobody's way. */
static bool passing = false;
static Statement find_companies = {
    COMPANY_TURNS_FIND("envrt.lease_requests", "state = 'queued'"),
    1,
    {UUIDOID},
};
static CompanyTurns turns = {.find = &find_companies};
static bool look = true;               /* a pass is wanted */
static bool joining = false;           /* ... and who has come is to take part in this one */
static TimestampTz look_at = DT_NOEND; /* or will be, then */
static bool limited = false;           /* some wait for calls of their like to end */
/* Environments that have nothing to give in this pass: a look at one of their requests is enough.
 */
#define MAX_SKIPPED 64
static pg_uuid_t skipped[MAX_SKIPPED];
static int nskipped = 0;

static void
requested_leases_look_later(int64 ms)
{
	look_at = Min(look_at, TimestampTzPlusMilliseconds(timer_now(), ms));
}

static void
skip_environment(const pg_uuid_t *environment_id)
{
	if (nskipped < MAX_SKIPPED)
		skipped[nskipped++] = *environment_id;
}

static bool
is_skipped(const pg_uuid_t *environment_id)
{
	for (int i = 0; i < nskipped; i++)
		if (memcmp(&skipped[i], environment_id, UUID_LEN) == 0)
			return true;
	return false;
}

/* See async_calls.h. */
static void
lease_answered(void *data, const DriverAnswer *answer)
{
	RequestedLease *lease = data;

	lease->result = json_incref(unconstify(json_t *, answer->result));
	lease->error = json_incref(unconstify(json_t *, answer->error));
	provider_mask_answer(lease->result, lease->error, lease->values);
	in_flight_answered(&acquire_calls, &lease->call);
	if (limited)
		requested_leases_look_later(LIMITED_RETRY_MS);
}

/* A queued request. */
typedef struct LeaseRequest
{
	pg_uuid_t lease_id;
	pg_uuid_t environment_id;
	TimestampTz created_at;
} LeaseRequest;

/* The companies of the pass, or those that have come during it; false: not now. */
static bool
requested_leases_list_companies(bool begin)
{
	static Statement purge = {
	    "DELETE FROM envrt.lease_requests WHERE state = 'failed'"
	    " AND finished_at < (now() - '1 day'::interval)",
	    0,
	    {0},
	};
	MemoryContext context = CurrentMemoryContext;
	volatile bool listed = false;

	PG_TRY();
	{
		ApiCall call;

		ledger_begin(&call);
		if (begin)
		{
			statement_execute(&purge, NULL, NULL);
			company_turns_begin(&turns);
		}
		else
			company_turns_join(&turns);
		ledger_commit(&call, false);
		listed = true;
	}
	PG_CATCH();
	{
		ledger_abort("looking for requested leases");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return listed;
}

/* Environments that this pass leaves alone. */
static Datum
skipped_environments(void)
{
	Datum ids[MAX_SKIPPED];

	for (int i = 0; i < nskipped; i++)
		ids[i] = UUIDPGetDatum(&skipped[i]);
	return PointerGetDatum(construct_array(ids, nskipped, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

/* The next of a company's requests; false: not now. */
static bool
requested_leases_read_page(CompanyTurn *turn)
{
	static Statement find = {
	    "SELECT lease_id, created_at, environment_id FROM envrt.lease_requests"
	    " WHERE state = 'queued' AND company_id = $7"
	    " AND ROW(created_at, lease_id) > ROW($5, $6)"
	    " AND environment_id <> ALL ($8) AND" LEDGER_OWN " ORDER BY created_at, lease_id LIMIT 16",
	    8,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID, UUIDOID, UUIDOID, UUIDARRAYOID},
	};
	MemoryContext context = CurrentMemoryContext;
	LeaseRequest *requests = palloc(sizeof(LeaseRequest) * PAGE);
	volatile bool done = false;

	PG_TRY();
	{
		ApiCall call;
		Datum values[8];
		bool isnull;

		ledger_begin(&call);
		ledger_own_arguments(values);
		values[4] = TimestampTzGetDatum(turn->at);
		values[5] = UUIDPGetDatum(&turn->at_id);
		values[6] = UUIDPGetDatum(&turn->company_id);
		values[7] = skipped_environments();
		turn->page_length = statement_execute(&find, values, NULL);
		for (int row = 0; row < turn->page_length; row++)
		{
			requests[row].lease_id = *result_uuid(row, 1);
			requests[row].created_at = DatumGetTimestampTz(result_datum(row, 2, &isnull));
			requests[row].environment_id = *result_uuid(row, 3);
		}
		ledger_commit(&call, false);
		turn->page = requests;
		turn->page_next = 0;
		done = true;
	}
	PG_CATCH();
	{
		ledger_abort("looking for requested leases");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return done;
}

/* The error under way, copied; the transaction is over afterwards. */
static ErrorData *
take_error(MemoryContext context)
{
	ErrorData *error;

	MemoryContextSwitchTo(context);
	HOLD_INTERRUPTS();
	error = CopyErrorData();
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);
	RESUME_INTERRUPTS();
	return error;
}

static void
fail_request(const RequestedLease *lease, const ErrorData *error)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		requested_lease_write_failure(lease, error);
		failure_over(serving, &lease->call.lease_id);
	}
	PG_CATCH();
	{
		TimestampTz retry_at = failure_caught(serving, &lease->call.lease_id);

		look_at = Min(look_at, retry_at);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* Have what was reserved cleaned up: the lease is not there. */
static void
abandon(RequestedLease *lease)
{
	if (lease->in_ledger)
		hint_look_at_all();
	if (lease->error != NULL)
		work_note(WORK_PARKED);
}

/* Whether the request has failed a short while ago. */
static bool
requested_leases_is_put_off(const pg_uuid_t *lease_id)
{
	TimestampTz retry_at;

	if (!failure_holds(serving, lease_id, &retry_at))
		return false;
	look_at = Min(look_at, retry_at);
	return true;
}

/*
 * An error that passes, of a lock mostly: tried again soon, and less soon when it does not pass.
 * The transaction is over already, and the error is `error`.
 */
static void
put_off(const pg_uuid_t *lease_id, const ErrorData *error)
{
	TimestampTz retry_at = failure_noted(serving, lease_id, error);

	look_at = Min(look_at, retry_at);
}

static void
try_later(RequestedLease *lease, long ms)
{
	TimestampTz now = timer_now();

	if (lease->since == 0)
		lease->since = now;
	lease->again_at = TimestampTzPlusMilliseconds(now, ms);
	requested_leases_look_later(ms);
	dlist_push_tail(&acquire_calls.later, &lease->call.node);
}

/*
 * An answer to a resume that is none.  True when the request goes on: what was
 * claimed is tried again, or is gone and another one is made.
 */
static bool
resume_goes_on(RequestedLease *lease)
{
	TimestampTz now = timer_now();
	ResumeVerdict verdict = provider_judge_resume(lease->provider_lease_id, lease->result,
	                                              lease->error, &lease->reason);
	TimestampTz since = lease->since != 0 ? lease->since : now;

	if (verdict == RESUME_DONE)
		lease->reason = NULL;
	else if (verdict == RESUME_FAILED)
	{
		lease->pause = lease->pause == 0 ? PROVIDER_RESUME_PAUSE_MS
		                                 : Min(2 * lease->pause, PROVIDER_RESUME_MAX_PAUSE_MS);
		if (TimestampTzPlusMilliseconds(now, lease->pause) <=
		    TimestampTzPlusMilliseconds(since, envrt_reuse_retry))
		{
			dlist_delete(&lease->call.node);
			requested_lease_reset(lease);
			try_later(lease, lease->pause);
			return true;
		}
	}
	else
	{
		requested_lease_write_resume(lease, verdict);
		if (verdict == RESUME_GONE)
		{
			json_decref(lease->replaced);
			lease->replaced =
			    json_incref(provider_replaced(lease->provider_lease_id, lease->reason));
			dlist_delete(&lease->call.node);
			requested_lease_begin_anew(lease);
			try_later(lease, 0);
			return true;
		}
	}
	return false;
}

/* Begin with a request, or go on with what is claimed for it; whether it is in flight then. */
static bool
begin_try(RequestedLease *lease)
{
	MemoryContext context = CurrentMemoryContext;
	json_t *volatile params = NULL;
	int64 timeout_ms = 0;
	volatile bool to_call = false;
	ErrorData *volatile error = NULL;

	/* From here on what is reserved is not to be settled by its missing lease. */
	in_flight_begin(&acquire_calls, &lease->call);
	PG_TRY();
	{
		json_t *made = NULL;

		lease->waits = false;
		lease->held_up = HELD_UP_BY_NOTHING;
		if (lease->resumed)
		{
			requested_lease_prepare_again(lease, &made, &timeout_ms);
			to_call = true;
		}
		else
			to_call = requested_lease_prepare(lease, &made, &timeout_ms);
		params = made;
	}
	PG_CATCH();
	{
		error = take_error(context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (to_call)
	{
		const char *method = lease->resumed ? "environmentResumeLease" : "environmentAcquireLease";

		FAULT_POINT("request-before-call");
		if (!driver_client_call(method, params, timeout_ms, lease_answered, lease))
		{
			lease_answered(lease, &(DriverAnswer){NULL, NULL});
			requested_leases_look_later(0);
			return false;
		}
		return true;
	}
	in_flight_withdraw(&acquire_calls, &lease->call);
	if (lease->held_up != HELD_UP_BY_NOTHING)
		skip_environment(&lease->call.environment_id);
	if (lease->held_up == HELD_UP_BY_LIMIT)
		limited = true;
	else if (lease->held_up == HELD_UP_BY_PLUGINS)
		requested_leases_look_later(LOCKED_RETRY_MS);
	if (error != NULL && error_is_passing(error))
		put_off(&lease->call.lease_id, error);
	else if (error != NULL)
		fail_request(lease, error);
	else if (lease->waits && (lease->awaited != NULL || lease->replaced != NULL))
	{
		requested_lease_begin_anew(lease);
		try_later(lease, LOCKED_RETRY_MS);
		return false;
	}
	if (lease->resumed)
		abandon(lease);
	if (error == NULL)
		failure_over(serving, &lease->call.lease_id);
	requested_lease_free(lease);
	ConditionVariableBroadcast(&shared_state->leases_changed);
	return false;
}

static bool
begin_request(const pg_uuid_t *lease_id, const pg_uuid_t *company_id)
{
	RequestedLease *lease = MemoryContextAllocZero(TopMemoryContext, sizeof(RequestedLease));

	lease->call.lease_id = *lease_id;
	lease->call.company_id = *company_id;
	lease->key = *uuid_generate();
	return begin_try(lease);
}

/* Go on with what has been answered. */
static void
go_on(RequestedLease *lease)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData *volatile error = NULL;
	volatile bool completed = false;
	volatile bool again = false;
	const bool lost = lease->result == NULL && lease->error == NULL;

	if (!lost)
	{
		FAULT_POINT("request-after-call");
		if (lease->resumed && resume_goes_on(lease))
			return;
		PG_TRY();
		{
			bool begin_anew;

			completed = requested_lease_complete(lease, &begin_anew);
			again = begin_anew;
		}
		PG_CATCH();
		{
			error = take_error(context);
		}
		PG_END_TRY();
		MemoryContextSwitchTo(context);
	}
	if (error != NULL && lease->error == NULL && error_is_passing(error))
	{
		put_off(&lease->call.lease_id, error);
		return; /* it stays answered */
	}
	if (completed)
		failure_over(serving, &lease->call.lease_id);
	dlist_delete(&lease->call.node);
	if (again)
	{
		work_note(WORK_CLEANUPS);
		requested_lease_begin_anew(lease);
		try_later(lease, LOCKED_RETRY_MS);
		return;
	}
	if (lost)
		requested_leases_look_later(LOST_RETRY_MS);
	else if (error != NULL)
		fail_request(lease, error);
	if (!completed)
		abandon(lease);
	requested_lease_free(lease);
	ConditionVariableBroadcast(&shared_state->leases_changed);
}

/* What is in flight, by company. */
static void
begin_round(void)
{
	dlist_iter iter;

	company_turns_round(&turns);
	dlist_foreach(iter, &acquire_calls.in_flight)
	{
		company_turns_count(&turns, &dlist_container(CallInFlight, node, iter.cur)->company_id);
	}
}

/* A round's part of the pass; false: it can't go on now. */
static bool
requested_leases_pass_on(bool begin)
{
	CompanyTurn *turn = NULL;
	TimestampTz began = timer_now();

	if ((begin || joining) && !requested_leases_list_companies(begin))
		return false;
	joining = false;
	begin_round();
	for (int begun = 0; begun < BATCH && (turn = company_turns_next(&turns)) != NULL;)
	{
		LeaseRequest *request;

		CHECK_FOR_INTERRUPTS();
		/* Its other requests come when calls of its own have ended. */
		if (!in_flight_allows_company(&acquire_calls, turn->serving))
		{
			turn->over = limited = true;
			continue;
		}
		if (turn->page_next == turn->page_length && !requested_leases_read_page(turn))
			return false;
		if (turn->page_length == 0)
		{
			turn->over = true;
			continue;
		}
		request = (LeaseRequest *) turn->page + turn->page_next++;
		/* What others do in their triggers may take long: the rest has its turn first. */
		if (TimestampDifferenceExceeds(began, timer_now(), ROUND_MS))
			return true;
		turn->at = request->created_at;
		turn->at_id = request->lease_id;
		if (in_flight_has(&acquire_calls, &request->lease_id) ||
		    is_skipped(&request->environment_id) || requested_leases_is_put_off(&request->lease_id))
			continue;
		turn->serving += begin_request(&request->lease_id, &turn->company_id);
		begun++;
	}
	passing = turn != NULL;
	return true;
}

TimestampTz
requested_leases_tend(void)
{
	TimestampTz now = timer_now();
	MemoryContext context;
	MemoryContext previous;
	dlist_mutable_iter iter;
	bool begin = false;

	if (work_take(WORK_LEASE_REQUESTS))
		look = joining = true;
	if (dlist_is_empty(&acquire_calls.answered) && look_at > now && !look && !passing)
		return look_at;
	context =
	    AllocSetContextCreate(TopMemoryContext, "envrt requested leases", ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(context);
	if (look_at <= now)
	{
		look = true;
		look_at = DT_NOEND;
	}
	dlist_foreach_modify(iter, &acquire_calls.answered)
	{
		RequestedLease *lease = dlist_container(RequestedLease, call.node, iter.cur);

		CHECK_FOR_INTERRUPTS();
		if (!requested_leases_is_put_off(&lease->call.lease_id))
			go_on(lease);
	}
	dlist_foreach_modify(iter, &acquire_calls.later)
	{
		RequestedLease *lease = dlist_container(RequestedLease, call.node, iter.cur);

		CHECK_FOR_INTERRUPTS();
		if (lease->again_at > now)
			requested_leases_look_later(TimestampDifferenceMilliseconds(now, lease->again_at));
		else
		{
			dlist_delete(&lease->call.node);
			begin_try(lease);
		}
	}
	if (look && !passing)
	{
		look = limited = joining = false;
		passing = begin = true;
		nskipped = 0;
	}
	if (passing && !requested_leases_pass_on(begin))
	{
		passing = false;
		requested_leases_look_later(LOST_RETRY_MS);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return look || passing || work_is_noted(WORK_LEASE_REQUESTS) ? now : look_at;
}
