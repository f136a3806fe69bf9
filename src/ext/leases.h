/*
 * leases.h
 *		Ending leases from elsewhere; see leases.c.
 */
#ifndef ENVRT_LEASES_H
#define ENVRT_LEASES_H

#include "postgres.h"

#include "utils/uuid.h"

/* How many leases ended.  Inside owner_enter or api_enter. */
extern int leases_end_of_run(const pg_uuid_t *run_id, const char *status,
                             const char *failure_reason);
extern int lease_end(const pg_uuid_t *lease_id, const char *status);

#endif
