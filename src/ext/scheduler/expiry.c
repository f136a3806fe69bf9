/*
 * expiry.c
 *		Leases end at their time: the scheduler's part, and how it is told.
 *
 * The scheduler keeps one timer, for the lease that expires next; with none
 * it sleeps without a timeout.  It is told by a trigger on the leases, so
 * whoever writes an expiry is heard, with SQL of his own as well: the trigger
 * notes the earliest time of the transaction, and at commit it goes to the
 * scheduler's slot in shared memory, which is woken when it is earlier than
 * its timer.  A time that comes to nothing (rolled back to a savepoint,
 * released, renewed) costs one look.
 *
 * When the timer fires, leases that are due are ended in batches, as the
 * tables' owner in a security-restricted operation: a trigger on the table
 * gets no more rights than its owner has.  The scheduler waits for nobody's
 * lock: a lease whose row is locked, or a table that is, is tried again.
 * When a batch fails (a trigger that raises), its leases are ended one by
 * one, and those that fail are left for a while (failures.c), so that they
 * hold up no others; so are those that are due still after their batch has
 * committed, since a trigger has taken the change back.  After ROUND_MS the
 * rest of the scheduler's work has its turn.
 *
 * The same is done, once when the scheduler starts, with leases whose run is
 * over: where triggers were off when it ended (session_replication_role), they
 * are still active.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "leases/leases.h"
#include "ledger/ledger.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "base/shared_state.h"
#include "storage/lmgr.h"
#include "rights/tables.h"
#include "base/timer.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "scheduler/expiry.h"

PG_FUNCTION_INFO_V1(envrt_on_lease_expiry);

#define BATCH 100
#define RETRY_MS 1000
#define FAILED_RETRY_MS (60 * 1000)
#define ROUND_MS 200

/*
 * In backends: the earliest expiry that the transaction under way has set.
 */
static TimestampTz noted = DT_NOEND;

static void
expiry_transaction_end(XactEvent event, void *arg)
{
	TimestampTz expires_at = noted;
	SchedulerSlot *slot;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_PREPARE && event != XACT_EVENT_ABORT)
		return;
	noted = DT_NOEND;
	if (expires_at == DT_NOEND || event == XACT_EVENT_ABORT)
		return;
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot = scheduler_slot(MyDatabaseId);
	if (slot != NULL && expires_at < slot->next_expiry)
	{
		slot->next_expiry = expires_at;
		if (slot->latch != NULL)
			SetLatch(slot->latch);
	}
	LWLockRelease(shared_state->lock);
}

Datum
envrt_on_lease_expiry(PG_FUNCTION_ARGS)
{
	static bool registered = false;
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple row;
	TupleDesc desc;
	int column;
	bool isnull;
	Datum expires_at;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
		                errmsg("on_lease_expiry() is a row trigger")));
	/* Without preload there is no scheduler to tell. */
	if (shared_state == NULL)
		return PointerGetDatum(NULL);
	if (!registered)
	{
		RegisterXactCallback(expiry_transaction_end, NULL);
		registered = true;
	}
	row = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple : trigger->tg_trigtuple;
	desc = RelationGetDescr(trigger->tg_relation);
	column = SPI_fnumber(desc, "expires_at");
	if (column <= 0 || SPI_gettypeid(desc, column) != TIMESTAMPTZOID)
		return PointerGetDatum(NULL);
	expires_at = SPI_getbinval(row, desc, column, &isnull);
	if (!isnull)
		noted = Min(noted, DatumGetTimestampTz(expires_at));
	return PointerGetDatum(NULL);
}

/*
 * In the scheduler.
 */
/* Leases that are to be ended, and why. */
typedef struct LeaseEnding
{
	const char *activity;
	const char *status; /* that they get */
	bool reads_runs;
	/* $1: now; $2: ids. */
	Statement list; /* without those */
	Statement list_and_lock;
	Statement given; /* those, where they are to be ended */
	Statement given_and_lock;
} LeaseEnding;

#define DUE(of)                                                                                    \
	" " of "status = ANY (ARRAY['active', 'retained'])"                                            \
	" AND " of "expires_at IS NOT NULL AND " of "expires_at <= $1 "
#define LIST_DUE                                                                                   \
	"SELECT id FROM @environment_leases@ WHERE" DUE(                                               \
	    "") " AND id <> ALL ($2) ORDER BY expires_at LIMIT 100"
