/*
 * waiting.h
 *		Waiting in a backend for what the scheduler commits; see waiting.c.
 */
#ifndef ENVRT_WAITING_H
#define ENVRT_WAITING_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"

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
