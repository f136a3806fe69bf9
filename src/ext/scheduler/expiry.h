/*
 * expiry.h
 *		Ends leases that have expired; see expiry.c.
 */
#ifndef ENVRT_EXPIRY_H
#define ENVRT_EXPIRY_H

#include "postgres.h"

#include "base/shared_state.h"
#include "datatype/timestamp.h"

extern TimestampTz expiry_tend(SchedulerSlot *slot);
/* The time of day when the next lease expires; DT_NOEND: none does. */
extern TimestampTz expiry_expected(void);
/* A reload says that what was in the way may be mended. */
extern void expiry_try_again(void);
/* Whether a commit has set an earlier end of a lease since; the caller holds shared_state->lock. */
extern bool expiry_is_asked_for(const SchedulerSlot *slot);

#endif
