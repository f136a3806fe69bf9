/*
 * execution_rows.c
 *		Rows of envrt.executions and envrt.execution_output as the scheduler writes them.
 *
 * A row is made by whoever asks (executions.c) and goes on here:
 *
 *		queued -> running -> exited, failed, cancelled, lost
 *		       -> failed, cancelled, lost
 *
 * `running` is durable before the driver host is told, with the name of the
 * driver host that is to be: no other one, and no server after a crash, runs
 * it again.  env and stdin go as soon as the driver host has them; until then
 * the same driver host can be told once more, which it takes for the same.
 *
 * Rows that another server has written (a copy's) are never started here.
 *
 * envrt_cancel_execution locks rows for as long as its transaction likes, and
 * anybody the tables: what is locked is left for later.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "shared/execute_result.h"
#include "running/execution_rows.h"
#include "ledger/failures.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "base/settings.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "base/timer.h"
#include "utils/timestamp.h"

#include <sodium.h>

/* What a row of output costs besides its bytes. */
#define ROW_COST 64
/* At once, so that others have their turn. */
#define PURGE_OUTPUT 1000
#define PURGE_LOCKED_MS 1000
#define LOOK_AT_ALL (USECS_PER_SEC * SECS_PER_HOUR)

static bool tables_locked = false;

void
execution_rows_lock(void)
{
	static const char *const tables[] = {"executions", "execution_output"};

	tables_locked = true;
	for (int i = 0; i < (int) lengthof(tables); i++)
	{
		Oid relid = get_relname_relid(tables[i], get_namespace_oid("envrt", false));

		if (!OidIsValid(relid) || !ConditionalLockRelationOid(relid, RowExclusiveLock))
			ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			                errmsg("somebody has envrt.%s locked", tables[i])));
	}
	tables_locked = false;
}

bool
execution_rows_were_locked(void)
{
	return tables_locked;
}

void
execution_rows_begin(ApiCall *call)
{
	ledger_begin(call);
	execution_rows_lock();
}

#define ROW_COLUMNS                                                                                \
	"SELECT e.id, e.lease_id, e.state = 'running', e.env IS NULL,"                                 \
	" e.cancel_requested_at IS NOT NULL, e.host_instance, e.created_at, e.company_id, "            \
	"e.environment_id," LEDGER_OWN_OF("e.") " FROM envrt.executions e"

static ExecutionRow *
execution_rows_read_rows(MemoryContext context, int count)
{
	ExecutionRow *rows;
	bool isnull;

	MemoryContextSwitchTo(context);
	rows = palloc0(sizeof(ExecutionRow) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		rows[i].id = *result_uuid(i, 1);
		rows[i].lease_id = *result_uuid(i, 2);
		rows[i].running = DatumGetBool(result_datum(i, 3, &isnull));
		rows[i].accepted = DatumGetBool(result_datum(i, 4, &isnull));
		rows[i].to_cancel = DatumGetBool(result_datum(i, 5, &isnull));
		rows[i].host_instance = result_text(i, 6);
		rows[i].created_at = DatumGetTimestampTz(result_datum(i, 7, &isnull));
		rows[i].company_id = *result_uuid(i, 8);
		rows[i].environment_id = *result_uuid(i, 9);
		rows[i].own = DatumGetBool(result_datum(i, 10, &isnull));
	}
	return rows;
}

ExecutionRow *
execution_rows_running(MemoryContext context, TimestampTz after_time, const pg_uuid_t *after_id,
                       int *count)
{
	static Statement find = {
	    ROW_COLUMNS " WHERE e.state = 'running'"
	                " AND ROW(e.created_at, e.id) > ROW($5, $6)"
	                " ORDER BY e.created_at, e.id LIMIT 256",
	    6,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID, UUIDOID},
	};
	Datum values[6];

	ledger_own_arguments(values);
	values[4] = TimestampTzGetDatum(after_time);
	values[5] = UUIDPGetDatum(after_id);
	*count = statement_execute(&find, values, NULL);
	return execution_rows_read_rows(context, *count);
}

