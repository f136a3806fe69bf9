/*
 * scheduler.c
 *		The scheduler: one background worker per database that has envrt.
 *
 * It does what must happen outside a caller's transaction.  Started by the
 * launcher in every database that might have the extension, it looks first,
 * and ends at once where that is absent.
 *
 * It keeps the ledger of provider leases (ledger.c), decides what becomes of
 * them when their transaction or lease has ended (settle.c), has them cleaned
 * up (cleanup.c), ends leases at their time (expiry.c), acquires those that
 * were requested for after a commit (requested_leases.c), and runs the commands that
 * were (running_executions.c).  Each part does what it
 * can without waiting and says when it wants to come again; then the scheduler
 * sleeps, on its latch and the socket to the driver host, until the earliest of
 * these times, or without a timeout.  It is woken to end (STOPPING in its slot:
 * somebody wants the database free), to look again whether the extension is
 * there (after DROP EXTENSION has committed), by requests of backends and what
 * their commits ask for, or to reload the configuration.  While it sleeps it
 * holds no lock, snapshot or transaction.  It never waits for a lock that a
 * user may hold: backends wait for it on a latch, which no deadlock detector
 * sees.
 *
 * Its slot is given back when it is out of the process array (see
 * scheduler_exit), so that whoever waits for the slot finds the database
 * free.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/extension.h"
#include "base/compat.h"
#include "hostlink/async_calls.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "ledger/ledger.h"
#include "ledger/requests.h"
#include "secrets/master_key.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "scheduler/requested_leases.h"
#include "scheduler/running_executions.h"
#include "base/shared_state.h"
#include "base/worker_signals.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "base/timer.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "scheduler/expiry.h"
#include "scheduler/scheduler.h"
#include "ledger/settle.h"
#include "scheduler/cleanup.h"
#include "utils/timestamp.h"

/* When something was locked that has to be looked at. */
#define SETTLE_RETRY_MS 1000
/* A process whose clock somebody shifts is told by nobody; see clock_look_ms. */
#define CLOCK_LOOK_MS 1000
#define CLOCK_LOOKS 60
#define CLOCK_MOVED_US (2 * USECS_PER_SEC)

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
	failures_forget(slot->database);
	LWLockRelease(shared_state->lock);
	ConditionVariableBroadcast(&shared_state->scheduler_changed);
	launcher_wake();
}

