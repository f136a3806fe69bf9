/*
 * run_trigger.c
 *		The runs' trigger: a run that is over, or deleted, holds no lease.
 *
 * The trigger ends the run's leases in the transaction that ends the run,
 * with no call to the outside.  Together with the lock that an acquire takes
 * on its run (leases.c) this leaves no gap: an acquire either commits before
 * the run ends, and the trigger sees its lease, or waits and finds the run
 * over.
 *
 * It works on any table with an id and a status.  Whoever may change the run
 * ends its leases: the trigger has the rights of the shared tables' owner and
 * does this one thing with them.
 *
 * A deleted run's leases lose their heartbeat_run_id by the foreign key, after
 * the delete.  So ours comes before it: it finds them, and a lease that the
 * very transaction has made can still be changed while its run is there.
 *
 * TRUNCATE tells no rows: before it, the runs that have active leases are looked for in the
 * table, as its owner.  A table whose rows are those of several tables is refused: the triggers
 * would not see the rows of its children, and a row that moves from one partition to another is
 * a DELETE to them.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "leases/leases.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "rights/tables.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(envrt_on_heartbeat_run);
PG_FUNCTION_INFO_V1(envrt_attach_runs);
PG_FUNCTION_INFO_V1(envrt_detach_runs);

#define OVER_TRIGGER "envrt_run_over"
#define DELETED_TRIGGER "envrt_run_deleted"
#define TRUNCATED_TRIGGER "envrt_runs_truncated"

/* A column's value as text, NULL when it is null or not there. */
static char *
column_text(HeapTuple row, TupleDesc desc, const char *name)
{
	int number = SPI_fnumber(desc, name);

	return number > 0 ? SPI_getvalue(row, desc, number) : NULL;
}

