/*
 * running_executions.c
 *		Executions as the scheduler looks after them.
 *
 * The command runs in the driver host, which keeps what it writes until the
 * scheduler has it in the table (src/host/server/long_execution.c).  So it outlives
 * the scheduler; the next one reads on from what is committed.  An execution
 * that is looked after is in one list, and each of its calls in turn:
 *
 *		queued		its row becomes running, which is durable before...
 *		starting	the driver host is told (again, if the answer got lost: it
 *					knows the execution by its id)
 *		reading		what comes after the last position: the answer is committed
 *					before the next is asked for, which tells the driver host
 *					that it can forget it
 *		ended		by the last answer, and the driver host may forget all
 *
 * Of output over envrt.max_execution_output the beginning is kept as it comes.  Once
 * that is full, the driver host keeps the last of it and drops what lies between, and
 * answers when the command has ended.
 *
 * No transaction is open while the driver host is awaited.  One is lost whose
 * driver host is not the one that is there now, or does not know it: another
 * driver host never runs it again.
 *
 * An execution is cancelled when its row says so (envrt_cancel_execution) and
 * when its lease has ended: looked at when leases end (envrt.on_command_lease_end),
 * and once it is in the list, so that an end in between is not missed.
 *
 * No lock is waited for: what a round needs is locked conditionally, and where
 * somebody else has it, the round is over and comes again a moment later; for leases
 * and starts apart from output, which goes on.  New rows are looked at a page at a time,
 * from one round to the next, so that the rest of the scheduler's work has its turn; in
 * turns by company (company_turns.c), of which none has more than its share (fair_share.h).
 *
 * Commands are asked for with the rights of the shared tables' owner, in a
 * restricted operation: whether the one who asked may was decided then.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "catalog/pg_type.h"
#include "running/command.h"
#include "ledger/company_turns.h"
#include "secrets/secret_references.h"
#include "hostlink/async_calls.h"
#include "shared/execute_result.h"
#include "running/execution_rows.h"
#include "shared/fair_share.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "environments/provider_lease.h"
#include "scheduler/running_executions.h"
#include "base/settings.h"
#include "storage/condition_variable.h"
#include "storage/lmgr.h"
#include "base/timer.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/*
 * An execution takes two of the driver host's calls, and other calls want a third.
 * A company that is alone comes to three quarters of this: a quarter of the calls.
 */
#define MAX_RUNNING ((envrt_max_calls + 2) / 3)
/* In a round: each start is a durable commit. */
#define MAX_STARTS 16
#define MAX_TRIES 64
/* Forgotten in a transaction. */
#define PURGE_EXECUTIONS 20
#define RETRY_MS 1000
#define LOCKED_RETRY_MS 200
#define START_MS 30000
#define READ_WAIT_MS 60000
#define READ_MS (READ_WAIT_MS + 30000)
#define CANCEL_MS 30000
/* The end of a long output that is kept, at most; the driver host keeps no more. */
#define LAST_BYTES (128 * 1024)

typedef enum Phase
{
	PHASE_START, /* the driver host is to be told */
	PHASE_STARTING,
	PHASE_READ, /* it is to be asked for what comes next */
	PHASE_READING,
	PHASE_ANSWERED /* and has answered: `result` or `error` */
} Phase;

typedef struct Running
{
	dlist_node node;
	pg_uuid_t id;
	pg_uuid_t lease_id;
	pg_uuid_t company_id; /* that of the lease when the execution was asked for */
	pg_uuid_t environment_id;
	Phase phase;
	bool told;             /* the driver host has it */
	bool accepted;         /* ... and the row says so */
	bool position_unknown; /* it is in the table */
	OutputPosition output;
	bool last_only; /* the driver host was told to keep the last of it only */
	bool check_lease;
	bool to_cancel;
	bool cancelled;      /* the driver host was told */
	char lease_end[128]; /* to_cancel is due to that; "": it is not */
	TimestampTz retry_at;
	json_t *params;      /* to be sent */
	json_t *values;      /* of secrets in the call's params */
	bool values_unknown; /* a predecessor had them */
	json_t *result;
	json_t *error;
	ExecutionEnd *end; /* what is to be written; in its own context */
	MemoryContext end_context;
} Running;

