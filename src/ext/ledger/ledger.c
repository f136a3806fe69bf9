/*
 * ledger.c
 *		The ledger of provider leases: what backends ask the scheduler to write.
 *
 * envrt.provider_leases has a row for each provider lease that may exist.  It
 * is written by the scheduler of its database alone, one process, so what is
 * read here does not change before it is written.  A row's life:
 *
 *		creating -> held -> cleaning -> gone
 *		            held -> cleaning (keep) -> idle -> creating (resumed) -> held
 *		                                       idle -> cleaning -> gone
 *		creating -> cleaning: its transaction has left no lease, what was resumed is
 *			no more, or its name is that of something that is being ended
 *		creating -> gone: the provider has made nothing
 *		cleaning, as a new row: a resume has made something else (LEDGER_STRAY)
 *		cleaning -> unresolved: nobody can say whether it exists
 *		unresolved -> cleaning or gone: somebody has said so
 *
 * A row comes before the provider is called, in a transaction that is durable
 * before the backend goes on; from then on the provider lease can't be
 * forgotten.  What becomes of it is decided in settle.c, once the transaction
 * that wanted it has ended, and done in cleanup.c.
 *
 * A backend's request carries the id of its (sub)transaction, assigned
 * before the request was made.  The scheduler reads all requests that wait
 * and takes its own transaction id afterwards: so every owner in the ledger
 * is older than a durable transaction, and its number is never given out
 * again, after no crash and no promotion.
 *
 * What exists outside is named by its provider, and a provider may give a name
 * again: a sandbox that is called after its environment has the name of the
 * one before.  So rows of one name are one thing (LEDGER_MAKER_OF):
 *
 *		- nothing is told to end while a row that lives has its name; the last
 *		  one that has it ends it (cleanup_choice.c, cleanup_take.c);
 *		- whoever is about to make something waits for the end of what may have
 *		  had the name before; whoever was given the name of something that is
 *		  being ended gives it up, waits, and asks again (learn_row).
 *
 * One process decides both, so there is no moment in between.
 *
 * Rows of another server (instance.c) are left alone, and what they name is too.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "hostlink/async_calls.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "ledger/instance.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "ledger/requests.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/lmgr.h"
#include "base/timer.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"
#include "ledger/in_flight.h"
#include "ledger/settle.h"

/*
 * Somebody may have the ledger locked, with DROP EXTENSION or VACUUM FULL: it
 * is not waited for, but tried again.
 */
#define LOCKED_RETRY_MS 50
#define LOCKED_FOR_MS 5000

/* What a new row has from its request, $5. */
#define INSERT_ROW                                                                                 \
	"INSERT INTO envrt.provider_leases (lease_id, holder_id, system_identifier, database_id, "     \
	"timeline, instance, company_id, environment_id, execution_workspace_id, driver, driver_key, " \
	"plugin_key, lease_policy, config, environment_config, secrets, owner, host_instance)"         \
	" SELECT r.lease_id, r.holder_id, $1, $2, $3, $4, r.company_id, r.environment_id, "            \
	"r.execution_workspace_id, r.driver, r.driver_key, r.plugin_key, r.lease_policy, r.config, "   \
	"r.environment_config, r.secrets, r.owner, $6"                                                 \
	" FROM jsonb_populate_record(NULL::envrt.provider_leases, $5) r"                               \
	" ON CONFLICT DO NOTHING"

/* A statement on own rows with the request's content as $5, and what it means when it finds none.
 */
static int
execute_for(LedgerRequest *request, Statement *statement, LedgerOutcome otherwise)
{
	Datum values[5];
	int count;

	ledger_own_arguments(values);
	values[4] = JsonbPGetDatum(request->content);
	count = statement_execute(statement, values, NULL);

	request->reply.outcome = count > 0 ? LEDGER_DONE : otherwise;
	request->reply.count = count;
	return count;
}

/* The request's lease, as holder or as key, and of the company that it may name. */
#define OF_LEASE                                                                                   \
	" jsonb_populate_record(NULL::envrt.provider_leases, $5) r"                                    \
	" WHERE (p.lease_id = r.lease_id OR p.holder_id = r.lease_id) AND p.company_id = "             \
	"coalesce(r.company_id, p.company_id)"                                                         \
	" AND" LEDGER_OWN_OF("p.")
