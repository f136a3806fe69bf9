/*
 * tables.c
 *		The shared tables' names, statements on them, and whose rights they run with.
 *
 * Names: nothing but shared_table() knows where a shared table is.  A
 * Statement names tables as @name@, so that every text goes through it.
 *
 * Rights: EXECUTE on an envrt function is the right to use it for every
 * company whose rows the caller can see.  So a function runs its statements
 * as the tables' owner (api_enter switches), but looks at each row it is
 * given as the caller first (caller_can_see): the caller needs SELECT on the
 * table, and row-level security that applies to the caller is asked, as by
 * the caller's own SELECT.  Rows that the caller can't see do not exist for
 * it.
 *
 * Two parties must not come by each other's rights, or by a superuser's who
 * happens to call.  What is on the tables (triggers, expressions, policies)
 * runs with the owner's rights, in a security-restricted operation, with
 * search_path pinned; what it does to the session ends at api_leave, or at
 * the (sub)transaction's abort, and nothing of it is left for the commit
 * (table_code_undefer).  Only where the owner itself has logged in and calls,
 * there is nobody to be kept from anything.  And all code there must be of
 * somebody with the owner's rights (table_code.c): of what a stranger could
 * put there the call is refused.  Before each statement, with its locks held,
 * this is known to hold (make_ready).  For the same reason the tables have one
 * owner.
 *
 * Plans: prepared generic and kept.  Such a plan must stay on an index from the first row on, but
 * one made while a table is empty is a sequential scan and stays one until statistics change; so
 * plans are made with sequential scans (and sorts, where an index has the order) off, and without
 * the compilation that the cost of a forbidden scan would call for.  Bitmap scans are off where
 * the statement says so: only a plain index scan marks the entries of dead rows, which the next
 * one then passes by; without that, each look at a key whose rows come and go would walk all that
 * have gone since the last vacuum.  Only the planning: the flags must not reach what triggers
 * plan.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "jit/jit.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "optimizer/cost.h"
#include "parser/parsetree.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/shared_state.h"
#include "rights/table_code.h"
#include "rights/tables.h"
#include "utils/timeout.h"

#define SHARED_SCHEMA "envrt"
#define OWN_SCHEMA "envrt"

static const UsedTable shared_tables[SHARED_TABLE_COUNT] = {
    [TABLE_COMPANIES] = {"companies", false},
    [TABLE_AGENTS] = {"agents", false},
    [TABLE_HEARTBEAT_RUNS] = {"heartbeat_runs", false},
    [TABLE_ENVIRONMENTS] = {"environments", true},
    [TABLE_ENVIRONMENT_LEASES] = {"environment_leases", true},
    [TABLE_COMPANY_SECRETS] = {"company_secrets", true, true},
    [TABLE_COMPANY_SECRET_VERSIONS] = {"company_secret_versions", true, true},
    [TABLE_PLUGINS] = {"plugins", true},
    [TABLE_ACTIVITY_LOG] = {"activity_log", true},
    [TABLE_EXECUTION_WORKSPACES] = {"execution_workspaces", false},
};

static const UsedTable own_tables[] = {
    {"provider_leases", true, true},
    {"lease_requests", true, true},
    {"executions", true, true},
    {"execution_output", true, true},
    {"settings", true},
};

/* The first one's owner is whose rights all are used with. */
#define OWNING_OWN_TABLE 0

static UsedTables shared_set = {SHARED_SCHEMA, shared_tables, SHARED_TABLE_COUNT, true};
static UsedTables own_set = {OWN_SCHEMA, own_tables, lengthof(own_tables), false};

/* For statement_try_read, which reads each with the rights of its own owner; made when used. */
static UsedTable read_tables[SHARED_TABLE_COUNT];
static UsedTables read_sets[SHARED_TABLE_COUNT];

/* The table's qualified and quoted name, palloc'd. */
const char *
shared_table(SharedTable table)
{
	return quote_qualified_identifier(SHARED_SCHEMA, shared_tables[table].name);
}

int
hint_visible_rows(SharedTable table)
{
	return errhint("Give the id of a row of %s that the calling role can see.",
	               shared_table(table));
}

void
require_indexable(const char *what, const char *text)
{
	if (strlen(text) > INDEXED_TEXT_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
		                errmsg("%s must not be longer than %d bytes", what, INDEXED_TEXT_MAX),
		                errdetail("It has %zu bytes, and is in an index.", strlen(text))));
}

Oid
shared_table_oid(SharedTable table)
{
	return used_table_oid(&shared_set, table);
}