static bool
extension_exists(void)
{
	bool exists;

	SetCurrentStatementStartTimestamp();
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

/* What hints were about that was locked when we looked. */
static Hints undecided = {.all = true, .idle = true}; /* at the start, everything */
static TimestampTz undecided_at = DT_NOBEGIN;
static int undecided_for = 0;      /* times in a row */
static bool ledger_locked = false; /* requests wait for that */
static bool started = false;

static TimestampTz
settle(void)
{
	Hints hints;
	TimestampTz now = timer_now();

	hints_take(slot, &hints);
	if (hints.requests)
		work_note(WORK_LEASE_REQUESTS);
	running_executions_hinted(&hints);
	if (undecided_at <= now)
	{
		hints.all = hints.all || undecided.all;
		hints.idle = hints.idle || undecided.idle;
		undecided_at = DT_NOEND;
	}
	if (settle_hinted(&hints))
		undecided_for = 0;
	else
	{
		/* A lock is soon gone; what a person has to mend need not be said each second. */
		undecided.all = undecided.idle = true;
		undecided_for = Min(undecided_for + 1, 6);
		undecided_at = TimestampTzPlusMilliseconds(now, SETTLE_RETRY_MS << (undecided_for - 1));
	}
	return undecided_at;
}

/* When to look for the master key again, since something was locked; DT_NOEND: when told to. */
static TimestampTz master_key_at = DT_NOEND;

static void
look_at_master_key(void)
{
	static int locked_for = 0; /* times in a row */
	volatile bool locked = false;

	PG_TRY();
	{
		ApiCall call;

		ledger_begin(&call);
		locked = !master_key_start();
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		locked = geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE;
		ledger_abort("looking for the master key");
	}
	PG_END_TRY();
	locked_for = locked ? Min(locked_for + 1, 6) : 0;
	master_key_at =
	    locked ? TimestampTzPlusMilliseconds(timer_now(), SETTLE_RETRY_MS << (locked_for - 1))
	           : DT_NOEND;
}

/*
 * The first look at the ledger.  Until it has succeeded nothing is done; somebody may have the
 * tables locked.
 */
static TimestampTz
scheduler_start(void)
{
	static const char activity[] = "looking at the ledger when the scheduler starts";
	static TimestampTz retry_at = DT_NOBEGIN;

	if (retry_at > timer_now())
		return retry_at;
	PG_TRY();
	{
		ledger_start();
		started = true;
	}
	PG_CATCH();
	{
		retry_at = failure_caught(activity, NULL);
	}
	PG_END_TRY();
	if (!started)
		return retry_at;
	failure_over(activity, NULL);
	look_at_master_key();
	return timer_now();
}

static void
notice_clock(void)
{
	static TimestampTz offset = 0;
	TimestampTz now = GetCurrentTimestamp() - timer_now();

	if (now > offset + CLOCK_MOVED_US || now < offset - CLOCK_MOVED_US)
		ledger_clock_was_set();
	offset = now;
}

/* Everything that is due, once; when to come again at the latest. */
static TimestampTz
do_what_is_due(void)
{
	TimestampTz next;
	bool freed = work_take(WORK_PARKED);

	notice_clock();
	(void) driver_client_tend();
	next = ledger_serve(freed);
	ledger_locked = next != DT_NOEND;
	if (freed)
		work_note(WORK_LEASE_REQUESTS);
	next = Min(next, settle());
	next = Min(next, expiry_tend(slot));
	next = Min(next, requested_leases_tend());
	next = Min(next, running_executions_tend(slot));
	next = Min(next, cleanup_tend());
	if (master_key_at <= timer_now())
		look_at_master_key();
	next = Min(next, master_key_at);
	/* What is answered at once is in nobody's `next`. */
	if (driver_client_tend())
		return timer_now();
	return Min(next, driver_client_deadline());
}

/*
 * Whether somebody has asked for something in this round.  The latch alone
 * does not say it: whatever waited meanwhile, for a lock in a trigger say, has
 * reset it.  Who asks writes first and sets the latch afterwards.
 */
static bool
something_asked_for(void)
{
	bool asked;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	asked = slot->state == SCHEDULER_STOPPING || slot->recheck;
	if (started && !asked)
		asked = slot->look_at_all || slot->look_at_idle || slot->look_at_requests ||
		        slot->nhints > 0 || (slot->look_at_executions && slot->executions > 0) ||
		        expiry_is_asked_for(slot) || (!ledger_locked && ledger_requests_waiting());
	LWLockRelease(shared_state->lock);
	return asked || ConfigReloadPending;
}

/*
 * What was done to tables is for autovacuum to know, which a background worker has to see to.
 * Returns when to come again for the rest.
 */
static TimestampTz
report_statistics(void)
{
	static TimestampTz due = DT_NOEND;
	TimestampTz now = timer_now();
	long left = compat_report_stat(due <= now);

	if (left == 0)
		due = DT_NOEND;
	else if (due <= now || due == DT_NOEND)
		due = TimestampTzPlusMilliseconds(now, left);
	return due;
}

/*
 * The kernel says when the machine's clock is set or the machine has slept (timer_clock_fd).  It
 * does not know of a clock that is shifted for this process alone, by a library or a debugger.  So
 * while a lease is to expire the clock is looked at each time a sixtieth of the time until then
 * has gone: each second at the end, and not once a minute for a lease that ends tomorrow.
 */
static long
clock_look_ms(void)
{
	long left;

	if (expiry_expected() == DT_NOEND)
		return -1;
	left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), expiry_expected());
	return Max(left / CLOCK_LOOKS, CLOCK_LOOK_MS);
}

