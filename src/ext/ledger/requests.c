/*
 * requests.c
 *		What backends ask the scheduler to do with the ledger.
 *
 * The ledger must be written in a transaction of its own that is durable
 * before the outside is called, and whose transaction id is younger than the
 * caller's: so a backend has its database's scheduler do it.
 *
 * A request is a slot in shared memory and a dynamic segment with the
 * content, a jsonb.  Its life: FREE -> WAITING (the backend has filled it and
 * sets the scheduler's latch) -> TAKEN (the scheduler has copied it) -> DONE
 * (with the reply; the scheduler sets the backend's latch) -> FREE.  A
 * request that can't be served yet goes back to WAITING as parked.  The
 * scheduler takes all that wait at once, so that one commit serves them all.
 *
 * The backend waits on its latch, so it can be cancelled.  When it gives up,
 * or ends, before the answer, a WAITING slot is freed, and a TAKEN one left as
 * ABANDONED for the scheduler to free; what was written for it stays and is
 * settled like anything else whose transaction has ended (settle.c).
 * When the scheduler dies, its successor finds what was TAKEN and does it
 * again: each verb can be done twice.
 *
 * Everything is under shared_state->lock.
 */
#include "postgres.h"

#include "base/client.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "ledger/requests.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/autovacuum.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "base/timer.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "ledger/waiting.h"

/* How long a scheduler that is being (re)started is waited for. */
#define START_WAIT_MS 10000
/* One that keeps ending is started again after a minute at most. */
#define MISSING_MS 90000
/* How long the scheduler may take for a request, or for a round of its work. */
#define SERVE_MS 60000
/* How often a waiting backend looks whether there is a scheduler at all. */
#define LOOK_MS 500

typedef enum RequestState
{
	REQUEST_FREE,
	REQUEST_WAITING,
	REQUEST_TAKEN,
	REQUEST_DONE,
	REQUEST_ABANDONED
} RequestState;

typedef struct RequestSlot
{
	RequestState state;
	bool parked;
	LedgerOutcome parked_for; /* BUSY, RETURNING or ENDING */
	bool may_wait;
	TimestampTz since;
	uint64 ticket; /* the order in which they came */
	Oid database;
	LedgerVerb verb;
	dsm_handle content;
	Latch *latch;
	LedgerReply reply;
} RequestSlot;

typedef struct RequestTable
{
	uint64 last_ticket;
	int nslots;
	RequestSlot slots[FLEXIBLE_ARRAY_MEMBER];
} RequestTable;

static RequestTable *requests = NULL;

/* A backend has one request at a time, and so may a worker. */
static int
slot_count(void)
{
	return MaxConnections + max_worker_processes + autovacuum_max_workers + 8;
}

static Size
requests_size(void)
{
	return add_size(offsetof(RequestTable, slots), mul_size(slot_count(), sizeof(RequestSlot)));
}

static void
requests_initialize(void)
{
	bool found;

	requests = ShmemInitStruct("envrt ledger requests", requests_size(), &found);
	if (!found)
	{
		memset(requests, 0, requests_size());
		requests->nslots = slot_count();
	}
}

void
ledger_requests_reserve(void)
{
	shared_state_add(requests_size, requests_initialize);
}

/*
 * Whether the database's scheduler runs or is being started, and wake it if
 * asked to.  The lock is held.
 */
static bool
find_scheduler(Oid database, bool wake)
{
	SchedulerSlot *slot = scheduler_slot(database);

	if (slot == NULL || slot->held_by != 0 || slot->state == SCHEDULER_STOPPING ||
	    slot->state == SCHEDULER_ENDED)
		return false;
	if (wake && slot->latch != NULL)
		SetLatch(slot->latch);
	return true;
}

static void
report_no_scheduler(void)
{
	ereport(ERROR,
	        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
	         errmsg("this database has no running envrt scheduler"),
	         errhint("The server log says why; a server that is short of worker slots needs a "
	                 "larger max_worker_processes.")));
}

static void
report_stuck(const char *waited_for)
{
	ereport(
	    ERROR,
	    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
	     errmsg("the envrt scheduler of this database has not answered for %d seconds",
	            SERVE_MS / 1000),
	     errdetail("This waited for %s.", waited_for),
	     errhint("envrt.stat_schedulers has its process, and pg_stat_activity what that does.")));
}

/* A template has no scheduler: that is said at once, and not after a while. */
static void
refuse_template(void)
{
	HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool is_template =
	    HeapTupleIsValid(tuple) && ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	if (is_template)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("this database is a template, so it has no envrt scheduler"),
		                errhint("ALTER DATABASE %s IS_TEMPLATE false;",
		                        quote_identifier(get_database_name(MyDatabaseId)))));
}