static int execute_plan(Statement *statement, Datum *values, const char *nulls);
static int execute_latest(Statement *statement, Datum *values, const char *nulls);

static Oid
table_owner(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* Raises 25006 before anything happens. */
void
api_forbid_read_only(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandDuringRecovery(function);
}

/*
 * Whether there is nobody's right in the session but the role's: who logged in
 * as it, and is nobody else now.
 */
static bool
session_is_of(Oid role)
{
	return GetUserId() == role && GetOuterUserId() == role && GetSessionUserId() == role &&
	       MyProc->roleId == role;
}

/*
 * Take the rights of a role, with everything that SPI and names need.  In a
 * security-restricted operation, unless there are no other rights in the
 * session that what is on the tables could come by.
 *
 * The search_path is pinned to the system's objects, so statements that run
 * from here on name operators, functions and types of pg_catalog without their
 * schema: no operator or function is ever looked up in pg_temp.  Statements in
 * the caller's search_path (can_see) and those of other files that do not come
 * through here (leases/run_trigger.c, sql/) qualify each.
 */
static void
enter(ApiCall *call, Oid role)
{
	GetUserIdAndSecContext(&call->caller, &call->caller_context);
	call->caller_search_path = pstrdup(namespace_search_path);
	call->restricted = !session_is_of(role);
	call->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
	                         GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SetUserIdAndSecContext(role, call->caller_context | SECURITY_LOCAL_USERID_CHANGE |
	                                 (call->restricted ? SECURITY_RESTRICTED_OPERATION : 0));
}

/*
 * Triggers on the shared tables may take as long as they like, and in the scheduler everybody
 * would wait for them: from here to its end, the transaction has STRANGERS_MS.
 */
#define STRANGERS_MS 5000

static void
end_limit(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
		return;
	disable_timeout(STATEMENT_TIMEOUT, false);
	QueryCancelPending = false;
}

static void
limit_strangers(void)
{
	static bool registered = false;

	if (!registered)
		RegisterXactCallback(end_limit, NULL);
	registered = true;
	if (!get_timeout_active(STATEMENT_TIMEOUT))
		enable_timeout_after(STATEMENT_TIMEOUT, STRANGERS_MS);
}

/*
 * owner_enter
 *		Take the rights of the shared tables' owner, until api_leave.
 */
void
owner_enter(ApiCall *call)
{
	Oid owner = table_owner(shared_table_oid(TABLE_ENVIRONMENT_LEASES));

	/* Nothing that has been sent meanwhile may be missed. */
	AcceptInvalidationMessages();
	table_code_check(&shared_set, owner);
	/* Once: within, it would be fired with the owner's rights. */
	if (shared_set.constraints != NIL && !session_is_of(owner) && !InSecurityRestrictedOperation())
		table_code_undefer(&shared_set);
	if (am_scheduler)
		limit_strangers();
	enter(call, owner);
}

/*
 * ledger_enter
 *		Take the rights of the owner of envrt's own tables, until api_leave.
 *
 * It is no matter there what the owners of the shared tables did to those.
 */
void
ledger_enter(ApiCall *call)
{
	Oid owner = table_owner(used_table_oid(&own_set, OWNING_OWN_TABLE));

	AcceptInvalidationMessages();
	table_code_check(&own_set, owner);
	enter(call, owner);
}

/*
 * api_enter
 *		Begin an API function that reads or writes the shared tables.
 *
 * `function` is its name for messages, "envrt_acquire_lease()".
 */
void
api_enter(ApiCall *call, const char *function)
{
	api_forbid_read_only(function);
	owner_enter(call);
}

void
api_leave(ApiCall *call)
{
	SetUserIdAndSecContext(call->caller, call->caller_context);
	SPI_finish();
	/* What code on the tables sets must not outlive the rights it had. */
	AtEOXact_GUC(!call->restricted, call->guc_level);
}

/* 42501 unless the caller may SELECT from the table. */
void
caller_needs_select(const ApiCall *call, SharedTable table)
{
	Oid relid = shared_table_oid(table);

	if (pg_class_aclcheck(relid, call->caller, ACL_SELECT) != ACLCHECK_OK &&
	    pg_attribute_aclcheck_all(relid, call->caller, ACL_SELECT, ACLMASK_ALL) != ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("permission denied for table %s", shared_tables[table].name),
		                errhint("envrt functions work on rows that the caller can see: GRANT "
		                        "SELECT on %s to the role.",
		                        shared_table(table))));
}

/* Whether row-level security of the table applies to the caller. */
bool
caller_is_restricted(const ApiCall *call, SharedTable table)
{
	return check_enable_rls(shared_table_oid(table), call->caller, true) == RLS_ENABLED;
}

