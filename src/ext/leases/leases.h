/*
 * leases.h
 *		Ending leases from elsewhere; see leases.c.
 */
#ifndef ENVRT_LEASES_H
#define ENVRT_LEASES_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "environments/drivers.h"
#include "utils/uuid.h"

/* How many leases ended.  Inside owner_enter or api_enter. */
extern int leases_end_of_run(const pg_uuid_t *run_id, const char *status,
                             const char *failure_reason);
extern int lease_end(const pg_uuid_t *lease_id, const char *status);

/* How to look at a run: see that it is not over, and have it stay so. */
typedef enum RunLook
{
	RUN_LOOK,
	RUN_LOCK,
	RUN_TRY_LOCK /* 55P03 when somebody has it locked */
} RunLook;

/*
 * acquire_check
 *		Looks at what an acquire names, for a backend at once and for the scheduler
 *		later: the environment (returned) is active, and it, the run and the workspace
 *		(NULL: none) are the company's, and such that the caller can see them.
 *
 * *workspace_mode becomes that of the workspace where it is NULL.
 */
extern Environment *acquire_check(const ApiCall *call, const pg_uuid_t *company_id,
                                  const pg_uuid_t *environment_id, const pg_uuid_t *run_id,
                                  const pg_uuid_t *workspace_id, char **workspace_mode);

extern void run_check(const pg_uuid_t *run_id, const pg_uuid_t *company_id, RunLook look);

/* What an acquire is told, aside from what is in its AcquireRequest. */
typedef struct LeaseArguments
{
	const pg_uuid_t *issue_id; /* NULL: none */
	const pg_uuid_t *workspace_id;
	const Interval *expires_in;
} LeaseArguments;

/* The lease's row, in SPI_tuptable. */
extern void lease_insert(const AcquireRequest *request, const AcquiredLease *lease,
                         const LeaseArguments *arguments);

#endif
