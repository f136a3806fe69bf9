/*
 * running_executions.c
 *		Executions as the scheduler looks after them.
 *
 * The command runs in the driver host, which keeps what it writes until the
 * scheduler has it in the table (src/host/long_execution.c).  So it outlives
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
 * No transaction is open while the driver host is awaited.  One is lost whose
 * driver host is not the one that is there now, or does not know it: another
 * driver host never runs it again.
 *
 * An execution is cancelled when its row says so (envrt_cancel_execution) and
 * when its lease has ended: looked at when leases end (envrt.on_command_lease_end),
 * and once it is in the list, so that an end in between is not missed.
 *
 * Commands are asked for with the rights of the shared tables' owner, in a
 * restricted operation: whether the one who asked may was decided then.
 */
#include "postgres.h"

#include "access/xact.h"
#include "arguments.h"
#include "catalog/pg_type.h"
#include "commands.h"
#include "config_secrets.h"
#include "driver_client.h"
#include "execution_rows.h"
#include "fault_points.h"
#include "json.h"
#include "ledger.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "provider_lease.h"
#include "running_executions.h"
#include "settings.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Each takes two of the driver host's calls, and others want some, too. */
#define MAX_RUNNING Max(envrt_max_calls / 4, 1)
/* Each is a durable commit; then others have their turn. */
#define MAX_STARTS 16
#define RETRY_MS 1000
#define LOCKED_RETRY_MS 200
#define START_MS 30000
#define READ_WAIT_MS 60000
#define READ_MS (READ_WAIT_MS + 30000)
#define CANCEL_MS 30000

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
	Phase phase;
	bool told;             /* the driver host has it */
	bool accepted;         /* ... and the row says so */
	bool position_unknown; /* it is in the table */
	int64 position;
	int64 bytes;
	bool check_lease;
	bool to_cancel;
	bool cancelled; /* the driver host was told */
	TimestampTz retry_at;
	json_t *values; /* of secrets in the call's params */
	json_t *result;
	json_t *error;
	ExecutionEnd *end; /* what is to be written; in its own context */
	MemoryContext end_context;
} Running;

static dlist_head executions = DLIST_STATIC_INIT(executions);
static int nexecutions = 0;
static char host[64] = ""; /* the driver host that they are of; "": none yet */
static bool look = true;
static int nstarted = 0;  /* in this look */
static bool full = false; /* some are queued for whom there is no room */
static TimestampTz look_at = DT_NOEND;
static TimestampTz purge_at = DT_NOBEGIN;
static int purge_retention = 0; /* purge_at is by this envrt.execution_retention */

void
running_executions_hinted(const Hints *hints)
{
	dlist_iter iter;

	if (hints->requests || hints->all)
		look = true;
	if (!hints->executions && !hints->all)
		return;
	dlist_foreach(iter, &executions)
	{
		dlist_container(Running, node, iter.cur)->check_lease = true;
	}
}

static Running *
find(const pg_uuid_t *id)
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
publish(SchedulerSlot *slot)
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
	running->retry_at = DT_NOBEGIN;
	running->check_lease = true;
	running->to_cancel = row->to_cancel;
	dlist_push_tail(&executions, &running->node);
	nexecutions++;
	publish(slot);
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
	if (full)
		look = true;
	if (running->end_context != NULL)
		MemoryContextDelete(running->end_context);
	pfree(running);
}

static void
retry_later(Running *running, int64 ms)
{
	running->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
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

/* The driver host's error as an end. */
static void
set_error_end(Running *running, const json_t *error)
{
	const json_t *data = json_object_get(error, "data");
	const char *message = json_string_value(json_object_get(error, "message"));
	ExecutionEnd *end;

	if (running->to_cancel)
	{
		end = set_end(running, "cancelled");
		return;
	}
	end = set_end(running, "failed");
	end->sqlstate = end_text(running, json_string_value(json_object_get(data, "sqlstate")));
	end->message = end_text(running, message != NULL ? message : "the driver failed");
	end->detail = end_text(running, json_string_value(json_object_get(data, "detail")));
	end->hint = end_text(running, json_string_value(json_object_get(data, "hint")));
}

/* Whether the same may work in a moment. */
static bool
is_passing(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
	       error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED ||
	       error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE;
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
	if (!is_passing(error))
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

		ledger_begin(&call);
		written = execution_row_end(&running->id, running->end);
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("writing down how an execution ended");
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
	config_mask_secrets(running->error, running->values);
	running->phase =
	    running->phase == PHASE_STARTING && running->error == NULL ? PHASE_READ : PHASE_ANSWERED;
	if (running->phase == PHASE_READ)
	{
		running->told = true;
		drop_answer(running);
	}
}

static void
begin_owner(ApiCall *call)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	owner_enter(call, SECURITY_RESTRICTED_OPERATION);
}