/* The row that the request's lease is to get. */
#define OF_HOLDER                                                                                  \
	" jsonb_populate_record(NULL::envrt.provider_leases, $5) r"                                    \
	" WHERE p.lease_id = r.lease_id"                                                               \
	" AND p.holder_id = r.holder_id AND" LEDGER_OWN_OF("p.")
#define OF_LEASE_TYPES                                                                             \
	5,                                                                                             \
	{                                                                                              \
		LEDGER_OWN_TYPES, JSONBOID                                                                 \
	}

/*
 * Whether something with the id that the request brings is being destroyed.
 * What has been given up is not waited for, and what another server left is
 * not ours to end.
 */
static bool
is_being_ended(LedgerRequest *request)
{
	static Statement find = {
	    "SELECT 1 FROM envrt.provider_leases p,"
	    " jsonb_populate_record(NULL::envrt.provider_leases, $5) r"
	    " WHERE p.provider_lease_id = r.provider_lease_id"
	    " AND p.lease_id <> r.lease_id"
	    " AND " LEDGER_MAKER_OF("p.") " = " LEDGER_MAKER_OF(
	        "r.") " AND p.state = 'cleaning'"
	              " AND p.cleanup = ANY (ARRAY['release', 'destroy'])"
	              " AND p.next_attempt_at IS NOT NULL AND" LEDGER_OWN_OF("p.") " LIMIT 1",
	    5,
	    {LEDGER_OWN_TYPES, JSONBOID},
	};
	Datum values[5];

	if (jsonb_string_member(request->content, "provider_lease_id") == NULL)
		return false;
	ledger_own_arguments(values);
	values[4] = JsonbPGetDatum(request->content);
	return statement_execute(&find, values, NULL) > 0;
}

static void
create_row(LedgerRequest *request)
{
	static Statement insert = {INSERT_ROW, 6, {LEDGER_OWN_TYPES, JSONBOID, TEXTOID}};
	static Statement find = {"SELECT 1 FROM envrt.provider_leases p," OF_HOLDER, OF_LEASE_TYPES};
	Datum values[6];
	const char *host = driver_client_instance();

	/* Its first try was named like something that is being destroyed. */
	if (is_being_ended(request))
	{
		request->reply.outcome = LEDGER_ENDING;
		return;
	}
	ledger_own_arguments(values);
	values[4] = JsonbPGetDatum(request->content);
	values[5] = host != NULL ? CStringGetTextDatum(host) : (Datum) 0;
	/*
	 * A row that is there already is from a predecessor that died before it
	 * could say so, or of an earlier try that has not been settled yet.
	 */
	if (statement_execute(&insert, values, host != NULL ? NULL : "     n") > 0 ||
	    execute_for(request, &find, LEDGER_NOT_FOUND) > 0)
		request->reply.outcome = LEDGER_CREATED;
	else
		request->reply.outcome = LEDGER_BUSY;
}

/* A row of the environment that may be reused, or was. */
typedef struct ReusableRow
{
	pg_uuid_t lease_id;
	pg_uuid_t holder_id;
	char *state;
	bool same; /* made for the company and by the config that the environment has */
	bool mine; /* what this very request has got before */
	bool resumed;
	bool ending;
	FullTransactionId owner;
} ReusableRow;

