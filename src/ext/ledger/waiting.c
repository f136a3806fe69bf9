/*
 * waiting.c
 *		Waiting in a backend for what the scheduler commits.
 *
 * The waiter looks, sleeps on leases_changed, and looks again: the scheduler
 * broadcasts after each of its commits that somebody may wait for.  It is
 * prepared before the first look, so that nothing is missed in between.  A
 * scheduler that is not there for long ends the wait: nobody else does what is
 * waited for.
 *
 * Whoever waits here or elsewhere looks each second whether its client is there
 * still (base/client.c).
 *
 * Every wait of the extension, and what ends it at the latest:
 *
 *	here
 *		the function's timeout; a scheduler that is not there for long, or does
 *		no round for a minute (require_scheduler)
 *	requests.c
 *		a scheduler as above; what is held, returning or being ended has
 *		envrt.reuse_wait_timeout or ledger_turn_ms
 *	hostlink/blocking_calls.c
 *		the call's time limit; for a driver host that starts START_WAIT_MS
 *	environments/driver_provider.c
 *		between two tries of a resume, for envrt.reuse_retry in all
 *	launcher/database_ddl.c
 *		STOP_WAIT_MS for a scheduler to end; the statement then says itself who is
 *		in its way
 *	base/fault_points.c
 *		for tests: whoever armed the point disarms it
 *	locks of a caller's tables
 *		as in any statement of his: lock_timeout, the deadlock detector
 *	the scheduler's locks
 *		its lock_timeout, a second; it waits for no lock that it can avoid
 *	scheduler/scheduler.c, launcher/launcher.c
 *		are idle until something is due, and can be woken; who waits for them has
 *		a limit of his own, above
 *	launcher/host_process.c
 *		STOP_MS for the driver host's orderly end, then SIGKILL and KILL_MS; then it
 *		looks once a second
 *
 * All of them but the last one end with a cancel, a termination, and the postmaster's death.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/client.h"
#include "ledger/requests.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "base/shared_state.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "base/timer.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "ledger/waiting.h"

/* Should a broadcast be lost with its scheduler; and to look at the client. */
#define LOOK_MS CLIENT_LOOK_MS

static void
waiting_prepare(Waiting *waiting, TimestampTz deadline)
{
	if (shared_state == NULL)
		ereport_not_preloaded();
	forbid_in_scheduler();
	waiting->deadline = deadline;
	waiting->missing_since = 0;
	ConditionVariablePrepareToSleep(&shared_state->leases_changed);
}

void
waiting_begin_endless(Waiting *waiting)
{
	waiting_prepare(waiting, DT_NOEND);
}

void
waiting_begin_optional(Waiting *waiting, FunctionCallInfo fcinfo, int argument)
{
	if (PG_ARGISNULL(argument))
		waiting_begin_endless(waiting);
	else
		waiting_begin(waiting, fcinfo, argument);
}

void
waiting_begin(Waiting *waiting, FunctionCallInfo fcinfo, int argument)
{
	Interval *interval;
	double seconds;

	require_argument(argument, "timeout");
	interval = PG_GETARG_INTERVAL_P(argument);
	seconds = (interval->month * 31.0 + interval->day) * 86400.0 +
	          interval->time / (double) USECS_PER_SEC;
	if (seconds < 0)
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("timeout must not be negative")));
	waiting_prepare(waiting,
	                timer_now() + (TimestampTz) (Min(seconds, 366 * 86400.0) * USECS_PER_SEC));
}

bool
waiting_wait(Waiting *waiting)
{
	long left = LOOK_MS;

	if (waiting->deadline != DT_NOEND)
		left = TimestampDifferenceMilliseconds(timer_now(), waiting->deadline);

	if (left <= 0)
		return false;
	require_scheduler(&waiting->missing_since);
	(void) ConditionVariableTimedSleep(&shared_state->leases_changed, Min(left, LOOK_MS),
	                                   PG_WAIT_EXTENSION);
	client_check();
	return true;
}

void
waiting_end(void)
{
	ConditionVariableCancelSleep();
}
