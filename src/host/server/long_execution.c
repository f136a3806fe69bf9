/*
 * long_execution.c
 *		Commands that go on whoever asked for them goes away.
 *
 * A long execution is an environmentExecute whose call belongs to the host itself
 * and not to a connection.  It is known by its executionId:
 *
 *		running    its driver has the call; what the command writes is kept in pieces, in
 *		           order, numbered from 1, until somebody says that he has them
 *		ended      the call's answer is kept, until somebody says that he has it
 *
 * A reader asks for what comes after a position, which says as well that everything
 * up to there is his for good.  There is one reader at a time: a new one takes the
 * place of the old one.  He waits until there is something, and then for a moment
 * more, so that a command that writes a line at a time does not cost him an answer
 * a line.  Readers come and go; what they did not acknowledge the next one gets.
 *
 * A reader that wants no more of the output but its end says so (keepLast): from then on
 * the oldest pieces are dropped instead of kept, the command never waits, and the next
 * pieces are answered with its end.  What was dropped is counted in the answer.
 *
 * More than KEEP_BYTES that nobody has taken make the command wait.  Where nobody
 * has asked for so long that nobody will, the command is ended and all is forgotten; and
 * so it is at once when the launcher says that the database is gone.
 */
#include <stdlib.h>
#include <string.h>

#include "server/driver_table.h"
#include "base/log.h"
#include "server/long_execution.h"
#include "base/memory.h"
#include "shared/protocol.h"
#include "base/timer.h"

/* In base64, and with what keeping them costs. */
#define KEEP_BYTES ((size_t) 1024 * 1024)
#define ROOM_BYTES ((size_t) 256 * 1024)
/* An answer is sent at once when it has this, and has little more at most. */
#define ANSWER_BYTES ((size_t) 256 * 1024)
#define GATHER_MS 100
#define FORGOTTEN_MS (10 * 60 * 1000)
#define MAX_WAIT_MS (10 * 60 * 1000)
#define ID_LENGTH 36
/* Of output that comes as a whole; and what may be left of the answer. */
#define TEXT_PIECE ((size_t) 64 * 1024)
#define MAX_RESULT ((size_t) 1024 * 1024)
/* What a piece costs besides its bytes. */
#define PIECE_COST 512
/* What it counts beside its bytes for keepLast; a row of envrt.execution_output counts the same. */
#define PIECE_SIZE 64
/* The most that keepLast keeps. */
#define MAX_KEEP_LAST ((size_t) 128 * 1024)

typedef struct Piece
{
	struct Piece *next;
	json_int_t position;
	size_t bytes;    /* that it takes here */
	size_t length;   /* of the output in it */
	json_t *content; /* position, stream, and dataBase64 or text */
} Piece;

typedef struct LongExecution
{
	struct LongExecution *next;
	struct LongExecution *previous;
	char id[ID_LENGTH + 1];
	json_int_t database;
	Call *call; /* NULL: ended */
	Piece *first_piece;
	Piece **last_piece;
	size_t bytes;
	size_t size; /* by what keepLast counts */
	json_int_t position;
	size_t keep_last;   /* 0: everything, until a reader has it */
	json_int_t dropped; /* bytes */
	bool behind;
	json_t *end; /* {result} or {error} */

	Call *reader; /* NULL: nobody waits */
	Timer *reader_wait;
	Timer *gathering;
	Timer *unasked;
} LongExecution;

static LongExecution *first_execution;

static void unasked_for_long(void *data);

/*
 * The table
 */

static LongExecution *
long_execution_find(const json_t *params)
{
	const char *id = json_string_value(json_object_get(params, "executionId"));

	for (LongExecution *execution = first_execution; execution != NULL && id != NULL;
	     execution = execution->next)
		if (strcmp(execution->id, id) == 0)
			return execution;
	return NULL;
}

static HostError *
unknown(const json_t *params)
{
	const char *id = json_string_value(json_object_get(params, "executionId"));

	return error_new("42704", "execution \"%s\" is not known", id != NULL ? id : "");
}

static void
drop_first_piece(LongExecution *execution)
{
	Piece *piece = execution->first_piece;

	execution->first_piece = piece->next;
	if (piece->next == NULL)
		execution->last_piece = &execution->first_piece;
	execution->bytes -= piece->bytes;
	execution->size -= piece->length + PIECE_SIZE;
	json_decref(piece->content);
	free(piece);
}

