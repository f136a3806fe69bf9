/*
 * execution_start.c
 *		Has the driver host start an execution.
 *
 * The row becomes running, durably, before the driver host is told: a command that may
 * have begun is never begun again.
 */
#include "postgres.h"

#include "hostlink/async_calls.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "ledger/ledger.h"
#include "environments/provider_lease.h"
#include "base/timer.h"
#include "scheduler/execution_start.h"
#include "scheduler/execution_outcome.h"
#include "scheduler/execution_calls.h"

#define START_MS 30000

/* The command as its row has it, with everything in the current context; false: it has none. */
static bool
load_command(const Running *running, Command *command)
{
	MemoryContext context = CurrentMemoryContext;
	ApiCall ledger;
	bool found;

	ledger_enter(&ledger);
	found = execution_row_command(&running->id, command);
	if (found)
	{
		MemoryContext previous = MemoryContextSwitchTo(context);

		command->command = DatumGetTextPCopy(PointerGetDatum(command->command));
		command->args = DatumGetArrayTypePCopy(PointerGetDatum(command->args));
		command->env = DatumGetJsonbPCopy(PointerGetDatum(command->env));
		if (command->cwd != NULL)
			command->cwd = DatumGetTextPCopy(PointerGetDatum(command->cwd));
		if (command->stdin_bytes != NULL)
			command->stdin_bytes = DatumGetByteaPCopy(PointerGetDatum(command->stdin_bytes));
		MemoryContextSwitchTo(previous);
	}
	api_leave(&ledger);
	return found;
}

static bool
start_row(const Running *running)
{
	ApiCall ledger;
	bool started;

	ledger_enter(&ledger);
	started = execution_row_start(&running->id, executions_host);
	api_leave(&ledger);
	return started;
}

/*
 * Everything that the driver host is told, in running->params, and its row
 * running; without params: it is no more, or locked.
 */
static void
running_executions_prepare(Running *running, bool queued)
{
	ApiCall call;
	CalledLease lease;
	Command command;
	int64 timeout_ms;

	json_decref(running->params);
	running->params = NULL;
	running_execution_begin_on_all(&call);
	if (load_command(running, &command))
	{
		json_t *params;

		running_execution_load_lease(&call, running, &lease);
		params = command_params(&call, &lease, &command, EXECUTION_MS, &timeout_ms);
		json_decref(running->values);
		running->values = provider_take_secrets(params);
		running->values_unknown = false;
		json_object_set_new(params, "executionId", json_string(uuid_text(&running->id)));
		json_object_set_new(params, "database", json_integer(MyDatabaseId));
		if (!queued || start_row(running))
			running->params = json_incref(params);
	}
	ledger_commit(&call, true);
}

static void
tell(Running *running)
{
	FAULT_POINT("execution-before-start");
	running->phase = PHASE_STARTING;
	if (!driver_client_call("envrt/executionStart", running->params, START_MS, execution_answered,
	                        running))
		running->phase = PHASE_START;
	running->params = NULL;
}

/*
 * Starts one, or has it end with what is wrong; false: a lock is in the way, of the tables
 * (executions_rows_at or executions_leases_at say so) or of its row.
 */
bool
execution_start(Running *running, bool queued)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		running_executions_prepare(running, queued);
	}
	PG_CATCH();
	{
		json_decref(running->params);
		running->params = NULL;
		execution_set_caught_error(running, context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (running->params != NULL)
	{
		failure_over(execution_starting, &running->id);
		tell(running);
	}
	else if (running->end == NULL && !queued && executions_leases_at <= timer_now() &&
	         running->retry_at <= timer_now())
	{
		/* Somebody has deleted its row; what may have been begun is not wanted. */
		running->to_cancel = true;
		execution_set_lost(running, "It is not in the table any more.");
	}
	return running->phase == PHASE_STARTING || running->end != NULL;
}
