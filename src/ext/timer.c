/*
 * timer.c
 *		The time by which waits and retries are measured; see timer.h.
 */
#include "postgres.h"

#include "portability/instr_time.h"
#include "timer.h"
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
