/*
 * cleanup_outcome.h
 *		Writes down how cleanups have ended; see cleanup_outcome.c.
 */
#ifndef ENVRT_CLEANUP_OUTCOME_H
#define ENVRT_CLEANUP_OUTCOME_H

#include "postgres.h"

#include "scheduler/cleanup_call.h"

/* Writes down what has been answered; false when some of it can not be. */
extern bool cleanup_finish_answered(void);

#endif
