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
 * one, and those that fail are said in the log and left for a while, so that
 * they hold up no others.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fault_points.h"
#include "leases.h"
#include "ledger.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "shared_state.h"
#include "storage/lmgr.h"
#include "tables.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "workers.h"

PG_FUNCTION_INFO_V1(envrt_on_lease_expiry);

#define BATCH 100
#define RETRY_MS 1000
#define FAILED_RETRY_MS (60 * 1000)
#define MAX_FAILED 1000

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
typedef struct FailedLease
{
	pg_uuid_t id;
	TimestampTz retry_at;
} FailedLease;

static FailedLease failed[MAX_FAILED];
static int nfailed = 0;

static void
begin(ApiCall *call)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	owner_enter(call, SECURITY_RESTRICTED_OPERATION);
}

static void
commit(ApiCall *call)
{
	api_leave(call);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}

/* The leases that failed a short while ago, as an array. */
static ArrayType *
failed_array(TimestampTz now)
{
	Datum *ids = palloc(sizeof(Datum) * Max(nfailed, 1));
	int kept = 0;

	for (int i = 0; i < nfailed; i++)
	{
		if (failed[i].retry_at <= now)
			continue;
		failed[kept] = failed[i];
		ids[kept] = UUIDPGetDatum(&failed[kept].id);
		kept++;
	}
	nfailed = kept;
	return construct_array(ids, kept, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
}

#define DUE_LEASES                                                                                 \
	"SELECT id FROM @environment_leases@"                                                          \
	" WHERE status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained'])"                       \
	" AND expires_at IS NOT NULL"                                                                  \
	" AND expires_at OPERATOR(pg_catalog.<=) $1"                                                   \
	" AND id OPERATOR(pg_catalog.<>) ALL ($2)"                                                     \
	" AND ($3 IS NULL OR id OPERATOR(pg_catalog.=) $3)"                                            \
	" ORDER BY expires_at LIMIT 100"

/*
 * Where triggers were off when a run ended (session_replication_role), its
 * leases are still active.  Looked for once, when the scheduler starts.
 */
static void
end_leases_of_ended_runs(void)
{
	static Statement find = {
	    "SELECT l.id FROM @environment_leases@ l JOIN @heartbeat_runs@ r ON r.id "
	    "OPERATOR(pg_catalog.=) l.heartbeat_run_id"
	    " WHERE l.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained'])"
	    " AND l.status OPERATOR(pg_catalog.=) 'active'"
	    " AND r.status OPERATOR(pg_catalog.=) ANY (ARRAY['succeeded', 'failed', 'cancelled', "
	    "'timed_out'])"
	    " LIMIT 1000 FOR NO KEY UPDATE OF l SKIP LOCKED",
	    0,
	    {0},
	};
	volatile int count = 0;

	do
	{
		PG_TRY();
		{
			ApiCall call;

			begin(&call);
			count = 0;
			if (ConditionalLockRelationOid(shared_table_oid(TABLE_ENVIRONMENT_LEASES),
			                               RowExclusiveLock) &&
			    ConditionalLockRelationOid(shared_table_oid(TABLE_HEARTBEAT_RUNS), AccessShareLock))
			{
				pg_uuid_t *ids;

				count = statement_execute(&find, NULL, NULL);
				ids = palloc(sizeof(pg_uuid_t) * Max(count, 1));
				for (int i = 0; i < count; i++)
					ids[i] = *result_uuid(i, 1);
				for (int i = 0; i < count; i++)
					lease_end(&ids[i], "released");
			}
			commit(&call);
		}
		PG_CATCH();
		{
			ledger_abort("ending leases of runs that are over");
			count = 0;
		}
		PG_END_TRY();
	}
	while (count == 1000);
}

/* The leases that are due (or `only` that one), locked if `lock` and free; how many. */
static int
due_leases(pg_uuid_t *ids, const pg_uuid_t *only, bool lock)
{
	static Statement list = {DUE_LEASES, 3, {TIMESTAMPTZOID, UUIDARRAYOID, UUIDOID}};
	static Statement list_and_lock = {
	    DUE_LEASES " FOR NO KEY UPDATE SKIP LOCKED", 3, {TIMESTAMPTZOID, UUIDARRAYOID, UUIDOID}};
	TimestampTz now = GetCurrentTimestamp();
	Datum values[3];
	int count;

	if (!ConditionalLockRelationOid(shared_table_oid(TABLE_ENVIRONMENT_LEASES), RowExclusiveLock))
		return 0;
	values[0] = TimestampTzGetDatum(now);
	values[1] = PointerGetDatum(failed_array(now));
	values[2] = UUIDPGetDatum(only);
	count = statement_execute(lock ? &list_and_lock : &list, values, only == NULL ? "  n" : "   ");
	for (int i = 0; i < count; i++)
		memcpy(&ids[i], result_uuid(i, 1), sizeof(pg_uuid_t));
	return count;
}

/* End a batch of them, or `only` that one, in one transaction; how many. */
static int
expire_batch(const pg_uuid_t *only)
{
	pg_uuid_t ids[BATCH];
	ApiCall call;
	int count;

	begin(&call);
	FAULT_POINT("expiry-before-batch");
	count = due_leases(ids, only, true);
	for (int i = 0; i < count; i++)
		lease_end(&ids[i], "expired");
	FAULT_POINT("expiry-before-commit");
	commit(&call);
	return count;
}

/* As expire_batch; -1 when it failed, which is in the log. */
static int
try_batch(const pg_uuid_t *only)
{
	MemoryContext context = CurrentMemoryContext;
	volatile int count = -1;

	PG_TRY();
	{
		count = expire_batch(only);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		HOLD_INTERRUPTS();
		if (only != NULL)
			errcontext("ending lease \"%s\", which has expired", uuid_text(only));
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(TopMemoryContext);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	return count;
}

/* Leave a lease that could not be ended for a while. */
static void
note_failed(const pg_uuid_t *id)
{
	if (nfailed == MAX_FAILED)
		return;
	failed[nfailed].id = *id;
	failed[nfailed].retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FAILED_RETRY_MS);
	nfailed++;
}

/* After a batch that failed: each of its leases by itself.  False when they can't even be listed.
 */
static bool
expire_one_by_one(void)
{
	pg_uuid_t ids[BATCH];
	volatile int count = -1;

	PG_TRY();
	{
		ApiCall call;

		begin(&call);
		count = due_leases(ids, NULL, false);
		commit(&call);
	}
	PG_CATCH();
	{
		ledger_abort("looking for leases that have expired");
	}
	PG_END_TRY();
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (try_batch(&ids[i]) < 0)
			note_failed(&ids[i]);
	}
	return count >= 0;
}