static List *
read_reusable(LedgerRequest *request)
{
	static Statement find = {
	    "SELECT p.lease_id, p.state, p.environment_config = r.environment_config AND p.company_id "
	    "= r.company_id,"
	    " coalesce(p.holder_id = r.holder_id"
	    "   AND p.owner = r.owner, false),"
	    " p.resumed, p.cleanup = ANY (ARRAY['release', 'destroy']),"
	    " p.holder_id, coalesce(p.owner, '0'::xid8)"
	    " FROM envrt.provider_leases p,"
	    " jsonb_populate_record(NULL::envrt.provider_leases, $5) r"
	    " WHERE p.environment_id = r.environment_id"
	    " AND p.lease_policy = r.lease_policy"
	    " AND p.lease_policy = ANY (ARRAY['reuse_by_environment', 'reuse_by_execution_workspace'])"
	    " AND (p.execution_workspace_id = r.execution_workspace_id"
	    "   OR (p.execution_workspace_id IS NULL AND r.execution_workspace_id IS NULL))"
	    " AND (p.state = ANY (ARRAY['creating', 'held', 'idle'])"
	    "   OR (p.state = 'cleaning'"
	    "     AND (p.cleanup = ANY (ARRAY['keep', 'report_keep'])"
	    /* One that can't be ended at the first try may take long: it is not waited for. */
	    "       OR (p.cleanup = ANY (ARRAY['release', 'destroy'])"
	    "         AND p.last_error IS NULL AND p.next_attempt_at IS NOT NULL))))"
	    " AND" LEDGER_OWN_OF("p."),
	    5,
	    {LEDGER_OWN_TYPES, JSONBOID},
	};
	Datum values[5];
	List *rows = NIL;
	int count;

	ledger_own_arguments(values);
	values[4] = JsonbPGetDatum(request->content);
	count = statement_execute(&find, values, NULL);
	for (int i = 0; i < count; i++)
	{
		ReusableRow *row = palloc0(sizeof(ReusableRow));
		bool isnull;

		row->lease_id = *result_uuid(i, 1);
		row->state = result_text(i, 2);
		row->same = DatumGetBool(result_datum(i, 3, &isnull));
		row->mine = DatumGetBool(result_datum(i, 4, &isnull));
		row->resumed = DatumGetBool(result_datum(i, 5, &isnull));
		row->ending =
		    strcmp(row->state, "cleaning") == 0 && DatumGetBool(result_datum(i, 6, &isnull));
		if (result_uuid(i, 7) != NULL)
			row->holder_id = *result_uuid(i, 7);
		row->owner = DatumGetFullTransactionId(result_datum(i, 8, &isnull));
		rows = lappend(rows, row);
	}
	return rows;
}

/*
 * Whether a lease has it, or a transaction that has not ended.  What has not
 * been settled yet (settle.c) does not count: it is about to be.
 */
static bool
ledger_is_held(const ReusableRow *row)
{
	static Statement find = {
	    "SELECT 1 FROM @environment_leases@ WHERE id = $1"
	    " AND status = ANY (ARRAY['active', 'retained'])",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(&row->holder_id)};
	int count;

	if (strcmp(row->state, "cleaning") == 0)
		return false;
	if (U64FromFullTransactionId(row->owner) != 0 && settle_owner_undecided(row->owner))
		return true;
	if (in_flight_has(&acquire_calls, &row->holder_id))
		return true;
	return statement_try_read(TABLE_ENVIRONMENT_LEASES, &find, values, NULL, &count) && count > 0;
}

/*
 * A reusable one: claim what is idle, make one where there is none, or wait.
 *
 * There is one for an environment (and execution workspace) at a time.  One
 * that was made by another config is of no use; if idle it goes.  What is on
 * its way back, or out, is waited for, whatever the caller does about what
 * another lease holds: a provider may call the next one by the same name.
 */