static void
wait_for_something(TimestampTz next)
{
	int socket_events;
	pgsocket socket = driver_client_socket(&socket_events);
	pgsocket clock = timer_clock_fd();
	WaitEventSet *events = compat_create_wait_event_set(4);
	WaitEvent event;
	long timeout = -1;
	long look = clock_look_ms();

	next = Min(next, report_statistics());
	if (next != DT_NOEND)
		timeout = TimestampDifferenceMilliseconds(timer_now(), next);
	if (look >= 0)
		timeout = timeout < 0 ? look : Min(timeout, look);
	AddWaitEventToSet(events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	if (socket != PGINVALID_SOCKET)
		AddWaitEventToSet(events, socket_events, socket, NULL, NULL);
	if (clock != PGINVALID_SOCKET)
		AddWaitEventToSet(events, WL_SOCKET_READABLE, clock, NULL, NULL);
	if (work_is_noted(WORK_PARKED) || something_asked_for())
		SetLatch(MyLatch);
	(void) WaitEventSetWait(events, timeout, &event, 1, PG_WAIT_EXTENSION);
	FreeWaitEventSet(events);
	ResetLatch(MyLatch);
	/* Not where the clock is looked at, which begins when the start has succeeded. */
	timer_clock_read();
}

/*
 * ALTER DATABASE and ALTER ROLE ... SET are meant for the sessions of users: the scheduler sets
 * everything that changes what its statements, and the triggers that they fire, do or may do.
 */
static void
set_what_is_relied_on(void)
{
	static const char *const settings[][2] = {
		{"role", "none"},
		{"search_path", "pg_catalog, pg_temp"},
		/* It waits for nobody's lock, not even in somebody's trigger. */
		{"lock_timeout", "1s"},
		{"statement_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"idle_session_timeout", "0"},
#if PG_VERSION_NUM >= 170000
		{"transaction_timeout", "0"},
#endif
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"row_security", "on"},
		{"exit_on_error", "off"},
		{"transform_null_equals", "off"},
		{"default_tablespace", ""},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"bytea_output", "hex"},
		{"extra_float_digits", "1"},
		{"quote_all_identifiers", "off"},
		{"plan_cache_mode", "auto"},
		{"enable_indexscan", "on"},
		{"enable_indexonlyscan", "on"},
		{"enable_bitmapscan", "on"},
		{"enable_nestloop", "on"},
		{"enable_hashjoin", "on"},
	};

	for (int i = 0; i < (int) lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

void
envrt_scheduler_main(Datum argument)
{
	Oid database;

	if (IsBinaryUpgrade)
		proc_exit(0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, worker_ignore_cancel);

	database = claim_slot(DatumGetUInt64(argument));
	if (!OidIsValid(database))
		proc_exit(0);
	/* Before the connection: callbacks run last in, first out. */
	on_shmem_exit(scheduler_exit, (Datum) 0);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pgstat_report_appname("envrt scheduler");
	am_scheduler = true;
	set_what_is_relied_on();

	end_where_absent();
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->state == SCHEDULER_STARTING)
	{
		slot->state = SCHEDULER_RUNNING;
		slot->left_behind = -1;
		slot->since = GetCurrentTimestamp();
	}
	LWLockRelease(shared_state->lock);
	ConditionVariableBroadcast(&shared_state->scheduler_changed);
	launcher_wake();
	pgstat_report_activity(STATE_IDLE, NULL);

	ledger_requests_recover();
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
			expiry_try_again();
		}
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		stopping = slot->state == SCHEDULER_STOPPING;
		recheck = slot->recheck;
		slot->recheck = false;
		LWLockRelease(shared_state->lock);
		if (stopping)
		{
			int64 count = ledger_count();

			/* The database is perhaps about to go. */
			LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
			slot->left_behind = count;
			LWLockRelease(shared_state->lock);
			proc_exit(0);
		}
		if (recheck)
		{
			end_where_absent();
			if (started)
				look_at_master_key();
		}

		next = started ? do_what_is_due() : scheduler_start();
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		slot->rounds++;
		LWLockRelease(shared_state->lock);
		wait_for_something(next);
	}
}
