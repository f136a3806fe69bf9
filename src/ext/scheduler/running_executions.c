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

#include "hostlink/async_calls.h"
#include "shared/fair_share.h"
#include "ledger/failures.h"
#include "ledger/ledger.h"
#include "scheduler/running_executions.h"
#include "base/settings.h"
#include "base/timer.h"
#include "utils/timestamp.h"
#include "scheduler/execution_outcome.h"
#include "scheduler/execution_start.h"
#include "scheduler/execution_reading.h"
#include "scheduler/execution_calls.h"

#define CANCEL_MS 30000

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

static dlist_head executions = DLIST_STATIC_INIT(executions);
static int nexecutions = 0;
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
drop(Running *running)
{
	dlist_delete(&running->node);
	nexecutions--;
	running_execution_drop_answer(running);
	json_decref(running->values);
	json_decref(running->params);
	if (full)
		look = true;
	if (running->end_context != NULL)
		MemoryContextDelete(running->end_context);
	pfree(running);
}

/*
 * The end
 */

/*
 * Calls
 */

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

/* False: not now, executions_leases_at says when.  Nothing else waits for that. */
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

	if (executions_leases_at > timer_now())
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
	executions_leases_at =
	    TimestampTzPlusMilliseconds(timer_now(), LOCKED_RETRY_MS << Min(leases_failures, 8));
	leases_failures++;
	return false;
}

static void
cancel(Running *running)
{
	running->cancelled = driver_client_call("envrt/executionCancel", execution_id_params(running),
	                                        CANCEL_MS, execution_nothing_answered, NULL);
}

/* Writes down how it ended; the driver host can forget it, whatever it knew of it. */
static void
running_executions_finish(Running *running)
{
	if (!execution_write_end(running))
	{
		running_execution_retry_later(running, LOCKED_RETRY_MS);
		return;
	}
	if (running->to_cancel && !running->cancelled)
		cancel(running);
	(void) driver_client_call("envrt/executionForget", execution_id_params(running), CANCEL_MS,
	                          execution_nothing_answered, NULL);
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
		execution_take_answer(running);
	if (running->end == NULL && running->phase == PHASE_START && running->to_cancel &&
	    !running->told)
		execution_set_cancelled(running);
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
		if (executions_leases_at <= timer_now() && !execution_start(running, false))
			running_execution_retry_later(running, LOCKED_RETRY_MS);
	}
	else if (running->phase == PHASE_READ && running->retry_at == DT_NOBEGIN)
	{
		if (!running->accepted)
			execution_note_accepted(running);
		if (running->position_unknown)
			execution_find_position(running);
		if (!running->position_unknown)
			execution_read_on(running);
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

	if (!failure_holds(execution_starting, id, &retry_at))
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
		execution_set_cancelled(running);
	else if (!execution_start(running, true))
		taken = executions_leases_at > timer_now() ? NONE_NOW : NOT_NOW;
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
		execution_set_lost(running, "It was started on another server, or before a promotion.");
	else if (row->running &&
	         (row->host_instance == NULL || strcmp(row->host_instance, executions_host) != 0))
		execution_set_lost(running, "The driver host that ran it has ended.");
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
		running_execution_rows_failed("looking for executions");
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
		running_execution_rows_failed("looking for executions");
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

/*
 * The next one that is queued, in `*row`; NULL: none (executions_rows_at says whether that is
 * for now only).
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

	if (name == NULL || strcmp(name, executions_host) == 0)
		return;
	if (executions_host[0] != '\0')
	{
		dlist_foreach(iter, &executions)
		{
			Running *running = dlist_container(Running, node, iter.cur);

			if (running->end == NULL)
				execution_set_lost(running, "The driver host that ran it has ended.");
		}
	}
	strlcpy(executions_host, name, sizeof(executions_host));
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
		next = running->phase == PHASE_START ? Max(now, executions_leases_at) : now;
	if (running->check_lease)
		next = Min(next, Max(now, executions_leases_at));
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
	if (executions_rows_at > now)
		return executions_rows_at;
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
		if (executions_rows_at > now)
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
	if (purge_at <= now && executions_rows_at <= now)
		purge();
	if (nexecutions != before)
		running_executions_publish(slot);
	next = Max(purge_at, executions_rows_at);
	if (is_connected)
		next = Min(next, look || passing ? now : look_at);
	dlist_foreach_modify(iter, &executions)
	{
		next = Min(next, next_of(dlist_container(Running, node, iter.cur), now));
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return Max(next, executions_rows_at);
}