static bool
can_see(const ApiCall *call, SharedTable table, const pg_uuid_t *id, bool now)
{
	static Statement statements[SHARED_TABLE_COUNT];
	Statement *statement = &statements[table];
	Oid owner;
	int owner_context;
	Datum values[1] = {UUIDPGetDatum(id)};
	bool visible;
	int guc_level;

	caller_needs_select(call, table);
	if (!caller_is_restricted(call, table))
		return true;

	if (statement->text == NULL)
	{
		statement->text = MemoryContextStrdup(
		    TopMemoryContext, psprintf("SELECT 1 FROM @%s@ WHERE id OPERATOR(pg_catalog.=) $1",
		                               shared_tables[table].name));
		statement->nargs = 1;
		statement->argtypes[0] = UUIDOID;
	}
	guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", call->caller_search_path, PGC_USERSET, PGC_S_SESSION,
	                         GUC_ACTION_SAVE, true, 0, false);
	GetUserIdAndSecContext(&owner, &owner_context);
	SetUserIdAndSecContext(call->caller, owner_context);
	visible =
	    (now ? execute_latest(statement, values, NULL) : execute_plan(statement, values, NULL)) > 0;
	SetUserIdAndSecContext(owner, owner_context);
	AtEOXact_GUC(true, guc_level);
	return visible;
}

/* Whether the caller can see the table's row with this id. */
bool
caller_can_see(const ApiCall *call, SharedTable table, const pg_uuid_t *id)
{
	return can_see(call, table, id, false);
}

bool
caller_can_see_now(const ApiCall *call, SharedTable table, const pg_uuid_t *id)
{
	return can_see(call, table, id, true);
}

/* The statement's text with every @name@ replaced. */
static char *
expand_text(const char *text)
{
	StringInfoData expanded;

	initStringInfo(&expanded);
	while (*text != '\0')
	{
		const char *end;
		int table;

		if (*text != '@')
		{
			appendStringInfoChar(&expanded, *text++);
			continue;
		}
		end = strchr(++text, '@');
		for (table = 0; end != NULL && table < SHARED_TABLE_COUNT; table++)
			if (strlen(shared_tables[table].name) == (size_t) (end - text) &&
			    strncmp(shared_tables[table].name, text, end - text) == 0)
				break;
		if (end == NULL || table == SHARED_TABLE_COUNT)
			elog(ERROR, "no shared table at \"%s\"", text);
		appendStringInfoString(&expanded, shared_table(table));
		text = end + 1;
	}
	return expanded.data;
}

/*
 * Make (or revalidate) the generic plan with sequential scans off; see the
 * head of this file.  SPI_execute_plan then finds it valid.
 */
static void
plan_on_index(const Statement *statement)
{
	bool saved_seqscan = enable_seqscan;
	bool saved_bitmapscan = enable_bitmapscan;
	bool saved_sort = enable_sort;
	bool saved_jit = jit_enabled;

	PG_TRY();
	{
		CachedPlan *cached;

		enable_seqscan = enable_sort = jit_enabled = false;
		if (statement->plain_index)
			enable_bitmapscan = false;
		cached = SPI_plan_get_cached_plan(statement->plan);
		if (cached != NULL)
			ReleaseCachedPlan(cached, CurrentResourceOwner);
	}
	PG_FINALLY();
	{
		enable_seqscan = saved_seqscan;
		enable_bitmapscan = saved_bitmapscan;
		enable_sort = saved_sort;
		jit_enabled = saved_jit;
	}
	PG_END_TRY();
}

/*
 * Which tables of a set the statement names, and which it writes: of these the
 * triggers must have been looked at.
 */
static void
find_tables(const Statement *statement, const UsedTables *set, const char *mark, uint32 *used,
            uint32 *written)
{
	for (int table = 0; table < set->ntables; table++)
	{
		ListCell *source;
		ListCell *cell;

		if (strstr(statement->text, psprintf("%s%s", mark, set->tables[table].name)) == NULL)
			continue;
		*used |= 1U << table;
		foreach (source, SPI_plan_get_plan_sources(statement->plan))
			foreach (cell, ((CachedPlanSource *) lfirst(source))->query_list)
			{
				const Query *query = lfirst_node(Query, cell);

				if (query->resultRelation == 0 ||
				    rt_fetch(query->resultRelation, query->rtable)->relid !=
				        used_table_oid(set, table))
					continue;
				*written |= 1U << table;
				if (query->commandType == CMD_DELETE && !set->tables[table].deleted)
					elog(ERROR, "rows of %s are not to be deleted: \"%s\"", set->tables[table].name,
					     statement->text);
			}
		if (*written & 1U << table && !set->tables[table].written)
			elog(ERROR, "%s is not to be written: \"%s\"", set->tables[table].name,
			     statement->text);
	}
}

