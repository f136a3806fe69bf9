/*
 * execution_rows.h
 *		Rows of envrt.executions as the scheduler writes them; see execution_rows.c.
 */
#ifndef ENVRT_EXECUTION_ROWS_H
#define ENVRT_EXECUTION_ROWS_H

#include "postgres.h"

#include "commands.h"
#include "json_library.h"
#include "tables.h"

/* An execution that has not ended, as its row says. */
typedef struct ExecutionRow
{
	pg_uuid_t id;
	pg_uuid_t lease_id;
	bool own;      /* this server's */
	bool running;  /* else queued */
	bool accepted; /* the driver host is known to have it */
	bool to_cancel;
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
	bool truncated; /* not all of its output was kept */
} ExecutionEnd;

/*
 * All of these run within ledger_enter.  None waits for a lock of anybody's: false
 * means that somebody has the row locked.
 */

/* Unfinished ones after *last_time, *last_id, a page at a time, in the context; *last: that was
 * all. */
extern ExecutionRow *execution_rows_list(MemoryContext context, TimestampTz *last_time,
                                         pg_uuid_t *last_id, int *count, bool *last);
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

/* Of the last piece of its output that is kept, and how much that is. */
extern void execution_output_position(const pg_uuid_t *id, int64 *position, int64 *bytes);

/* Keeps pieces of output as the driver host gives them. */
extern void execution_output_insert(const pg_uuid_t *id, const json_t *pieces, int64 *position,
                                    int64 *bytes, int64 most);

/* Forgets what ended long ago; when the next one is due, DT_NOEND: none. */
extern TimestampTz execution_rows_purge(void);

#endif
