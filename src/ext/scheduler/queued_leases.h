/*
 * queued_leases.h
 *		Leases that the scheduler acquires after a commit; see queued_leases.c.
 */
#ifndef ENVRT_QUEUED_LEASES_H
#define ENVRT_QUEUED_LEASES_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* There may be new requests, or what some waited for is free. */
extern void queued_leases_look_again(void);

/* Does what can be done; when to come again at the latest. */
extern TimestampTz queued_leases_tend(void);

/* Whether the lease's acquire is under way here. */
extern bool queued_lease_in_flight(const pg_uuid_t *lease_id);

#endif
