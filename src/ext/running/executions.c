/*
 * executions.c
 *		Commands that outlive whoever asks for them: envrt_start_execution and what
 *		waits for, follows and cancels them.
 *
 * An execution is a row of envrt.executions, written in the transaction that
 * asks; a rollback takes it back.  At commit the scheduler is woken and has
 * the driver host run the command (running_executions.c).  What it writes
 * comes into envrt.execution_output while it runs.  A cancel is a mark in the
 * row, and takes effect at commit, too.
 *
 * Whoever waits here looks at the rows as they are now, and sleeps until the
 * scheduler says that something has changed.  Rows are read and written with
 * the rights of the owner of envrt's own tables, for whoever can see the
 * execution's company.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "hostlink/call_size.h"
#include "catalog/pg_type.h"
#include "running/command.h"
#include "hostlink/blocking_calls.h"
#include "funcapi.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "base/statement_log.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"
#include "ledger/waiting.h"

PG_FUNCTION_INFO_V1(envrt_await_execution);
PG_FUNCTION_INFO_V1(envrt_cancel_execution);
PG_FUNCTION_INFO_V1(envrt_follow_execution);

static void
insert_execution(const pg_uuid_t *id, const CalledLease *lease, const Command *command)
{
	static Statement insert = {
	    "INSERT INTO envrt.executions (system_identifier, database_id, timeline, instance, id,"
	    " company_id, environment_id, lease_id, heartbeat_run_id, command, args, cwd, env, stdin,"
	    " timeout_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
	    15,
	    {LEDGER_OWN_TYPES, UUIDOID, UUIDOID, UUIDOID, UUIDOID, UUIDOID, TEXTOID, TEXTARRAYOID,
	     TEXTOID, JSONBOID, BYTEAOID, INT8OID},
	};
	Datum values[15];
	char nulls[] = "               ";
	bytea *input = command->stdin_bytes;
	ApiCall ledger;

	if (command->stdin_text != NULL)
		input = cstring_to_text(text_to_utf8(text_to_cstring(command->stdin_text)));
	ledger_enter(&ledger);
	ledger_own_arguments(values);
	values[4] = UUIDPGetDatum(id);
	values[5] = UUIDPGetDatum(lease->company_id);
	values[6] = UUIDPGetDatum(lease->environment_id);
	values[7] = UUIDPGetDatum(lease->id);
	values[8] = UUIDPGetDatum(lease->run_id);
	nulls[8] = lease->run_id != NULL ? ' ' : 'n';
	values[9] = PointerGetDatum(command->command);
	values[10] = PointerGetDatum(command->args);
	values[11] = PointerGetDatum(command->cwd);
	nulls[11] = command->cwd != NULL ? ' ' : 'n';
	values[12] = JsonbPGetDatum(command->env);
	values[13] = PointerGetDatum(input);
	nulls[13] = input != NULL ? ' ' : 'n';
	values[14] = Int64GetDatum(command->timeout_ms);
	nulls[14] = command->timeout_ms > 0 ? ' ' : 'n';
	statement_execute(&insert, values, nulls);
	api_leave(&ledger);
}

/*
 * envrt_start_execution(lease_id, command, args, cwd, env, stdin, timeout)
 */
DEFINE_UNLOGGED_FUNCTION(envrt_start_execution)
{
	ApiCall call;
	CalledLease lease;
	Command command;
	int64 timeout_ms;
	pg_uuid_t *id;

	if (shared_state == NULL)
		ereport_not_preloaded();
	id = uuid_generate();
	api_enter(&call, "envrt_start_execution()");
	command_from_arguments(fcinfo, false, &command);
	called_lease_load(&call, uuid_argument(fcinfo, 0, "lease_id"), &lease);
	command_check_env(&call, &lease, &command);
	/* What is wrong with it now is better said now. */
	call_size_check(command_params(&call, &lease, &command, EXECUTION_MS, &timeout_ms));
	insert_execution(id, &lease, &command);
	api_leave(&call);
	hint_requests();
	PG_RETURN_UUID_P(id);
}

/* An execution as it is now. */
typedef struct Execution
{
	bool ended;
	char *state;
	int32 exit_code;
	bool has_exit_code;
	char *signal;
	bool timed_out;
	Jsonb *metadata;
	char *sqlstate;
	char *message;
	char *detail;
	char *hint;
	bool to_cancel;
	bool ours; /* this very transaction has started it */
} Execution;

