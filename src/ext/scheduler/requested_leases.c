/*
 * requested_leases.c
 *		Leases that were requested by envrt_request_lease, and envrt_await_lease.
 *
 * A request is a row of envrt.lease_requests, written in the transaction that
 * asks, often by a trigger: it makes no outside call there, and a rollback
 * takes it back.  At commit the scheduler is woken and acquires the lease:
 *
 *	1.	In a transaction: look at environment and run again; for a provider
 *		lease write the ledger's row, without an owner, since no transaction is
 *		left open while the outside is awaited.  (The row names the plugin that is
 *		going to be asked, so the driver host has to have said which that is.)
 *	2.	Call the driver; many are in flight at once.
 *	3.	In a transaction: lock the run, look again, insert the lease, mark the
 *		ledger's row held and delete the request.
 *
 * Companies take turns (company_turns.c), and none has more calls in flight than its
 * share of them (fair_share.h).
 *
 * A request that can't be met becomes failed, with the error that
 * envrt_await_lease then raises.  What is locked by somebody is tried again; a
 * reusable provider lease that is held is waited for, and one that can't be
 * resumed now is tried again, as by an acquire (driver_provider.c).  When the scheduler or
 * the driver host is lost between 1 and 3, the request is still queued and is
 * begun anew under another key, while the row of the lost try is cleaned up
 * like any other whose lease is not there (settle.c).
 *
 * Run as the shared tables' owner, in a restricted operation: whether the
 * one who asked may have the lease was decided when it was requested.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "catalog/pg_type.h"
#include "ledger/company_turns.h"
#include "secrets/secret_references.h"
#include "hostlink/blocking_calls.h"
#include "hostlink/async_calls.h"
#include "environments/drivers.h"
#include "environments/environments.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "funcapi.h"
#include "base/json.h"
#include "leases/leases.h"
#include "ledger/ledger.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "environments/plugin_rows.h"
#include "environments/provider_lease.h"
#include "scheduler/requested_leases.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/condition_variable.h"
#include "storage/lmgr.h"
#include "base/timer.h"
#include "ledger/in_flight.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "ledger/waiting.h"

PG_FUNCTION_INFO_V1(envrt_await_lease);

/* In a round. */
#define BATCH 64
/* Of a company, read at once. */
#define PAGE 16
#define LIMITED_RETRY_MS 100
#define ROUND_MS 1000
#define LOCKED_RETRY_MS 500
#define LOST_RETRY_MS 1000

static const char serving[] = "acquiring a requested lease";

/* One request that is being served. */
typedef struct RequestedLease
{
	CallInFlight call; /* first */
	pg_uuid_t key;     /* of the provider lease */
	bool in_ledger;    /* there is a row for it */
	bool resumed;
	Jsonb *config;           /* the environment's, as the driver was asked by */
	json_t *values;          /* of secrets in the call's params */
	char *provider_lease_id; /* of what is to be resumed; NULL: not known */
	json_t *result;          /* the answer */
	json_t *error;
	const char *reason; /* why it could not be resumed; in the answer */
	/* Across tries. */
	TimestampTz since; /* of the first that came to nothing; 0: none */
	long pause;
	TimestampTz again_at;
	bool waits;       /* it is wanted, but could not be reserved */
	json_t *awaited;  /* the id of what has to be gone first; NULL: nothing */
	json_t *replaced; /* what it takes the place of; NULL: nothing */
} RequestedLease;

/* A pass looks at each queued request once, a page at a time: what must wait is in nobody's way. */
static bool passing = false;
static Statement find_companies = {
    COMPANY_TURNS_FIND("envrt.lease_requests", "state = 'queued'"),
    1,
    {UUIDOID},
};
static CompanyTurns turns = {.find = &find_companies};
static bool look = true;               /* a pass is wanted */
static bool joining = false;           /* ... and who has come is to take part in this one */
static TimestampTz look_at = DT_NOEND; /* or will be, then */
static bool limited = false;           /* some wait for calls of their like to end */
/* Environments that have nothing to give in this pass: a look at one of their requests is enough.
 */
#define MAX_SKIPPED 64
static pg_uuid_t skipped[MAX_SKIPPED];
static int nskipped = 0;

/* What one try has brought. */
static void
requested_lease_reset(RequestedLease *lease)
{
	json_decref(lease->result);
	json_decref(lease->error);
	json_decref(lease->values);
	lease->result = lease->error = lease->values = NULL;
	lease->reason = NULL;
}

/* What is reserved is not this one's any more. */
static void
requested_lease_begin_anew(RequestedLease *lease)
{
	requested_lease_reset(lease);
	if (lease->provider_lease_id != NULL)
		pfree(lease->provider_lease_id);
	if (lease->config != NULL)
		pfree(lease->config);
	lease->provider_lease_id = NULL;
	lease->config = NULL;
	lease->in_ledger = lease->resumed = false;
	lease->key = *uuid_generate();
}

