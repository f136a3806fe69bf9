/*
 * long_execution.h
 *		Commands that go on whoever asked for them goes away.
 */
#ifndef ENVRT_HOST_LONG_EXECUTION_H
#define ENVRT_HOST_LONG_EXECUTION_H

#include <jansson.h>

#include "calls/call.h"
#include "base/host_error.h"

/* The methods are this and Start, Read, Cancel or Forget. */
#define LONG_EXECUTION_PREFIX "envrt/execution"

/* NULL, or why it is refused.  Done already is no error. */
extern HostError *long_execution_start(const json_t *params);
extern HostError *long_execution_cancel(const json_t *params);
extern HostError *long_execution_forget(const json_t *params);

/* Owns the call from here on: it is answered when there is something to tell. */
extern void long_execution_read(Call *call, const json_t *params);

/* Cancels and drops those of a database, which is gone or has no use for them any more. */
extern void long_executions_drop(json_int_t database);

/* For envrt/stats. */
extern json_t *long_executions_describe(void);

/* Cancels and drops them all, when there is no client any more. */
extern void long_executions_close(void);

#endif
