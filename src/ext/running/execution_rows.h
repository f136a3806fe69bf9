/*
 * execution_rows.h
 *		Rows of envrt.executions as the scheduler writes them; see execution_rows.c.
 */
#ifndef ENVRT_EXECUTION_ROWS_H
#define ENVRT_EXECUTION_ROWS_H

#include "postgres.h"

#include "running/command.h"
#include "ledger/company_turns.h"
#include "datatype/timestamp.h"
#include "shared/json_library.h"
#include "rights/tables.h"

/* An execution that has not ended, as its row says. */
typedef struct ExecutionRow
{
	pg_uuid_t id;
	pg_uuid_t lease_id;
	pg_uuid_t company_id; /* as it was when the execution was asked for, like the environment */
	pg_uuid_t environment_id;
	bool own;      /* this server's */
	bool running;  /* else queued */
	bool accepted; /* the driver host is known to have it */
	bool to_cancel;
	TimestampTz created_at;
	char *host_instance; /* of a running one */
} ExecutionRow;

/* How an execution ends.  One of result and error is set, or none: then `state` says it all. */
typedef struct ExecutionEnd
{
	const char *state;
	const json_t *result; /* of the driver */
	const char *sqlstate;
	const char *message;
	const char *detail;
	const char *hint;
	int64 missing; /* bytes of its output that were not kept */
} ExecutionEnd;

/* How far the output of one is kept. */
typedef struct OutputPosition
{
	int64 position; /* of the last piece, or 0 */
	int64 size;     /* what it takes, about */
	int64 refused;  /* bytes that a trigger has taken back */
} OutputPosition;

/*
 * A transaction of the scheduler's on these tables, ended by ledger_commit; ERROR 55P03
 * when somebody has one of them locked.  The others run within it, and wait for
 * no lock either: false means that somebody has the row locked.
 */
extern void execution_rows_begin(ApiCall *call);
extern void execution_rows_lock(void); /* the same in a transaction that has begun */
/* Whether it was they that raised an error last, and nothing that ran within. */
extern bool execution_rows_were_locked(void);

#define EXECUTION_PAGE 256
#define EXECUTION_COMPANY_PAGE 16

/* Running ones after such a time and id, a page at a time, in the context. */
extern ExecutionRow *execution_rows_running(MemoryContext context, TimestampTz after_time,
                                            const pg_uuid_t *after_id, int *count);

/* Queued ones of a company, as far as its turn has not got yet, in the context. */
extern ExecutionRow *execution_rows_queued(MemoryContext context, const CompanyTurn *turn,
                                           int *count);
/* Ends those that were cancelled before they began. */
extern void execution_rows_cancel_queued(void);
/* Those that run and are to be cancelled. */
extern pg_uuid_t *execution_rows_to_cancel(int *count);

/* The command of a queued or just started one; false when it is no more. */
extern bool execution_row_command(const pg_uuid_t *id, Command *command);

/* queued -> running; false: it is not queued any more, or to be cancelled, or locked. */
extern bool execution_row_start(const pg_uuid_t *id, const char *host_instance);
extern bool execution_row_accepted(const pg_uuid_t *id);
extern bool execution_row_end(const pg_uuid_t *id, const ExecutionEnd *end);

/* How far it is kept. */
extern void execution_output_position(const pg_uuid_t *id, OutputPosition *position);

/*
 * Keeps pieces of output as the driver host gives them, in order, until they take
 * such a size; false: there are more of them, and *to says up to where they are kept.
 */
extern bool execution_output_insert(const pg_uuid_t *id, const json_t *pieces, OutputPosition *to,
                                    int64 most);

/*
 * Forgets what ended long ago, so many at most; returns when to come again, DT_NOEND for not
 * before another one ends.  In PG_CATCH, the second one notes the failure and ends the
 * transaction.
 */
extern TimestampTz execution_rows_purge(int most);
extern TimestampTz execution_rows_purge_failed(void);

#endif