/* Drops the pieces up to a position. */
static void
drop_pieces(LongExecution *execution, json_int_t position)
{
	while (execution->first_piece != NULL && execution->first_piece->position <= position)
		drop_first_piece(execution);
}

/* Drops what is too much of the last output to be kept. */
static void
long_execution_drop_oldest(LongExecution *execution)
{
	while (execution->keep_last > 0 && execution->size > execution->keep_last &&
	       execution->first_piece != NULL)
	{
		execution->dropped += (json_int_t) execution->first_piece->length;
		drop_first_piece(execution);
	}
}

/* Whether the pieces are to be answered only when there is no more to come. */
static bool
keeps_back(const LongExecution *execution)
{
	return execution->keep_last > 0 && execution->end == NULL;
}

static void
drop_reader(LongExecution *execution)
{
	execution->reader = NULL;
	timer_stop(&execution->reader_wait);
	timer_stop(&execution->gathering);
}

/* Whoever reads it is answered, and its call has ended, before. */
static void
long_execution_execution_free(LongExecution *execution)
{
	if (execution->previous != NULL)
		execution->previous->next = execution->next;
	else
		first_execution = execution->next;
	if (execution->next != NULL)
		execution->next->previous = execution->previous;
	drop_reader(execution);
	timer_stop(&execution->unasked);
	drop_pieces(execution, execution->position);
	json_decref(execution->end);
	free(execution);
}

/*
 * Readers
 */

static json_t *
pieces_json(const LongExecution *execution)
{
	json_t *pieces = json_array();
	size_t bytes = 0;

	for (const Piece *piece = keeps_back(execution) ? NULL : execution->first_piece;
	     piece != NULL && bytes < ANSWER_BYTES; piece = piece->next)
	{
		json_array_append(pieces, piece->content);
		bytes += piece->bytes;
	}
	return pieces;
}

static void
answer_reader(LongExecution *execution)
{
	Call *reader = execution->reader;
	json_t *result = json_object();
	json_t *pieces = pieces_json(execution);
	const Piece *piece = execution->first_piece;

	for (size_t i = json_array_size(pieces); i > 0; i--)
		piece = piece->next;
	json_object_set_new(result, "pieces", pieces);
	/* The end comes with the last of the output, not before. */
	json_object_set(result, "end",
	                execution->end != NULL && piece == NULL ? execution->end : json_null());
	if (execution->dropped > 0)
		json_object_set_new(result, "droppedBytes", json_integer(execution->dropped));
	drop_reader(execution);
	timer_start(&execution->unasked, FORGOTTEN_MS, unasked_for_long, execution);
	call_answer(reader, result);
}

static void
time_to_answer(void *data)
{
	answer_reader(data);
}

static void
tell_reader(LongExecution *execution)
{
	if (execution->reader == NULL)
		return;
	if (keeps_back(execution))
		return;
	if (execution->end != NULL || execution->bytes >= ANSWER_BYTES)
		answer_reader(execution);
	else if (execution->first_piece != NULL && execution->gathering == NULL)
		timer_start(&execution->gathering, GATHER_MS, time_to_answer, execution);
}

static void
reader_gone(void *data)
{
	LongExecution *execution = data;

	drop_reader(execution);
	timer_start(&execution->unasked, FORGOTTEN_MS, unasked_for_long, execution);
}

void
long_execution_read(Call *call, const json_t *params)
{
	LongExecution *execution = long_execution_find(params);
	json_int_t after = json_integer_value(json_object_get(params, "after"));
	json_int_t wait_ms = json_integer_value(json_object_get(params, "waitMs"));
	json_int_t keep_last = json_integer_value(json_object_get(params, "keepLast"));
	HostError *error;

	if (execution == NULL)
	{
		call_fail(call, unknown(params));
		return;
	}
	call_set_target(call, execution->id);
	call_set_state(call, "waiting for output");
	if (execution->reader != NULL)
	{
		Call *old = execution->reader;

		drop_reader(execution);
		error = error_new("57014", "somebody else reads the execution");
		call_fail(old, error);
	}
	timer_stop(&execution->unasked);
	execution->reader = call;
	call_on_cancel(call, reader_gone, execution);
	drop_pieces(execution, after);
	if (keep_last > 0)
	{
		execution->keep_last =
		    (size_t) keep_last < MAX_KEEP_LAST ? (size_t) keep_last : MAX_KEEP_LAST;
		long_execution_drop_oldest(execution);
	}
	if (wait_ms < 0 || wait_ms > MAX_WAIT_MS)
		wait_ms = MAX_WAIT_MS;
	timer_start(&execution->reader_wait, (uint64_t) wait_ms, time_to_answer, execution);
	tell_reader(execution);
	if (execution->behind && execution->bytes <= ROOM_BYTES)
	{
		execution->behind = false;
		if (execution->call != NULL)
			call_tell_room(execution->call);
	}
}