static dlist_head executions = DLIST_STATIC_INIT(executions);
static int nexecutions = 0;
static char host[64] = ""; /* the driver host that they are of; "": none yet */
static bool look = true;
static TimestampTz look_at = DT_NOEND;
/* A pass looks at each unfinished row once, as far as a round goes: first at what runs. */
static bool passing = false;
static bool passed_running;
static TimestampTz pass_time;
static pg_uuid_t pass_id;
static Statement find_companies = {
    COMPANY_TURNS_FIND("envrt.executions", "state = 'queued'"),
    1,
    {UUIDOID},
};
static CompanyTurns turns = {.find = &find_companies};
static bool joining = false; /* who has come is to take part in the pass */
static bool full = false;    /* some are queued for whom there is no room */
/* Somebody has locked what... */
static TimestampTz rows_at = DT_NOBEGIN;   /* everything needs: not before then */
static TimestampTz leases_at = DT_NOBEGIN; /* a look at a lease needs */
static int leases_failures = 0;
static TimestampTz purge_at = DT_NOBEGIN;
static int purge_retention = 0; /* purge_at is by this envrt.execution_retention */

void
running_executions_hinted(const Hints *hints)
{
	dlist_iter iter;

	if (hints->requests || hints->all)
		look = joining = true;
	if (!hints->executions && !hints->all)
		return;
	dlist_foreach(iter, &executions)
	{
		dlist_container(Running, node, iter.cur)->check_lease = true;
	}
}

static Running *
running_executions_find(const pg_uuid_t *id)
{
	dlist_iter iter;

	dlist_foreach(iter, &executions)
	{
		Running *running = dlist_container(Running, node, iter.cur);

		if (memcmp(&running->id, id, UUID_LEN) == 0)
			return running;
	}
	return NULL;
}

/* Backends wake the scheduler for a lease's end only where this is not 0. */
static void
running_executions_publish(SchedulerSlot *slot)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->executions = nexecutions;
	LWLockRelease(shared_state->lock);
}

static Running *
add(SchedulerSlot *slot, const ExecutionRow *row)
{
	Running *running = MemoryContextAllocZero(TopMemoryContext, sizeof(Running));

	running->id = row->id;
	running->lease_id = row->lease_id;
	running->company_id = row->company_id;
	running->environment_id = row->environment_id;
	running->retry_at = DT_NOBEGIN;
	running->check_lease = true;
	running->to_cancel = row->to_cancel;
	dlist_push_tail(&executions, &running->node);
	nexecutions++;
	running_executions_publish(slot);
	return running;
}

static void
drop_answer(Running *running)
{
	json_decref(running->result);
	json_decref(running->error);
	running->result = running->error = NULL;
}

static void
drop(Running *running)
{
	dlist_delete(&running->node);
	nexecutions--;
	drop_answer(running);
	json_decref(running->values);
	json_decref(running->params);
	if (full)
		look = true;
	if (running->end_context != NULL)
		MemoryContextDelete(running->end_context);
	pfree(running);
}

static void
retry_later(Running *running, int64 ms)
{
	running->retry_at = Max(running->retry_at, TimestampTzPlusMilliseconds(timer_now(), ms));
}

/* In PG_CATCH of a transaction on the rows, of which nobody's is to blame. */
static void
rows_failed(const char *activity)
{
	bool locked = geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE;

	ledger_abort(activity);
	rows_at = TimestampTzPlusMilliseconds(timer_now(), locked ? LOCKED_RETRY_MS : RETRY_MS);
}

/* Whether begin_on_all() has raised an error since the shared tables are locked. */
static bool shared_tables_locked = false;

static const char starting[] = "starting an execution";
static const char writing[] = "writing down how an execution goes on";

/* In PG_CATCH of a transaction on one execution's rows: the others go on. */
static void
row_failed(Running *running)
{
	if (execution_rows_were_locked())
		rows_failed(writing);
	else
		running->retry_at = failure_caught(writing, &running->id);
}

