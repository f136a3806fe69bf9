/*
 * scheduler_wake.h
 *		Telling the scheduler, at commit or rollback, where to look; see scheduler_wake.c.
 */
#ifndef ENVRT_SCHEDULER_WAKE_H
#define ENVRT_SCHEDULER_WAKE_H

#include "postgres.h"

#include "base/shared_state.h"
#include "utils/uuid.h"

/* After this transaction, look at the provider lease of this lease. */
extern void hint_lease(const pg_uuid_t *lease_id);
/* After this transaction, look at the requests for leases and executions. */
extern void hint_requests(void);
/* A provider lease was made for this transaction: it can't be prepared. */
extern void hint_forbid_prepare(void);

/* Whether this very transaction has asked for or ended the lease. */
extern bool hint_given(const pg_uuid_t *lease_id);

/* At once: something that this transaction does not know of may have ended leases. */
extern void hint_look_at_all(void);
/* At once: something has become idle that may be of no use. */
extern void hint_look_at_idle(void);

/* In the scheduler: takes what has come. */
typedef struct Hints
{
	bool all;
	bool idle;
	bool requests;
	bool executions; /* a lease that commands may run in has ended */
	int nleases;
	pg_uuid_t leases[MAX_HINTS];
} Hints;

extern void hints_take(SchedulerSlot *slot, Hints *hints);

#endif