ExecutionRow *
execution_rows_queued(MemoryContext context, const CompanyTurn *turn, int *count)
{
	static Statement find = {
	    ROW_COLUMNS " WHERE e.state = 'queued'"
	                " AND e.company_id = $7"
	                " AND ROW(e.created_at, e.id) > ROW($5, $6)"
	                " ORDER BY e.created_at, e.id LIMIT 16",
	    7,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID, UUIDOID, UUIDOID},
	};
	Datum values[7];

	ledger_own_arguments(values);
	values[4] = TimestampTzGetDatum(turn->at);
	values[5] = UUIDPGetDatum(&turn->at_id);
	values[6] = UUIDPGetDatum(&turn->company_id);
	*count = statement_execute(&find, values, NULL);
	return execution_rows_read_rows(context, *count);
}

void
execution_rows_cancel_queued(void)
{
	static Statement cancel = {
	    "UPDATE envrt.executions SET state = 'cancelled', env = NULL, stdin = NULL,"
	    " finished_at = clock_timestamp() WHERE id = ANY ("
	    "  SELECT id FROM envrt.executions"
	    "  WHERE state = ANY (ARRAY['queued', 'running'])"
	    "   AND cancel_requested_at IS NOT NULL AND state = 'queued'"
	    "  FOR NO KEY UPDATE SKIP LOCKED)",
	    0,
	    {0},
	};

	statement_execute(&cancel, NULL, NULL);
}

