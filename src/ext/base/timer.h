/*
 * timer.h
 *		The time by which waits and retries are measured.
 *
 * The machine's clock may be set, and a machine may sleep: what is to happen in ten seconds
 * must happen in ten seconds all the same.  timer_now() is the monotonic clock, moved by a
 * constant so that it was the time of day when the process first asked.  Times that are in
 * tables, such as a lease's expires_at, are times of day: they are compared with
 * GetCurrentTimestamp(), and timer_at() says when they come.
 */
#ifndef ENVRT_TIMER_H
#define ENVRT_TIMER_H

#include "postgres.h"

#include "datatype/timestamp.h"

extern TimestampTz timer_now(void);

/* When it will be that time of day, unless the clock is set before. */
extern TimestampTz timer_at(TimestampTz time);

/*
 * A descriptor that is readable when the machine's clock was set or the machine has slept, until
 * timer_clock_read() is called; PGINVALID_SOCKET where the system has no such thing.
 */
extern pgsocket timer_clock_fd(void);
extern void timer_clock_read(void);

#endif