/*
 * Everything that the driver host is told (a new reference), and its row
 * running; NULL: it is no more, or locked.
 */
static json_t *
prepare(Running *running, bool queued)
{
	ApiCall call;
	ApiCall ledger;
	CalledLease lease;
	Command command;
	int64 timeout_ms;
	json_t *params = NULL;
	bool found;

	begin_owner(&call);
	ledger_enter(&ledger);
	found = execution_row_command(&running->id, &command);
	if (found)
	{
		/* The row is read with one role's rights and used with another's. */
		MemoryContext previous = MemoryContextSwitchTo(CurTransactionContext);

		command.command = DatumGetTextPCopy(PointerGetDatum(command.command));
		command.args = DatumGetArrayTypePCopy(PointerGetDatum(command.args));
		command.env = DatumGetJsonbPCopy(PointerGetDatum(command.env));
		if (command.cwd != NULL)
			command.cwd = DatumGetTextPCopy(PointerGetDatum(command.cwd));
		if (command.stdin_bytes != NULL)
			command.stdin_bytes = DatumGetByteaPCopy(PointerGetDatum(command.stdin_bytes));
		MemoryContextSwitchTo(previous);
	}
	api_leave(&ledger);
	if (found)
	{
		json_t *values;

		called_lease_load(&call, &running->lease_id, &lease);
		params = command_params(&call, &lease, &command, EXECUTION_MS, &timeout_ms);
		values = provider_take_secrets(params);
		json_decref(running->values);
		running->values = values;
		json_object_set_new(params, "executionId", json_string(uuid_text(&running->id)));
		json_incref(params);
		if (queued)
		{
			ledger_enter(&ledger);
			if (!execution_row_start(&running->id, host))
			{
				json_decref(params);
				params = NULL;
			}
			api_leave(&ledger);
		}
	}
	api_leave(&call);
	PopActiveSnapshot();
	commit_durably();
	MemoryContextSwitchTo(TopMemoryContext);
	return params;
}

