/*
 * queued_leases.h
 *		Leases that the scheduler acquires after a commit; see queued_leases.c.
 */
#ifndef ENVRT_QUEUED_LEASES_H
#define ENVRT_QUEUED_LEASES_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* Does what can be done; when to come again at the latest. */
extern TimestampTz queued_leases_tend(void);

#endif