static void
requested_lease_free(RequestedLease *lease)
{
	requested_lease_begin_anew(lease);
	json_decref(lease->awaited);
	json_decref(lease->replaced);
	pfree(lease);
}

static void
requested_leases_look_later(int64 ms)
{
	look_at = Min(look_at, TimestampTzPlusMilliseconds(timer_now(), ms));
}

static void
skip_environment(const pg_uuid_t *environment_id)
{
	if (nskipped < MAX_SKIPPED)
		skipped[nskipped++] = *environment_id;
}

static bool
is_skipped(const pg_uuid_t *environment_id)
{
	for (int i = 0; i < nskipped; i++)
		if (memcmp(&skipped[i], environment_id, UUID_LEN) == 0)
			return true;
	return false;
}

/* See async_calls.h. */
static void
lease_answered(void *data, const DriverAnswer *answer)
{
	RequestedLease *lease = data;

	lease->result = json_incref(unconstify(json_t *, answer->result));
	lease->error = json_incref(unconstify(json_t *, answer->error));
	provider_mask_answer(lease->result, lease->error, lease->values);
	in_flight_answered(&acquire_calls, &lease->call);
	if (limited)
		requested_leases_look_later(LIMITED_RETRY_MS);
}

/* Whether one more call may be made: one slow provider is not to be in everybody's way. */
static bool
may_call(const RequestedLease *lease)
{
	if (in_flight_allows(&acquire_calls, &lease->call, NIL))
		return true;
	limited = true;
	skip_environment(&lease->call.environment_id);
	return false;
}

/* A queued request. */
typedef struct LeaseRequest
{
	pg_uuid_t lease_id;
	pg_uuid_t environment_id;
	TimestampTz created_at;
} LeaseRequest;

