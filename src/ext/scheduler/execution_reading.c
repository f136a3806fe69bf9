/*
 * execution_reading.c
 *		Reads what an execution writes, and keeps it in its table.
 */
#include "postgres.h"

#include "secrets/secret_references.h"
#include "hostlink/async_calls.h"
#include "ledger/failures.h"
#include "ledger/ledger.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "scheduler/execution_reading.h"
#include "scheduler/execution_outcome.h"
#include "scheduler/execution_calls.h"

/* The end of a long output that is kept, at most; the driver host keeps no more. */
#define LAST_BYTES (128 * 1024)

#define READ_MS (READ_WAIT_MS + 30000)

#define READ_WAIT_MS 60000

/* Values of secrets that its driver may repeat; what has them can't be kept without. */
static void
load_values(Running *running)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		ApiCall call;
		CalledLease lease;
		json_t *params;

		running_execution_begin_on_all(&call);
		running_execution_load_lease(&call, running, &lease);
		params = called_lease_params(&call, &lease, "command execution");
		running->values = provider_take_secrets(params);
		running->values_unknown = false;
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		bool locked = geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE;

		ledger_abort("looking for secrets that an execution was given");
		if (locked)
			running_execution_retry_later(running, LOCKED_RETRY_MS);
		else if (running->to_cancel)
			execution_set_cancelled(running);
		else
			execution_set_lost(
			    running, "Its driver has answered, and the secrets that are to be kept out of "
			             "that can't be looked up any more.");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* How much of the output is kept of its end, and how much at most of its beginning. */
static int64
most_at_last(void)
{
	return Min((int64) envrt_max_execution_output * 1024 / 2, LAST_BYTES);
}

static int64
most_at_first(void)
{
	return (int64) envrt_max_execution_output * 1024 - most_at_last();
}

void
execution_read_on(Running *running)
{
	json_t *params = execution_id_params(running);

	json_object_set_new(params, "after", json_integer(running->output.position));
	json_object_set_new(params, "waitMs", json_integer(READ_WAIT_MS));
	if (running->output.size >= most_at_first())
		running->last_only = true;
	if (running->last_only)
		json_object_set_new(params, "keepLast", json_integer(most_at_last()));
	running->phase = PHASE_READING;
	if (!driver_client_call("envrt/executionRead", params, READ_MS, execution_answered, running))
		running->phase = PHASE_READ;
}

/* The row is to say that the driver host has it; if it can't now, then before the next read. */
void
execution_note_accepted(Running *running)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		ApiCall call;

		execution_rows_begin(&call);
		running->accepted = execution_row_accepted(&running->id);
		ledger_commit(&call, false);
		failure_over(execution_writing, &running->id);
	}
	PG_CATCH();
	{
		running_execution_failed(running);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

void
execution_find_position(Running *running)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		ApiCall call;
		OutputPosition position;

		execution_rows_begin(&call);
		execution_output_position(&running->id, &position);
		ledger_commit(&call, false);
		running->output = position;
		running->position_unknown = false;
	}
	PG_CATCH();
	{
		running_execution_failed(running);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/*
 * Keep what has been read; false when it has to be read again.  *all: there is no more of
 * it; else it is to be read again as the last of the output, or what there is of that.
 */
static bool
keep_output(Running *running, const json_t *pieces, bool *all)
{
	MemoryContext context = CurrentMemoryContext;
	OutputPosition position = running->output;
	volatile bool kept = false;
	volatile bool complete = false;

	PG_TRY();
	{
		ApiCall call;

		execution_rows_begin(&call);
		complete = execution_output_insert(&running->id, pieces, &position,
		                                   running->last_only ? PG_INT64_MAX : most_at_first());
		ledger_commit(&call, false);
		kept = true;
		failure_over(execution_writing, &running->id);
	}
	PG_CATCH();
	{
		running_execution_failed(running);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	/* One that is to be cancelled must come to its end, without what a trigger refuses. */
	if (!kept && running->to_cancel && !execution_rows_were_locked())
	{
		size_t last = json_array_size(pieces) - 1;

		position.position =
		    json_integer_value(json_object_get(json_array_get(pieces, last), "position"));
		position.refused++;
		kept = complete = true;
		running->retry_at = DT_NOBEGIN;
	}
	if (kept)
	{
		running->output = position;
		ConditionVariableBroadcast(&shared_state->leases_changed);
	}
	*all = complete;
	return kept;
}

void
execution_take_answer(Running *running)
{
	json_t *pieces = json_object_get(running->result, "pieces");
	json_t *end = json_object_get(running->result, "end");
	bool all = true;

	if (running->values_unknown && execution_has_words(running->result))
	{
		load_values(running);
		if (running->values_unknown && running->end == NULL)
			return; /* it stays answered */
		if (running->end != NULL)
		{
			running->phase = PHASE_READ;
			running_execution_drop_answer(running);
			return;
		}
	}
	config_mask_secrets(running->result, running->values);
	running->phase = running->told ? PHASE_READ : PHASE_START;
	/* A driver host that is busy now will be less so. */
	if (running->error != NULL && !running->told &&
	    execution_error_is_state(running->error, "53400"))
		running_execution_retry_later(running, RETRY_MS);
	else if (running->error != NULL && !running->told)
		execution_set_error(running, running->error);
	else if (running->error != NULL && execution_error_is_state(running->error, "42704"))
		execution_set_lost(running, "The driver host does not know it any more.");
	else if (running->error != NULL)
		running_execution_retry_later(running, RETRY_MS);
	else if (json_array_size(pieces) > 0 && !keep_output(running, pieces, &all))
		running_execution_retry_later(running, LOCKED_RETRY_MS);
	else if (all && json_is_object(end))
		execution_take_end(running, end);
	if (running->end == NULL || running->end->result == NULL)
		running_execution_drop_answer(running);
}