static void
report_not_found(const pg_uuid_t *id)
{
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
	                errmsg("Execution \"%s\" not found.", uuid_text(id)),
	                errhint("Executions are forgotten after envrt.execution_retention.")));
}

/* Or ERROR 42704.  Everything is in the current memory context. */
static void
load_execution(const ApiCall *call, const pg_uuid_t *id, Execution *execution)
{
	static Statement find = {
	    "SELECT company_id, state, exit_code, signal, timed_out, metadata, sqlstate, message,"
	    " detail, hint, xmin, cancel_requested_at IS NOT NULL FROM envrt.executions WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	MemoryContext context = CurrentMemoryContext;
	Datum values[1] = {UUIDPGetDatum(id)};
	pg_uuid_t *company_id = NULL;
	ApiCall ledger;
	bool visible;

	memset(execution, 0, sizeof(Execution));
	ledger_enter(&ledger);
	if (statement_execute_latest(&find, values, NULL) > 0)
	{
		MemoryContext previous = MemoryContextSwitchTo(context);
		Datum value;
		bool isnull;

		company_id = result_uuid(0, 1);
		execution->state = result_text(0, 2);
		execution->exit_code = DatumGetInt32(result_datum(0, 3, &isnull));
		execution->has_exit_code = !isnull;
		execution->signal = result_text(0, 4);
		value = result_datum(0, 5, &isnull);
		execution->timed_out = !isnull && DatumGetBool(value);
		value = result_datum(0, 6, &isnull);
		execution->metadata = isnull ? NULL : DatumGetJsonbPCopy(value);
		execution->sqlstate = result_text(0, 7);
		execution->message = result_text(0, 8);
		execution->detail = result_text(0, 9);
		execution->hint = result_text(0, 10);
		execution->ours = TransactionIdIsCurrentTransactionId(
		    DatumGetTransactionId(result_datum(0, 11, &isnull)));
		execution->to_cancel = DatumGetBool(result_datum(0, 12, &isnull));
		execution->ended =
		    strcmp(execution->state, "queued") != 0 && strcmp(execution->state, "running") != 0;
		MemoryContextSwitchTo(previous);
	}
	api_leave(&ledger);
	/* In a connection of its own, so that nothing is left of each look of one who waits. */
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	visible = company_id != NULL && caller_can_see_now(call, TABLE_COMPANIES, company_id);
	SPI_finish();
	if (!visible)
		report_not_found(id);
}

/*
 * The same in a context that is emptied before each look, made at the first: a
 * wait may take days, and look at each thing that happens on the server.
 */
static void
look_again(const ApiCall *call, const pg_uuid_t *id, MemoryContext *context, Execution *execution)
{
	MemoryContext previous;

	if (*context == NULL)
		*context = AllocSetContextCreate(CurrentMemoryContext, "envrt wait", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(*context);
	previous = MemoryContextSwitchTo(*context);
	load_execution(call, id, execution);
	MemoryContextSwitchTo(previous);
}

/* It would be waited for in vain. */
static void
forbid_own(const pg_uuid_t *id, const Execution *execution)
{
	if (execution->ours && !execution->ended)
		ereport(ERROR,
		        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		         errmsg("Execution \"%s\" was started or cancelled in this very transaction.",
		                uuid_text(id)),
		         errhint("That takes effect at the commit: wait in a later transaction.")));
}

static void
raise_end(const pg_uuid_t *id, const Execution *execution)
{
	const char *state = execution->sqlstate;

	if (strcmp(execution->state, "cancelled") == 0)
		ereport(ERROR,
		        (errcode(ERRCODE_QUERY_CANCELED),
		         errmsg("Execution \"%s\" was cancelled.", uuid_text(id)),
		         execution->message != NULL ? errdetail_internal("%s", execution->message) : 0));
	if (strcmp(execution->state, "lost") == 0)
		ereport(ERROR,
		        (errcode(ERRCODE_CONNECTION_FAILURE),
		         errmsg("Execution \"%s\" is lost.", uuid_text(id)),
		         execution->message != NULL ? errdetail_internal("%s", execution->message) : 0));
	if (state == NULL || strlen(state) != 5)
		state = "38000";
	ereport(ERROR, (errcode(MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4])),
	                errmsg_internal("%s", execution->message != NULL ? execution->message
	                                                                 : "the driver failed"),
	                execution->detail != NULL ? errdetail_internal("%s", execution->detail) : 0,
	                execution->hint != NULL ? errhint("%s", execution->hint) : 0));
}