/*
 * The end
 */

/* Note how it ended; written by write_end() as soon as that is possible. */
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

static void
set_lost(Running *running, const char *message)
{
	ExecutionEnd *end = set_end(running, "lost");

	end->message = end_text(running, message);
}

/* By whoever wanted it, or by its lease's end, which is said. */
static void
set_cancelled(Running *running)
{
	ExecutionEnd *end = set_end(running, "cancelled");

	if (running->lease_end[0] == '\0')
		return;
	end->sqlstate = MemoryContextStrdup(running->end_context, "57014");
	end->message = MemoryContextStrdup(running->end_context, running->lease_end);
}

/* The driver host's error as an end. */
static void
set_error_end(Running *running, const json_t *error)
{
	const json_t *data = json_object_get(error, "data");
	const char *message = json_string_value(json_object_get(error, "message"));
	const char *outcome = json_string_value(json_object_get(data, "outcome"));
	const char *sqlstate = json_string_value(json_object_get(data, "sqlstate"));
	ExecutionEnd *end;

	if (running->to_cancel)
	{
		set_cancelled(running);
		return;
	}
	/* The connection to its host went while it ran. */
	if (outcome != NULL && strcmp(outcome, "unknown") == 0 && sqlstate != NULL &&
	    strcmp(sqlstate, "08006") == 0)
	{
		set_lost(running, message);
		return;
	}
	end = set_end(running, "failed");
	end->sqlstate = end_text(running, sqlstate);
	end->message = end_text(running, message != NULL ? message : "the driver failed");
	end->detail = end_text(running, json_string_value(json_object_get(data, "detail")));
	end->hint = end_text(running, json_string_value(json_object_get(data, "hint")));
}

/* An ERROR of ours as an end, unless it is one that passes; the transaction is over afterwards. */
static void
set_caught_end(Running *running, MemoryContext context)
{
	ErrorData *error;

	MemoryContextSwitchTo(context);
	HOLD_INTERRUPTS();
	error = CopyErrorData();
	FlushErrorState();
	AbortCurrentTransaction();
	RESUME_INTERRUPTS();
	MemoryContextSwitchTo(context);
	if (execution_rows_were_locked() || shared_tables_locked)
		leases_at = TimestampTzPlusMilliseconds(timer_now(), LOCKED_RETRY_MS);
	else if (error_is_passing(error))
		running->retry_at = failure_noted(starting, &running->id, error);
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

static void
nothing_answered(void *data, const DriverAnswer *answer)
{
	(void) data;
	(void) answer;
}

static json_t *
id_params(const Running *running)
{
	json_t *params = json_object_new();

	json_object_set_new(params, "executionId", json_string(uuid_text(&running->id)));
	return params;
}

/* False when it has to be tried again. */
static bool
write_end(Running *running)
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
			failure_over(writing, &running->id);
	}
	PG_CATCH();
	{
		row_failed(running);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return written;
}

/*
 * Calls
 */

static void
answered(void *data, const DriverAnswer *answer)
{
	Running *running = data;

	if (answer->result == NULL && answer->error == NULL)
	{
		/* Its driver host is there still, or not: that is seen when there is one again. */
		running->phase = running->phase == PHASE_STARTING ? PHASE_START : PHASE_READ;
		return;
	}
	running->result = json_incref(unconstify(json_t *, answer->result));
	running->error = json_incref(unconstify(json_t *, answer->error));
	if (running->phase == PHASE_STARTING)
		config_mask_secrets(running->error, running->values);
	running->phase =
	    running->phase == PHASE_STARTING && running->error == NULL ? PHASE_READ : PHASE_ANSWERED;
	if (running->phase == PHASE_READ)
	{
		running->told = true;
		drop_answer(running);
	}
}

/* Take every lock on the shared tables that it needs to say what is to be run; false: locked. */
static bool
lock_shared_tables(void)
{
	static const SharedTable tables[] = {
	    TABLE_ENVIRONMENT_LEASES,      TABLE_ENVIRONMENTS, TABLE_COMPANIES, TABLE_COMPANY_SECRETS,
	    TABLE_COMPANY_SECRET_VERSIONS, TABLE_PLUGINS};

	for (int i = 0; i < (int) lengthof(tables); i++)
		if (!ConditionalLockRelationOid(shared_table_oid(tables[i]), AccessShareLock))
			return false;
	return true;
}