#define OF_ENDED_RUNS                                                                              \
	"SELECT l.id FROM @environment_leases@ l JOIN @heartbeat_runs@ r ON r.id = l.heartbeat_run_id" \
	" WHERE l.status = ANY (ARRAY['active', 'retained'])"                                          \
	" AND l.status = 'active'"                                                                     \
	" AND r.status = ANY (ARRAY['succeeded', 'failed', 'cancelled', 'timed_out']) AND $1 IS NOT "  \
	"NULL"
#define LIST_OF_ENDED_RUNS OF_ENDED_RUNS " AND l.id <> ALL ($2) LIMIT 100"
#define LIST_TYPES                                                                                 \
	2,                                                                                             \
	{                                                                                              \
		TIMESTAMPTZOID, UUIDARRAYOID                                                               \
	}

static LeaseEnding expiries = {
    .activity = "ending leases that have expired",
    .status = "expired",
    .list = {LIST_DUE, LIST_TYPES},
    .list_and_lock = {LIST_DUE " FOR NO KEY UPDATE SKIP LOCKED", LIST_TYPES},
    .given = {"SELECT id FROM @environment_leases@ WHERE" DUE("") " AND id = ANY ($2)", LIST_TYPES},
    .given_and_lock = {"SELECT id FROM @environment_leases@ WHERE" DUE(
                           "") " AND id = ANY ($2) FOR NO KEY UPDATE SKIP LOCKED",
                       LIST_TYPES},
};
static LeaseEnding run_ends = {
    .activity = "ending leases of runs that are over",
    .status = "released",
    .reads_runs = true,
    .list = {LIST_OF_ENDED_RUNS, LIST_TYPES},
    .list_and_lock = {LIST_OF_ENDED_RUNS " FOR NO KEY UPDATE OF l SKIP LOCKED", LIST_TYPES},
    .given = {OF_ENDED_RUNS " AND l.id = ANY ($2)", LIST_TYPES},
    .given_and_lock = {OF_ENDED_RUNS " AND l.id = ANY ($2) FOR NO KEY UPDATE OF l SKIP LOCKED",
                       LIST_TYPES},
};