/* The runs that have an active lease, as an array in the current context; NULL: none has. */
static ArrayType *
runs_with_leases(void)
{
	static Statement find = {
	    "SELECT DISTINCT heartbeat_run_id FROM @environment_leases@"
	    " WHERE status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retained'])"
	    " AND status OPERATOR(pg_catalog.=) 'active' AND heartbeat_run_id IS NOT NULL",
	    0,
	    {0},
	};
	MemoryContext context = CurrentMemoryContext;
	ArrayType *runs = NULL;
	ApiCall call;
	int count;

	owner_enter(&call);
	count = statement_execute(&find, NULL, NULL);
	if (count > 0)
	{
		Datum *ids = palloc(sizeof(Datum) * count);
		MemoryContext previous;

		for (int i = 0; i < count; i++)
			ids[i] = UUIDPGetDatum(result_uuid(i, 1));
		previous = MemoryContextSwitchTo(context);
		runs = construct_array(ids, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
		MemoryContextSwitchTo(previous);
	}
	api_leave(&call);
	return runs;
}

/* Which of the runs are in the table, looked at with the rights of its owner. */
static int
runs_of_table(Relation relation, ArrayType *runs, pg_uuid_t **ids)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[1] = {UUIDARRAYOID};
	Datum values[1] = {PointerGetDatum(runs)};
	int guc_level = NewGUCNestLevel();
	Oid caller;
	int caller_context;
	int count;

	GetUserIdAndSecContext(&caller, &caller_context);
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
	                         GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SetUserIdAndSecContext(relation->rd_rel->relowner, caller_context |
	                                                       SECURITY_LOCAL_USERID_CHANGE |
	                                                       SECURITY_RESTRICTED_OPERATION);
	if (SPI_execute_with_args(
	        psprintf("SELECT id FROM ONLY %s WHERE id OPERATOR(pg_catalog.=) ANY ($1)",
	                 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
	                                            RelationGetRelationName(relation))),
	        1, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look for runs");
	count = (int) SPI_processed;
	*ids = MemoryContextAlloc(context, sizeof(pg_uuid_t) * Max(count, 1));
	for (int i = 0; i < count; i++)
		memcpy(&(*ids)[i], result_uuid(i, 1), sizeof(pg_uuid_t));
	SetUserIdAndSecContext(caller, caller_context);
	SPI_finish();
	AtEOXact_GUC(false, guc_level);
	return count;
}

static void
end_leases_of_table(Relation relation)
{
	ArrayType *runs = runs_with_leases();
	pg_uuid_t *ids;
	ApiCall call;
	int count;

	if (runs == NULL)
		return;
	count = runs_of_table(relation, runs, &ids);
	owner_enter(&call);
	for (int i = 0; i < count; i++)
		leases_end_of_run(&ids[i], "released", NULL);
	api_leave(&call);
}

Datum
envrt_on_heartbeat_run(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool deleted;
	HeapTuple row;
	TupleDesc desc;
	int id_column;
	bool isnull;
	Datum id;
	char *status = NULL;
	char *error = NULL;
	ApiCall call;

	if (CALLED_AS_TRIGGER(fcinfo) && TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event) &&
	    TRIGGER_FIRED_BEFORE(trigger->tg_event))
	{
		end_leases_of_table(trigger->tg_relation);
		return PointerGetDatum(NULL);
	}
	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
	    !((TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) && TRIGGER_FIRED_AFTER(trigger->tg_event)) ||
	      (TRIGGER_FIRED_BY_DELETE(trigger->tg_event) && TRIGGER_FIRED_BEFORE(trigger->tg_event))))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
		                errmsg("envrt_on_heartbeat_run() is for AFTER UPDATE and BEFORE DELETE row "
		                       "triggers, and BEFORE TRUNCATE"),
		                errhint("Put it on a table by envrt_attach_runs().")));
	deleted = TRIGGER_FIRED_BY_DELETE(trigger->tg_event);
	row = deleted ? trigger->tg_trigtuple : trigger->tg_newtuple;
	desc = RelationGetDescr(trigger->tg_relation);
	id_column = SPI_fnumber(desc, "id");
	if (id_column <= 0 || SPI_gettypeid(desc, id_column) != UUIDOID)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("table \"%s\" has no column id of type uuid",
		                       RelationGetRelationName(trigger->tg_relation)),
		                errhint("Runs have a column id of type uuid and a column status.")));
	id = SPI_getbinval(row, desc, id_column, &isnull);
	if (isnull)
		return PointerGetDatum(deleted ? row : NULL);
	if (!deleted)
	{
		status = column_text(row, desc, "status");
		error = column_text(row, desc, "error");
	}

	owner_enter(&call);
	if (status != NULL && (strcmp(status, "failed") == 0 || strcmp(status, "timed_out") == 0))
		leases_end_of_run(DatumGetUUIDP(id), "failed", error);
	else
		leases_end_of_run(DatumGetUUIDP(id), "released", NULL);
	api_leave(&call);
	return PointerGetDatum(deleted ? row : NULL);
}

/* Runs a utility statement with the caller's own rights. */
static void
run_trigger_execute(const char *statement)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(statement, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", statement);
	SPI_finish();
}

static char *
table_name(Oid relid)
{
	char *name = get_rel_name(relid);

	if (name == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE), errmsg("table does not exist")));
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), name);
}

static void
require_column(Oid relid, const char *name, Oid type)
{
	AttrNumber number = get_attnum(relid, name);

	if (number == InvalidAttrNumber || (OidIsValid(type) && get_atttype(relid, number) != type))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("table %s has no column %s%s", table_name(relid), name,
		                       OidIsValid(type) ? " of type uuid" : ""),
		                errhint("Runs have a column id of type uuid and a column status.")));
}

/* The triggers must see every row of the table, and a deletion only where a run is deleted. */
static void
require_table_of_its_own(Oid relid)
{
	const char *problem = NULL;
	char kind = get_rel_relkind(relid);

	if (kind == RELKIND_PARTITIONED_TABLE)
		problem = "is partitioned";
	else if (kind != RELKIND_RELATION)
		problem = "is not a table";
	else if (get_rel_relispartition(relid))
		problem = "is a partition";
	else if (find_inheritance_children(relid, NoLock) != NIL)
		problem = "has tables that inherit from it";
	if (problem != NULL)
		ereport(ERROR,
		        (errcode(ERRCODE_WRONG_OBJECT_TYPE),
		         errmsg("table %s %s, so it can't be a table of runs", table_name(relid), problem),
		         kind == RELKIND_PARTITIONED_TABLE || get_rel_relispartition(relid)
		             ? errdetail("An UPDATE that moves a run to another partition would end its "
		                         "leases, since it deletes the run from the first one.")
		         : kind == RELKIND_RELATION
		             ? errdetail("Runs in those tables would not end their leases.")
		             : 0,
		         errhint("Attach an ordinary table; or end leases by envrt_release_leases() in "
		                 "triggers of your own.")));
}

