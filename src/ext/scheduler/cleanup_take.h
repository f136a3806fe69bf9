/*
 * cleanup_take.h
 *		Takes rows for a cleanup, and makes the calls that they need; see cleanup_take.c.
 */
#ifndef ENVRT_CLEANUP_TAKE_H
#define ENVRT_CLEANUP_TAKE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "scheduler/cleanup_call.h"

/* How long the call may take, with what it may have to wait for, in milliseconds. */
extern int64 cleanup_call_timeout(const Cleanup *cleanup);
/* Takes them in one transaction; false: it failed, and nothing of them is taken. */
extern bool cleanup_try_take(List *chosen, TimestampTz now);

#endif
