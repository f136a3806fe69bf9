/*
 * requested_lease_complete.h
 *		The second half of serving a requested lease: from the driver's answer to the row; see
 * requested_lease_complete.c.
 */
#ifndef ENVRT_REQUESTED_LEASE_COMPLETE_H
#define ENVRT_REQUESTED_LEASE_COMPLETE_H

#include "postgres.h"

#include "environments/provider_lease.h"
#include "scheduler/requested_lease.h"

/* Inserts the lease that the answer makes; false: there is none.  *again: it is to be begun anew.
 */
extern bool requested_lease_complete(RequestedLease *lease, bool *again);
/* The request becomes failed, with this error. */
extern void requested_lease_write_failure(const RequestedLease *lease, const ErrorData *error);
/* What an answer to a resume says is written first. */
extern void requested_lease_write_resume(RequestedLease *lease, ResumeVerdict verdict);

#endif
