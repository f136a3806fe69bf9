/*
 * scheduler_watch.c
 *		The launcher's care for schedulers: one for each database that has envrt.
 *
 * The launcher can't look into a database, so it starts a scheduler in each
 * one that takes connections, and that one looks; it ends at once, saying so
 * in its slot, where the extension is absent.  Such a database is left alone
 * until somebody says that it may have got the extension: CREATE EXTENSION
 * and CREATE DATABASE do, at commit (database_ddl.c).
 *
 * The driver host is told which databases are gone, or have no envrt any more: what runs for
 * them is ended.
 *
 * A database is known -> starting -> (its scheduler runs) -> known again,
 * after a delay when it ended by mishap; or absent.  What runs is in the
 * slots in shared memory; a slot is freed here alone, and not while a
 * backend holds it to keep the database free for its DDL.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "base/shared_state.h"
#include "base/timer.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "launcher/scheduler_watch.h"
#include "utils/timestamp.h"
#include "launcher/host_process.h"

/* Schedulers that are starting at once: most just look and end. */
#define MAX_STARTING 4
#define START_TIMEOUT_MS 30000
#define NO_SLOT_DELAY_MS 5000
#define MAX_DELAY_MS 60000
/* What pg_database.datconnlimit is where a DROP DATABASE was interrupted: nobody can connect. */
#define INVALID_DATABASE (-2)

typedef struct Database
{
	Oid oid;
	bool absent;  /* no envrt there */
	int failures; /* ends by mishap in a row */
	TimestampTz start_at;
	bool without_slot; /* the server had no worker slot for it */
} Database;

static List *databases = NIL; /* of Database, in TopMemoryContext */
static uint32 last_generation = 0;
static bool out_of_slots = false; /* said so in the log */

static Database *
database_find(Oid oid)
{
	ListCell *cell;

	foreach (cell, databases)
		if (((Database *) lfirst(cell))->oid == oid)
			return lfirst(cell);
	return NULL;
}

/* Bring the list in step with pg_database. */
static void
read_databases(void)
{
	List *found = NIL;
	List *all = NIL;
	List *old = databases;
	ListCell *cell;
	Relation relation;
	TableScanDesc scan;
	HeapTuple tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		Database *database;
		MemoryContext context;

		context = MemoryContextSwitchTo(TopMemoryContext);
		all = lappend_oid(all, form->oid);
		MemoryContextSwitchTo(context);
		/* A session in a template would be in the way of CREATE DATABASE. */
		if (!form->datallowconn || form->datistemplate || form->datconnlimit == INVALID_DATABASE)
			continue;
		context = MemoryContextSwitchTo(TopMemoryContext);
		database = palloc0(sizeof(Database));
		database->oid = form->oid;
		found = lappend(found, database);
		MemoryContextSwitchTo(context);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);

	foreach (cell, found)
	{
		Database *database = lfirst(cell);
		Database *known = database_find(database->oid);

		if (known != NULL)
			*database = *known;
	}
	foreach (cell, old)
	{
		Oid oid = ((Database *) lfirst(cell))->oid;

		if (!list_member_oid(all, oid))
			host_process_database_gone(oid);
	}
	databases = found;
	list_free(all);
	list_free_deep(old);
}

/* Take what has been asked for since the last time. */
static void
take_requests(void)
{
	bool rescan;
	bool recheck_all;
	int nwanted;
	Oid wanted[MAX_WANTED];
	ListCell *cell;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	rescan = shared_state->rescan;
	recheck_all = shared_state->recheck_all;
	nwanted = shared_state->nwanted;
	memcpy(wanted, shared_state->wanted, sizeof(wanted));
	shared_state->rescan = shared_state->recheck_all = false;
	shared_state->nwanted = 0;
	LWLockRelease(shared_state->lock);

	if (rescan || recheck_all || nwanted > 0)
		read_databases();
	foreach (cell, databases)
	{
		Database *database = lfirst(cell);

		if (recheck_all)
			database->absent = false;
		for (int i = 0; i < nwanted; i++)
			if (wanted[i] == database->oid)
			{
				database->absent = false;
				database->start_at = 0;
			}
	}

	/* One that is there may just be finding the extension absent. */
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < nwanted; i++)
		scheduler_recheck(scheduler_slot(wanted[i]));
	for (int i = 0; i < shared_state->nslots; i++)
	{
		SchedulerSlot *slot = &shared_state->slots[i];

		if (recheck_all && slot->state != SCHEDULER_FREE)
			scheduler_recheck(slot);
		/* It has become a template, or takes no connections any more. */
		if (rescan && slot->state == SCHEDULER_RUNNING && database_find(slot->database) == NULL)
		{
			slot->state = SCHEDULER_STOPPING;
			if (slot->latch != NULL)
				SetLatch(slot->latch);
		}
	}
	LWLockRelease(shared_state->lock);
}

