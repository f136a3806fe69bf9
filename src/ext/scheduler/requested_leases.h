/*
 * requested_leases.h
 *		Leases that the scheduler acquires after a commit; see requested_leases.c.
 */
#ifndef ENVRT_REQUESTED_LEASES_H
#define ENVRT_REQUESTED_LEASES_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* Does what can be done; when to come again at the latest. */
extern TimestampTz requested_leases_tend(void);

#endif