/* Raises an error when nobody has done a round of the scheduler's work for long. */
static void
check_rounds(bool found, uint64 rounds, TimestampTz now)
{
	static uint64 last_rounds = 0;
	static TimestampTz looked_at = DT_NOBEGIN;
	static TimestampTz since = DT_NOBEGIN; /* it is at that round */

	if (!found || rounds != last_rounds || TimestampDifferenceExceeds(looked_at, now, SERVE_MS / 4))
		since = now;
	last_rounds = rounds;
	looked_at = now;
	if (TimestampDifferenceExceeds(since, now, SERVE_MS))
	{
		since = now;
		report_stuck("a change that it makes");
	}
}

void
require_scheduler(TimestampTz *missing_since)
{
	TimestampTz now = timer_now();
	SchedulerSlot *slot;
	uint64 rounds;
	bool found;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	found = find_scheduler(MyDatabaseId, true);
	slot = scheduler_slot(MyDatabaseId);
	rounds = slot != NULL ? slot->rounds : 0;
	LWLockRelease(shared_state->lock);
	check_rounds(found, rounds, now);
	if (!found && *missing_since == 0)
		refuse_template();
	if (found)
		*missing_since = 0;
	else if (*missing_since == 0)
		*missing_since = now;
	else if (TimestampDifferenceExceeds(*missing_since, now, MISSING_MS))
		report_no_scheduler();
}

/* A slot with the request in it, WAITING. */
static pg_noinline RequestSlot *
submit(LedgerVerb verb, dsm_handle content, bool may_wait)
{
	RequestSlot *slot = NULL;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < requests->nslots && slot == NULL; i++)
		if (requests->slots[i].state == REQUEST_FREE ||
		    (requests->slots[i].state == REQUEST_ABANDONED &&
		     scheduler_slot(requests->slots[i].database) == NULL))
			slot = &requests->slots[i];
	if (slot != NULL)
	{
		memset(slot, 0, sizeof(RequestSlot));
		slot->state = REQUEST_WAITING;
		slot->may_wait = may_wait;
		slot->since = GetCurrentTimestamp();
		slot->ticket = ++requests->last_ticket;
		slot->database = MyDatabaseId;
		slot->verb = verb;
		slot->content = content;
		slot->latch = MyLatch;
		(void) find_scheduler(MyDatabaseId, true);
	}
	LWLockRelease(shared_state->lock);
	if (slot == NULL)
		ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
		                errmsg("too many requests to the ledger at once")));
	return slot;
}

/* Give the slot back; without an answer the reply is what it was parked for. */
static void
withdraw(RequestSlot *slot, LedgerReply *reply)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (reply != NULL)
	{
		*reply = slot->reply;
		if (slot->state != REQUEST_DONE)
			reply->outcome = slot->parked_for;
	}
	slot->state = slot->state == REQUEST_TAKEN ? REQUEST_ABANDONED : REQUEST_FREE;
	slot->latch = NULL;
	LWLockRelease(shared_state->lock);
}

static void
withdraw_at_exit(int code, Datum argument)
{
	withdraw((RequestSlot *) DatumGetPointer(argument), NULL);
}

/* A provider may take its time, and may have to be asked again. */
int64
ledger_turn_ms(void)
{
	return Max(envrt_reuse_retry, envrt_provider_timeout);
}