/* What a stream says: all of it, or the first and the last half of envrt.max_output. */
typedef struct Collected
{
	StringInfoData text;
	int64 missing_at; /* so many characters are before what is missing; -1: nothing is */
	int64 bytes;      /* of the command's that are in the text */
} Collected;

typedef struct OutputRow
{
	Datum position;
	char *text;
	int length;
	int bytes; /* that the command wrote: more or less than the text has, if those were no text */
} OutputRow;

/* The next rows of a stream, in the context; how many they are, at most OUTPUT_ROWS. */
#define OUTPUT_ROWS 64
static int
read_output(const pg_uuid_t *id, Statement *find, const char *stream, Datum position,
            OutputRow rows[OUTPUT_ROWS])
{
	MemoryContext context = CurrentMemoryContext;
	Datum values[3] = {UUIDPGetDatum(id), position, CStringGetTextDatum(stream)};
	ApiCall ledger;
	int count;

	CHECK_FOR_INTERRUPTS();
	ledger_enter(&ledger);
	count = statement_execute_latest(find, values, NULL);
	for (int i = 0; i < count; i++)
	{
		bool isnull;
		MemoryContext previous = MemoryContextSwitchTo(context);

		rows[i].position = result_datum(i, 1, &isnull);
		rows[i].text = result_text(i, 2);
		rows[i].length = strlen(rows[i].text);
		rows[i].bytes = DatumGetInt32(result_datum(i, 3, &isnull));
		MemoryContextSwitchTo(previous);
	}
	api_leave(&ledger);
	return count;
}

/* The first characters of a stream that have `most` bytes or less; true: that is all of it. */
static bool
collect_first(const pg_uuid_t *id, const char *stream, int most, Collected *collected)
{
	static Statement find = {
	    "SELECT position, output, COALESCE(octet_length(data),"
	    " octet_length(output)) FROM envrt.execution_output"
	    " WHERE execution_id = $1 AND position > $2"
	    " AND stream = $3 ORDER BY position LIMIT 64",
	    3,
	    {UUIDOID, INT8OID, TEXTOID},
	};
	OutputRow rows[OUTPUT_ROWS];
	Datum position = Int64GetDatum(0);
	int count;

	do
	{
		count = read_output(id, &find, stream, position, rows);
		for (int i = 0; i < count; i++)
		{
			int room = most - collected->text.len;

			position = rows[i].position;
			if (rows[i].length > room)
			{
				int length = pg_mbcliplen(rows[i].text, rows[i].length, room);

				appendBinaryStringInfo(&collected->text, rows[i].text, length);
				collected->bytes += length;
				return false;
			}
			appendBinaryStringInfo(&collected->text, rows[i].text, rows[i].length);
			collected->bytes += rows[i].bytes;
			pfree(rows[i].text);
		}
	}
	while (count == OUTPUT_ROWS);
	return true;
}

/* The last characters of a stream that have `most` bytes or less. */
static void
collect_last(const pg_uuid_t *id, const char *stream, int most, Collected *collected)
{
	static Statement find = {
	    "SELECT position, output, COALESCE(octet_length(data),"
	    " octet_length(output)) FROM envrt.execution_output"
	    " WHERE execution_id = $1 AND position < $2"
	    " AND stream = $3 ORDER BY position DESC LIMIT 64",
	    3,
	    {UUIDOID, INT8OID, TEXTOID},
	};
	OutputRow rows[OUTPUT_ROWS];
	Datum position = Int64GetDatum(PG_INT64_MAX);
	char *text = palloc(most + 1);
	int start = most;
	int count;

	do
	{
		count = read_output(id, &find, stream, position, rows);
		for (int i = 0; i < count; i++)
		{
			int skipped = 0;

			position = rows[i].position;
			while (rows[i].length - skipped > start)
				skipped += pg_mblen(rows[i].text + skipped);
			start -= rows[i].length - skipped;
			memcpy(text + start, rows[i].text + skipped, rows[i].length - skipped);
			collected->bytes += skipped > 0 ? rows[i].length - skipped : rows[i].bytes;
			pfree(rows[i].text);
			if (skipped > 0)
				count = 0;
		}
	}
	while (count == OUTPUT_ROWS && start > 0);
	appendBinaryStringInfo(&collected->text, text + start, most - start);
	pfree(text);
}

