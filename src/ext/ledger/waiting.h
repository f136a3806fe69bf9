/*
 * waiting.h
 *		Waiting in a backend for what the scheduler commits; see waiting.c.
 */
#ifndef ENVRT_WAITING_H
#define ENVRT_WAITING_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"

/* No wait in a backend is longer before it looks again, at its client as well. */
#define WAITING_LOOK_MS 1000

/* Ends the session when its client is gone; else as CHECK_FOR_INTERRUPTS(). */
extern void waiting_check_client(void);

typedef struct Waiting
{
	TimestampTz deadline;
	TimestampTz missing_since; /* there is no scheduler; 0: there is one */
} Waiting;

/* `argument`: the function's timeout, an interval. */
extern void waiting_begin(Waiting *waiting, FunctionCallInfo fcinfo, int argument);
/* The same, but null is for ever. */
extern void waiting_begin_optional(Waiting *waiting, FunctionCallInfo fcinfo, int argument);
extern void waiting_begin_endless(Waiting *waiting);
/* False when the time is over; else look again. */
extern bool waiting_wait(Waiting *waiting);
extern void waiting_end(void);

#endif