/* Wait for the answer, or until the time for waiting for something held is over. */
static void
requests_await_answer(RequestSlot *slot, int64 wait_ms)
{
	TimestampTz now = timer_now();
	TimestampTz busy_until = TimestampTzPlusMilliseconds(now, wait_ms);
	TimestampTz turn_until = TimestampTzPlusMilliseconds(now, ledger_turn_ms());
	TimestampTz scheduler_until = TimestampTzPlusMilliseconds(now, START_WAIT_MS);
	TimestampTz served_until = TimestampTzPlusMilliseconds(now, SERVE_MS);

	for (;;)
	{
		RequestState state;
		bool parked;
		TimestampTz until;
		bool scheduled;
		long timeout = LOOK_MS;

		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		state = slot->state;
		parked = slot->parked;
		until = slot->parked_for == LEDGER_BUSY ? busy_until : turn_until;
		/* A parked one is looked at when something becomes free. */
		scheduled = state == REQUEST_DONE || find_scheduler(MyDatabaseId, !parked);
		LWLockRelease(shared_state->lock);
		if (state == REQUEST_DONE)
			return;
		now = timer_now();
		if (scheduled)
			scheduler_until = TimestampTzPlusMilliseconds(now, START_WAIT_MS);
		else if (now >= scheduler_until)
			report_no_scheduler();
		else
			refuse_template();
		if (!parked && now >= served_until)
			report_stuck("the ledger of provider leases");
		/* What is being served will be answered in a moment. */
		if (parked && state == REQUEST_WAITING)
		{
			served_until = TimestampTzPlusMilliseconds(now, SERVE_MS);
			if (now >= until)
				return;
			timeout = Min(timeout, TimestampDifferenceMilliseconds(now, until) + 1);
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout,
		                 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		client_check();
	}
}

void
ledger_ask(LedgerVerb verb, Jsonb *content, int64 wait_ms, LedgerReply *reply)
{
	dsm_segment *segment;
	RequestSlot *slot;

	if (shared_state == NULL)
		ereport_not_preloaded();
	forbid_in_scheduler();
	segment = dsm_create(VARSIZE(content), 0);
	memcpy(dsm_segment_address(segment), content, VARSIZE(content));
	slot = submit(verb, dsm_segment_handle(segment), wait_ms > 0);
	PG_ENSURE_ERROR_CLEANUP(withdraw_at_exit, PointerGetDatum(slot));
	{
		requests_await_answer(slot, wait_ms);
	}
	PG_END_ENSURE_ERROR_CLEANUP(withdraw_at_exit, PointerGetDatum(slot));
	withdraw(slot, reply);
	dsm_detach(segment);
	if (reply->outcome == LEDGER_FAILED)
		ereport(ERROR, (errcode(reply->sqlstate), errmsg_internal("%s", reply->message)));
}

/*
 * In the scheduler.
 */
static int
compare_tickets(const ListCell *first, const ListCell *second)
{
	uint64 a = requests->slots[((LedgerRequest *) lfirst(first))->slot].ticket;
	uint64 b = requests->slots[((LedgerRequest *) lfirst(second))->slot].ticket;

	return a < b ? -1 : a > b ? 1 : 0;
}

/* The content, copied; NULL when its backend has gone. */
static Jsonb *
read_content(dsm_handle handle)
{
	dsm_segment *segment = dsm_attach(handle);
	Jsonb *content;

	if (segment == NULL)
		return NULL;
	content = palloc(VARSIZE(dsm_segment_address(segment)));
	memcpy(content, dsm_segment_address(segment), VARSIZE(dsm_segment_address(segment)));
	dsm_detach(segment);
	return content;
}

bool
ledger_requests_waiting(void)
{
	for (int i = 0; i < requests->nslots; i++)
		if (requests->slots[i].state == REQUEST_WAITING && !requests->slots[i].parked &&
		    requests->slots[i].database == MyDatabaseId)
			return true;
	return false;
}

List *
ledger_requests_take(bool parked)
{
	List *taken = NIL;
	List *usable = NIL;
	ListCell *cell;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < requests->nslots; i++)
	{
		RequestSlot *slot = &requests->slots[i];
		LedgerRequest *request;

		if (slot->state != REQUEST_WAITING || slot->database != MyDatabaseId ||
		    (slot->parked && !parked))
			continue;
		request = MemoryContextAllocExtended(CurrentMemoryContext, sizeof(LedgerRequest),
		                                     MCXT_ALLOC_NO_OOM | MCXT_ALLOC_ZERO);
		if (request == NULL)
			break;
		slot->state = REQUEST_TAKEN;
		request->slot = i;
		request->verb = slot->verb;
		request->may_wait = slot->may_wait;
		request->since = slot->since;
		taken = lappend(taken, request);
	}
	LWLockRelease(shared_state->lock);

	list_sort(taken, compare_tickets);
	foreach (cell, taken)
	{
		LedgerRequest *request = lfirst(cell);

		request->content = read_content(requests->slots[request->slot].content);
		if (request->content != NULL)
			usable = lappend(usable, request);
		else
			ledger_request_answer(request);
	}
	return usable;
}

void
ledger_request_answer(LedgerRequest *request)
{
	RequestSlot *slot = &requests->slots[request->slot];

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->state == REQUEST_TAKEN)
	{
		slot->state = REQUEST_DONE;
		slot->reply = request->reply;
		SetLatch(slot->latch);
	}
	else if (slot->state == REQUEST_ABANDONED)
		slot->state = REQUEST_FREE;
	LWLockRelease(shared_state->lock);
}

static void
put_back(LedgerRequest *request, bool parked)
{
	RequestSlot *slot = &requests->slots[request->slot];

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->state == REQUEST_TAKEN)
	{
		slot->state = REQUEST_WAITING;
		slot->parked = parked;
		if (parked)
		{
			slot->parked_for = request->reply.outcome;
			slot->reply = request->reply;
			SetLatch(slot->latch);
		}
	}
	else if (slot->state == REQUEST_ABANDONED)
		slot->state = REQUEST_FREE;
	LWLockRelease(shared_state->lock);
}

void
ledger_request_park(LedgerRequest *request)
{
	put_back(request, true);
}

void
ledger_request_put_back(LedgerRequest *request)
{
	put_back(request, false);
}

void
ledger_requests_recover(void)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < requests->nslots; i++)
	{
		RequestSlot *slot = &requests->slots[i];

		if (slot->database != MyDatabaseId)
			continue;
		if (slot->state == REQUEST_TAKEN)
			slot->state = REQUEST_WAITING;
		else if (slot->state == REQUEST_ABANDONED)
			slot->state = REQUEST_FREE;
		slot->parked = false;
	}
	LWLockRelease(shared_state->lock);
}