static void
collect_stream(const pg_uuid_t *id, const char *stream, Collected *collected)
{
	int most = envrt_max_output * 1024;
	int last = most / 2;

	initStringInfo(&collected->text);
	collected->bytes = 0;
	collected->missing_at = -1;
	if (collect_first(id, stream, most, collected))
		return;
	resetStringInfo(&collected->text);
	collected->bytes = 0;
	(void) collect_first(id, stream, most - last, collected);
	collected->missing_at = pg_mbstrlen_with_len(collected->text.data, collected->text.len);
	collect_last(id, stream, last, collected);
}

/* {..., "stdoutTruncated": true, ...} where that is news. */
static Jsonb *
metadata_with(Jsonb *metadata, const Collected streams[2])
{
	static const char *const names[] = {"stdout", "stderr"};
	json_t *json = metadata != NULL ? json_from_jsonb(metadata) : json_guard(json_object_new());

	for (int i = 0; i < 2; i++)
	{
		const json_t *all = json_object_get(json, psprintf("%sBytes", names[i]));

		if (streams[i].missing_at < 0)
			continue;
		json_object_set_new(json, psprintf("%sTruncated", names[i]), json_true());
		json_object_set_new(json, psprintf("%sMissingAt", names[i]),
		                    json_integer(streams[i].missing_at));
		if (json_is_integer(all))
			json_object_set_new(json, psprintf("%sMissingBytes", names[i]),
			                    json_integer(json_integer_value(all) - streams[i].bytes));
	}
	return jsonb_from_json(json);
}

static Datum
execution_result(FunctionCallInfo fcinfo, const pg_uuid_t *id, const Execution *execution)
{
	TupleDesc desc;
	Datum values[6] = {0};
	bool nulls[6] = {false};
	Collected streams[2];

	collect_stream(id, "stdout", &streams[0]);
	collect_stream(id, "stderr", &streams[1]);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	BlessTupleDesc(desc);
	nulls[0] = !execution->has_exit_code;
	values[0] = Int32GetDatum(execution->exit_code);
	nulls[1] = execution->signal == NULL;
	if (!nulls[1])
		values[1] = CStringGetTextDatum(execution->signal);
	values[2] = BoolGetDatum(execution->timed_out);
	values[3] = CStringGetTextDatum(streams[0].text.data);
	values[4] = CStringGetTextDatum(streams[1].text.data);
	values[5] = JsonbPGetDatum(metadata_with(execution->metadata, streams));
	return HeapTupleHeaderGetDatum(SPI_returntuple(heap_form_tuple(desc, values, nulls), desc));
}

/*
 * envrt_await_execution(execution_id, timeout)
 */
Datum
envrt_await_execution(PG_FUNCTION_ARGS)
{
	pg_uuid_t *id = uuid_argument(fcinfo, 0, "execution_id");
	ApiCall call;
	Waiting waiting;
	Execution execution;
	MemoryContext context = NULL;
	Datum result;

	waiting_begin_optional(&waiting, fcinfo, 1);
	api_enter(&call, "envrt_await_execution()");
	for (;;)
	{
		look_again(&call, id, &context, &execution);
		if (execution.ended)
			break;
		forbid_own(id, &execution);
		if (!waiting_wait(&waiting))
			ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
			                errmsg("Execution \"%s\" has not ended in time.", uuid_text(id)),
			                errhint("It goes on: wait again, or cancel it.")));
	}
	waiting_end();
	if (strcmp(execution.state, "exited") != 0)
		raise_end(id, &execution);
	result = execution_result(fcinfo, id, &execution);
	api_leave(&call);
	PG_RETURN_DATUM(result);
}

/*
 * envrt_cancel_execution(execution_id)
 */