static void
reuse_row(LedgerRequest *request)
{
	static Statement claim = {
	    "UPDATE envrt.provider_leases p SET state = 'creating', resumed = true, doomed = false,"
	    " holder_id = r.holder_id, owner = r.owner, next_attempt_at = NULL, last_error = NULL,"
	    " fence = p.fence + 1, updated_at = now()"
	    " FROM jsonb_populate_record(NULL::envrt.provider_leases, $2) r"
	    " WHERE p.lease_id = $1",
	    2,
	    {UUIDOID, JSONBOID},
	};
	static Statement discard = {
	    "UPDATE envrt.provider_leases SET state = 'cleaning', cleanup = 'destroy', holder_id = "
	    "NULL, last_error = NULL, attempts = 0, next_attempt_at = now(), updated_at = now() WHERE "
	    "lease_id = $1",
	    1,
	    {UUIDOID},
	};
	LedgerReply *reply = &request->reply;
	bool wait_for_end = request->verb == LEDGER_REUSE;
	bool returning = false;
	bool ending = false;
	ReusableRow *idle = NULL;
	List *rows = read_reusable(request);
	ListCell *cell;

	foreach (cell, rows)
	{
		ReusableRow *row = lfirst(cell);
		Datum id[1] = {UUIDPGetDatum(&row->lease_id)};

		if (row->mine)
		{
			/* A predecessor has done it and died before it could say so. */
			reply->outcome = row->resumed ? LEDGER_CLAIMED : LEDGER_CREATED;
			reply->lease_id = row->lease_id;
			return;
		}
		if (row->ending)
			ending = ending || wait_for_end;
		else if (strcmp(row->state, "idle") != 0)
		{
			if (ledger_is_held(row))
			{
				reply->outcome = LEDGER_BUSY;
				reply->lease_id = row->holder_id;
				return;
			}
			returning = true;
		}
		else if (row->same && idle == NULL)
			idle = row;
		else
		{
			statement_execute(&discard, id, NULL);
			work_note(WORK_CLEANUPS);
			ending = ending || wait_for_end;
		}
	}
	if (returning)
		reply->outcome = LEDGER_RETURNING;
	else if (ending)
		reply->outcome = LEDGER_ENDING;
	else if (idle == NULL)
		create_row(request);
	else
	{
		Datum claimed[2] = {UUIDPGetDatum(&idle->lease_id), JsonbPGetDatum(request->content)};

		statement_execute(&claim, claimed, NULL);
		reply->outcome = LEDGER_CLAIMED;
		reply->lease_id = idle->lease_id;
	}
}

/*
 * What the provider has answered.  It may have given the new one the id of
 * something that is being destroyed: nobody can say then which of them is
 * there in the end.  So this one is to be destroyed as well, and when both are
 * gone another one is made (LEDGER_ENDING).
 */
static void
learn_row(LedgerRequest *request)
{
	static Statement learn = {
	    "UPDATE envrt.provider_leases p SET provider_lease_id = coalesce(r.provider_lease_id, "
	    "p.provider_lease_id), metadata = r.metadata, expires_at = r.expires_at, plugin_key = "
	    "coalesce(r.plugin_key, p.plugin_key),"
	    " updated_at = now() FROM" OF_HOLDER " AND p.state = 'creating'",
	    OF_LEASE_TYPES,
	};
	static Statement end = {
	    "UPDATE envrt.provider_leases p SET state = 'cleaning', cleanup = 'destroy', holder_id = "
	    "NULL, owner = NULL, attempts = 0, last_error = NULL, next_attempt_at = now(),"
	    " updated_at = now() FROM" OF_HOLDER " AND p.state = 'creating' AND NOT p.resumed",
	    OF_LEASE_TYPES,
	};

	if (execute_for(request, &learn, LEDGER_NOT_FOUND) > 0 && is_being_ended(request) &&
	    execute_for(request, &end, LEDGER_DONE) > 0)
	{
		request->reply.outcome = LEDGER_ENDING;
		work_note(WORK_CLEANUPS);
	}
}

static void
retry_row(LedgerRequest *request)
{
	static Statement retry = {
	    "UPDATE envrt.provider_leases p SET state = 'cleaning',"
	    " cleanup = coalesce(p.cleanup, 'destroy'), attempts = 0,"
	    " next_attempt_at = now(), updated_at = now() FROM" OF_LEASE
	    " AND p.state = ANY (ARRAY['cleaning', 'unresolved'])",
	    OF_LEASE_TYPES,
	};

	execute_for(request, &retry, LEDGER_NOT_FOUND);
	work_note(WORK_CLEANUPS);
}

