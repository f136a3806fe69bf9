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
 * table, and row-level security that applies to the caller is asked.  Rows
 * that the caller can't see do not exist for it.
 *
 * While the owner's rights are in force, search_path is pinned: a trigger on
 * one of these tables runs with the owner's rights and must not find the
 * caller's objects by an unqualified name.  Both end at api_leave, or at the
 * (sub)transaction's abort.
 *
 * Plans: prepared generic and kept.  Such a plan must stay on an index from
 * the first row on, but one made while a table is empty is a sequential scan
 * and stays one until statistics change; so plans are made with sequential
 * scans (and sorts, where an index has the order) off.  Only the planning: the
 * flags must not reach what triggers plan.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "optimizer/cost.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "compat.h"
#include "tables.h"

#define SHARED_SCHEMA "envrt"

static const char *const shared_tables[SHARED_TABLE_COUNT] = {
    [TABLE_COMPANIES] = "companies",
    [TABLE_AGENTS] = "agents",
    [TABLE_HEARTBEAT_RUNS] = "heartbeat_runs",
    [TABLE_ENVIRONMENTS] = "environments",
    [TABLE_ENVIRONMENT_LEASES] = "environment_leases",
    [TABLE_COMPANY_SECRETS] = "company_secrets",
    [TABLE_COMPANY_SECRET_VERSIONS] = "company_secret_versions",
    [TABLE_PLUGINS] = "plugins",
    [TABLE_ACTIVITY_LOG] = "activity_log",
    [TABLE_EXECUTION_WORKSPACES] = "execution_workspaces",
};

/* The table's qualified and quoted name, palloc'd. */
const char *
shared_table(SharedTable table)
{
	return quote_qualified_identifier(SHARED_SCHEMA, shared_tables[table]);
}

Oid
shared_table_oid(SharedTable table)
{
	Oid relid = get_relname_relid(shared_tables[table], get_namespace_oid(SHARED_SCHEMA, true));

	if (!OidIsValid(relid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
		                errmsg("table %s does not exist", shared_table(table)),
		                errhint("Create the extension in this database: CREATE EXTENSION envrt;")));
	return relid;
}

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
 * owner_enter
 *		Take the rights of the shared tables' owner, until api_leave.
 *
 * `security` is added to the security context: a background worker, which has
 * all rights by itself, gives SECURITY_RESTRICTED_OPERATION, so that what
 * triggers do is confined to the owner's rights for good.
 */
void
owner_enter(ApiCall *call, int security)
{
	Oid owner = table_owner(shared_table_oid(TABLE_ENVIRONMENT_LEASES));

	GetUserIdAndSecContext(&call->caller, &call->caller_context);
	call->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
	                         GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SetUserIdAndSecContext(owner, call->caller_context | SECURITY_LOCAL_USERID_CHANGE | security);
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
	owner_enter(call, 0);
}

void
api_leave(ApiCall *call)
{
	SetUserIdAndSecContext(call->caller, call->caller_context);
	SPI_finish();
	AtEOXact_GUC(true, call->guc_level);
}

/* 42501 unless the caller may SELECT from the table. */
void
caller_needs_select(const ApiCall *call, SharedTable table)
{
	Oid relid = shared_table_oid(table);

	if (pg_class_aclcheck(relid, call->caller, ACL_SELECT) != ACLCHECK_OK &&
	    pg_attribute_aclcheck_all(relid, call->caller, ACL_SELECT, ACLMASK_ANY) != ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("permission denied for table %s", shared_tables[table]),
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

/* Whether the caller can see the table's row with this id. */
bool
caller_can_see(const ApiCall *call, SharedTable table, const pg_uuid_t *id)
{
	static Statement statements[SHARED_TABLE_COUNT];
	Statement *statement = &statements[table];
	Oid owner;
	int owner_context;
	Datum values[1] = {UUIDPGetDatum(id)};
	bool visible;

	caller_needs_select(call, table);
	if (!caller_is_restricted(call, table))
		return true;

	if (statement->text == NULL)
	{
		statement->text = MemoryContextStrdup(
		    TopMemoryContext, psprintf("SELECT 1 FROM @%s@ WHERE id OPERATOR(pg_catalog.=) $1",
		                               shared_tables[table]));
		statement->nargs = 1;
		statement->argtypes[0] = UUIDOID;
	}
	GetUserIdAndSecContext(&owner, &owner_context);
	SetUserIdAndSecContext(call->caller, owner_context);
	visible = statement_execute(statement, values, NULL) > 0;
	SetUserIdAndSecContext(owner, owner_context);
	return visible;
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
			if (strlen(shared_tables[table]) == (size_t) (end - text) &&
			    strncmp(shared_tables[table], text, end - text) == 0)
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
plan_on_index(SPIPlanPtr plan)
{
	bool saved_seqscan = enable_seqscan;
	bool saved_sort = enable_sort;

	PG_TRY();
	{
		CachedPlan *cached;

		enable_seqscan = enable_sort = false;
		cached = SPI_plan_get_cached_plan(plan);
		if (cached != NULL)
			ReleaseCachedPlan(cached, CurrentResourceOwner);
	}
	PG_FINALLY();
	{
		enable_seqscan = saved_seqscan;
		enable_sort = saved_sort;
	}
	PG_END_TRY();
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
	int status;

	if (statement->plan == NULL)
	{
		char *text = expand_text(statement->text);
		SPIPlanPtr plan = SPI_prepare_cursor(text, statement->nargs, statement->argtypes,
		                                     CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL)
			elog(ERROR, "could not prepare \"%s\": %s", text, SPI_result_code_string(SPI_result));
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "could not keep the plan of \"%s\"", text);
		statement->plan = plan;
	}
	plan_on_index(statement->plan);
	status = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (status < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->text,
		     SPI_result_code_string(status));
	return (int) SPI_processed;
}

Datum
result_datum(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

char *
result_text(int row, int column)
{
	bool isnull;
	Datum datum = result_datum(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(datum);
}

pg_uuid_t *
result_uuid(int row, int column)
{
	bool isnull;
	Datum datum = result_datum(row, column, &isnull);
	pg_uuid_t *uuid;

	if (isnull)
		return NULL;
	uuid = palloc(sizeof(pg_uuid_t));
	memcpy(uuid, DatumGetUUIDP(datum), sizeof(pg_uuid_t));
	return uuid;
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