static void
tables_prepare(Statement *statement)
{
	char *text;
	SPIPlanPtr plan;

	if (statement->plan != NULL)
		return;
	text = expand_text(statement->text);
	plan = SPI_prepare_cursor(text, statement->nargs, statement->argtypes, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", text, SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep the plan of \"%s\"", text);
	statement->plan = plan;
	PG_TRY();
	{
		find_tables(statement, &shared_set, "@", &statement->shared, &statement->shared_written);
		find_tables(statement, &own_set, OWN_SCHEMA ".", &statement->own, &statement->own_written);
	}
	PG_CATCH();
	{
		/* Once more the next time. */
		statement->plan = NULL;
		SPI_freeplan(plan);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * Lock tables of a set that are used with the rights of the role that is in
 * force, and see, with the locks, that all code there is trusted.
 */
static void
hold(UsedTables *set, int owning_table, uint32 used, uint32 written)
{
	if (used == 0)
		return;
	do
	{
		if (!set->valid || set->owner != GetUserId())
		{
			Oid owner = table_owner(used_table_oid(set, owning_table));

			if (owner != GetUserId())
				ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				                errmsg("the owner of %s.%s has been changed meanwhile", set->schema,
				                       set->tables[owning_table].name),
				                errhint("Try again.")));
			table_code_check(set, owner);
		}
		for (int table = 0; table < set->ntables; table++)
			if (used & 1U << table)
				LockRelationOid(set->oids[table],
				                written & 1U << table ? RowExclusiveLock : AccessShareLock);
	}
	while (!set->valid);
}

/* Make the statement ready.  Before the planner, which evaluates what is constant. */
static void
make_ready(Statement *statement)
{
	tables_prepare(statement);
	hold(&shared_set, TABLE_ENVIRONMENT_LEASES, statement->shared, statement->shared_written);
	hold(&own_set, OWNING_OWN_TABLE, statement->own, statement->own_written);
	plan_on_index(statement);
}

static int
execute_plan(Statement *statement, Datum *values, const char *nulls)
{
	int status;

	tables_prepare(statement);
	status = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (status < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->text,
		     SPI_result_code_string(status));
	return (int) SPI_processed;
}

/*
 * statement_execute
 *		Runs a statement (preparing it the first time); the number of rows.
 *
 * Rows are in SPI_tuptable; see result_datum.  The caller is SPI-connected.
 */
int
statement_execute(Statement *statement, Datum *values, const char *nulls)
{
	make_ready(statement);
	return execute_plan(statement, values, nulls);
}

int
statement_write(SharedTable table, Statement *statement, Datum *values, const char *nulls)
{
	Assert(shared_tables[table].written);
	return statement_execute(statement, values, nulls);
}

int
statement_enforce(SharedTable table, Statement *statement, Datum *values, const char *nulls)
{
	int status;

	if (!IsolationUsesXactSnapshot())
		return statement_write(table, statement, values, nulls);
	make_ready(statement);
	status = SPI_execute_snapshot(statement->plan, values, nulls, GetLatestSnapshot(),
	                              GetTransactionSnapshot(), false, true, 0);
	if (status < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->text,
		     SPI_result_code_string(status));
	return (int) SPI_processed;
}

static int
execute_latest(Statement *statement, Datum *values, const char *nulls)
{
	int count;

	tables_prepare(statement);
	count = SPI_execute_snapshot(statement->plan, values, nulls, GetLatestSnapshot(),
	                             InvalidSnapshot, true, false, 0);
	if (count < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->text, SPI_result_code_string(count));
	return (int) SPI_processed;
}

int
statement_execute_latest(Statement *statement, Datum *values, const char *nulls)
{
	make_ready(statement);
	return execute_latest(statement, values, nulls);
}

bool
statement_try_read(SharedTable table, Statement *statement, Datum *values, const char *nulls,
                   int *count)
{
	Oid relid = shared_table_oid(table);
	Oid role;
	int context;
	int guc_level;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	if (read_sets[table].ntables == 0)
	{
		read_tables[table].name = shared_tables[table].name;
		read_sets[table] =
		    (UsedTables){.schema = SHARED_SCHEMA, .tables = &read_tables[table], .ntables = 1};
	}
	table_code_check(&read_sets[table], table_owner(relid));
	GetUserIdAndSecContext(&role, &context);
	guc_level = NewGUCNestLevel();
	/* Rows that a policy hides from the owner must raise an error, not seem to be gone. */
	(void) set_config_option("row_security", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
	                         true, 0, false);
	SetUserIdAndSecContext(table_owner(relid), context);
	tables_prepare(statement);
	plan_on_index(statement);
	*count = execute_plan(statement, values, nulls);
	SetUserIdAndSecContext(role, context);
	AtEOXact_GUC(false, guc_level);
	return true;
}