static void
forget_row(LedgerRequest *request)
{
	static Statement forget = {
	    "DELETE FROM envrt.provider_leases p USING" OF_LEASE " AND (p.state = 'unresolved'"
	    "   OR (p.state = 'cleaning' AND p.next_attempt_at IS NULL))",
	    OF_LEASE_TYPES,
	};
	static Statement find = {
	    "SELECT p.state FROM envrt.provider_leases p," OF_LEASE,
	    OF_LEASE_TYPES,
	};

	if (execute_for(request, &forget, LEDGER_NOT_FOUND) == 0 &&
	    execute_for(request, &find, LEDGER_NOT_FOUND) > 0)
	{
		request->reply.outcome = LEDGER_WRONG_STATE;
		strlcpy(request->reply.message, result_text(0, 1), sizeof(request->reply.message));
	}
}

static void
take_over(LedgerRequest *request)
{
	/* Transactions of another server mean nothing here; what its driver host knew is gone. */
	static Statement adopt = {
	    "UPDATE envrt.provider_leases SET system_identifier = $1, database_id = $2, timeline = $3,"
	    " instance = $4, owner = NULL, host_instance = NULL,"
	    " next_attempt_at = CASE WHEN state = 'cleaning'"
	    "   THEN now() ELSE next_attempt_at END,"
	    " updated_at = now()"
	    " WHERE NOT (" LEDGER_OWN ")",
	    4,
	    {LEDGER_OWN_TYPES},
	};
	static Statement adopt_requests = {
	    "UPDATE envrt.lease_requests SET system_identifier = $1, database_id = $2, timeline = $3,"
	    " instance = $4 WHERE NOT (" LEDGER_OWN ")",
	    4,
	    {LEDGER_OWN_TYPES},
	};
	Datum values[4];

	ledger_own_arguments(values);
	request->reply.count = statement_execute(&adopt, values, NULL);
	statement_execute(&adopt_requests, values, NULL);
	request->reply.outcome = LEDGER_DONE;
	hint_look_at_all();
	work_note(WORK_CLEANUPS);
}

static void
forget_foreign(LedgerRequest *request)
{
	static Statement forget = {
	    "DELETE FROM envrt.provider_leases WHERE NOT (" LEDGER_OWN ")", 4, {LEDGER_OWN_TYPES}};
	static Statement forget_requests = {
	    "DELETE FROM envrt.lease_requests WHERE NOT (" LEDGER_OWN ")", 4, {LEDGER_OWN_TYPES}};
	Datum values[4];

	ledger_own_arguments(values);
	request->reply.count = statement_execute(&forget, values, NULL);
	statement_execute(&forget_requests, values, NULL);
	request->reply.outcome = LEDGER_DONE;
}

void
ledger_execute(LedgerRequest *request)
{
	static Statement nothing_made = {
	    "DELETE FROM envrt.provider_leases p USING" OF_HOLDER
	    " AND p.state = 'creating' AND NOT p.resumed"
	    " AND p.provider_lease_id IS NULL",
	    OF_LEASE_TYPES,
	};
	static Statement gone = {
	    "UPDATE envrt.provider_leases p SET state = 'cleaning', cleanup = 'destroy', holder_id = "
	    "NULL, owner = NULL, attempts = 0, last_error = NULL, next_attempt_at = now(),"
	    " updated_at = now() FROM" OF_HOLDER " AND p.state = 'creating' AND p.resumed",
	    OF_LEASE_TYPES,
	};
	static Statement stray = {
	    "INSERT INTO envrt.provider_leases (lease_id, system_identifier, database_id, timeline,"
	    " instance, company_id, environment_id, driver, driver_key, plugin_key, lease_policy,"
	    " provider_lease_id, metadata, config, environment_config, secrets, state, cleanup,"
	    " next_attempt_at)"
	    " SELECT r.lease_id, $1, $2, $3, $4, r.company_id, r.environment_id, r.driver, "
	    "r.driver_key, r.plugin_key, 'ephemeral', r.provider_lease_id, r.metadata, r.config, "
	    "r.environment_config, r.secrets, 'cleaning', 'destroy', now()"
	    " FROM jsonb_populate_record(NULL::envrt.provider_leases, $5) r"
	    " ON CONFLICT DO NOTHING",
	    OF_LEASE_TYPES,
	};
	static Statement doom = {
	    "UPDATE envrt.provider_leases p SET doomed = true FROM" OF_LEASE
	    " AND p.state = ANY (ARRAY['creating', 'held'])",
	    OF_LEASE_TYPES,
	};

	memset(&request->reply, 0, sizeof(request->reply));
	switch (request->verb)
	{
		case LEDGER_CREATE:
			create_row(request);
			break;
		case LEDGER_REUSE:
		case LEDGER_REUSE_BESIDE:
			reuse_row(request);
			break;
		case LEDGER_LEARN:
			learn_row(request);
			break;
		case LEDGER_NOTHING_MADE:
			execute_for(request, &nothing_made, LEDGER_NOT_FOUND);
			work_note(WORK_PARKED);
			break;
		case LEDGER_GONE:
			execute_for(request, &gone, LEDGER_NOT_FOUND);
			work_note(WORK_CLEANUPS);
			work_note(WORK_PARKED);
			break;
		case LEDGER_STRAY:
			execute_for(request, &stray, LEDGER_NOT_FOUND);
			work_note(WORK_CLEANUPS);
			break;
		case LEDGER_DOOM:
			execute_for(request, &doom, LEDGER_NOT_FOUND);
			break;
		case LEDGER_RETRY:
			retry_row(request);
			break;
		case LEDGER_FORGET:
			forget_row(request);
			break;
		case LEDGER_TAKE_OVER:
			take_over(request);
			break;
		case LEDGER_FORGET_FOREIGN:
			forget_foreign(request);
			break;
	}
}

