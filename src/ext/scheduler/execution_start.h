/*
 * execution_start.h
 *		Has the driver host start an execution; see execution_start.c.
 */
#ifndef ENVRT_EXECUTION_START_H
#define ENVRT_EXECUTION_START_H

#include "postgres.h"

#include "scheduler/running_execution.h"

/* Tells the driver host; true when that is under way, or has ended the execution. */
extern bool execution_start(Running *running, bool queued);

#endif