/*
 * What the driver says
 */

/* How many bytes base64 stands for. */
static size_t
base64_bytes(const json_t *value)
{
	const char *text = json_string_value(value);
	size_t length = json_string_length(value);
	size_t padding = 0;

	while (padding < 2 && padding < length && text[length - 1 - padding] == '=')
		padding++;
	return length / 4 * 3 - (length >= 4 ? padding : 0);
}

static void
keep_piece(LongExecution *execution, json_t *content)
{
	const json_t *base64 = json_object_get(content, "dataBase64");
	const json_t *text = json_object_get(content, "text");
	Piece *piece = xcalloc(1, sizeof *piece);

	piece->position = ++execution->position;
	piece->bytes = json_string_length(base64) + json_string_length(text) + PIECE_COST;
	piece->length = base64_bytes(base64) + json_string_length(text);
	json_object_set_new(content, "position", json_integer(piece->position));
	piece->content = content;
	*execution->last_piece = piece;
	execution->last_piece = &piece->next;
	execution->bytes += piece->bytes;
	execution->size += piece->length + PIECE_SIZE;
	long_execution_drop_oldest(execution);
}

static bool
notified(void *data, const char *method, json_t *params)
{
	LongExecution *execution = data;

	(void) method;
	keep_piece(execution, params);
	/* Once it waits, only a reader can end that (long_execution_read): what still comes can't. */
	if (execution->bytes > KEEP_BYTES)
		execution->behind = true;
	/* Not now: a driver is in the middle of something. */
	if (execution->reader != NULL && execution->gathering == NULL && !keeps_back(execution))
		timer_start(&execution->gathering, execution->bytes >= ANSWER_BYTES ? 0 : GATHER_MS,
		            time_to_answer, execution);
	return !execution->behind;
}

static json_t *
error_json(const HostError *error)
{
	json_t *message = error_response(json_null(), error);
	json_t *end = json_object();

	json_object_set(end, "error", json_object_get(message, "error"));
	json_decref(message);
	return end;
}

/* How much of the text goes into one piece: no more than a piece has, and whole characters. */
static size_t
piece_length(const char *text, size_t length)
{
	size_t count = length < TEXT_PIECE ? length : TEXT_PIECE;

	while (count < length && count > 0 && ((unsigned char) text[count] & 0xc0) == 0x80)
		count--;
	return count;
}

/* A driver that does not stream (a plugin) has all of the output in its answer. */
static void
keep_whole_output(LongExecution *execution, json_t *result, const char *name)
{
	json_t *whole = json_object_get(result, name);
	const char *text = json_string_value(whole);
	size_t left = json_string_length(whole);

	while (left > 0)
	{
		size_t length = piece_length(text, left);
		json_t *content = json_object();

		json_object_set_new(content, "stream", json_string(name));
		json_object_set_new(content, "text", json_stringn(text, length));
		keep_piece(execution, content);
		text += length;
		left -= length;
	}
	json_object_del(result, name);
}

/* What is left of an answer without the output; an error instead when that is too much. */
static json_t *
result_json(json_t *result)
{
	json_t *end = json_object();
	HostError *error;

	if (json_dumpb(result, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY) <= MAX_RESULT)
	{
		json_object_set_new(end, "result", result);
		return end;
	}
	json_decref(end);
	json_decref(result);
	error = error_new("38000", "the driver's answer is too long");
	error_detail(error, "Without the output it is longer than %zu bytes.", MAX_RESULT);
	end = error_json(error);
	error_free(error);
	return end;
}

static void
long_execution_ended(void *data, const json_t *id, json_t *result, HostError *error)
{
	LongExecution *execution = data;

	(void) id;
	execution->call = NULL;
	if (error != NULL)
		execution->end = error_json(error);
	else
	{
		keep_whole_output(execution, result, "stdout");
		keep_whole_output(execution, result, "stderr");
		execution->end = result_json(result);
	}
	error_free(error);
	tell_reader(execution);
}