static ArrayType *
array_of(const pg_uuid_t *ids, int count)
{
	Datum *values = palloc(sizeof(Datum) * count);

	for (int i = 0; i < count; i++)
		values[i] = UUIDPGetDatum(&ids[i]);
	return construct_array(values, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
}

/* Runs one of the statements; the number of leases, -1 when the tables are locked. */
static int
find_leases(const LeaseEnding *ending, Statement *statement, ArrayType *of, pg_uuid_t *ids)
{
	Datum values[2];
	int count;

	if (!ConditionalLockRelationOid(shared_table_oid(TABLE_ENVIRONMENT_LEASES), RowExclusiveLock) ||
	    (ending->reads_runs &&
	     !ConditionalLockRelationOid(shared_table_oid(TABLE_HEARTBEAT_RUNS), AccessShareLock)))
		return -1;
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = PointerGetDatum(of);
	count = statement_execute(statement, values, NULL);
	for (int i = 0; i < count; i++)
		memcpy(&ids[i], result_uuid(i, 1), sizeof(pg_uuid_t));
	return count;
}

/* End a batch of them, or `only` that one, in one transaction; how many, -1 as above. */
static int
end_batch(LeaseEnding *ending, pg_uuid_t *ids, const pg_uuid_t *only)
{
	ApiCall call;
	int count;

	owner_begin(&call);
	FAULT_POINT("expiry-before-batch");
	if (only != NULL)
		count = find_leases(ending, &ending->given_and_lock, array_of(only, 1), ids);
	else
		count = find_leases(ending, &ending->list_and_lock, failures_array(ending->activity), ids);
	for (int i = 0; i < count; i++)
		lease_end(&ids[i], ending->status);
	FAULT_POINT("expiry-before-commit");
	ledger_commit(&call, false);
	return count;
}

/* Which of the leases are to be ended still; how many, -1 as above. */
static int
find_remaining(LeaseEnding *ending, const pg_uuid_t *ids, int count, pg_uuid_t *remaining)
{
	ApiCall call;
	int found;

	owner_begin(&call);
	found = find_leases(ending, &ending->given, array_of(ids, count), remaining);
	ledger_commit(&call, false);
	return found;
}

static bool
contains(const pg_uuid_t *ids, int count, const pg_uuid_t *id)
{
	for (int i = 0; i < count; i++)
		if (memcmp(&ids[i], id, sizeof(pg_uuid_t)) == 0)
			return true;
	return false;
}

/* After a batch, note for each of its leases whether it has ended. */
static void
check_batch(LeaseEnding *ending, const pg_uuid_t *ids, int count)
{
	pg_uuid_t remaining[BATCH];
	int nremaining = find_remaining(ending, ids, count, remaining);

	for (int i = 0; i < count; i++)
		if (contains(remaining, nremaining, &ids[i]))
			(void) failure_without_effect(ending->activity, &ids[i]);
		else
			failure_over(ending->activity, &ids[i]);
}

typedef enum Ended
{
	ENDED_ALL,    /* that can be ended now */
	ENDED_SOME,   /* there may be more */
	ENDED_LOCKED, /* the tables are locked */
	ENDED_NONE    /* it failed */
} Ended;

/* A lease that was not among those to be ended, or is locked. */
static void
check_one(LeaseEnding *ending, const pg_uuid_t *id, bool locked)
{
	pg_uuid_t remaining[1];

	if (locked || find_remaining(ending, id, 1, remaining) != 0)
		failure_put_off(ending->activity, id, RETRY_MS);
	else
		failure_over(ending->activity, id);
}

/* As end_batch.  When it fails, that is noted for `only`. */
static Ended
try_batch(LeaseEnding *ending, const pg_uuid_t *only)
{
	volatile Ended ended = ENDED_NONE;

	PG_TRY();
	{
		pg_uuid_t ids[BATCH];
		int count = end_batch(ending, ids, only);

		if (count > 0)
			check_batch(ending, ids, count);
		else if (only != NULL)
			check_one(ending, only, count < 0);
		ended = count < 0 ? ENDED_LOCKED : count == BATCH ? ENDED_SOME : ENDED_ALL;
	}
	PG_CATCH();
	{
		if (only != NULL)
			(void) failure_caught(ending->activity, only);
		else
		{
			/* One by one, it is said what is wrong. */
			HOLD_INTERRUPTS();
			FlushErrorState();
			AbortCurrentTransaction();
			MemoryContextSwitchTo(TopMemoryContext);
			RESUME_INTERRUPTS();
		}
	}
	PG_END_TRY();
	return ended;
}

/* After a batch that failed: each of its leases by itself.  ENDED_NONE: they can't be listed. */
static Ended
end_one_by_one(LeaseEnding *ending, TimestampTz until)
{
	pg_uuid_t ids[BATCH];
	volatile int count = 0;
	volatile bool listed = false;

	PG_TRY();
	{
		ApiCall call;

		owner_begin(&call);
		count = find_leases(ending, &ending->list, failures_array(ending->activity), ids);
		ledger_commit(&call, false);
		listed = true;
	}
	PG_CATCH();
	{
		ledger_abort("looking for leases that are to be ended");
	}
	PG_END_TRY();
	if (!listed)
		return ENDED_NONE;
	if (count < 0)
		return ENDED_LOCKED;
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		/* One at least in each round. */
		if (i > 0 && timer_now() >= until)
			return ENDED_SOME;
		(void) try_batch(ending, &ids[i]);
	}
	return count == BATCH ? ENDED_SOME : ENDED_ALL;
}

/* End what is to be ended, as far as a round goes. */
static Ended
end_due(LeaseEnding *ending)
{
	TimestampTz until = TimestampTzPlusMilliseconds(timer_now(), ROUND_MS);
	pg_uuid_t due[BATCH];
	int ndue = failures_due(ending->activity, due, BATCH);
	Ended ended;

	/* What has not failed before comes first. */
	do
	{
		CHECK_FOR_INTERRUPTS();
		ended = try_batch(ending, NULL);
		if (ended == ENDED_NONE)
			ended = end_one_by_one(ending, until);
	}
	while (ended == ENDED_SOME && timer_now() < until);
	for (int i = 0; i < ndue && (i == 0 || timer_now() < until); i++)
	{
		CHECK_FOR_INTERRUPTS();
		(void) try_batch(ending, &due[i]);
	}
	return ended;
}

