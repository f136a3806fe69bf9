/*
 * worker_signals.h
 *		Signals of the background workers; see worker_signals.c.
 */
#ifndef ENVRT_WORKER_SIGNALS_H
#define ENVRT_WORKER_SIGNALS_H

#include "postgres.h"

/* For SIGINT. */
extern void worker_ignore_cancel(SIGNAL_ARGS);

#endif
