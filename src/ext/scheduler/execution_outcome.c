/*
 * execution_outcome.c
 *		How an execution has ended, and that in its row.
 *
 * An end is noted in the memory of the scheduler first, and written as soon as its row
 * can be.
 */
#include "postgres.h"

#include "hostlink/async_calls.h"
#include "shared/execute_result.h"
#include "ledger/failures.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "base/timer.h"
#include "utils/timestamp.h"
#include "scheduler/execution_outcome.h"

/* Note how it ended; written by execution_write_end() as soon as that is possible. */
static ExecutionEnd *
set_end(Running *running, const char *state)
{
	if (running->end == NULL)
	{
		running->end_context =
		    AllocSetContextCreate(TopMemoryContext, "envrt execution's end", ALLOCSET_SMALL_SIZES);
		running->end = MemoryContextAllocZero(running->end_context, sizeof(ExecutionEnd));
	}
	running->end->state = state;
	return running->end;
}

static char *
end_text(const Running *running, const char *text)
{
	MemoryContext previous;
	char *copy;

	if (text == NULL)
		return NULL;
	previous = MemoryContextSwitchTo(running->end_context);
	copy = text_from_utf8(text);
	MemoryContextSwitchTo(previous);
	return copy;
}

void
execution_set_lost(Running *running, const char *message)
{
	ExecutionEnd *end = set_end(running, "lost");

	end->message = end_text(running, message);
}

/* By whoever wanted it, or by its lease's end, which is said. */
void
execution_set_cancelled(Running *running)
{
	ExecutionEnd *end = set_end(running, "cancelled");

	if (running->lease_end[0] == '\0')
		return;
	end->sqlstate = MemoryContextStrdup(running->end_context, "57014");
	end->message = MemoryContextStrdup(running->end_context, running->lease_end);
}

/* The driver host's error as an end. */
void
execution_set_error(Running *running, const json_t *error)
{
	const json_t *data = json_object_get(error, "data");
	const char *message = json_string_value(json_object_get(error, "message"));
	const char *outcome = json_string_value(json_object_get(data, "outcome"));
	const char *sqlstate = json_string_value(json_object_get(data, "sqlstate"));
	ExecutionEnd *end;

	if (running->to_cancel)
	{
		execution_set_cancelled(running);
		return;
	}
	/* The connection to its host went while it ran. */
	if (outcome != NULL && strcmp(outcome, "unknown") == 0 && sqlstate != NULL &&
	    strcmp(sqlstate, "08006") == 0)
	{
		execution_set_lost(running, message);
		return;
	}
	end = set_end(running, "failed");
	end->sqlstate = end_text(running, sqlstate);
	end->message = end_text(running, message != NULL ? message : "the driver failed");
	end->detail = end_text(running, json_string_value(json_object_get(data, "detail")));
	end->hint = end_text(running, json_string_value(json_object_get(data, "hint")));
}

/* An ERROR of ours as an end, unless it is one that passes; the transaction is over afterwards. */
void
execution_set_caught_error(Running *running, MemoryContext context)
{
	ErrorData *error;

	MemoryContextSwitchTo(context);
	HOLD_INTERRUPTS();
	error = CopyErrorData();
	FlushErrorState();
	AbortCurrentTransaction();
	RESUME_INTERRUPTS();
	MemoryContextSwitchTo(context);
	if (execution_rows_were_locked() || running_execution_shared_tables_were_locked())
		executions_leases_at = TimestampTzPlusMilliseconds(timer_now(), LOCKED_RETRY_MS);
	else if (error_is_passing(error))
		running->retry_at = failure_noted(execution_starting, &running->id, error);
	else
	{
		ExecutionEnd *end = set_end(running, "failed");
		MemoryContext of_end = running->end_context;

		end->sqlstate = MemoryContextStrdup(of_end, unpack_sql_state(error->sqlerrcode));
		end->message = MemoryContextStrdup(of_end, error->message);
		if (error->detail != NULL)
			end->detail = MemoryContextStrdup(of_end, error->detail);
		if (error->hint != NULL)
			end->hint = MemoryContextStrdup(of_end, error->hint);
	}
	FreeErrorData(error);
}

/* False when it has to be tried again. */
bool
execution_write_end(Running *running)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool written = false;

	PG_TRY();
	{
		ApiCall call;

		execution_rows_begin(&call);
		written = execution_row_end(&running->id, running->end);
		ledger_commit(&call, false);
		if (written)
			failure_over(execution_writing, &running->id);
	}
	PG_CATCH();
	{
		running_execution_failed(running);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return written;
}

/* Whether a driver has put something into words: of the command's own streams it knows bytes only.
 */
bool
execution_has_words(json_t *json)
{
	const char *key;
	json_t *value;
	size_t i;
	bool found = json_is_string(json);

	if (json_is_array(json))
		json_array_foreach(json, i, value) found = found || execution_has_words(value);
	else if (json_is_object(json))
		json_object_foreach(json, key, value) found =
		    found || (strcmp(key, "dataBase64") != 0 && strcmp(key, "stream") != 0 &&
		              strcmp(key, "signal") != 0 && execution_has_words(value));
	return found;
}

bool
execution_error_is_state(const json_t *error, const char *sqlstate)
{
	const char *state =
	    json_string_value(json_object_get(json_object_get(error, "data"), "sqlstate"));

	return state != NULL && strcmp(state, sqlstate) == 0;
}

void
execution_take_end(Running *running, json_t *end)
{
	json_t *result = json_object_get(end, "result");
	ExecutionEnd *exited;
	ExecuteResult read;
	const char *problem;

	if (json_object_get(end, "error") != NULL)
		execution_set_error(running, json_object_get(end, "error"));
	else if ((problem = execute_result_read(result, &read)) != NULL)
	{
		ExecutionEnd *failed = set_end(running, "failed");

		failed->sqlstate = "38000";
		failed->message =
		    end_text(running, psprintf("the driver's answer can't be used: %s", problem));
	}
	else
	{
		/* The answer stays until it is written. */
		exited = set_end(running, "exited");
		exited->result = result;
		exited->missing = json_integer_value(json_object_get(running->result, "droppedBytes")) +
		                  running->output.refused;
	}
}