/* False when nothing can be done for now. */
static bool
expire_due(void)
{
	int count;

	do
	{
		CHECK_FOR_INTERRUPTS();
		count = try_batch(NULL);
		if (count < 0 && !expire_one_by_one())
			return false;
		/* A full batch may have left more; so may one that failed, unless nothing can be noted. */
	}
	while (count == BATCH || (count < 0 && nfailed < MAX_FAILED));
	return true;
}

/* When the next lease expires, those that failed aside; DT_NOEND: none does. */
static TimestampTz
next_expiry(void)
{
	static Statement next = {
	    "SELECT expires_at FROM @environment_leases@"
	    " WHERE status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained'])"
	    " AND expires_at IS NOT NULL"
	    " AND id OPERATOR(pg_catalog.<>) ALL ($1)"
	    " ORDER BY expires_at LIMIT 1",
	    1,
	    {UUIDARRAYOID},
	};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz expires_at = DT_NOEND;
	ApiCall call;
	Datum values[1];
	bool isnull;

	begin(&call);
	values[0] = PointerGetDatum(failed_array(now));
	if (!ConditionalLockRelationOid(shared_table_oid(TABLE_ENVIRONMENT_LEASES), AccessShareLock))
		expires_at = now;
	else if (statement_execute(&next, values, NULL) > 0)
		expires_at = DatumGetTimestampTz(result_typed(0, 1, TIMESTAMPTZOID, &isnull));
	commit(&call);

	/* Due already: locked by somebody; not at once again. */
	if (expires_at <= now)
		expires_at = TimestampTzPlusMilliseconds(now, RETRY_MS);
	for (int i = 0; i < nfailed; i++)
		expires_at = Min(expires_at, failed[i].retry_at);
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

/*
 * expiry_tend
 *		End what is due; when to come again, DT_NOEND for not before being woken.
 */
TimestampTz
expiry_tend(SchedulerSlot *slot)
{
	static bool started = false;
	TimestampTz next;
	bool done;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	next = slot->next_expiry;
	LWLockRelease(shared_state->lock);
	if (started && next > GetCurrentTimestamp())
		return next;
	if (!started)
		end_leases_of_ended_runs();
	started = true;

	/*
	 * From here on a commit that sets an earlier time than we know of wakes
	 * us again, so none is lost between the look and the sleep.
	 */
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->next_expiry = DT_NOEND;
	LWLockRelease(shared_state->lock);

	pgstat_report_activity(STATE_RUNNING, "expiring leases");
	done = expire_due();
	FAULT_POINT("expiry-after-commit");
	next = done ? try_next_expiry() : DT_NOBEGIN;
	/* Somebody has made the table unusable: that is said in the log, and not each second. */
	if (next == DT_NOBEGIN)
		next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FAILED_RETRY_MS);
	pgstat_report_activity(STATE_IDLE, NULL);

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->next_expiry = next = Min(slot->next_expiry, next);
	LWLockRelease(shared_state->lock);
	return next;
}