/* Serve the requests in one durable transaction; false when it failed. */
static bool
serve(List *batch, bool alone)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = false;

	PG_TRY();
	{
		ApiCall call;
		ListCell *cell;

		ledger_begin(&call);
		foreach (cell, batch)
			ledger_execute(lfirst(cell));
		FAULT_POINT("ledger-before-commit");
		ledger_commit(&call, true);
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (alone)
		{
			LedgerRequest *request = linitial(batch);
			ErrorData *error = CopyErrorData();

			request->reply.outcome = LEDGER_FAILED;
			request->reply.sqlstate = error->sqlerrcode;
			snprintf(request->reply.message, sizeof(request->reply.message), "%.*s",
			         pg_mbcliplen(error->message, strlen(error->message),
			                      sizeof(request->reply.message) - 1),
			         error->message);
			FreeErrorData(error);
		}
		ledger_abort("serving requests to the ledger");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return done;
}

/* Whether somebody has the ledger locked, and not for so long that it has to be said. */
static bool
may_try_again(const LedgerRequest *request)
{
	return request->reply.outcome == LEDGER_FAILED &&
	       request->reply.sqlstate == ERRCODE_LOCK_NOT_AVAILABLE &&
	       !TimestampDifferenceExceeds(request->since, GetCurrentTimestamp(), LOCKED_FOR_MS);
}

/* True when it is to be tried again. */
static bool
answer(LedgerRequest *request)
{
	if (may_try_again(request))
	{
		ledger_request_put_back(request);
		return true;
	}
	if ((request->reply.outcome == LEDGER_BUSY && request->may_wait) ||
	    request->reply.outcome == LEDGER_RETURNING ||
	    (request->reply.outcome == LEDGER_ENDING && request->verb != LEDGER_LEARN))
		ledger_request_park(request);
	else
		ledger_request_answer(request);
	return false;
}

/*
 * ledger_serve
 *		Do what backends ask for, all of it in one commit; when to come again.
 */
