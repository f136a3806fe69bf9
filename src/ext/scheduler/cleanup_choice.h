/*
 * cleanup_choice.h
 *		Which of the rows that are due are cleaned up next; see cleanup_choice.c.
 */
#ifndef ENVRT_CLEANUP_CHOICE_H
#define ENVRT_CLEANUP_CHOICE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "scheduler/cleanup_call.h"

/* Those to begin with now (Cleanup), in a transaction of its own; NIL when that fails. */
extern List *cleanup_try_choose(TimestampTz now, MemoryContext context, bool *more);

#endif
