/*
 * scheduler.c
 *		The scheduler: one background worker per database that has envrt.
 *
 * It does what must happen outside a caller's transaction.  Started by the
 * launcher in every database that might have the extension, it looks first,
 * and ends at once where that is absent.
 *
 * It ends leases at their time (expiry.c).  It sleeps on its latch, until the
 * next lease expires or, when none does, without a timeout.  It is woken to
 * end (STOPPING in its slot: somebody wants the database free), to look again
 * whether the extension is there (after DROP EXTENSION has committed), when a
 * commit has set an earlier expiry, or to reload the configuration.  While it sleeps it holds no
 *lock, snapshot or transaction.
 *
 * Its slot is given back when it is out of the process array (see
 * scheduler_exit), so that whoever waits for the slot finds the database
 * free.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/extension.h"
#include "fault_points.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "shared_state.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "workers.h"

static SchedulerSlot *slot = NULL;

static void
scheduler_exit(int code, Datum argument)
{
	if (slot == NULL)
		return;
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->stopped = slot->state == SCHEDULER_STOPPING;
	slot->state = SCHEDULER_ENDED;
	slot->pid = 0;
	slot->latch = NULL;
	LWLockRelease(shared_state->lock);
	ConditionVariableBroadcast(&shared_state->scheduler_changed);
	launcher_wake();
}

static bool
extension_exists(void)
{
	bool exists;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	exists = OidIsValid(get_extension_oid("envrt", true));
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
	return exists;
}

/*
 * A request to look again that came while we looked counts: what we saw may
 * have been before the commit that it is about.
 */
static void
end_where_absent(void)
{
	for (;;)
	{
		bool again;

		if (extension_exists())
			return;
		FAULT_POINT("scheduler-found-absent");
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		again = slot->recheck;
		slot->recheck = false;
		slot->absent = !again;
		LWLockRelease(shared_state->lock);
		if (!again)
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Take the slot that the launcher meant for us, unless it gave up on us. */
static Oid
claim_slot(uint64 argument)
{
	uint32 index = (uint32) argument;
	uint32 generation = (uint32) (argument >> 32);
	Oid database = InvalidOid;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (index < (uint32) shared_state->nslots &&
	    shared_state->slots[index].generation == generation &&
	    (shared_state->slots[index].state == SCHEDULER_STARTING ||
	     shared_state->slots[index].state == SCHEDULER_STOPPING))
	{
		slot = &shared_state->slots[index];
		slot->pid = MyProcPid;
		slot->latch = MyLatch;
		database = slot->database;
	}
	LWLockRelease(shared_state->lock);
	return database;
}

void
envrt_scheduler_main(Datum argument)
{
	Oid database;

	if (IsBinaryUpgrade)
		proc_exit(0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);

	database = claim_slot(DatumGetUInt64(argument));
	if (!OidIsValid(database))
		proc_exit(0);
	/* Before the connection: callbacks run last in, first out. */
	on_shmem_exit(scheduler_exit, (Datum) 0);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pgstat_report_appname("envrt scheduler");
	/* It waits for nobody's lock, not even in somebody's trigger. */
	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);

	end_where_absent();
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->state == SCHEDULER_STARTING)
	{
		slot->state = SCHEDULER_RUNNING;
		slot->since = GetCurrentTimestamp();
	}
	LWLockRelease(shared_state->lock);
	ConditionVariableBroadcast(&shared_state->scheduler_changed);
	launcher_wake();
	pgstat_report_activity(STATE_IDLE, NULL);

	for (;;)
	{
		bool stopping;
		bool recheck;
		TimestampTz next;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		stopping = slot->state == SCHEDULER_STOPPING;
		recheck = slot->recheck;
		slot->recheck = false;
		LWLockRelease(shared_state->lock);
		if (stopping)
			proc_exit(0);
		if (recheck)
			end_where_absent();

		next = expiry_tend(slot);
		(void) WaitLatch(
		    MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (next != DT_NOEND ? WL_TIMEOUT : 0),
		    next != DT_NOEND ? TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next) : -1,
		    PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