TimestampTz
ledger_serve(bool parked)
{
	bool locked = false;
	MemoryContext context =
	    AllocSetContextCreate(TopMemoryContext, "envrt ledger requests", ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);
	List *batch = ledger_requests_take(parked);
	bool forgotten = false;
	ListCell *cell;

	if (batch != NIL)
	{
		bool done = serve(batch, list_length(batch) == 1);

		/* One of them is bad: the others must not suffer for it. */
		if (!done && list_length(batch) > 1)
			foreach (cell, batch)
				(void) serve(list_make1(lfirst(cell)), true);
		FAULT_POINT("ledger-after-commit");
		foreach (cell, batch)
			forgotten =
			    forgotten || ((LedgerRequest *) lfirst(cell))->verb == LEDGER_FORGET_FOREIGN;
		if (forgotten)
			settle_forget_foreign_leases();
		foreach (cell, batch)
			locked = answer(lfirst(cell)) || locked;
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return locked ? TimestampTzPlusMilliseconds(timer_now(), LOCKED_RETRY_MS) : DT_NOEND;
}

/*
 * After a promotion that the administrator vouches for, rows of earlier
 * timelines are ours.
 */
static int64
adopt_after_promotion(void)
{
	static Statement adopt = {
	    "UPDATE envrt.provider_leases SET timeline = $3, instance = $4, host_instance = NULL,"
	    " updated_at = now()"
	    " WHERE system_identifier = $1"
	    " AND database_id = $2 AND timeline < $3",
	    4,
	    {LEDGER_OWN_TYPES},
	};
	static Statement adopt_requests = {
	    "UPDATE envrt.lease_requests SET timeline = $3, instance = $4"
	    " WHERE system_identifier = $1"
	    " AND database_id = $2 AND timeline < $3",
	    4,
	    {LEDGER_OWN_TYPES},
	};
	Datum values[4];

	if (!envrt_act_after_promotion)
		return 0;
	ledger_own_arguments(values);
	statement_execute(&adopt_requests, values, NULL);
	return statement_execute(&adopt, values, NULL);
}

/* What waits for its next cleanup is due at once. */
static void
make_due(Datum *values)
{
	static Statement due = {
	    "UPDATE envrt.provider_leases SET next_attempt_at = now()"
	    " WHERE state = 'cleaning' AND next_attempt_at > now() AND" LEDGER_OWN,
	    4,
	    {LEDGER_OWN_TYPES},
	};

	statement_execute(&due, values, NULL);
}

void
ledger_clock_was_set(void)
{
	PG_TRY();
	{
		ApiCall call;
		Datum values[4];

		ledger_begin(&call);
		ledger_own_arguments(values);
		make_due(values);
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("looking at cleanups after the clock was set");
	}
	PG_END_TRY();
	work_note(WORK_CLEANUPS);
}

/*
 * ledger_start
 *		When the scheduler starts: what was left by whom.
 */
void
ledger_start(void)
{
	static Statement foreign = {"SELECT count(*) FROM envrt.provider_leases WHERE NOT (" LEDGER_OWN
	                            ")",
	                            4,
	                            {LEDGER_OWN_TYPES}};
	ApiCall call;
	Datum values[4];
	bool isnull;
	int64 adopted;
	int64 count;

	ledger_begin(&call);
	adopted = adopt_after_promotion();
	ledger_own_arguments(values);
	/* What was being cleaned up when a predecessor died. */
	make_due(values);
	statement_execute(&foreign, values, NULL);
	count = DatumGetInt64(result_datum(0, 1, &isnull));
	ledger_commit(&call, true);
	if (adopted > 0)
		ereport(LOG,
		        (errmsg("took over " INT64_FORMAT " provider leases after a promotion", adopted)));
	if (count > 0)
		ereport(LOG, (errmsg("left alone " INT64_FORMAT " provider leases that another server made",
		                     count),
		              errdetail("They are in envrt.stat_cleanup as foreign."),
		              errhint("SELECT envrt_claim_instance('take_over') if this server is the "
		                      "successor of that one, or 'forget' if it is a copy of it.")));
}

int64
ledger_count(void)
{
	static Statement find = {
	    "SELECT count(*) FROM envrt.provider_leases WHERE plugin_key IS NOT NULL AND" LEDGER_OWN,
	    4,
	    {LEDGER_OWN_TYPES},
	};
	volatile int64 count = -1;

	PG_TRY();
	{
		ApiCall call;
		Datum values[4];
		bool isnull;

		ledger_begin(&call);
		ledger_own_arguments(values);
		statement_execute(&find, values, NULL);
		count = DatumGetInt64(result_datum(0, 1, &isnull));
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("counting provider leases");
	}
	PG_END_TRY();
	return count;
}
