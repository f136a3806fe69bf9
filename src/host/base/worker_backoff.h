/*
 * worker_backoff.h
 *		When a worker that crashed may be started again.
 */
#ifndef ENVRT_HOST_WORKER_BACKOFF_H
#define ENVRT_HOST_WORKER_BACKOFF_H

#include <stdint.h>

/* All zero at first. */
typedef struct WorkerBackoff
{
	unsigned crashes;    /* in a row */
	uint64_t started_at; /* the last start */
	uint64_t due_at;     /* not before */
} WorkerBackoff;

extern void worker_backoff_started(WorkerBackoff *backoff, uint64_t now);

/* jitter: a random number from 0 to 1000. */
extern void worker_backoff_crashed(WorkerBackoff *backoff, uint64_t now, unsigned jitter);

/* How long to wait before the next start. */
extern uint64_t worker_backoff_delay(const WorkerBackoff *backoff, uint64_t now);

#endif