static void
start(Running *running, bool queued)
{
	MemoryContext context = CurrentMemoryContext;
	json_t *volatile params = NULL;

	PG_TRY();
	{
		params = prepare(running, queued);
		/* Somebody has deleted its row. */
		if (params == NULL && !queued)
			set_lost(running, "It is not in the table any more.");
	}
	PG_CATCH();
	{
		set_caught_end(running, context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (params == NULL)
	{
		retry_later(running, LOCKED_RETRY_MS);
		return;
	}
	FAULT_POINT("execution-before-start");
	running->phase = PHASE_STARTING;
	if (!driver_client_call("envrt/executionStart", params, START_MS, answered, running))
		running->phase = PHASE_START;
}

static void
read_on(Running *running)
{
	json_t *params = id_params(running);

	json_object_set_new(params, "after", json_integer(running->position));
	json_object_set_new(params, "waitMs", json_integer(READ_WAIT_MS));
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

		ledger_begin(&call);
		running->accepted = execution_row_accepted(&running->id);
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("writing down that an execution has started");
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
		int64 position;
		int64 bytes;

		ledger_begin(&call);
		execution_output_position(&running->id, &position, &bytes);
		ledger_commit(&call, false);
		running->position = position;
		running->bytes = bytes;
		running->position_unknown = false;
	}
	PG_CATCH();
	{
		ledger_abort("looking for the output of an execution");
		retry_later(running, RETRY_MS);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* Keep what has been read; false when it has to be read again. */
static bool
keep_output(Running *running, const json_t *pieces)
{
	MemoryContext context = CurrentMemoryContext;
	int64 position = running->position;
	int64 bytes = running->bytes;
	volatile bool kept = false;

	PG_TRY();
	{
		ApiCall call;

		ledger_begin(&call);
		execution_output_insert(&running->id, pieces, &position, &bytes,
		                        (int64) envrt_max_execution_output * 1024);
		ledger_commit(&call, false);
		kept = true;
	}
	PG_CATCH();
	{
		ledger_abort("keeping the output of an execution");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (kept)
	{
		running->position = position;
		running->bytes = bytes;
		ConditionVariableBroadcast(&shared_state->leases_changed);
	}
	return kept;
}

static void
take_answer(Running *running)
{
	const json_t *pieces = json_object_get(running->result, "pieces");
	json_t *end = json_object_get(running->result, "end");
	const char *state =
	    json_string_value(json_object_get(json_object_get(running->error, "data"), "sqlstate"));

	running->phase = PHASE_READ;
	if (running->error != NULL && !running->told)
		set_error_end(running, running->error);
	else if (running->error != NULL && state != NULL && strcmp(state, "42704") == 0)
		set_lost(running, "The driver host does not know it any more.");
	else if (running->error != NULL)
		retry_later(running, RETRY_MS);
	else if (json_array_size(pieces) > 0 && !keep_output(running, pieces))
		retry_later(running, RETRY_MS);
	else if (json_is_object(end))
	{
		if (json_object_get(end, "error") != NULL)
		{
			config_mask_secrets(json_object_get(end, "error"), running->values);
			set_error_end(running, json_object_get(end, "error"));
		}
		else
		{
			ExecutionEnd *exited = set_end(running, "exited");

			/* The answer stays until it is written. */
			exited->result = json_object_get(end, "result");
			exited->truncated = running->bytes >= (int64) envrt_max_execution_output * 1024;
			return;
		}
	}
	drop_answer(running);
}

/*
 * Leases and cancels
 */

static void
check_lease(Running *running)
{
	static Statement find_lease = {
	    "SELECT 1 FROM @environment_leases@ WHERE id OPERATOR(pg_catalog.=) $1"
	    " AND status OPERATOR(pg_catalog.=) 'active'",
	    1,
	    {UUIDOID},
	};
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = false;

	PG_TRY();
	{
		ApiCall call;
		Datum values[1] = {UUIDPGetDatum(&running->lease_id)};
		int found = 0;

		ledger_begin(&call);
		done = statement_try_read(TABLE_ENVIRONMENT_LEASES, &find_lease, values, NULL, &found);
		if (done && found == 0)
			running->to_cancel = true;
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("looking at the lease of an execution");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	running->check_lease = !done;
	if (!done)
		retry_later(running, LOCKED_RETRY_MS);
}

static void
cancel(Running *running)
{
	running->cancelled = driver_client_call("envrt/executionCancel", id_params(running), CANCEL_MS,
	                                        nothing_answered, NULL);
}

/* Writes down how it ended; the driver host can forget it, whatever it knew of it. */
static void
finish(Running *running)
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
	if (running->phase == PHASE_ANSWERED && running->end == NULL)
		take_answer(running);
	if (running->end == NULL && running->check_lease)
		check_lease(running);
	if (running->end == NULL && running->phase == PHASE_START && running->to_cancel &&
	    !running->told)
		set_end(running, "cancelled");
	if (running->end != NULL && !is_in_flight(running))
	{
		finish(running);
		return;
	}
	/* Before it has said who it is, a driver host may be another one. */
	if (running->end != NULL || driver_client_instance() == NULL)
		return;
	if (running->to_cancel && !running->cancelled && running->phase != PHASE_START)
		cancel(running);
	if (running->phase == PHASE_START)
		start(running, false);
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
look_later(int64 ms)
{
	look_at = Min(look_at, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms));
}

/* Take an execution into the list, as its row says how far it is. */
static void
take_row(SchedulerSlot *slot, const ExecutionRow *row)
{
	Running *running;

	if (nexecutions >= MAX_RUNNING && !row->running)
	{
		full = true;
		return;
	}
	running = add(slot, row);
	if (!row->own)
		set_lost(running, "It was started on another server, or before a promotion.");
	else if (row->running && (row->host_instance == NULL || strcmp(row->host_instance, host) != 0))
		set_lost(running, "The driver host that ran it has ended.");
	else if (row->running)
	{
		running->told = running->accepted = row->accepted;
		running->phase = row->accepted ? PHASE_READ : PHASE_START;
		running->position_unknown = row->accepted;
	}
	else
	{
		check_lease(running);
		if (running->to_cancel)
			set_end(running, "cancelled");
		else if (!running->check_lease)
		{
			start(running, true);
			nstarted++;
		}
		/* Not begun: the row says it all, next time. */
		if (running->phase == PHASE_START && running->end == NULL)
		{
			drop(running);
			look_later(LOCKED_RETRY_MS);
		}
	}
}

/* Cancels are seen whatever else waits. */
static void
look_at_cancels(void)
{
	pg_uuid_t *ids;
	int count;

	execution_rows_cancel_queued();
	ids = execution_rows_to_cancel(&count);
	for (int i = 0; i < count; i++)
	{
		Running *running = find(&ids[i]);

		if (running != NULL)
			running->to_cancel = true;
	}
}

static void
look_at_rows(SchedulerSlot *slot)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool first = true;
	TimestampTz last_time = DT_NOBEGIN;
	pg_uuid_t last_id = {0};
	volatile bool last = false;

	look = full = false;
	look_at = DT_NOEND;
	nstarted = 0;
	while (!last && !full && nstarted < MAX_STARTS)
	{
		ExecutionRow *volatile rows = NULL;
		volatile int count = 0;

		PG_TRY();
		{
			ApiCall call;
			int found;
			bool all;
			ExecutionRow *read;

			ledger_begin(&call);
			if (first)
				look_at_cancels();
			first = false;
			read = execution_rows_list(context, &last_time, &last_id, &found, &all);
			ledger_commit(&call, false);
			rows = read;
			count = found;
			last = all;
		}
		PG_CATCH();
		{
			ledger_abort("looking for executions");
			look_later(RETRY_MS);
			last = true;
		}
		PG_END_TRY();
		MemoryContextSwitchTo(context);
		for (int i = 0; i < count && nstarted < MAX_STARTS; i++)
		{
			Running *known = find(&rows[i].id);

			CHECK_FOR_INTERRUPTS();
			if (known == NULL)
				take_row(slot, &rows[i]);
			else if (rows[i].to_cancel)
				known->to_cancel = true;
		}
	}
	if (nstarted == MAX_STARTS)
		look = true;
	publish(slot);
	ConditionVariableBroadcast(&shared_state->leases_changed);
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
	MemoryContext context = CurrentMemoryContext;

	purge_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 60 * 1000);
	purge_retention = envrt_execution_retention;
	PG_TRY();
	{
		ApiCall call;
		TimestampTz next;

		ledger_begin(&call);
		next = execution_rows_purge();
		ledger_commit(&call, false);
		purge_at = next;
	}
	PG_CATCH();
	{
		ledger_abort("forgetting old executions");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* When to come again for one; what waits for an answer comes by itself. */
static TimestampTz
next_of(const Running *running, TimestampTz now)
{
	if (running->retry_at != DT_NOBEGIN)
		return running->retry_at;
	if (is_in_flight(running) || driver_client_instance() == NULL)
		return DT_NOEND;
	return now;
}

TimestampTz
running_executions_tend(SchedulerSlot *slot)
{
	MemoryContext context;
	MemoryContext previous;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next;
	dlist_mutable_iter iter;
	int before = nexecutions;
	/* Without a driver host nothing is begun, and what runs is not judged. */
	bool is_connected;
	bool is_due;

	notice_host();
	is_connected = driver_client_instance() != NULL;
	is_due = is_connected && (look || look_at <= now);
	if (purge_retention != envrt_execution_retention)
		purge_at = DT_NOBEGIN;
	if (nexecutions == 0 && !is_due && purge_at > now)
		return is_connected ? Min(look_at, purge_at) : purge_at;
	context = AllocSetContextCreate(TopMemoryContext, "envrt executions", ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(context);
	if (is_due)
		look_at_rows(slot);
	dlist_foreach_modify(iter, &executions)
	{
		Running *running = dlist_container(Running, node, iter.cur);

		CHECK_FOR_INTERRUPTS();
		if (running->retry_at > now)
			continue;
		running->retry_at = DT_NOBEGIN;
		advance(running);
	}
	if (purge_at <= now)
		purge();
	if (nexecutions != before)
		publish(slot);
	next = purge_at;
	if (is_connected)
		next = look ? now : Min(next, look_at);
	dlist_foreach_modify(iter, &executions)
	{
		next = Min(next, next_of(dlist_container(Running, node, iter.cur), now));
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return next;
}
