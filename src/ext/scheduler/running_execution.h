/*
 * running_execution.h
 *		One execution that the scheduler looks after; see running_execution.c.
 */
#ifndef ENVRT_RUNNING_EXECUTION_H
#define ENVRT_RUNNING_EXECUTION_H

#include "postgres.h"

#include "running/execution_rows.h"
#include "shared/json_library.h"
#include "lib/ilist.h"
#include "datatype/timestamp.h"
#include "leases/active_lease.h"

#define RETRY_MS 1000
#define LOCKED_RETRY_MS 200

typedef enum Phase
{
	PHASE_START, /* the driver host is to be told */
	PHASE_STARTING,
	PHASE_READ, /* it is to be asked for what comes next */
	PHASE_READING,
	PHASE_ANSWERED /* and has answered: `result` or `error` */
} Phase;

/* From the start of the command, or its taking over, until its end is written. */
typedef struct Running
{
	dlist_node node;
	pg_uuid_t id;
	pg_uuid_t lease_id;
	pg_uuid_t company_id; /* that of the lease when the execution was asked for */
	pg_uuid_t environment_id;
	Phase phase;
	bool told;             /* the driver host has it */
	bool accepted;         /* ... and the row says so */
	bool position_unknown; /* it is in the table */
	OutputPosition output;
	bool last_only; /* the driver host was told to keep the last of it only */
	bool check_lease;
	bool to_cancel;
	bool cancelled;      /* the driver host was told */
	char lease_end[128]; /* to_cancel is due to that; "": it is not */
	TimestampTz retry_at;
	json_t *params;      /* to be sent */
	json_t *values;      /* of secrets in the call's params */
	bool values_unknown; /* a predecessor had them */
	json_t *result;
	json_t *error;
	ExecutionEnd *end; /* what is to be written; in its own context */
	MemoryContext end_context;
} Running;

/* Somebody has locked what everything needs, or what a look at a lease needs: not before then. */
extern TimestampTz executions_rows_at;
extern TimestampTz executions_leases_at;

/* The driver host that runs what is looked after; "": none yet. */
extern char executions_host[64];

/* Activities, as failures.h calls them. */
extern const char execution_starting[];
extern const char execution_writing[];

extern void running_execution_drop_answer(Running *running);
extern void running_execution_retry_later(Running *running, int64 ms);

/* In PG_CATCH of a transaction on the rows: nobody's row is to blame. */
extern void running_execution_rows_failed(const char *activity);
/* In PG_CATCH of a transaction on one execution's rows: the others go on. */
extern void running_execution_failed(Running *running);

/* Opens a transaction on everything that a start needs, and waits for no lock of it. */
extern void running_execution_begin_on_all(ApiCall *call);
/* Whether it has raised an error since the shared tables are locked. */
extern bool running_execution_shared_tables_were_locked(void);

extern void running_execution_load_lease(const ApiCall *call, const Running *running,
                                         CalledLease *lease);

#endif