Datum
envrt_cancel_execution(PG_FUNCTION_ARGS)
{
	static Statement cancel = {
	    "UPDATE envrt.executions SET cancel_requested_at = clock_timestamp()"
	    " WHERE id = $1 AND cancel_requested_at IS NULL"
	    " AND state = ANY (ARRAY['queued', 'running'])",
	    1,
	    {UUIDOID},
	};
	pg_uuid_t *id = uuid_argument(fcinfo, 0, "execution_id");
	Datum values[1] = {UUIDPGetDatum(id)};
	ApiCall call;
	ApiCall ledger;
	Execution execution;

	if (shared_state == NULL)
		ereport_not_preloaded();
	api_enter(&call, "envrt_cancel_execution()");
	load_execution(&call, id, &execution);
	if (!execution.ended && !execution.to_cancel)
	{
		int count;

		ledger_enter(&ledger);
		count = statement_execute(&cancel, values, NULL);
		api_leave(&ledger);
		hint_requests();
		/* It has ended meanwhile, or is newer than the transaction's snapshot. */
		if (count == 0)
			load_execution(&call, id, &execution);
		if (count == 0 && !execution.ended && !execution.to_cancel)
			ereport(ERROR,
			        (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			         errmsg("could not serialize access due to concurrent update"),
			         errdetail("Execution \"%s\" was started after this transaction's snapshot.",
			                   uuid_text(id)),
			         errhint("Try again in a new transaction.")));
	}
	api_leave(&call);
	PG_RETURN_BOOL(!execution.ended);
}

/* What envrt_follow_execution has from one call to the next. */
typedef struct Following
{
	pg_uuid_t id;
	int64 position;
	HeapTuple rows[64];
	int count;
	int next;
} Following;

/* Reads the next rows into the memory context; whether there are any. */
static bool
read_following(Following *following, MemoryContext context, MemoryContext scratch, TupleDesc desc)
{
	static Statement find = {
	    "SELECT execution_id, position, stream, output, data, created_at"
	    " FROM envrt.execution_output WHERE execution_id = $1"
	    " AND position > $2 ORDER BY position LIMIT 64",
	    2,
	    {UUIDOID, INT8OID},
	};
	Datum values[2] = {UUIDPGetDatum(&following->id), Int64GetDatum(following->position)};
	Datum *columns = MemoryContextAlloc(scratch, sizeof(Datum) * desc->natts);
	bool *nulls = MemoryContextAlloc(scratch, sizeof(bool) * desc->natts);
	ApiCall ledger;

	for (int i = 0; i < following->count; i++)
		heap_freetuple(following->rows[i]);
	following->next = 0;
	ledger_enter(&ledger);
	following->count = statement_execute_latest(&find, values, NULL);
	for (int i = 0; i < following->count; i++)
	{
		MemoryContext previous = MemoryContextSwitchTo(context);
		bool isnull;

		result_row(i, desc, columns, nulls);
		following->rows[i] = heap_form_tuple(desc, columns, nulls);
		following->position = DatumGetInt64(result_datum(i, 2, &isnull));
		MemoryContextSwitchTo(previous);
	}
	api_leave(&ledger);
	return following->count > 0;
}

/* Waits for rows; false: the execution has ended, and these were all. */
static bool
await_following(Following *following, MemoryContext context, TupleDesc desc)
{
	ApiCall call;
	Waiting waiting;
	Execution execution;
	MemoryContext looks = NULL;
	bool found;

	waiting_begin_endless(&waiting);
	api_enter(&call, "envrt_follow_execution()");
	for (;;)
	{
		/* In this order: when it has ended, all of its output is there. */
		look_again(&call, &following->id, &looks, &execution);
		found = read_following(following, context, looks, desc);
		if (found || execution.ended)
			break;
		forbid_own(&following->id, &execution);
		(void) waiting_wait(&waiting);
	}
	waiting_end();
	api_leave(&call);
	return found;
}

/*
 * envrt_follow_execution(execution_id, after)
 */
Datum
envrt_follow_execution(PG_FUNCTION_ARGS)
{
	FuncCallContext *context;
	Following *following;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext previous;
		TupleDesc desc;
		pg_uuid_t *id = uuid_argument(fcinfo, 0, "execution_id");

		require_argument(1, "after");
		context = SRF_FIRSTCALL_INIT();
		previous = MemoryContextSwitchTo(context->multi_call_memory_ctx);
		if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		context->tuple_desc = BlessTupleDesc(desc);
		following = palloc0(sizeof(Following));
		following->id = *id;
		following->position = PG_GETARG_INT64(1);
		context->user_fctx = following;
		MemoryContextSwitchTo(previous);
	}
	context = SRF_PERCALL_SETUP();
	following = context->user_fctx;
	if (following->next == following->count &&
	    !await_following(following, context->multi_call_memory_ctx, context->tuple_desc))
		SRF_RETURN_DONE(context);
	SRF_RETURN_NEXT(context, HeapTupleGetDatum(following->rows[following->next++]));
}