/* Free the slots of schedulers that have ended, and note why they did; how many are starting. */
static int
collect_ended(TimestampTz now)
{
	int starting = 0;
	List *absent = NIL;
	ListCell *cell;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared_state->nslots; i++)
	{
		SchedulerSlot *slot = &shared_state->slots[i];
		Database *database;

		if (slot->state == SCHEDULER_STARTING || slot->state == SCHEDULER_STOPPING)
		{
			/* Registered, but the postmaster could not start it. */
			if (slot->pid == 0 &&
			    TimestampDifferenceExceeds(slot->since, GetCurrentTimestamp(), START_TIMEOUT_MS))
				slot->state = SCHEDULER_ENDED;
			else if (slot->state == SCHEDULER_STARTING)
				starting++;
		}
		if (slot->state != SCHEDULER_ENDED || slot->held_by != 0)
			continue;
		slot->state = SCHEDULER_FREE;
		database = database_find(slot->database);
		if (database == NULL)
			continue;
		if (slot->absent && !slot->recheck)
		{
			database->absent = true;
			database->failures = 0;
			absent = lappend_oid(absent, database->oid);
		}
		else if (!slot->stopped && !slot->absent)
		{
			/* It may be that the database is gone. */
			shared_state->rescan = true;
			/* What ran for long is no failure to start. */
			if (TimestampDifferenceExceeds(slot->since, GetCurrentTimestamp(), MAX_DELAY_MS))
				database->failures = 0;
			database->failures++;
			database->start_at = TimestampTzPlusMilliseconds(
			    now, Min(500 << Min(database->failures, 16), MAX_DELAY_MS));
		}
	}
	LWLockRelease(shared_state->lock);
	foreach (cell, absent)
		host_process_database_gone(lfirst_oid(cell));
	list_free(absent);
	return starting;
}

/* Start the database's scheduler; false when the server has no worker slot. */
static bool
start_scheduler(Database *database, TimestampTz now)
{
	BackgroundWorker worker = {0};
	int index;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (index = 0; index < shared_state->nslots; index++)
		if (shared_state->slots[index].state == SCHEDULER_FREE)
			break;
	if (index < shared_state->nslots)
	{
		SchedulerSlot *slot = &shared_state->slots[index];

		memset(slot, 0, sizeof(SchedulerSlot));
		slot->database = database->oid;
		slot->state = SCHEDULER_STARTING;
		slot->since = GetCurrentTimestamp();
		slot->generation = ++last_generation;
		slot->next_expiry = DT_NOEND;
	}
	LWLockRelease(shared_state->lock);

	if (index < shared_state->nslots)
	{
		strlcpy(worker.bgw_name, "envrt scheduler", BGW_MAXLEN);
		strlcpy(worker.bgw_type, "envrt scheduler", BGW_MAXLEN);
		strlcpy(worker.bgw_library_name, "envrt", BGW_MAXLEN);
		strlcpy(worker.bgw_function_name, "envrt_scheduler_main", BGW_MAXLEN);
		worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
		worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
		worker.bgw_restart_time = BGW_NEVER_RESTART;
		worker.bgw_main_arg = UInt64GetDatum(((uint64) last_generation << 32) | index);
		if (RegisterDynamicBackgroundWorker(&worker, NULL))
			return true;
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		shared_state->slots[index].state = SCHEDULER_FREE;
		LWLockRelease(shared_state->lock);
	}
	if (!out_of_slots)
	{
		out_of_slots = true;
		ereport(LOG, (errmsg("out of background worker slots for envrt schedulers"),
		              errdetail("It is tried again every %d seconds; this is said once.",
		                        NO_SLOT_DELAY_MS / 1000),
		              errhint("Raise max_worker_processes: envrt needs one for its launcher and "
		                      "one for each database that has the extension.")));
	}
	return false;
}

void
schedulers_begin(void)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->rescan = true;
	/* Slots of an earlier launcher's schedulers stay; tell new uses from theirs. */
	for (int i = 0; i < shared_state->nslots; i++)
		last_generation = Max(last_generation, shared_state->slots[i].generation);
	LWLockRelease(shared_state->lock);
}

/*
 * Do what is due; when to come again, DT_NOEND for not before something
 * happens.
 */
TimestampTz
schedulers_tend(void)
{
	TimestampTz now = timer_now();
	TimestampTz next = DT_NOEND;
	bool lacking = false;
	int starting;
	ListCell *cell;

	starting = collect_ended(now);
	take_requests();
	foreach (cell, databases)
	{
		Database *database = lfirst(cell);
		SchedulerSlot *slot;
		bool has_slot;

		if (database->absent)
			continue;
		LWLockAcquire(shared_state->lock, LW_SHARED);
		slot = scheduler_slot(database->oid);
		has_slot = slot != NULL;
		/* One that has run for long has got over what the others ended by. */
		if (has_slot && slot->state == SCHEDULER_RUNNING &&
		    TimestampDifferenceExceeds(slot->since, GetCurrentTimestamp(), MAX_DELAY_MS))
			database->failures = 0;
		LWLockRelease(shared_state->lock);
		if (has_slot)
			continue;
		if (database->start_at <= now)
		{
			if (starting >= MAX_STARTING)
				continue; /* one of them will wake us */
			if (start_scheduler(database, now))
			{
				database->without_slot = false;
				starting++;
				continue;
			}
			database->without_slot = true;
			database->start_at = TimestampTzPlusMilliseconds(now, NO_SLOT_DELAY_MS);
		}
		lacking = lacking || database->without_slot;
		next = Min(next, database->start_at);
	}
	/* Said once an episode: it is over when every database has its scheduler. */
	if (!lacking)
		out_of_slots = false;
	if (starting > 0)
		next = Min(next, TimestampTzPlusMilliseconds(now, START_TIMEOUT_MS));
	return next;
}