/* A transaction on the rows and, as their owner, on the shared tables; ERROR 55P03 when locked. */
static void
begin_on_all(ApiCall *call)
{
	shared_tables_locked = false;
	owner_begin(call);
	execution_rows_lock();
	shared_tables_locked = true;
	if (!lock_shared_tables())
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
		                errmsg("somebody has what is needed locked")));
	shared_tables_locked = false;
}

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
	started = execution_row_start(&running->id, host);
	api_leave(&ledger);
	return started;
}

/*
 * As the direct call loads it.  What the caller may see was looked at when the execution was asked
 * for, for that very company and environment.
 */
static void
load_lease(const ApiCall *call, const Running *running, CalledLease *lease)
{
	called_lease_load(call, &running->lease_id, lease);
	called_lease_require_same(lease, &running->company_id, &running->environment_id);
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
	begin_on_all(&call);
	if (load_command(running, &command))
	{
		json_t *params;

		load_lease(&call, running, &lease);
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
	if (!driver_client_call("envrt/executionStart", running->params, START_MS, answered, running))
		running->phase = PHASE_START;
	running->params = NULL;
}

/*
 * Starts one, or has it end with what is wrong; false: a lock is in the way, of the tables
 * (rows_at or leases_at say so) or of its row.
 */
static bool
running_executions_start(Running *running, bool queued)
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
		set_caught_end(running, context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (running->params != NULL)
	{
		failure_over(starting, &running->id);
		tell(running);
	}
	else if (running->end == NULL && !queued && leases_at <= timer_now() &&
	         running->retry_at <= timer_now())
	{
		/* Somebody has deleted its row; what may have been begun is not wanted. */
		running->to_cancel = true;
		set_lost(running, "It is not in the table any more.");
	}
	return running->phase == PHASE_STARTING || running->end != NULL;
}

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

		begin_on_all(&call);
		load_lease(&call, running, &lease);
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
			retry_later(running, LOCKED_RETRY_MS);
		else if (running->to_cancel)
			set_cancelled(running);
		else
			set_lost(running, "Its driver has answered, and the secrets that are to be kept out of "
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

static void
read_on(Running *running)
{
	json_t *params = id_params(running);

	json_object_set_new(params, "after", json_integer(running->output.position));
	json_object_set_new(params, "waitMs", json_integer(READ_WAIT_MS));
	if (running->output.size >= most_at_first())
		running->last_only = true;
	if (running->last_only)
		json_object_set_new(params, "keepLast", json_integer(most_at_last()));
	running->phase = PHASE_READING;
	if (!driver_client_call("envrt/executionRead", params, READ_MS, answered, running))
		running->phase = PHASE_READ;
}

/* The row is to say that the driver host has it; if it can't now, then before the next read. */
static void
accept(Running *running)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		ApiCall call;

		execution_rows_begin(&call);
		running->accepted = execution_row_accepted(&running->id);
		ledger_commit(&call, false);
		failure_over(writing, &running->id);
	}
	PG_CATCH();
	{
		row_failed(running);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

static void
find_position(Running *running)
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
		row_failed(running);
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
		failure_over(writing, &running->id);
	}
	PG_CATCH();
	{
		row_failed(running);
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

/* Whether a driver has put something into words: of the command's own streams it knows bytes only.
 */
static bool
has_words(json_t *json)
{
	const char *key;
	json_t *value;
	size_t i;
	bool found = json_is_string(json);

	if (json_is_array(json))
		json_array_foreach(json, i, value) found = found || has_words(value);
	else if (json_is_object(json))
		json_object_foreach(json, key, value) found =
		    found || (strcmp(key, "dataBase64") != 0 && strcmp(key, "stream") != 0 &&
		              strcmp(key, "signal") != 0 && has_words(value));
	return found;
}

static bool
is_state(const json_t *error, const char *sqlstate)
{
	const char *state =
	    json_string_value(json_object_get(json_object_get(error, "data"), "sqlstate"));

	return state != NULL && strcmp(state, sqlstate) == 0;
}

static void
take_end(Running *running, json_t *end)
{
	json_t *result = json_object_get(end, "result");
	ExecutionEnd *exited;
	ExecuteResult read;
	const char *problem;

	if (json_object_get(end, "error") != NULL)
		set_error_end(running, json_object_get(end, "error"));
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

static void
running_executions_take_answer(Running *running)
{
	json_t *pieces = json_object_get(running->result, "pieces");
	json_t *end = json_object_get(running->result, "end");
	bool all = true;

	if (running->values_unknown && has_words(running->result))
	{
		load_values(running);
		if (running->values_unknown && running->end == NULL)
			return; /* it stays answered */
		if (running->end != NULL)
		{
			running->phase = PHASE_READ;
			drop_answer(running);
			return;
		}
	}
	config_mask_secrets(running->result, running->values);
	running->phase = running->told ? PHASE_READ : PHASE_START;
	/* A driver host that is busy now will be less so. */
	if (running->error != NULL && !running->told && is_state(running->error, "53400"))
		retry_later(running, RETRY_MS);
	else if (running->error != NULL && !running->told)
		set_error_end(running, running->error);
	else if (running->error != NULL && is_state(running->error, "42704"))
		set_lost(running, "The driver host does not know it any more.");
	else if (running->error != NULL)
		retry_later(running, RETRY_MS);
	else if (json_array_size(pieces) > 0 && !keep_output(running, pieces, &all))
		retry_later(running, LOCKED_RETRY_MS);
	else if (all && json_is_object(end))
		take_end(running, end);
	if (running->end == NULL || running->end->result == NULL)
		drop_answer(running);
}

/*
 * Leases and cancels
 */

/* The lease has the status, NULL: is not there any more.  Notes its end. */
static void
note_lease(Running *running, const char *status)
{
	if (running->to_cancel || (status != NULL && strcmp(status, "active") == 0))
		return;
	running->to_cancel = true;
	if (status == NULL)
		snprintf(running->lease_end, sizeof(running->lease_end),
		         "Lease \"%s\" is not in the table any more.", uuid_text(&running->lease_id));
	else if (strcmp(status, "expired") == 0)
		snprintf(running->lease_end, sizeof(running->lease_end), "Lease \"%s\" has expired.",
		         uuid_text(&running->lease_id));
	else
		snprintf(running->lease_end, sizeof(running->lease_end),
		         "Lease \"%s\" has ended (status: %.20s).", uuid_text(&running->lease_id), status);
}

/* False: not now, leases_at says when.  Nothing else waits for that. */
static bool
check_lease(Running *running)
{
	static Statement find_lease = {
	    "SELECT status FROM @environment_leases@ WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = false;

	if (leases_at > timer_now())
		return false;
	PG_TRY();
	{
		ApiCall call;
		Datum values[1] = {UUIDPGetDatum(&running->lease_id)};
		int found = 0;

		ledger_begin(&call);
		done = statement_try_read(TABLE_ENVIRONMENT_LEASES, &find_lease, values, NULL, &found);
		if (done)
			note_lease(running, found > 0 ? result_text(0, 1) : NULL);
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("looking at the lease of an execution");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (done)
	{
		running->check_lease = false;
		leases_failures = 0;
		return true;
	}
	/* A lock is soon gone; what a person has to mend need not be said each second. */
	leases_at =
	    TimestampTzPlusMilliseconds(timer_now(), LOCKED_RETRY_MS << Min(leases_failures, 8));
	leases_failures++;
	return false;
}

static void
cancel(Running *running)
{
	running->cancelled = driver_client_call("envrt/executionCancel", id_params(running), CANCEL_MS,
	                                        nothing_answered, NULL);
}

/* Writes down how it ended; the driver host can forget it, whatever it knew of it. */
static void
running_executions_finish(Running *running)
{
	if (!write_end(running))
	{
		retry_later(running, LOCKED_RETRY_MS);
		return;
	}
	if (running->to_cancel && !running->cancelled)
		cancel(running);
	(void) driver_client_call("envrt/executionForget", id_params(running), CANCEL_MS,
	                          nothing_answered, NULL);
	drop(running);
	if (purge_at == DT_NOEND)
		purge_at = DT_NOBEGIN;
	ConditionVariableBroadcast(&shared_state->leases_changed);
}

static bool
is_in_flight(const Running *running)
{
	return running->phase == PHASE_STARTING || running->phase == PHASE_READING;
}

/* Goes on with one execution, as far as that can be done without waiting. */
static void
advance(Running *running)
{
	/* First: what its driver answers may be due to the lease's end. */
	if (running->end == NULL && running->check_lease)
		(void) check_lease(running);
	if (running->phase == PHASE_ANSWERED && running->end == NULL)
		running_executions_take_answer(running);
	if (running->end == NULL && running->phase == PHASE_START && running->to_cancel &&
	    !running->told)
		set_cancelled(running);
	if (running->end != NULL && !is_in_flight(running))
	{
		running_executions_finish(running);
		return;
	}
	/* Before it has said who it is, a driver host may be another one. */
	if (running->end != NULL || driver_client_instance() == NULL)
		return;
	if (running->to_cancel && !running->cancelled && running->phase != PHASE_START)
		cancel(running);
	if (running->phase == PHASE_START)
	{
		if (leases_at <= timer_now() && !running_executions_start(running, false))
			retry_later(running, LOCKED_RETRY_MS);
	}
	else if (running->phase == PHASE_READ && running->retry_at == DT_NOBEGIN)
	{
		if (!running->accepted)
			accept(running);
		if (running->position_unknown)
			find_position(running);
		if (!running->position_unknown)
			read_on(running);
	}
}

/*
 * New ones
 */

static void
running_executions_look_later(int64 ms)
{
	look_at = Min(look_at, TimestampTzPlusMilliseconds(timer_now(), ms));
}

/* Whether its start has failed a short while ago. */
static bool
running_executions_is_put_off(const pg_uuid_t *id)
{
	TimestampTz retry_at;

	if (!failure_holds(starting, id, &retry_at))
		return false;
	look_at = Min(look_at, retry_at);
	return true;
}

typedef enum Taken
{
	TAKEN,
	STARTED,
	NOT_NOW,  /* its row is locked */
	NONE_NOW, /* what all of them need is locked */
} Taken;

/* Take a queued execution into the list by starting it. */
static Taken
take_queued(Running *running)
{
	Taken taken = STARTED;

	if (!check_lease(running))
		taken = NONE_NOW;
	else if (running->to_cancel)
		set_cancelled(running);
	else if (!running_executions_start(running, true))
		taken = leases_at > timer_now() ? NONE_NOW : NOT_NOW;
	/* Not begun: the row says it all, next time. */
	if (running->phase == PHASE_START && running->end == NULL && taken != STARTED)
	{
		bool put_off = running_executions_is_put_off(&running->id);

		drop(running);
		if (!put_off)
			running_executions_look_later(LOCKED_RETRY_MS);
	}
	return taken;
}

/* Take an execution into the list, as its row says how far it is. */
static Taken
take_row(SchedulerSlot *slot, const ExecutionRow *row)
{
	Running *running;

	if (!row->running && running_executions_is_put_off(&row->id))
		return NOT_NOW;
	running = add(slot, row);
	if (!row->own)
		set_lost(running, "It was started on another server, or before a promotion.");
	else if (row->running && (row->host_instance == NULL || strcmp(row->host_instance, host) != 0))
		set_lost(running, "The driver host that ran it has ended.");
	else if (row->running)
	{
		/* A predecessor may have kept output though it could not write down the start. */
		running->told = running->accepted = row->accepted;
		running->phase = row->accepted ? PHASE_READ : PHASE_START;
		running->position_unknown = true;
		running->values_unknown = true;
	}
	else
		return take_queued(running);
	return TAKEN;
}

/* Cancels are seen whatever else waits. */
static void
look_at_cancels(void)
{
	pg_uuid_t *ids;
	int count;

	ids = execution_rows_to_cancel(&count);
	for (int i = 0; i < count; i++)
	{
		Running *running = running_executions_find(&ids[i]);

		if (running != NULL)
			running->to_cancel = true;
	}
}

/* In a transaction of its own: a trigger on one of the rows may raise an error. */
static void
end_cancelled(void)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		ApiCall call;

		execution_rows_begin(&call);
		execution_rows_cancel_queued();
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("ending queued executions that were cancelled");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* The next page of what runs, or of a company's that are queued; NULL: not now. */
static ExecutionRow *
running_executions_read_page(const CompanyTurn *turn, int *count)
{
	MemoryContext context = CurrentMemoryContext;
	ExecutionRow *volatile rows = NULL;

	if (turn == NULL && pass_time == DT_NOBEGIN)
		end_cancelled();
	PG_TRY();
	{
		ApiCall call;

		execution_rows_begin(&call);
		if (turn == NULL && pass_time == DT_NOBEGIN)
			look_at_cancels();
		rows = turn != NULL ? execution_rows_queued(context, turn, count)
		                    : execution_rows_running(context, pass_time, &pass_id, count);
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		rows = NULL;
		rows_failed("looking for executions");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return rows;
}

/* Who has queued executions; false: not now. */
static bool
running_executions_list_companies(bool begin)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool listed = false;

	PG_TRY();
	{
		ApiCall call;

		execution_rows_begin(&call);
		if (begin)
			company_turns_begin(&turns);
		else
			company_turns_join(&turns);
		ledger_commit(&call, false);
		listed = true;
	}
	PG_CATCH();
	{
		rows_failed("looking for executions");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return listed;
}

/* A round's part of what runs and is not in the list: a predecessor had it.  False: it is not over.
 */
static bool
pass_running(SchedulerSlot *slot)
{
	int count;
	ExecutionRow *rows = running_executions_read_page(NULL, &count);

	if (rows == NULL)
		return false;
	for (int i = 0; i < count; i++)
	{
		if (running_executions_find(&rows[i].id) == NULL)
			(void) take_row(slot, &rows[i]);
		pass_time = rows[i].created_at;
		pass_id = rows[i].id;
	}
	return count < EXECUTION_PAGE && running_executions_list_companies(true);
}

/* The next one that is queued, in `*row`; NULL: none (rows_at says whether that is for now only).
 */
static CompanyTurn *
next_queued(const ExecutionRow **row)
{
	CompanyTurn *turn;

	while ((turn = company_turns_next(&turns)) != NULL)
	{
		if (!fair_share_allows(turn->serving, nexecutions, MAX_RUNNING))
			full = turn->over = true;
		else if (turn->page_next == turn->page_length)
		{
			turn->page = running_executions_read_page(turn, &turn->page_length);
			turn->page_next = 0;
			if (turn->page == NULL)
			{
				turn->page_length = 0;
				return NULL;
			}
			turn->over = turn->page_length == 0;
		}
		else
		{
			*row = (const ExecutionRow *) turn->page + turn->page_next++;
			return turn;
		}
	}
	passing = false;
	return NULL;
}

/* A round's part of the pass. */
static void
running_executions_pass_on(SchedulerSlot *slot)
{
	const ExecutionRow *row;
	CompanyTurn *turn;
	dlist_iter iter;
	int started = 0;
	int tried = 0;

	if (!passed_running && !(passed_running = pass_running(slot)))
		return;
	if (joining && !running_executions_list_companies(false))
		return;
	joining = false;
	company_turns_round(&turns);
	dlist_foreach(iter, &executions)
	{
		company_turns_count(&turns, &dlist_container(Running, node, iter.cur)->company_id);
	}
	while (started < MAX_STARTS && tried < MAX_TRIES && (turn = next_queued(&row)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (running_executions_find(&row->id) == NULL)
		{
			int before = nexecutions;
			Taken taken = take_row(slot, row);

			if (taken == NONE_NOW)
			{
				passing = false;
				return;
			}
			turn->serving += nexecutions - before;
			started += taken == STARTED;
			tried += taken == NOT_NOW;
		}
		turn->at = row->created_at;
		turn->at_id = row->id;
	}
}

/* Another driver host, or none: what the old one ran is lost with it. */
static void
notice_host(void)
{
	const char *name = driver_client_instance();
	dlist_iter iter;

	if (name == NULL || strcmp(name, host) == 0)
		return;
	if (host[0] != '\0')
	{
		dlist_foreach(iter, &executions)
		{
			Running *running = dlist_container(Running, node, iter.cur);

			if (running->end == NULL)
				set_lost(running, "The driver host that ran it has ended.");
		}
	}
	strlcpy(host, name, sizeof(host));
	look = true;
}

static void
purge(void)
{
	static int most = PURGE_EXECUTIONS;
	MemoryContext context = CurrentMemoryContext;

	purge_retention = envrt_execution_retention;
	PG_TRY();
	{
		ApiCall call;
		TimestampTz next;

		execution_rows_begin(&call);
		next = execution_rows_purge(most);
		ledger_commit(&call, false);
		purge_at = next;
		most = Min(2 * most, PURGE_EXECUTIONS);
	}
	PG_CATCH();
	{
		/* Those before it in the batch are for the next one, without it. */
		most = 1;
		purge_at = execution_rows_purge_failed();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* When to come again for one; what waits for an answer comes by itself. */
static TimestampTz
next_of(const Running *running, TimestampTz now)
{
	TimestampTz next = DT_NOEND;

	if (running->retry_at != DT_NOBEGIN)
		next = running->retry_at;
	else if (driver_client_instance() != NULL && !is_in_flight(running))
		next = running->phase == PHASE_START ? Max(now, leases_at) : now;
	if (running->check_lease)
		next = Min(next, Max(now, leases_at));
	return next;
}

TimestampTz
running_executions_tend(SchedulerSlot *slot)
{
	MemoryContext context;
	MemoryContext previous;
	TimestampTz now = timer_now();
	TimestampTz next;
	dlist_mutable_iter iter;
	int before = nexecutions;
	/* Without a driver host nothing is begun, and what runs is not judged. */
	bool is_connected;
	bool is_due;

	notice_host();
	if (rows_at > now)
		return rows_at;
	is_connected = driver_client_instance() != NULL;
	is_due = is_connected && (look || look_at <= now || passing);
	if (purge_retention != envrt_execution_retention)
		purge_at = DT_NOBEGIN;
	if (nexecutions == 0 && !is_due && purge_at > now)
		return is_connected ? Min(look_at, purge_at) : purge_at;
	context = AllocSetContextCreate(TopMemoryContext, "envrt executions", ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(context);
	if (is_due && !passing)
	{
		look = full = false;
		look_at = DT_NOEND;
		joining = false;
		passing = true;
		passed_running = false;
		pass_time = DT_NOBEGIN;
		memset(&pass_id, 0, sizeof(pass_id));
	}
	if (is_due)
	{
		running_executions_pass_on(slot);
		ConditionVariableBroadcast(&shared_state->leases_changed);
	}
	dlist_foreach_modify(iter, &executions)
	{
		Running *running = dlist_container(Running, node, iter.cur);

		CHECK_FOR_INTERRUPTS();
		if (rows_at > now)
			break;
		if (running->end == NULL && running->check_lease)
			(void) check_lease(running);
		/* A cancel does not wait for what was put off. */
		if (running->retry_at > now &&
		    !(running->to_cancel && !running->cancelled && running->told))
			continue;
		running->retry_at = DT_NOBEGIN;
		advance(running);
	}
	if (purge_at <= now && rows_at <= now)
		purge();
	if (nexecutions != before)
		running_executions_publish(slot);
	next = Max(purge_at, rows_at);
	if (is_connected)
		next = Min(next, look || passing ? now : look_at);
	dlist_foreach_modify(iter, &executions)
	{
		next = Min(next, next_of(dlist_container(Running, node, iter.cur), now));
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return Max(next, rows_at);
}
