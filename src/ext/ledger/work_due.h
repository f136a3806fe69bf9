/*
 * work_due.h
 *		What one part of the scheduler notes for another: that there may be work; see work_due.c.
 */
#ifndef ENVRT_WORK_DUE_H
#define ENVRT_WORK_DUE_H

#include "postgres.h"

typedef enum Work
{
	WORK_CLEANUPS,       /* rows of the ledger may be due for a cleanup */
	WORK_PARKED,         /* something reusable may be free: parked requests can be served */
	WORK_LEASE_REQUESTS, /* requested leases may have come, or what they waited for is free */
	WORK_COUNT
} Work;

extern void work_note(Work work);
extern bool work_is_noted(Work work);
/* Whether it was noted, which is over then. */
extern bool work_take(Work work);

#endif