Datum
result_datum(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

/*
 * A column of a shared table: its owner may have given it another type, and
 * a value of that must not be read as what it is not.
 */
Datum
result_typed(int row, int column, Oid type, bool *isnull)
{
	Oid given = SPI_gettypeid(SPI_tuptable->tupdesc, column);

	if (given != type)
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
		                errmsg("column \"%s\" has type %s, not %s",
		                       SPI_fname(SPI_tuptable->tupdesc, column), format_type_be(given),
		                       format_type_be(type)),
		                errhint("The tables of schema " SHARED_SCHEMA
		                        " keep the column types they were created with.")));
	return result_datum(row, column, isnull);
}

/* Also of an enum or varchar, as text. */
char *
result_text(int row, int column)
{
	bool isnull;
	Datum datum;

	if (SPI_gettypeid(SPI_tuptable->tupdesc, column) != TEXTOID)
		return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
	datum = result_datum(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(datum);
}

pg_uuid_t *
result_uuid(int row, int column)
{
	bool isnull;
	Datum datum = result_typed(row, column, UUIDOID, &isnull);
	pg_uuid_t *uuid;

	if (isnull)
		return NULL;
	uuid = palloc(sizeof(pg_uuid_t));
	memcpy(uuid, DatumGetUUIDP(datum), sizeof(pg_uuid_t));
	return uuid;
}

/*
 * A row of the last statement in the shape of `desc`, by the columns' names:
 * tables are the user's, and may have got columns of their own or lost some.
 */
void
result_row(int row, TupleDesc desc, Datum *values, bool *nulls)
{
	TupleDesc given = SPI_tuptable->tupdesc;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute wanted = TupleDescAttr(desc, i);
		int number = 0;

		if (!wanted->attisdropped)
		{
			/* Nearly always at the same place. */
			if (i < given->natts &&
			    strcmp(NameStr(TupleDescAttr(given, i)->attname), NameStr(wanted->attname)) == 0)
				number = i + 1;
			else
				number = SPI_fnumber(given, NameStr(wanted->attname));
		}
		nulls[i] = number <= 0 || SPI_gettypeid(given, number) != wanted->atttypid;
		if (!nulls[i])
			values[i] = SPI_getbinval(SPI_tuptable->vals[row], given, number, &nulls[i]);
	}
}

/* The first row as a Datum of the function's result type, surviving SPI_finish. */
Datum
result_row_datum(FunctionCallInfo fcinfo)
{
	TupleDesc desc;
	Datum *values;
	bool *nulls;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	BlessTupleDesc(desc);
	values = palloc0(sizeof(Datum) * desc->natts);
	nulls = palloc(sizeof(bool) * desc->natts);
	result_row(0, desc, values, nulls);
	return HeapTupleHeaderGetDatum(SPI_returntuple(heap_form_tuple(desc, values, nulls), desc));
}

/* A random (version 4) uuid. */
pg_uuid_t *
uuid_generate(void)
{
	pg_uuid_t *uuid = palloc(sizeof(pg_uuid_t));

	if (!pg_strong_random(uuid, sizeof(pg_uuid_t)))
		ereport(ERROR,
		        (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
	uuid->data[6] = (uuid->data[6] & 0x0f) | 0x40;
	uuid->data[8] = (uuid->data[8] & 0x3f) | 0x80;
	return uuid;
}

char *
uuid_text(const pg_uuid_t *uuid)
{
	static const char digits[] = "0123456789abcdef";
	char *text = palloc(37);
	char *out = text;

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = digits[uuid->data[i] >> 4];
		*out++ = digits[uuid->data[i] & 0x0f];
	}
	*out = '\0';
	return text;
}

/* ERROR 42704 unless there is such a company and the caller can see it. */
void
company_require(const ApiCall *call, const pg_uuid_t *company_id)
{
	static Statement find = {
	    "SELECT 1 FROM @companies@ WHERE id OPERATOR(pg_catalog.=) $1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(company_id)};

	if (!caller_can_see(call, TABLE_COMPANIES, company_id) ||
	    statement_execute(&find, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Company \"%s\" not found.", uuid_text(company_id)),
		                hint_visible_rows(TABLE_COMPANIES)));
}
