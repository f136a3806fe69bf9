/*
 * running_executions.h
 *		Executions as the scheduler looks after them; see running_executions.c.
 */
#ifndef ENVRT_RUNNING_EXECUTIONS_H
#define ENVRT_RUNNING_EXECUTIONS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "ledger/scheduler_wake.h"
#include "base/shared_state.h"

extern void running_executions_hinted(const Hints *hints);

/* Does what is due; when to come again at the latest. */
extern TimestampTz running_executions_tend(SchedulerSlot *slot);

#endif