/* The companies of the pass, or those that have come during it; false: not now. */
static bool
requested_leases_list_companies(bool begin)
{
	static Statement purge = {
	    "DELETE FROM envrt.lease_requests WHERE state = 'failed'"
	    " AND finished_at < (now() - '1 day'::interval)",
	    0,
	    {0},
	};
	MemoryContext context = CurrentMemoryContext;
	volatile bool listed = false;

	PG_TRY();
	{
		ApiCall call;

		ledger_begin(&call);
		if (begin)
		{
			statement_execute(&purge, NULL, NULL);
			company_turns_begin(&turns);
		}
		else
			company_turns_join(&turns);
		ledger_commit(&call, false);
		listed = true;
	}
	PG_CATCH();
	{
		ledger_abort("looking for requested leases");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return listed;
}

/* Environments that this pass leaves alone. */
static Datum
skipped_environments(void)
{
	Datum ids[MAX_SKIPPED];

	for (int i = 0; i < nskipped; i++)
		ids[i] = UUIDPGetDatum(&skipped[i]);
	return PointerGetDatum(construct_array(ids, nskipped, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

/* The next of a company's requests; false: not now. */
static bool
requested_leases_read_page(CompanyTurn *turn)
{
	static Statement find = {
	    "SELECT lease_id, created_at, environment_id FROM envrt.lease_requests"
	    " WHERE state = 'queued' AND company_id = $7"
	    " AND ROW(created_at, lease_id) > ROW($5, $6)"
	    " AND environment_id <> ALL ($8) AND" LEDGER_OWN " ORDER BY created_at, lease_id LIMIT 16",
	    8,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID, UUIDOID, UUIDOID, UUIDARRAYOID},
	};
	MemoryContext context = CurrentMemoryContext;
	LeaseRequest *requests = palloc(sizeof(LeaseRequest) * PAGE);
	volatile bool done = false;

	PG_TRY();
	{
		ApiCall call;
		Datum values[8];
		bool isnull;

		ledger_begin(&call);
		ledger_own_arguments(values);
		values[4] = TimestampTzGetDatum(turn->at);
		values[5] = UUIDPGetDatum(&turn->at_id);
		values[6] = UUIDPGetDatum(&turn->company_id);
		values[7] = skipped_environments();
		turn->page_length = statement_execute(&find, values, NULL);
		for (int row = 0; row < turn->page_length; row++)
		{
			requests[row].lease_id = *result_uuid(row, 1);
			requests[row].created_at = DatumGetTimestampTz(result_datum(row, 2, &isnull));
			requests[row].environment_id = *result_uuid(row, 3);
		}
		ledger_commit(&call, false);
		turn->page = requests;
		turn->page_next = 0;
		done = true;
	}
	PG_CATCH();
	{
		ledger_abort("looking for requested leases");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return done;
}

static void
report_locked(void)
{
	ereport(ERROR,
	        (errcode(ERRCODE_LOCK_NOT_AVAILABLE), errmsg("somebody has what is needed locked")));
}

/* The tables that an acquire reads and writes, without waiting for any. */
static void
lock_tables(LOCKMODE mode)
{
	static const SharedTable tables[] = {TABLE_HEARTBEAT_RUNS, TABLE_COMPANIES, TABLE_ENVIRONMENTS,
	                                     TABLE_EXECUTION_WORKSPACES, TABLE_ENVIRONMENT_LEASES};

	for (int i = 0; i < (int) lengthof(tables); i++)
		if (!ConditionalLockRelationOid(shared_table_oid(tables[i]), mode))
			report_locked();
}

/* What a request asks for; false when it is there no more. */
static bool
load_request(const ApiCall *call, const pg_uuid_t *lease_id, AcquireRequest *request,
             LeaseArguments *arguments)
{
	static Statement find = {
	    "SELECT company_id, environment_id, heartbeat_run_id, issue_id, execution_workspace_id,"
	    " execution_workspace_mode, expires_in FROM envrt.lease_requests"
	    " WHERE lease_id = $1 AND state = 'queued'",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(lease_id)};
	ApiCall ledger;
	pg_uuid_t *company_id = NULL;
	pg_uuid_t *environment_id = NULL;
	char *workspace_mode = NULL;
	MemoryContext context = CurrentMemoryContext;
	int found;

	memset(request, 0, sizeof(AcquireRequest));
	memset(arguments, 0, sizeof(LeaseArguments));
	ledger_enter(&ledger);
	found = statement_execute(&find, values, NULL);
	if (found > 0)
	{
		MemoryContext previous = MemoryContextSwitchTo(context);
		bool isnull;
		Datum expires_in = result_datum(0, 7, &isnull);

		if (!isnull)
		{
			Interval *copy = palloc(sizeof(Interval));

			*copy = *DatumGetIntervalP(expires_in);
			arguments->expires_in = copy;
		}
		company_id = result_uuid(0, 1);
		environment_id = result_uuid(0, 2);
		request->run_id = result_uuid(0, 3);
		arguments->issue_id = result_uuid(0, 4);
		arguments->workspace_id = request->workspace_id = result_uuid(0, 5);
		workspace_mode = result_text(0, 6);
		MemoryContextSwitchTo(previous);
	}
	api_leave(&ledger);
	if (found == 0)
		return false;
	request->lease_id = lease_id;
	lock_tables(AccessShareLock);
	/* As for whoever asks at once, for the company that the request was for. */
	request->environment = acquire_check(call, company_id, environment_id, request->run_id,
	                                     request->workspace_id, &workspace_mode);
	request->workspace_mode = workspace_mode;
	return true;
}

static void
delete_request(const pg_uuid_t *lease_id)
{
	static Statement delete = {
	    "DELETE FROM envrt.lease_requests WHERE lease_id = $1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(lease_id)};
	ApiCall ledger;

	ledger_enter(&ledger);
	if (statement_execute(&delete, values, NULL) == 0)
		ereport_without_effect("the end of the request", "envrt.lease_requests");
	api_leave(&ledger);
}

/* Take every lock that the insert needs, without waiting for any. */
static void
lock_all(const AcquireRequest *request)
{
	static Statement lock_company = {
	    "SELECT 1 FROM @companies@ WHERE id = $1 FOR KEY SHARE NOWAIT",
	    1,
	    {UUIDOID},
	};
	static Statement lock_workspace = {
	    "SELECT 1 FROM @execution_workspaces@ WHERE id = $1 FOR KEY SHARE NOWAIT",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(request->environment->company_id)};

	lock_tables(RowExclusiveLock);
	run_check(request->run_id, request->environment->company_id, RUN_TRY_LOCK);
	environment_check_again(request->environment, false);
	statement_execute(&lock_company, values, NULL);
	if (request->workspace_id != NULL)
	{
		values[0] = UUIDPGetDatum(request->workspace_id);
		statement_execute(&lock_workspace, values, NULL);
	}
}

/* Write the ledger's row; false when what is wanted is held. */
static bool
requested_leases_reserve(RequestedLease *lease, const AcquireRequest *of, const json_t *row)
{
	LedgerRequest request = {.verb = LEDGER_CREATE};
	ApiCall ledger;

	if (strncmp(json_string_value(json_object_get(row, "lease_policy")), "reuse_", 6) == 0)
		request.verb = LEDGER_REUSE;
	request.content = provider_row_content(of, row);
	ledger_enter(&ledger);
	ledger_execute(&request);
	api_leave(&ledger);
	if (request.reply.outcome != LEDGER_CREATED && request.reply.outcome != LEDGER_CLAIMED)
	{
		/* Another execution workspace of it may have something. */
		if (strcmp(json_string_value(json_object_get(row, "lease_policy")),
		           "reuse_by_environment") == 0)
			skip_environment(&lease->call.environment_id);
		return false;
	}
	lease->in_ledger = true;
	lease->resumed = request.reply.outcome == LEDGER_CLAIMED;
	if (lease->resumed)
		lease->key = request.reply.lease_id;
	return true;
}

/* Step 1.  The call to make is in *params; false when there is none now. */
static bool
requested_leases_prepare(RequestedLease *lease, json_t **params, int64 *timeout_ms)
{
	ApiCall call;
	AcquireRequest request;
	LeaseArguments arguments;
	AcquiredLease acquired = {.expires_at = DT_NOEND};
	const Driver *driver;
	bool to_call = false;

	owner_begin(&call);
	if (load_request(&call, &lease->call.lease_id, &request, &arguments))
	{
		MemoryContext previous;

		request.key = &lease->key;
		lease->waits = true;
		driver = driver_find(request.environment->driver, request.environment->config);
		previous = MemoryContextSwitchTo(TopMemoryContext);
		lease->config =
		    (Jsonb *) PG_DETOAST_DATUM_COPY(JsonbPGetDatum(request.environment->config));
		MemoryContextSwitchTo(previous);
		if (!driver->calls_outside)
		{
			lock_all(&request);
			driver->acquire(&request, &acquired);
			lease_insert(&request, &acquired, &arguments);
			delete_request(&lease->call.lease_id);
			lease->waits = false;
		}
		else
		{
			json_t *made;

			/* Nothing is to be in the ledger that can't be asked for. */
			if (driver_client_instance() == NULL)
				ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				                errmsg("the driver host is not running")));
			run_check(request.run_id, request.environment->company_id, RUN_LOOK);
			lease->call.environment_id = *request.environment->id;
			snprintf(lease->call.provider, sizeof(lease->call.provider), "%s:%s", driver->name,
			         driver->makes_provider_leases ? provider_of(request.environment) : "");
			if (!may_call(lease))
				; /* left queued */
			else if (driver->makes_provider_leases && !provider_is_known(request.environment))
			{
				/* The answer wakes us, if there is one. */
				skip_environment(&lease->call.environment_id);
				requested_leases_look_later(LOCKED_RETRY_MS);
			}
			else if (driver->makes_provider_leases)
			{
				json_t *row = provider_create_row(&request, &made);

				if (lease->awaited != NULL)
					json_object_set(row, "provider_lease_id", lease->awaited);
				to_call = requested_leases_reserve(lease, &request, row);
				if (to_call && lease->resumed)
				{
					const char *id;

					row = provider_row(&lease->key, true);
					if (row == NULL)
						elog(ERROR, "ledger row \"%s\" has vanished", uuid_text(&lease->key));
					id = json_string_value(json_object_get(row, "provider_lease_id"));
					if (id != NULL)
						lease->provider_lease_id = MemoryContextStrdup(TopMemoryContext, id);
					made = provider_call_params(row);
					plugins_restrict(made);
				}
				*timeout_ms = provider_patience(made) + 1000;
			}
			else
			{
				made = driver->acquire_params(&request, timeout_ms);
				to_call = true;
			}
			if (to_call)
			{
				lease->values = provider_take_secrets(made);
				*params = json_incref(made);
			}
		}
	}
	FAULT_POINT("request-before-commit");
	ledger_commit(&call, true);
	return to_call;
}

/* Have the ledger change the row of a lease by what the driver said. */
static LedgerOutcome
requested_leases_tell_ledger(LedgerVerb verb, const json_t *row)
{
	LedgerRequest request = {.verb = verb, .content = jsonb_from_json(row)};
	ApiCall ledger;

	ledger_enter(&ledger);
	ledger_execute(&request);
	api_leave(&ledger);
	return request.reply.outcome;
}

/* A resume has made something else: have that destroyed, by a row of its own. */
static void
discard_other(const AcquireRequest *request, RequestedLease *lease)
{
	AcquireRequest stray = *request;
	json_t *params;
	json_t *row;

	stray.key = uuid_generate();
	row = provider_stray_row(&stray, lease->result, &params);
	if (row != NULL)
		(void) requested_leases_tell_ledger(LEDGER_STRAY, row);
}

/*
 * Step 3, for an answer; false when it does not make a lease: the request is
 * there no more, or (*again) it is to be begun anew.
 */
static bool
complete(RequestedLease *lease, bool *again)
{
	static Statement hold = {
	    "UPDATE envrt.provider_leases SET state = 'held', owner = NULL, updated_at = now() WHERE "
	    "lease_id = $1",
	    1,
	    {UUIDOID},
	};
	ApiCall call;
	AcquireRequest request;
	LeaseArguments arguments;
	AcquiredLease acquired = {.expires_at = DT_NOEND};
	bool wanted;

	*again = false;
	owner_begin(&call);
	wanted = load_request(&call, &lease->call.lease_id, &request, &arguments);
	if (wanted && lease->reason != NULL)
		provider_report_not_resumed(request.environment->name, lease->reason, lease->error);
	if (wanted && lease->error != NULL)
		driver_host_raise(lease->error);
	if (wanted)
	{
		const Driver *driver = driver_find(request.environment->driver, lease->config);
		Environment asked = *request.environment;
		json_t *learnt = NULL;

		request.key = &lease->key;
		/* What was made is what the environment was then. */
		asked.config = lease->config;
		request.environment = &asked;
		request.replaced = lease->replaced;
		if (lease->in_ledger)
		{
			provider_acquired(&request, lease->result, lease->resumed, &acquired);
			learnt = provider_learnt(&request, lease->result, &acquired);
			*again = requested_leases_tell_ledger(LEDGER_LEARN, learnt) == LEDGER_ENDING;
		}
		else
			driver->acquire_result(&request, lease->result, &acquired);
		if (*again)
		{
			json_decref(lease->awaited);
			lease->awaited = json_incref(json_object_get(learnt, "provider_lease_id"));
			wanted = false;
		}
		else
		{
			lock_all(&request);
			lease_insert(&request, &acquired, &arguments);
			if (lease->in_ledger)
			{
				Datum values[1] = {UUIDPGetDatum(&lease->key)};
				ApiCall ledger;

				ledger_enter(&ledger);
				statement_execute(&hold, values, NULL);
				api_leave(&ledger);
			}
			delete_request(&lease->call.lease_id);
		}
	}
	FAULT_POINT("request-before-insert-commit");
	ledger_commit(&call, true);
	return wanted;
}

/* Whether the driver said for sure that it has made nothing. */
static bool
requested_leases_nothing_was_made(const RequestedLease *lease)
{
	const char *outcome =
	    json_string_value(json_object_get(json_object_get(lease->error, "data"), "outcome"));

	return lease->in_ledger && !lease->resumed && outcome != NULL && strcmp(outcome, "absent") == 0;
}

/* The request can't be met: keep what envrt_await_lease is to raise. */
static void
write_failure(const RequestedLease *lease, const ErrorData *error)
{
	static Statement fail = {
	    "UPDATE envrt.lease_requests SET state = 'failed', sqlstate = $2, message = $3, detail = "
	    "$4, hint = $5, finished_at = now() WHERE lease_id = $1",
	    5,
	    {UUIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID},
	};
	Datum values[5] = {UUIDPGetDatum(&lease->call.lease_id)};
	char nulls[6] = "     ";
	ApiCall call;

	ledger_begin(&call);
	if (requested_leases_nothing_was_made(lease))
	{
		LedgerRequest forget = {.verb = LEDGER_NOTHING_MADE};
		JsonbObject content;

		jsonb_object_begin(&content);
		jsonb_object_string(&content, "lease_id", uuid_text(&lease->key));
		jsonb_object_string(&content, "holder_id", uuid_text(&lease->call.lease_id));
		forget.content = jsonb_object_end(&content);
		ledger_execute(&forget);
	}
	values[1] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[2] = CStringGetTextDatum(error->message);
	if (error->detail != NULL)
		values[3] = CStringGetTextDatum(error->detail);
	if (error->hint != NULL)
		values[4] = CStringGetTextDatum(error->hint);
	for (int i = 3; i < 5; i++)
		nulls[i] = values[i] == (Datum) 0 ? 'n' : ' ';
	if (statement_execute(&fail, values, nulls) == 0)
		ereport_without_effect("the request's failure", "envrt.lease_requests");
	ledger_commit(&call, false);
}

/* The error under way, copied; the transaction is over afterwards. */
static ErrorData *
take_error(MemoryContext context)
{
	ErrorData *error;

	MemoryContextSwitchTo(context);
	HOLD_INTERRUPTS();
	error = CopyErrorData();
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);
	RESUME_INTERRUPTS();
	return error;
}

static void
fail_request(const RequestedLease *lease, const ErrorData *error)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		write_failure(lease, error);
		failure_over(serving, &lease->call.lease_id);
	}
	PG_CATCH();
	{
		TimestampTz retry_at = failure_caught(serving, &lease->call.lease_id);

		look_at = Min(look_at, retry_at);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* Have what was reserved cleaned up: the lease is not there. */
static void
abandon(RequestedLease *lease)
{
	if (lease->in_ledger)
		hint_look_at_all();
	if (lease->error != NULL)
		work_note(WORK_PARKED);
}

/* What an answer to a resume says has to be written first. */
static void
write_resume(RequestedLease *lease, ResumeVerdict verdict)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		ApiCall call;
		AcquireRequest request;
		LeaseArguments arguments;

		owner_begin(&call);
		if (verdict == RESUME_GONE)
		{
			AcquireRequest of = {.key = &lease->key, .lease_id = &lease->call.lease_id};

			(void) requested_leases_tell_ledger(LEDGER_GONE, provider_row_name(&of));
		}
		else if (load_request(&call, &lease->call.lease_id, &request, &arguments))
			discard_other(&request, lease);
		ledger_commit(&call, true);
	}
	PG_CATCH();
	{
		ledger_abort("writing down what a provider has not resumed");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* Whether the request has failed a short while ago. */
static bool
requested_leases_is_put_off(const pg_uuid_t *lease_id)
{
	TimestampTz retry_at;

	if (!failure_holds(serving, lease_id, &retry_at))
		return false;
	look_at = Min(look_at, retry_at);
	return true;
}

/*
 * An error that passes, of a lock mostly: tried again soon, and less soon when it does not pass.
 * The transaction is over already, and the error is `error`.
 */
static void
put_off(const pg_uuid_t *lease_id, const ErrorData *error)
{
	TimestampTz retry_at = failure_noted(serving, lease_id, error);

	look_at = Min(look_at, retry_at);
}

static void
try_later(RequestedLease *lease, long ms)
{
	TimestampTz now = timer_now();

	if (lease->since == 0)
		lease->since = now;
	lease->again_at = TimestampTzPlusMilliseconds(now, ms);
	requested_leases_look_later(ms);
	dlist_push_tail(&acquire_calls.later, &lease->call.node);
}

/*
 * An answer to a resume that is none.  True when the request goes on: what was
 * claimed is tried again, or is gone and another one is made.
 */
static bool
resume_goes_on(RequestedLease *lease)
{
	TimestampTz now = timer_now();
	ResumeVerdict verdict = provider_judge_resume(lease->provider_lease_id, lease->result,
	                                              lease->error, &lease->reason);
	TimestampTz since = lease->since != 0 ? lease->since : now;

	if (verdict == RESUME_DONE)
		lease->reason = NULL;
	else if (verdict == RESUME_FAILED)
	{
		lease->pause = lease->pause == 0 ? PROVIDER_RESUME_PAUSE_MS
		                                 : Min(2 * lease->pause, PROVIDER_RESUME_MAX_PAUSE_MS);
		if (TimestampTzPlusMilliseconds(now, lease->pause) <=
		    TimestampTzPlusMilliseconds(since, envrt_reuse_retry))
		{
			dlist_delete(&lease->call.node);
			requested_lease_reset(lease);
			try_later(lease, lease->pause);
			return true;
		}
	}
	else
	{
		write_resume(lease, verdict);
		if (verdict == RESUME_GONE)
		{
			json_decref(lease->replaced);
			lease->replaced =
			    json_incref(provider_replaced(lease->provider_lease_id, lease->reason));
			dlist_delete(&lease->call.node);
			requested_lease_begin_anew(lease);
			try_later(lease, 0);
			return true;
		}
	}
	return false;
}

/* The params of another call for what is claimed; the same as in prepare. */
static void
prepare_again(RequestedLease *lease, json_t **params, int64 *timeout_ms)
{
	ApiCall call;
	json_t *row;
	json_t *made;

	owner_begin(&call);
	row = provider_row(&lease->key, true);
	if (row == NULL)
		elog(ERROR, "ledger row \"%s\" has vanished", uuid_text(&lease->key));
	made = provider_call_params(row);
	plugins_restrict(made);
	lease->values = provider_take_secrets(made);
	*params = json_incref(made);
	*timeout_ms = provider_patience(made) + 1000;
	ledger_commit(&call, false);
}

/* Begin with a request, or go on with what is claimed for it; whether it is in flight then. */
static bool
begin_try(RequestedLease *lease)
{
	MemoryContext context = CurrentMemoryContext;
	json_t *volatile params = NULL;
	int64 timeout_ms = 0;
	volatile bool to_call = false;
	ErrorData *volatile error = NULL;

	/* From here on what is reserved is not to be settled by its missing lease. */
	in_flight_begin(&acquire_calls, &lease->call);
	PG_TRY();
	{
		json_t *made = NULL;

		lease->waits = false;
		if (lease->resumed)
		{
			prepare_again(lease, &made, &timeout_ms);
			to_call = true;
		}
		else
			to_call = requested_leases_prepare(lease, &made, &timeout_ms);
		params = made;
	}
	PG_CATCH();
	{
		error = take_error(context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (to_call)
	{
		const char *method = lease->resumed ? "environmentResumeLease" : "environmentAcquireLease";

		FAULT_POINT("request-before-call");
		if (!driver_client_call(method, params, timeout_ms, lease_answered, lease))
		{
			lease_answered(lease, &(DriverAnswer){NULL, NULL});
			requested_leases_look_later(0);
			return false;
		}
		return true;
	}
	in_flight_withdraw(&acquire_calls, &lease->call);
	if (error != NULL && error_is_passing(error))
		put_off(&lease->call.lease_id, error);
	else if (error != NULL)
		fail_request(lease, error);
	else if (lease->waits && (lease->awaited != NULL || lease->replaced != NULL))
	{
		requested_lease_begin_anew(lease);
		try_later(lease, LOCKED_RETRY_MS);
		return false;
	}
	if (lease->resumed)
		abandon(lease);
	if (error == NULL)
		failure_over(serving, &lease->call.lease_id);
	requested_lease_free(lease);
	ConditionVariableBroadcast(&shared_state->leases_changed);
	return false;
}

static bool
begin_request(const pg_uuid_t *lease_id, const pg_uuid_t *company_id)
{
	RequestedLease *lease = MemoryContextAllocZero(TopMemoryContext, sizeof(RequestedLease));

	lease->call.lease_id = *lease_id;
	lease->call.company_id = *company_id;
	lease->key = *uuid_generate();
	return begin_try(lease);
}

/* Go on with what has been answered. */
static void
go_on(RequestedLease *lease)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData *volatile error = NULL;
	volatile bool completed = false;
	volatile bool again = false;
	const bool lost = lease->result == NULL && lease->error == NULL;

	if (!lost)
	{
		FAULT_POINT("request-after-call");
		if (lease->resumed && resume_goes_on(lease))
			return;
		PG_TRY();
		{
			bool begin_anew;

			completed = complete(lease, &begin_anew);
			again = begin_anew;
		}
		PG_CATCH();
		{
			error = take_error(context);
		}
		PG_END_TRY();
		MemoryContextSwitchTo(context);
	}
	if (error != NULL && lease->error == NULL && error_is_passing(error))
	{
		put_off(&lease->call.lease_id, error);
		return; /* it stays answered */
	}
	if (completed)
		failure_over(serving, &lease->call.lease_id);
	dlist_delete(&lease->call.node);
	if (again)
	{
		work_note(WORK_CLEANUPS);
		requested_lease_begin_anew(lease);
		try_later(lease, LOCKED_RETRY_MS);
		return;
	}
	if (lost)
		requested_leases_look_later(LOST_RETRY_MS);
	else if (error != NULL)
		fail_request(lease, error);
	if (!completed)
		abandon(lease);
	requested_lease_free(lease);
	ConditionVariableBroadcast(&shared_state->leases_changed);
}

/* What is in flight, by company. */
static void
begin_round(void)
{
	dlist_iter iter;

	company_turns_round(&turns);
	dlist_foreach(iter, &acquire_calls.in_flight)
	{
		company_turns_count(&turns, &dlist_container(CallInFlight, node, iter.cur)->company_id);
	}
}

/* A round's part of the pass; false: it can't go on now. */
static bool
requested_leases_pass_on(bool begin)
{
	CompanyTurn *turn = NULL;
	TimestampTz began = timer_now();

	if ((begin || joining) && !requested_leases_list_companies(begin))
		return false;
	joining = false;
	begin_round();
	for (int begun = 0; begun < BATCH && (turn = company_turns_next(&turns)) != NULL;)
	{
		LeaseRequest *request;

		CHECK_FOR_INTERRUPTS();
		/* Its other requests come when calls of its own have ended. */
		if (!in_flight_allows_company(&acquire_calls, turn->serving))
		{
			turn->over = limited = true;
			continue;
		}
		if (turn->page_next == turn->page_length && !requested_leases_read_page(turn))
			return false;
		if (turn->page_length == 0)
		{
			turn->over = true;
			continue;
		}
		request = (LeaseRequest *) turn->page + turn->page_next++;
		/* What others do in their triggers may take long: the rest has its turn first. */
		if (TimestampDifferenceExceeds(began, timer_now(), ROUND_MS))
			return true;
		turn->at = request->created_at;
		turn->at_id = request->lease_id;
		if (in_flight_has(&acquire_calls, &request->lease_id) ||
		    is_skipped(&request->environment_id) || requested_leases_is_put_off(&request->lease_id))
			continue;
		turn->serving += begin_request(&request->lease_id, &turn->company_id);
		begun++;
	}
	passing = turn != NULL;
	return true;
}

TimestampTz
requested_leases_tend(void)
{
	TimestampTz now = timer_now();
	MemoryContext context;
	MemoryContext previous;
	dlist_mutable_iter iter;
	bool begin = false;

	if (work_take(WORK_LEASE_REQUESTS))
		look = joining = true;
	if (dlist_is_empty(&acquire_calls.answered) && look_at > now && !look && !passing)
		return look_at;
	context =
	    AllocSetContextCreate(TopMemoryContext, "envrt requested leases", ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(context);
	if (look_at <= now)
	{
		look = true;
		look_at = DT_NOEND;
	}
	dlist_foreach_modify(iter, &acquire_calls.answered)
	{
		RequestedLease *lease = dlist_container(RequestedLease, call.node, iter.cur);

		CHECK_FOR_INTERRUPTS();
		if (!requested_leases_is_put_off(&lease->call.lease_id))
			go_on(lease);
	}
	dlist_foreach_modify(iter, &acquire_calls.later)
	{
		RequestedLease *lease = dlist_container(RequestedLease, call.node, iter.cur);

		CHECK_FOR_INTERRUPTS();
		if (lease->again_at > now)
			requested_leases_look_later(TimestampDifferenceMilliseconds(now, lease->again_at));
		else
		{
			dlist_delete(&lease->call.node);
			begin_try(lease);
		}
	}
	if (look && !passing)
	{
		look = limited = joining = false;
		passing = begin = true;
		nskipped = 0;
	}
	if (passing && !requested_leases_pass_on(begin))
	{
		passing = false;
		requested_leases_look_later(LOST_RETRY_MS);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return look || passing || work_is_noted(WORK_LEASE_REQUESTS) ? now : look_at;
}

/* Raise what made the request fail. */
static void
raise_failure(void)
{
	const char *state = result_text(0, 2);
	char *detail = result_text(0, 4);
	char *hint = result_text(0, 5);

	ereport(ERROR, (errcode(MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4])),
	                errmsg_internal("%s", result_text(0, 3)),
	                detail != NULL ? errdetail_internal("%s", detail) : 0,
	                hint != NULL ? errhint("%s", hint) : 0));
}

static void
report_own_request(const pg_uuid_t *lease_id)
{
	ereport(ERROR,
	        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
	         errmsg("Lease \"%s\" was requested in this very transaction.", uuid_text(lease_id)),
	         errhint("It is acquired after the commit: wait in a later transaction.")));
}

/*
 * envrt_await_lease(lease_id, timeout)
 */
Datum
envrt_await_lease(PG_FUNCTION_ARGS)
{
	static Statement find_request = {
	    "SELECT state, sqlstate, message, detail, hint, heartbeat_run_id FROM envrt.lease_requests "
	    "WHERE lease_id = $1",
	    1,
	    {UUIDOID},
	};
	static Statement find_lease = {
	    "SELECT * FROM @environment_leases@ WHERE id = $1", 1, {UUIDOID}};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	Datum values[1] = {UUIDPGetDatum(lease_id)};
	ApiCall call;
	Waiting waiting;
	Datum result;

	waiting_begin(&waiting, fcinfo, 1);
	api_enter(&call, "envrt_await_lease()");
	for (;;)
	{
		ApiCall ledger;
		bool queued;

		/* In this order: when the request is gone, the lease is there. */
		ledger_enter(&ledger);
		queued = statement_execute_latest(&find_request, values, NULL) > 0 &&
		         caller_can_see_now(&call, TABLE_HEARTBEAT_RUNS, result_uuid(0, 6));
		if (queued && statement_execute_latest(&find_request, values, NULL) > 0 &&
		    strcmp(result_text(0, 1), "failed") == 0)
			raise_failure();
		api_leave(&ledger);
		if (!queued)
			break;
		if (hint_given(lease_id))
			report_own_request(lease_id);
		if (!waiting_wait(&waiting))
			ereport(ERROR,
			        (errcode(ERRCODE_QUERY_CANCELED),
			         errmsg("Lease \"%s\" has not been acquired in time.", uuid_text(lease_id)),
			         errhint("It is still queued: wait again, or end its run.")));
	}
	waiting_end();
	if (!caller_can_see_now(&call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
	    statement_execute_latest(&find_lease, values, NULL) == 0)
	{
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Lease \"%s\" not found.", uuid_text(lease_id)),
		                hint_visible_rows(TABLE_ENVIRONMENT_LEASES)));
	}
	result = result_row_datum(fcinfo);
	api_leave(&call);
	PG_RETURN_DATUM(result);
}
