/*
 * execution_calls.h
 *		Calls to the driver host about one execution; see execution_calls.c.
 */
#ifndef ENVRT_EXECUTION_CALLS_H
#define ENVRT_EXECUTION_CALLS_H

#include "postgres.h"

#include "hostlink/async_calls.h"
#include "scheduler/running_execution.h"

/* For calls whose answer nobody needs. */
extern void execution_nothing_answered(void *data, const DriverAnswer *answer);
/* Params that name the execution (a new reference). */
extern json_t *execution_id_params(const Running *running);
/* The answer to a start or a read is kept in the execution; see async_calls.h. */
extern void execution_answered(void *data, const DriverAnswer *answer);

#endif