/* On one of another kind the trigger would never fire, and nobody would know. */
static void
require_status(Oid relid)
{
	Oid type;
	char category;
	bool preferred;

	require_column(relid, "status", InvalidOid);
	type = get_atttype(relid, get_attnum(relid, "status"));
	get_type_category_preferred(getBaseType(type), &category, &preferred);
	if (category != TYPCATEGORY_STRING && category != TYPCATEGORY_ENUM)
		ereport(
		    ERROR,
		    (errcode(ERRCODE_DATATYPE_MISMATCH),
		     errmsg("the column status of table %s is of type %s", table_name(relid),
		            format_type_be(type)),
		     errhint("A run's status is a text, or of an enum, with values like 'succeeded'.")));
}

/*
 * envrt_attach_runs(runs)
 */
Datum
envrt_attach_runs(PG_FUNCTION_ARGS)
{
	Oid relid;
	char *table;
	char *function;

	require_argument(0, "runs");
	relid = PG_GETARG_OID(0);
	table = table_name(relid);
	function = quote_qualified_identifier(
	    get_namespace_name(get_func_namespace(fcinfo->flinfo->fn_oid)), "envrt_on_heartbeat_run");
	/* Nobody makes a child or partition of it before the triggers are there. */
	LockRelationOid(relid, ShareRowExclusiveLock);
	require_table_of_its_own(relid);
	require_column(relid, "id", UUIDOID);
	require_status(relid);
	run_trigger_execute(psprintf(
	    "CREATE OR REPLACE TRIGGER " OVER_TRIGGER " AFTER UPDATE ON %s FOR EACH ROW"
	    " WHEN (NEW.status::pg_catalog.text OPERATOR(pg_catalog.=)"
	    " ANY (ARRAY['succeeded', 'failed', 'cancelled', 'timed_out']::pg_catalog.text[])"
	    " AND (OLD.status IS NULL"
	    " OR OLD.status::pg_catalog.text OPERATOR(pg_catalog.<>) NEW.status::pg_catalog.text))"
	    " EXECUTE FUNCTION %s()",
	    table, function));
	run_trigger_execute(psprintf("CREATE OR REPLACE TRIGGER \"" DELETED_TRIGGER
	                             "\" BEFORE DELETE ON %s FOR EACH ROW EXECUTE FUNCTION %s()",
	                             table, function));
	run_trigger_execute(psprintf("CREATE OR REPLACE TRIGGER " TRUNCATED_TRIGGER
	                             " BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION %s()",
	                             table, function));
	run_trigger_execute(psprintf("COMMENT ON TRIGGER " TRUNCATED_TRIGGER
	                             " ON %s IS 'envrt: a run that is deleted holds no lease'",
	                             table));
	run_trigger_execute(psprintf("COMMENT ON TRIGGER " OVER_TRIGGER
	                             " ON %s IS 'envrt: a run that is over holds no lease'",
	                             table));
	run_trigger_execute(psprintf("COMMENT ON TRIGGER \"" DELETED_TRIGGER
	                             "\" ON %s IS 'envrt: a run that is deleted holds no lease'",
	                             table));
	PG_RETURN_VOID();
}

/*
 * envrt_detach_runs(runs)
 */
Datum
envrt_detach_runs(PG_FUNCTION_ARGS)
{
	char *table;

	require_argument(0, "runs");
	table = table_name(PG_GETARG_OID(0));
	run_trigger_execute(psprintf("DROP TRIGGER IF EXISTS " OVER_TRIGGER " ON %s", table));
	run_trigger_execute(psprintf("DROP TRIGGER IF EXISTS " TRUNCATED_TRIGGER " ON %s", table));
	run_trigger_execute(psprintf("DROP TRIGGER IF EXISTS \"" DELETED_TRIGGER "\" ON %s", table));
	PG_RETURN_VOID();
}
