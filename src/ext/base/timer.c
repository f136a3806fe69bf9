/*
 * timer.c
 *		The time by which waits and retries are measured; see timer.h.
 */
#include "postgres.h"

#include <sys/timerfd.h>
#include <unistd.h>

#include "portability/instr_time.h"
#include "base/timer.h"
#include "utils/timestamp.h"

TimestampTz
timer_now(void)
{
	static TimestampTz offset = 0;
	instr_time monotonic;

	INSTR_TIME_SET_CURRENT(monotonic);
	if (offset == 0)
		offset = GetCurrentTimestamp() - (TimestampTz) INSTR_TIME_GET_MICROSEC(monotonic);
	return offset + (TimestampTz) INSTR_TIME_GET_MICROSEC(monotonic);
}

TimestampTz
timer_at(TimestampTz time)
{
	if (TIMESTAMP_NOT_FINITE(time))
		return time;
	return timer_now() + (time - GetCurrentTimestamp());
}

/* In the year 2223; what counts is that a change of the clock cancels the timer. */
#define NEVER_SECONDS INT64CONST(8000000000)

static pgsocket clock_fd = PGINVALID_SOCKET;

static void
watch_clock(void)
{
	struct itimerspec never = {.it_value.tv_sec = NEVER_SECONDS};

	/* Set once more meanwhile: it is armed all the same. */
	if (timerfd_settime(clock_fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL) == 0 ||
	    errno == ECANCELED)
		return;
	close(clock_fd);
	clock_fd = PGINVALID_SOCKET;
}

pgsocket
timer_clock_fd(void)
{
	static bool tried = false;

	if (!tried)
	{
		tried = true;
		clock_fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
		if (clock_fd >= 0)
			watch_clock();
	}
	return clock_fd;
}

void
timer_clock_read(void)
{
	uint64 count;

	/* Nothing to read is the rule (EAGAIN); a change of the clock is an error as well. */
	if (clock_fd != PGINVALID_SOCKET &&
	    (read(clock_fd, &count, sizeof(count)) >= 0 || errno == ECANCELED))
		watch_clock();
}
