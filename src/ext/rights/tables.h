/*
 * tables.h
 *		The shared tables' names, statements on them, and whose rights they run with.
 */
#ifndef ENVRT_TABLES_H
#define ENVRT_TABLES_H

#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "utils/uuid.h"

/* Keep in step with shared_tables in tables.c. */
typedef enum SharedTable
{
	TABLE_COMPANIES,
	TABLE_AGENTS,
	TABLE_HEARTBEAT_RUNS,
	TABLE_ENVIRONMENTS,
	TABLE_ENVIRONMENT_LEASES,
	TABLE_COMPANY_SECRETS,
	TABLE_COMPANY_SECRET_VERSIONS,
	TABLE_PLUGINS,
	TABLE_ACTIVITY_LOG,
	TABLE_EXECUTION_WORKSPACES,
	SHARED_TABLE_COUNT
} SharedTable;

#define STATEMENT_MAX_ARGUMENTS 20

/* Of a text that is in an index, in bytes; the CHECK constraints of sql/envrt.sql say the same. */
#define INDEXED_TEXT_MAX 2000

/*
 * A statement with a saved plan.  In the text, @name@ stands for a shared
 * table's qualified name.  Define as static; the plan lives as long as the
 * backend.
 */
typedef struct Statement
{
	const char *text;
	int nargs;
	Oid argtypes[STATEMENT_MAX_ARGUMENTS];
	bool plain_index; /* no bitmap scan: it finds few rows, where many more have gone */
	SPIPlanPtr plan;
	/* The shared tables and envrt's own that it names, and that it writes: bits by their number. */
	uint32 shared;
	uint32 shared_written;
	uint32 own;
	uint32 own_written;
} Statement;

/* What a call of an API function changed and has to put back; see api_enter. */
typedef struct ApiCall
{
	Oid caller;
	int caller_context;
	char *caller_search_path;
	int guc_level;
	bool restricted;
} ApiCall;

extern const char *shared_table(SharedTable table);
/* Within an ereport about an id that names no row, or none that the caller can see. */
extern int hint_visible_rows(SharedTable table);
/* ERROR when the text, which the message calls `what`, is too long for the index that it is in. */
extern void require_indexable(const char *what, const char *text);
extern Oid shared_table_oid(SharedTable table);

extern void owner_enter(ApiCall *call);
extern void ledger_enter(ApiCall *call);
extern void api_enter(ApiCall *call, const char *function);
extern void api_leave(ApiCall *call);
extern void api_forbid_read_only(const char *function);

extern void caller_needs_select(const ApiCall *call, SharedTable table);
extern bool caller_is_restricted(const ApiCall *call, SharedTable table);
extern bool caller_can_see(const ApiCall *call, SharedTable table, const pg_uuid_t *id);
/* The same by what others have committed since the transaction's snapshot. */
extern bool caller_can_see_now(const ApiCall *call, SharedTable table, const pg_uuid_t *id);

/*
 * Reads a table of somebody else's within ledger_enter or owner_enter, with
 * the rights of its owner; false when somebody has it locked.
 */
extern bool statement_try_read(SharedTable table, Statement *statement, Datum *values,
                               const char *nulls, int *count);

/* What the look at rows that others commit meanwhile needs: the newest snapshot. */
extern int statement_execute_latest(Statement *statement, Datum *values, const char *nulls);

/*
 * statement_write
 *		As statement_execute, for one that writes the shared table.
 *
 * The table is one of those whose triggers are looked at; see shared_tables in
 * tables.c.
 */
extern int statement_write(SharedTable table, Statement *statement, Datum *values,
                           const char *nulls);

/*
 * The same for a rule that must hold whatever the isolation level, as a
 * foreign key does: rows that the transaction's snapshot does not have are
 * found, and raise a serialization failure.
 */
extern int statement_enforce(SharedTable table, Statement *statement, Datum *values,
                             const char *nulls);

extern int statement_execute(Statement *statement, Datum *values, const char *nulls);

/* Column number `column` of row `row` of the last statement's result. */
extern Datum result_datum(int row, int column, bool *isnull);
extern Datum result_typed(int row, int column, Oid type, bool *isnull); /* or ERROR 42804 */
extern char *result_text(int row, int column);                          /* NULL for null */
extern void result_row(int row, TupleDesc desc, Datum *values, bool *nulls);
extern Datum result_row_datum(FunctionCallInfo fcinfo);
extern pg_uuid_t *result_uuid(int row, int column);

extern pg_uuid_t *uuid_generate(void);
extern char *uuid_text(const pg_uuid_t *uuid);

extern void company_require(const ApiCall *call, const pg_uuid_t *company_id);

#endif
