/*
 * execution_outcome.h
 *		How an execution has ended, and that in its row; see execution_outcome.c.
 */
#ifndef ENVRT_EXECUTION_OUTCOME_H
#define ENVRT_EXECUTION_OUTCOME_H

#include "postgres.h"

#include "scheduler/running_execution.h"

/* Note how it ended; written by execution_write_end() as soon as that is possible. */
extern void execution_set_lost(Running *running, const char *message);
/* By whoever wanted it, or by its lease's end, which is said. */
extern void execution_set_cancelled(Running *running);
/* The driver host's error as an end. */
extern void execution_set_error(Running *running, const json_t *error);
/* In PG_CATCH: an error of ours as an end, unless it is one that passes. */
extern void execution_set_caught_error(Running *running, MemoryContext context);
/* Writes the end that is noted; false when that has to be tried again. */
extern bool execution_write_end(Running *running);
/* Whether a driver has put anything into words, which could hold what the command was given. */
extern bool execution_has_words(json_t *json);
/* Whether the driver host's error has this SQLSTATE. */
extern bool execution_error_is_state(const json_t *error, const char *sqlstate);
/* The end as the driver host says it. */
extern void execution_take_end(Running *running, json_t *end);

#endif
