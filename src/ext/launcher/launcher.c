/*
 * launcher.c
 *		The launcher: one background worker per server.
 *
 * It starts and watches the driver host (host_process.c) and one scheduler
 * for each database that has the extension (scheduler_watch.c).  It is
 * connected to no database and reads shared catalogs only.
 *
 * It sleeps until its latch is set (by whoever changed something in shared
 * memory), the driver host says something, or the nearest deadline of either
 * part comes; when nothing is under way there is no deadline.
 *
 * When it dies, the driver host sees its control channel end and ends too,
 * and schedulers go on; the postmaster starts it again after a second, and
 * it takes the slots in shared memory as it finds them.
 */
#include "postgres.h"

#include "base/compat.h"
#include "ledger/instance.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "base/shared_state.h"
#include "base/worker_signals.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "base/timer.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timeout.h"
#include "launcher/host_process.h"
#include "launcher/launcher.h"
#include "launcher/scheduler_watch.h"
#include "utils/timestamp.h"

#define INSTANCE_RETRY_MS 1000
#define INSTANCE_RETRIES 6 /* after which they are no farther apart */

void
launcher_register(void)
{
	BackgroundWorker worker = {0};

	strlcpy(worker.bgw_name, "envrt launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "envrt launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, "envrt", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "envrt_launcher_main", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	/* Not on a standby; at promotion it starts. */
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	RegisterBackgroundWorker(&worker);
}

static void
launcher_exit(int code, Datum argument)
{
	host_process_stop("The launcher ended.");
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->launcher_pid = 0;
	shared_state->launcher_latch = NULL;
	LWLockRelease(shared_state->lock);
}

static long
sleep_time(TimestampTz first, TimestampTz second)
{
	TimestampTz until = Min(first, second);

	if (until == DT_NOEND)
		return -1;
	return TimestampDifferenceMilliseconds(timer_now(), until);
}

static TimestampTz instance_retry_at = DT_NOBEGIN;

/* DT_NOBEGIN when it is known which server this is; else when to try that again. */
static TimestampTz
know_instance(void)
{
	static bool known = false;
	static int failures = 0;

	if (known)
		return DT_NOBEGIN;
	if (timer_now() < instance_retry_at)
		return instance_retry_at;
	PG_TRY();
	{
		instance_establish();
		known = true;
	}
	PG_CATCH();
	{
		if (failures == 0)
		{
			errcontext("No envrt scheduler is started before; this is said once, and tried again "
			           "from time to time and after a reload.");
			EmitErrorReport();
		}
		FlushErrorState();
		MemoryContextSwitchTo(TopMemoryContext);
		instance_retry_at = TimestampTzPlusMilliseconds(
		    timer_now(), INSTANCE_RETRY_MS << Min(failures, INSTANCE_RETRIES));
		failures++;
	}
	PG_END_TRY();
	return known ? DT_NOBEGIN : instance_retry_at;
}

void
envrt_launcher_main(Datum argument)
{
	WaitEventSet *events = NULL;

	if (IsBinaryUpgrade)
		proc_exit(0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, worker_ignore_cancel);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	before_shmem_exit(launcher_exit, (Datum) 0);
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->launcher_pid = MyProcPid;
	shared_state->launcher_latch = MyLatch;
	LWLockRelease(shared_state->lock);
	pgstat_report_appname("envrt launcher");
	schedulers_begin();

	for (;;)
	{
		TimestampTz host_deadline;
		TimestampTz scheduler_deadline;
		WaitEvent event;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			host_process_configure();
			instance_retry_at = DT_NOBEGIN;
		}
		host_deadline = host_process_tend();
		scheduler_deadline = know_instance();
		/* Without it, a scheduler could not tell its own provider leases from others'. */
		if (scheduler_deadline == DT_NOBEGIN)
			scheduler_deadline = schedulers_tend();

		/* The driver host's descriptors change when it is started anew. */
		if (host_process_take_change() || events == NULL)
		{
			if (events != NULL)
				FreeWaitEventSet(events);
			MemoryContextSwitchTo(TopMemoryContext);
			events = compat_create_wait_event_set(5);
			AddWaitEventToSet(events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
			AddWaitEventToSet(events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
			host_process_add_events(events);
		}
		if (WaitEventSetWait(events, sleep_time(host_deadline, scheduler_deadline), &event, 1,
		                     PG_WAIT_EXTENSION) > 0)
		{
			if (event.events & WL_LATCH_SET)
				ResetLatch(MyLatch);
			else
				host_process_read();
		}
	}
}