/*
 * The others
 */

static bool
is_id(const char *id)
{
	return id != NULL && strlen(id) == ID_LENGTH && strspn(id, "0123456789abcdef-") == ID_LENGTH;
}

HostError *
long_execution_start(const json_t *params)
{
	static const CallSink sink = {.notify = notified, .end = long_execution_ended};
	static const char method[] = "environmentExecute";
	const char *id = json_string_value(json_object_get(params, "executionId"));
	LongExecution *execution;
	DriverChoice choice;
	HostError *error;
	json_t *copy;

	if (!is_id(id))
	{
		error = error_new("22023", "executionId must be a uuid");
		error->code = RPC_INVALID_PARAMS;
		return error;
	}
	if (long_execution_find(params) != NULL)
		return NULL;
	error = driver_choose(method, params, &choice);
	if (error != NULL)
		return error;
	execution = xcalloc(1, sizeof *execution);
	memcpy(execution->id, id, ID_LENGTH + 1);
	execution->database = json_integer_value(json_object_get(params, "database"));
	execution->last_piece = &execution->first_piece;
	execution->call =
	    call_begin(&(CallOrigin){.sink = &sink, .data = execution}, method, choice.key,
	               json_string_value(json_object_get(params, "companyId")), &error);
	if (execution->call == NULL)
	{
		free(execution);
		return error;
	}
	execution->next = first_execution;
	if (first_execution != NULL)
		first_execution->previous = execution;
	first_execution = execution;
	timer_start(&execution->unasked, FORGOTTEN_MS, unasked_for_long, execution);

	copy = json_copy((json_t *) params);
	json_object_del(copy, "executionId");
	json_object_del(copy, "database");
	if (choice.method != NULL)
		json_object_set_new(copy, "stream", json_true());
	driver_start(&choice, execution->call, copy);
	json_decref(copy);
	return NULL;
}

/* The end of what is cancelled is told like any other. */
static void
long_execution_stop(LongExecution *execution)
{
	Call *call = execution->call;
	HostError *error = error_new("57014", "the execution was cancelled");

	execution->call = NULL;
	call_cancel(call);
	execution->end = error_json(error);
	error_free(error);
	tell_reader(execution);
}

HostError *
long_execution_cancel(const json_t *params)
{
	LongExecution *execution = long_execution_find(params);

	if (execution == NULL)
		return unknown(params);
	if (execution->call != NULL)
		long_execution_stop(execution);
	return NULL;
}

HostError *
long_execution_forget(const json_t *params)
{
	LongExecution *execution = long_execution_find(params);

	if (execution == NULL)
		return NULL;
	if (execution->call != NULL)
		return error_new("55000", "execution \"%s\" has not ended", execution->id);
	if (execution->reader != NULL)
		answer_reader(execution);
	long_execution_execution_free(execution);
	return NULL;
}

static void
unasked_for_long(void *data)
{
	LongExecution *execution = data;

	if (execution->call != NULL)
	{
		log_message(LOG_WARNING, "execution %s: ended, since nobody has asked for it any more",
		            execution->id);
		call_cancel(execution->call);
		execution->call = NULL;
	}
	long_execution_execution_free(execution);
}

json_t *
long_executions_describe(void)
{
	json_t *list = json_array();

	for (const LongExecution *execution = first_execution; execution != NULL;
	     execution = execution->next)
	{
		json_t *row = json_object();

		json_object_set_new(row, "executionId", json_string(execution->id));
		json_object_set_new(row, "running", json_boolean(execution->call != NULL));
		json_object_set_new(row, "position", json_integer(execution->position));
		json_object_set_new(row, "keptBytes", json_integer((json_int_t) execution->bytes));
		json_array_append_new(list, row);
	}
	return list;
}

void
long_executions_drop(json_int_t database)
{
	LongExecution *next;

	for (LongExecution *execution = first_execution; execution != NULL; execution = next)
	{
		next = execution->next;
		if (execution->database != database)
			continue;
		if (execution->call != NULL)
			long_execution_stop(execution);
		if (execution->reader != NULL)
			answer_reader(execution);
		long_execution_execution_free(execution);
	}
}

void
long_executions_close(void)
{
	while (first_execution != NULL)
	{
		if (first_execution->call != NULL)
			call_cancel(first_execution->call);
		long_execution_execution_free(first_execution);
	}
}