pg_uuid_t *
execution_rows_to_cancel(int *count)
{
	static Statement find = {
	    "SELECT id FROM envrt.executions"
	    " WHERE state = ANY (ARRAY['queued', 'running'])"
	    " AND cancel_requested_at IS NOT NULL",
	    0,
	    {0},
	};
	pg_uuid_t *ids;

	*count = statement_execute(&find, NULL, NULL);
	ids = palloc(sizeof(pg_uuid_t) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
		ids[i] = *result_uuid(i, 1);
	return ids;
}

bool
execution_row_command(const pg_uuid_t *id, Command *command)
{
	static Statement find = {
	    "SELECT command, args, cwd, env, stdin, timeout_ms FROM envrt.executions"
	    " WHERE id = $1 AND env IS NOT NULL",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(id)};
	Datum value;
	bool isnull;

	memset(command, 0, sizeof(Command));
	if (statement_execute(&find, values, NULL) == 0)
		return false;
	command->command = DatumGetTextPP(result_datum(0, 1, &isnull));
	command->args = DatumGetArrayTypeP(result_datum(0, 2, &isnull));
	value = result_datum(0, 3, &isnull);
	command->cwd = isnull ? NULL : DatumGetTextPP(value);
	command->env = DatumGetJsonbP(result_datum(0, 4, &isnull));
	value = result_datum(0, 5, &isnull);
	command->stdin_bytes = isnull ? NULL : DatumGetByteaPP(value);
	value = result_datum(0, 6, &isnull);
	command->timeout_ms = isnull ? 0 : DatumGetInt64(value);
	return true;
}

typedef enum Written
{
	WRITTEN,
	NOTHING_TO_WRITE, /* it is gone, or further already */
	ROW_LOCKED
} Written;

/*
 * Runs the statement for the row, unless that is locked or `open` (a condition on it) does not
 * hold.  Raises an error when the statement has not had its effect: then `open` holds still.
 * `values` has room for the id, which goes first.
 */
static Written
execution_rows_write_row(Statement *statement, Statement *open, const pg_uuid_t *id, Datum *values,
                         const char *nulls)
{
	static Statement lock = {
	    "SELECT FROM envrt.executions WHERE id = $1"
	    " FOR NO KEY UPDATE SKIP LOCKED",
	    1,
	    {UUIDOID},
	};
	static Statement exists = {
	    "SELECT FROM envrt.executions WHERE id = $1",
	    1,
	    {UUIDOID},
	};

	values[0] = UUIDPGetDatum(id);
	if (statement_execute(&lock, values, NULL) == 0)
		return statement_execute(&exists, values, NULL) > 0 ? ROW_LOCKED : NOTHING_TO_WRITE;
	if (statement_execute(open, values, NULL) == 0)
		return NOTHING_TO_WRITE;
	statement_execute(statement, values, nulls);
	if (statement_execute(open, values, NULL) > 0)
		ereport_without_effect("a change of the execution's state", "envrt.executions");
	return WRITTEN;
}

#define OPEN_ROW(condition)                                                                        \
	{                                                                                              \
		"SELECT FROM envrt.executions WHERE id = $1 AND " condition, 1,                            \
		{                                                                                          \
			UUIDOID                                                                                \
		}                                                                                          \
	}

bool
execution_row_start(const pg_uuid_t *id, const char *host_instance)
{
	static Statement start = {
	    "UPDATE envrt.executions SET state = 'running', host_instance = $2,"
	    " started_at = clock_timestamp() WHERE id = $1"
	    " AND state = 'queued' AND cancel_requested_at IS NULL",
	    2,
	    {UUIDOID, TEXTOID},
	};
	static Statement open = OPEN_ROW("state = 'queued'"
	                                 " AND cancel_requested_at IS NULL");
	Datum values[2] = {0, CStringGetTextDatum(host_instance)};

	return execution_rows_write_row(&start, &open, id, values, NULL) == WRITTEN;
}

bool
execution_row_accepted(const pg_uuid_t *id)
{
	static Statement accepted = {
	    "UPDATE envrt.executions SET env = NULL, stdin = NULL"
	    " WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	static Statement open = OPEN_ROW("env IS NOT NULL");
	Datum values[1];

	return execution_rows_write_row(&accepted, &open, id, values, NULL) != ROW_LOCKED;
}

bool
execution_row_end(const pg_uuid_t *id, const ExecutionEnd *end)
{
	static Statement finish = {
	    "UPDATE envrt.executions SET state = $2, exit_code = $3, signal = $4, timed_out = $5,"
	    " metadata = $6, sqlstate = $7, message = $8, detail = $9, hint = $10, env = NULL,"
	    " stdin = NULL, finished_at = clock_timestamp()"
	    " WHERE id = $1"
	    " AND state = ANY (ARRAY['queued', 'running'])",
	    10,
	    {UUIDOID, TEXTOID, INT4OID, TEXTOID, BOOLOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID},
	};
	static Statement open = OPEN_ROW("state = ANY (ARRAY['queued', 'running'])");
	Datum values[10] = {0};
	char nulls[] = "  nnnnnnnn";
	const char *const texts[] = {end->sqlstate, end->message, end->detail, end->hint};

	values[1] = CStringGetTextDatum(end->state);
	if (end->result != NULL)
	{
		ExecuteResult read;
		json_t *metadata = json_object_get(end->result, "metadata");

		/* The result was found to be one before (execution_outcome.c). */
		(void) execute_result_read(end->result, &read);
		metadata = json_guard(json_is_object(metadata) ? json_copy(metadata) : json_object_new());
		if (end->missing > 0)
		{
			json_object_set_new(metadata, "outputTruncated", json_true());
			json_object_set_new(metadata, "outputMissingBytes", json_integer(end->missing));
		}
		nulls[2] = read.has_exit_code ? ' ' : 'n';
		values[2] = Int32GetDatum(read.exit_code);
		nulls[3] = read.signal != NULL ? ' ' : 'n';
		values[3] =
		    read.signal != NULL ? CStringGetTextDatum(text_from_utf8(read.signal)) : (Datum) 0;
		nulls[4] = nulls[5] = ' ';
		values[4] = BoolGetDatum(read.timed_out);
		values[5] = JsonbPGetDatum(jsonb_from_json(metadata));
	}
	for (int i = 0; i < (int) lengthof(texts); i++)
	{
		nulls[6 + i] = texts[i] != NULL ? ' ' : 'n';
		values[6 + i] = texts[i] != NULL ? CStringGetTextDatum(texts[i]) : (Datum) 0;
	}
	return execution_rows_write_row(&finish, &open, id, values, nulls) != ROW_LOCKED;
}

/* A piece's bytes; NULL when they are none. */
static char *
piece_bytes(const json_t *piece, size_t *length)
{
	const char *base64 = json_string_value(json_object_get(piece, "dataBase64"));
	const json_t *text = json_object_get(piece, "text");
	size_t size;
	char *bytes;

	if (json_is_string(text))
	{
		*length = json_string_length(text);
		return pnstrdup(json_string_value(text), *length);
	}
	if (base64 == NULL)
		return NULL;
	size = strlen(base64) / 4 * 3 + 3;
	bytes = palloc0(size + 1);
	if (sodium_base642bin((unsigned char *) bytes, size, base64, strlen(base64), NULL, length, NULL,
	                      sodium_base64_VARIANT_ORIGINAL) != 0)
		return NULL;
	return bytes;
}

bool
execution_output_insert(const pg_uuid_t *id, const json_t *pieces, OutputPosition *to, int64 most)
{
	static Statement insert = {
	    "INSERT INTO envrt.execution_output (execution_id, position, stream, output, data, size)"
	    " VALUES ($1, $2, $3, $4, $5, $6)",
	    6,
	    {UUIDOID, INT8OID, TEXTOID, TEXTOID, BYTEAOID, INT8OID},
	};
	Datum values[6] = {UUIDPGetDatum(id)};

	for (size_t i = 0; i < json_array_size(pieces); i++)
	{
		const json_t *piece = json_array_get(pieces, i);
		const char *stream = json_string_value(json_object_get(piece, "stream"));
		int64 number = json_integer_value(json_object_get(piece, "position"));
		size_t length = 0;
		char *data;
		bool replaced;

		if (number <= to->position)
			continue;
		if (to->size >= most)
			return false;
		to->position = number;
		data = piece_bytes(piece, &length);
		if (data == NULL || stream == NULL)
			continue;
		to->size += length + ROW_COST;
		values[1] = Int64GetDatum(number);
		values[2] = CStringGetTextDatum(strcmp(stream, "stderr") == 0 ? "stderr" : "stdout");
		values[3] = PointerGetDatum(text_of_bytes(data, length, &replaced));
		values[4] = replaced ? PointerGetDatum(cstring_to_text_with_len(data, length)) : (Datum) 0;
		values[5] = Int64GetDatum(to->size);
		if (statement_execute(&insert, values, replaced ? NULL : "    n ") == 0)
			to->refused += (int64) length;
	}
	return true;
}

void
execution_output_position(const pg_uuid_t *id, OutputPosition *position)
{
	static Statement find = {
	    "SELECT position, size FROM envrt.execution_output"
	    " WHERE execution_id = $1 ORDER BY position DESC LIMIT 1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(id)};
	bool isnull;

	memset(position, 0, sizeof(OutputPosition));
	if (statement_execute(&find, values, NULL) == 0)
		return;
	position->position = DatumGetInt64(result_datum(0, 1, &isnull));
	position->size = DatumGetInt64(result_datum(0, 2, &isnull));
}

/* The execution that execution_rows_purge() is at. */
static pg_uuid_t purging;

static const char purge_activity[] = "forgetting old executions";

/*
 * Where the last batch ended: what it has deleted need not be walked over again, which as long
 * as somebody has an old snapshot is there still.  Nothing is finished before what is gone,
 * unless a clock was set back, and but for what was locked: now and then all is looked at.
 */
static struct
{
	pg_uuid_t id;
	int64 position;
	TimestampTz time;
	TimestampTz all_at;
} purged = {.time = DT_NOBEGIN, .all_at = DT_NOBEGIN};

/* Forgets one, which is locked; false when there is more of its output. */
static bool
purge_one(const pg_uuid_t *id)
{
	static Statement delete_output = {
	    "DELETE FROM envrt.execution_output WHERE execution_id = $1"
	    " AND position > $2 AND position <= ("
	    "  SELECT max(position) FROM (SELECT position FROM envrt.execution_output"
	    "   WHERE execution_id = $1 AND position > $2"
	    "   ORDER BY position LIMIT 1000) o)"
	    " RETURNING position",
	    2,
	    {UUIDOID, INT8OID},
	};
	static Statement delete_execution = {
	    "DELETE FROM envrt.executions WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	static Statement left = {
	    "SELECT FROM envrt.executions WHERE id = $1"
	    " UNION ALL (SELECT FROM envrt.execution_output WHERE execution_id = $1 LIMIT 1)",
	    1,
	    {UUIDOID},
	};
	Datum values[2] = {UUIDPGetDatum(id)};
	bool isnull;
	int count;

	purging = *id;
	if (memcmp(id, &purged.id, UUID_LEN) != 0)
	{
		purged.id = *id;
		purged.position = 0;
	}
	values[1] = Int64GetDatum(purged.position);
	count = statement_execute(&delete_output, values, NULL);
	for (int row = 0; row < count; row++)
		purged.position = Max(purged.position, DatumGetInt64(result_datum(row, 1, &isnull)));
	if (count < PURGE_OUTPUT)
	{
		statement_execute(&delete_execution, values, NULL);
		if (statement_execute(&left, values, NULL) > 0)
			ereport_without_effect("the end of an execution", "envrt.executions or its output");
	}
	memset(&purging, 0, sizeof(purging));
	return count < PURGE_OUTPUT;
}

TimestampTz
execution_rows_purge(int most)
{
	static Statement find = {
	    "SELECT id, finished_at FROM envrt.executions WHERE finished_at <= $1"
	    " AND finished_at >= $2 AND id <> ALL ($3)"
	    " ORDER BY finished_at LIMIT 1 FOR UPDATE SKIP LOCKED",
	    3,
	    {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDARRAYOID},
	};
	static Statement find_given = {
	    "SELECT id FROM envrt.executions WHERE id = $1"
	    " AND finished_at <= $2 FOR UPDATE SKIP LOCKED",
	    2,
	    {UUIDOID, TIMESTAMPTZOID},
	};
	static Statement find_next = {
	    "SELECT finished_at FROM envrt.executions WHERE finished_at >= $1"
	    " AND id <> ALL ($2) ORDER BY finished_at LIMIT 1",
	    2,
	    {TIMESTAMPTZOID, UUIDARRAYOID},
	};
	TimestampTz now = GetCurrentTimestamp();
	int64 retention_ms = (int64) envrt_execution_retention * 1000;
	TimestampTz purged_to;
	TimestampTz not_before = DT_NOBEGIN;
	TimestampTz next;
	pg_uuid_t failed;
	bool more = false;
	Datum values[3];
	bool isnull;

	if (envrt_execution_retention == 0)
		return DT_NOEND;
	/* One that has failed before has a transaction of its own. */
	if (failures_due(purge_activity, &failed, 1) > 0)
	{
		bool done;

		values[0] = UUIDPGetDatum(&failed);
		values[1] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(now, -retention_ms));
		done = statement_execute(&find_given, values, NULL) == 0 || purge_one(&failed);
		if (done)
			failure_over(purge_activity, &failed);
		return timer_now();
	}
	if (purged.all_at <= now || purged.all_at > now + LOOK_AT_ALL)
	{
		purged.time = DT_NOBEGIN;
		purged.all_at = now + LOOK_AT_ALL;
	}
	purged_to = purged.time;
	for (int i = 0; i < most; i++)
	{
		pg_uuid_t *id;

		values[0] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(now, -retention_ms));
		values[1] = TimestampTzGetDatum(purged_to);
		values[2] = PointerGetDatum(failures_array(purge_activity));
		if (statement_execute(&find, values, NULL) == 0)
		{
			/* What is due still, somebody has locked. */
			not_before = TimestampTzPlusMilliseconds(timer_now(), PURGE_LOCKED_MS);
			break;
		}
		id = result_uuid(0, 1);
		purged_to = DatumGetTimestampTz(result_datum(0, 2, &isnull));
		more = !purge_one(id);
		if (more)
			break;
	}
	/* Not before: where there is an ERROR, nothing is gone. */
	purged.time = purged_to;
	if (more)
		return timer_now();
	values[0] = TimestampTzGetDatum(purged.time);
	values[1] = PointerGetDatum(failures_array(purge_activity));
	next = failures_next(purge_activity);
	/* (With a moment more, so that it is due then whatever was rounded.) */
	if (statement_execute(&find_next, values, NULL) > 0)
		next = Min(next, timer_at(TimestampTzPlusMilliseconds(
		                     DatumGetTimestampTz(result_datum(0, 1, &isnull)), retention_ms + 10)));
	return Max(next, not_before);
}

TimestampTz
execution_rows_purge_failed(void)
{
	bool is_of_one = false;

	for (int i = 0; i < UUID_LEN; i++)
		is_of_one = is_of_one || purging.data[i] != 0;
	purged.time = DT_NOBEGIN;
	purged.position = 0;
	if (!is_of_one)
	{
		ledger_abort(purge_activity);
		return TimestampTzPlusMilliseconds(timer_now(), PURGE_LOCKED_MS);
	}
	(void) failure_caught(purge_activity, &purging);
	memset(&purging, 0, sizeof(purging));
	return timer_now();
}
