/*
 * runs.c
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
 */
#include "postgres.h"

#include "arguments.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "leases.h"
#include "tables.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(envrt_on_heartbeat_run);
PG_FUNCTION_INFO_V1(envrt_attach_runs);
PG_FUNCTION_INFO_V1(envrt_detach_runs);

#define OVER_TRIGGER "envrt_run_over"
#define DELETED_TRIGGER "envrt_run_deleted"

/* A column's value as text, NULL when it is null or not there. */
static char *
column_text(HeapTuple row, TupleDesc desc, const char *name)
{
	int number = SPI_fnumber(desc, name);

	return number > 0 ? SPI_getvalue(row, desc, number) : NULL;
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

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
	    !((TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) && TRIGGER_FIRED_AFTER(trigger->tg_event)) ||
	      (TRIGGER_FIRED_BY_DELETE(trigger->tg_event) && TRIGGER_FIRED_BEFORE(trigger->tg_event))))
		ereport(
		    ERROR,
		    (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
		     errmsg("envrt_on_heartbeat_run() is for AFTER UPDATE and BEFORE DELETE row triggers"),
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

	owner_enter(&call, 0);
	if (status != NULL && (strcmp(status, "failed") == 0 || strcmp(status, "timed_out") == 0))
		leases_end_of_run(DatumGetUUIDP(id), "failed", error);
	else
		leases_end_of_run(DatumGetUUIDP(id), "released", NULL);
	api_leave(&call);
	return PointerGetDatum(deleted ? row : NULL);
}

/* Runs a utility statement with the caller's own rights. */
static void
execute(const char *statement)
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
	require_column(relid, "id", UUIDOID);
	require_status(relid);
	execute(psprintf(
	    "CREATE OR REPLACE TRIGGER " OVER_TRIGGER " AFTER UPDATE ON %s FOR EACH ROW"
	    " WHEN (NEW.status::pg_catalog.text OPERATOR(pg_catalog.=)"
	    " ANY (ARRAY['succeeded', 'failed', 'cancelled', 'timed_out']::pg_catalog.text[])"
	    " AND (OLD.status IS NULL"
	    " OR OLD.status::pg_catalog.text OPERATOR(pg_catalog.<>) NEW.status::pg_catalog.text))"
	    " EXECUTE FUNCTION %s()",
	    table, function));
	execute(psprintf("CREATE OR REPLACE TRIGGER \"" DELETED_TRIGGER
	                 "\" BEFORE DELETE ON %s FOR EACH ROW EXECUTE FUNCTION %s()",
	                 table, function));
	execute(psprintf("COMMENT ON TRIGGER " OVER_TRIGGER
	                 " ON %s IS 'envrt: a run that is over holds no lease'",
	                 table));
	execute(psprintf("COMMENT ON TRIGGER \"" DELETED_TRIGGER
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
	execute(psprintf("DROP TRIGGER IF EXISTS " OVER_TRIGGER " ON %s", table));
	execute(psprintf("DROP TRIGGER IF EXISTS \"" DELETED_TRIGGER "\" ON %s", table));
	PG_RETURN_VOID();
}