/* When the next lease expires, those that failed aside; DT_NOEND: none does. */
static TimestampTz
next_expiry(void)
{
	static Statement next = {
	    "SELECT expires_at FROM @environment_leases@"
	    " WHERE status = ANY (ARRAY['active', 'retained'])"
	    " AND expires_at IS NOT NULL"
	    " AND id <> ALL ($1)"
	    " ORDER BY expires_at LIMIT 1",
	    1,
	    {UUIDARRAYOID},
	};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz expires_at = DT_NOEND;
	ApiCall call;
	Datum values[1];
	bool isnull;

	owner_begin(&call);
	values[0] = PointerGetDatum(failures_array(expiries.activity));
	if (!ConditionalLockRelationOid(shared_table_oid(TABLE_ENVIRONMENT_LEASES), AccessShareLock))
		expires_at = now;
	else if (statement_execute(&next, values, NULL) > 0)
		expires_at = DatumGetTimestampTz(result_typed(0, 1, TIMESTAMPTZOID, &isnull));
	ledger_commit(&call, false);

	/* Due already: locked by somebody; not at once again. */
	if (expires_at <= now)
		expires_at = TimestampTzPlusMilliseconds(now, RETRY_MS);
	return expires_at;
}

/* As next_expiry; DT_NOBEGIN when that failed. */
static TimestampTz
try_next_expiry(void)
{
	volatile TimestampTz next = DT_NOBEGIN;

	PG_TRY();
	{
		next = next_expiry();
	}
	PG_CATCH();
	{
		ledger_abort("looking when the next lease expires");
	}
	PG_END_TRY();
	return next;
}

/* What slot->next_expiry was when it was last looked at. */
static TimestampTz known_expiry = DT_NOEND;

/* When to look at all that is due; not_before: somebody has made a table unusable. */
static TimestampTz look_at = DT_NOBEGIN;
static TimestampTz not_before = DT_NOBEGIN;

void
expiry_try_again(void)
{
	if (not_before != DT_NOBEGIN)
		look_at = not_before = DT_NOBEGIN;
}

TimestampTz
expiry_expected(void)
{
	return known_expiry;
}

bool
expiry_is_asked_for(const SchedulerSlot *slot)
{
	return slot->next_expiry < known_expiry;
}

/*
 * expiry_tend
 *		End what is due; when to come again, DT_NOEND for not before being woken.
 */
TimestampTz
expiry_tend(SchedulerSlot *slot)
{
	static bool run_ends_done = false;
	TimestampTz now = timer_now();
	TimestampTz next;
	Ended runs = ENDED_ALL;
	Ended ended;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	known_expiry = slot->next_expiry;
	LWLockRelease(shared_state->lock);
	if (not_before > now)
		return not_before;
	next = Min(look_at, Min(failures_next(expiries.activity), failures_next(run_ends.activity)));
	if (known_expiry > GetCurrentTimestamp() && next > now)
		return Min(next, timer_at(known_expiry));

	/*
	 * From here on a commit that sets an earlier time than we know of wakes
	 * us again, so none is lost between the look and the sleep.
	 */
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->next_expiry = known_expiry = DT_NOEND;
	LWLockRelease(shared_state->lock);

	pgstat_report_activity(STATE_RUNNING, "expiring leases");
	look_at = DT_NOEND;
	if (!run_ends_done || failures_next(run_ends.activity) <= now)
	{
		runs = end_due(&run_ends);
		run_ends_done = runs == ENDED_ALL;
	}
	ended = end_due(&expiries);
	FAULT_POINT("expiry-after-commit");
	next = DT_NOEND;
	if (ended == ENDED_ALL && (next = try_next_expiry()) == DT_NOBEGIN)
	{
		ended = ENDED_NONE;
		next = DT_NOEND;
	}
	pgstat_report_activity(STATE_IDLE, NULL);
	if (ended == ENDED_NONE || runs == ENDED_NONE)
		look_at = not_before = TimestampTzPlusMilliseconds(timer_now(), FAILED_RETRY_MS);
	else if (ended == ENDED_SOME || runs == ENDED_SOME)
		look_at = timer_now();
	else if (ended == ENDED_LOCKED || runs == ENDED_LOCKED)
		look_at = TimestampTzPlusMilliseconds(timer_now(), RETRY_MS);

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->next_expiry = known_expiry = Min(slot->next_expiry, next);
	LWLockRelease(shared_state->lock);
	next = Min(look_at, Min(failures_next(expiries.activity), failures_next(run_ends.activity)));
	return Min(next, timer_at(known_expiry));
}
