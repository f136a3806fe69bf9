/*
 * cleanup.c
 *		Cleanup: telling providers that their provider leases are not needed.
 *
 * The scheduler's part that meets the outside.  A row that is cleaning, or
 * idle past its time, is due at its next_attempt_at.  Its way:
 *
 *	1.	Taken in a batch: attempts and fence go up and next_attempt_at goes
 *		past the call's time limit, in a transaction; so a row in flight is not
 *		due, and a successor of this scheduler can tell what was begun.
 *	2.	Called, by async_calls.c, with nothing open in the database: many
 *		calls are in flight at once, limited per environment and provider, so
 *		that one that hangs holds up nobody but its like; and no company has
 *		more of them than its share (in_flight.c).  When more is due than a
 *		batch has room for, each company gets a part of it.
 *	3.	Answered: the row is deleted, or idle if it is kept for reuse, together
 *		with the lease's cleanup_status in one transaction; or tried again
 *		later, with backoff and jitter; or, after envrt.cleanup_attempts, left
 *		for envrt_retry_cleanup with cleanup_status failed.
 *
 * Where nobody can say whether the provider lease exists, the row becomes
 * unresolved.  Where the lease's row is locked, or a trigger on it fails, the
 * row stays as report until its cleanup_status can be set: the provider is
 * not told again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "base/compat.h"
#include "secrets/secret_references.h"
#include "hostlink/async_calls.h"
#include "base/fault_points.h"
#include "base/json.h"
#include "ledger/in_flight.h"
#include "ledger/ledger.h"
#include "scheduler/cleanup.h"
#include "lib/ilist.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/lmgr.h"
#include "base/timer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define CANDIDATES 256

/* In last_error: such a name no row can have, so nothing that lives is meant by it. */
#define UNSPEAKABLE "the provider gave this an id that can't be stored"

#define REPORT_RETRY_MS 1000
#define MAX_REPORT_RETRY_MS (2 * 60 * 1000)
#define LOST_RETRY_MS 500
#define SAME_RETRY_MS 100
#define MAX_LOSSES 1
#define BACKOFF_MS 1000
#define MAX_BACKOFF_MS (5 * 60 * 1000)

/* When a row is tried again whose call nobody knows of any more. */
#define FORGOTTEN_MS (3 * (int64) envrt_provider_timeout + 6000)

typedef enum CleanupResult
{
	CLEANUP_DONE,
	CLEANUP_FOUND,   /* what was made, which the ledger did not know */
	CLEANUP_UNKNOWN, /* nobody knows whether it exists */
	CLEANUP_ERROR,
	CLEANUP_LOST /* no answer */
} CleanupResult;

typedef struct Cleanup
{
	CallInFlight call; /* first */
	pg_uuid_t holder_id;
	bool has_holder;
	char *maker; /* who calls it so: LEDGER_MAKER_OF */
	char *name;  /* providerLeaseId; NULL: not known */
	bool keep;
	int attempts;
	int64 fence; /* as the row had it when it was taken */
	json_t *params;
	json_t *values; /* of secrets in them */
	const char *method;
	CleanupResult result;
	json_t *found; /* the answer, when something was found */
	char error[1024];
	/* While it is being finished. */
	bool lease_blocked; /* the lease's cleanup_status could not be set */
} Cleanup;

static TimestampTz next_due; /* when no work is noted */

static ArrayType *
cleanup_uuid_array(Datum *ids, int count)
{
	return construct_array(ids, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
}

static void
cleanup_free(Cleanup *cleanup)
{
	json_decref(cleanup->params);
	json_decref(cleanup->values);
	json_decref(cleanup->found);
	pfree(cleanup->maker);
	if (cleanup->name != NULL)
		pfree(cleanup->name);
	pfree(cleanup);
}

/* In UTF-8, cut where a character ends. */
static void
set_error(Cleanup *cleanup, const char *message, const char *detail)
{
	size_t space = sizeof(cleanup->error) - 1;
	size_t length = pg_encoding_mbcliplen(PG_UTF8, message, strlen(message), space);

	memcpy(cleanup->error, message, length);
	if (detail != NULL && length + 1 < space)
	{
		cleanup->error[length++] = '\n';
		space = pg_encoding_mbcliplen(PG_UTF8, detail, strlen(detail), space - length);
		memcpy(cleanup->error + length, detail, space);
		length += space;
	}
	cleanup->error[length] = '\0';
}

/* The answer, or that there is none; see async_calls.h. */
static void
cleanup_answered(void *data, const DriverAnswer *answer)
{
	Cleanup *cleanup = data;
	const char *outcome = json_string_value(json_object_get(answer->result, "outcome"));
	const char *message;
	const char *detail;

	if (answer->error != NULL)
	{
		config_mask_secrets(unconstify(json_t *, answer->error), cleanup->values);
		message = json_string_value(json_object_get(answer->error, "message"));
		detail =
		    json_string_value(json_object_get(json_object_get(answer->error, "data"), "detail"));
		cleanup->result = CLEANUP_ERROR;
		set_error(cleanup, message != NULL ? message : "the driver failed", detail);
	}
	else if (answer->result == NULL)
	{
		cleanup->result = CLEANUP_LOST;
		strlcpy(cleanup->error, "the connection to the driver host was lost",
		        sizeof(cleanup->error));
	}
	else if (outcome != NULL && strcmp(outcome, "unknown") == 0)
	{
		cleanup->result = CLEANUP_UNKNOWN;
		strlcpy(cleanup->error,
		        "the provider was lost while it made this, and can't be asked what exists",
		        sizeof(cleanup->error));
	}
	else if (outcome != NULL && strcmp(outcome, "found") == 0)
	{
		cleanup->result = CLEANUP_FOUND;
		cleanup->found = json_incref(unconstify(json_t *, answer->result));
		provider_mask_answer(cleanup->found, NULL, cleanup->values);
	}
	else
		cleanup->result = CLEANUP_DONE;
	in_flight_answered(&cleanup_calls, &cleanup->call);
}

static bool
is_same_thing(const Cleanup *cleanup, const char *maker, const char *name)
{
	return cleanup->name != NULL && name != NULL && cleanup->method != NULL &&
	       strcmp(cleanup->name, name) == 0 && strcmp(cleanup->maker, maker) == 0;
}

/* Whether something of that name is being told already. */
static bool
thing_is_under_way(const char *maker, const char *name, const List *chosen)
{
	dlist_iter iter;
	ListCell *cell;

	dlist_foreach(iter, &cleanup_calls.in_flight)
	{
		if (is_same_thing(dlist_container(Cleanup, call.node, iter.cur), maker, name))
			return true;
	}
	foreach (cell, chosen)
	{
		const Cleanup *cleanup = lfirst(cell);

		if (cleanup->name != NULL && name != NULL && strcmp(cleanup->name, name) == 0 &&
		    strcmp(cleanup->maker, maker) == 0)
			return true;
	}
	return false;
}

/* Environments that have as many calls in flight as they may. */
static ArrayType *
full_environments(void)
{
	Datum *ids = palloc(sizeof(Datum) * Max(cleanup_calls.nin_flight, 1));
	int count = 0;
	dlist_iter iter;

	dlist_foreach(iter, &cleanup_calls.in_flight)
	{
		Cleanup *cleanup = dlist_container(Cleanup, call.node, iter.cur);
		CallInFlight another = {.environment_id = cleanup->call.environment_id};

		if (!in_flight_allows(&cleanup_calls, &another, NIL))
			ids[count++] = UUIDPGetDatum(&cleanup->call.environment_id);
	}
	return cleanup_uuid_array(ids, count);
}

/* Companies that have their share in flight. */
static ArrayType *
full_companies(int *count)
{
	Datum *ids = palloc(sizeof(Datum) * Max(cleanup_calls.nin_flight, 1));
	dlist_iter iter;

	*count = 0;
	dlist_foreach(iter, &cleanup_calls.in_flight)
	{
		Cleanup *cleanup = dlist_container(Cleanup, call.node, iter.cur);
		CallInFlight another = {.company_id = cleanup->call.company_id};

		if (!in_flight_allows(&cleanup_calls, &another, NIL))
			ids[(*count)++] = UUIDPGetDatum(&cleanup->call.company_id);
	}
	return cleanup_uuid_array(ids, *count);
}

/* Providers that have as many calls in flight as they may, and those with a company before. */
static ArrayType *
full_providers(void)
{
	Datum *names = palloc(sizeof(Datum) * Max(2 * cleanup_calls.nin_flight, 1));
	int count = 0;
	dlist_iter iter;

	dlist_foreach(iter, &cleanup_calls.in_flight)
	{
		Cleanup *cleanup = dlist_container(Cleanup, call.node, iter.cur);
		CallInFlight another = {0};
		CallInFlight of_company;

		strlcpy(another.provider, cleanup->call.provider, sizeof(another.provider));
		of_company = another;
		of_company.company_id = cleanup->call.company_id;
		if (!in_flight_allows(&cleanup_calls, &another, NIL))
			names[count++] = CStringGetTextDatum(cleanup->call.provider);
		else if (!in_flight_allows(&cleanup_calls, &of_company, NIL))
			names[count++] = CStringGetTextDatum(
			    psprintf("%s:%s", uuid_text(&cleanup->call.company_id), cleanup->call.provider));
	}
	return construct_array(names, count, TEXTOID, -1, false, TYPALIGN_INT);
}

/* What is due and may be started, as far as it is in a batch, in `context`; *more: there was more.
 */
static List *
choose(TimestampTz now, MemoryContext context, bool *more)
{
#define DUE_COLUMNS                                                                                \
	"SELECT p.lease_id, p.holder_id, p.environment_id, p.driver || ':' || p.driver_key, "          \
	"p.company_id, p.provider_lease_id, " LEDGER_MAKER_OF("p.") " FROM envrt.provider_leases p"
#define DUE                                                                                        \
	" p.state = ANY (ARRAY['idle', 'cleaning'])"                                                   \
	" AND p.next_attempt_at <= $5 AND" LEDGER_OWN_OF(                                              \
	    "p.") " AND p.environment_id <> ALL ($6)"                                                  \
	          " AND (p.driver || ':' || p.driver_key)"                                             \
	          " <> ALL ($7)"                                                                       \
	          " AND (p.company_id::text || ':'"                                                    \
	          " || p.driver || ':'"                                                                \
	          " || p.driver_key) <> ALL ($7)"
	static Statement find = {
	    DUE_COLUMNS " WHERE" DUE " ORDER BY p.next_attempt_at LIMIT 256",
	    7,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID, UUIDARRAYOID, TEXTARRAYOID},
	};
	/* Its turn comes when the other one of its name has been answered. */
	static Statement postpone = {
	    "UPDATE envrt.provider_leases SET next_attempt_at = $2"
	    " WHERE lease_id = ANY ($1)",
	    2,
	    {UUIDARRAYOID, TIMESTAMPTZOID},
	};
	/* A part of each company's, from one company on; those that have their share are left out. */
	static Statement find_fairly = {
	    "WITH RECURSIVE c(company_id) AS ("
	    " (SELECT company_id FROM envrt.provider_leases"
	    "  WHERE state = ANY (ARRAY['idle', 'cleaning'])"
	    "  AND company_id > $9 ORDER BY company_id LIMIT 1)"
	    " UNION ALL"
	    " SELECT (SELECT t.company_id FROM envrt.provider_leases t"
	    "   WHERE t.state = ANY (ARRAY['idle', 'cleaning'])"
	    "   AND t.company_id > c.company_id ORDER BY t.company_id LIMIT 1)"
	    "  FROM c WHERE c.company_id IS NOT NULL)"
	    " SELECT r.* FROM c CROSS JOIN LATERAL (" DUE_COLUMNS
	    "  WHERE p.company_id = c.company_id AND" DUE "  ORDER BY p.next_attempt_at LIMIT 16) r"
	    " WHERE c.company_id <> ALL ($8) LIMIT 256",
	    9,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID, UUIDARRAYOID, TEXTARRAYOID, UUIDARRAYOID, UUIDOID},
	};
	static pg_uuid_t from; /* the company that was listed last */
	Datum values[9];
	Datum others[CANDIDATES];
	int nothers = 0;
	List *chosen = NIL;
	int full;
	int count = CANDIDATES;

	ledger_own_arguments(values);
	values[4] = TimestampTzGetDatum(now);
	values[5] = PointerGetDatum(full_environments());
	values[6] = PointerGetDatum(full_providers());
	values[7] = PointerGetDatum(full_companies(&full));
	/* By age, which is cheap, unless one of them has much. */
	if (full == 0)
		count = statement_execute(&find, values, NULL);
	*more = count == CANDIDATES;
	if (*more)
	{
		values[8] = UUIDPGetDatum(&from);
		count = statement_execute(&find_fairly, values, NULL);
		from = count == CANDIDATES ? *result_uuid(count - 1, 5) : (pg_uuid_t){{0}};
	}
	for (int row = 0; row < count; row++)
	{
		CallInFlight call = {
		    .lease_id = *result_uuid(row, 1),
		    .company_id = *result_uuid(row, 5),
		    .environment_id = *result_uuid(row, 3),
		};
		char *name = result_text(row, 6);
		char *maker = result_text(row, 7);
		Cleanup *cleanup;

		strlcpy(call.provider, result_text(row, 4), sizeof(call.provider));
		/* A person's retry may have made it due while it is tried. */
		if (in_flight_has(&cleanup_calls, &call.lease_id) ||
		    !in_flight_allows(&cleanup_calls, &call, chosen))
			continue;
		if (thing_is_under_way(maker, name, chosen))
		{
			others[nothers++] = UUIDPGetDatum(result_uuid(row, 1));
			continue;
		}
		cleanup = MemoryContextAllocZero(TopMemoryContext, sizeof(Cleanup));
		cleanup->call = call;
		cleanup->maker = MemoryContextStrdup(TopMemoryContext, maker);
		if (name != NULL)
			cleanup->name = MemoryContextStrdup(TopMemoryContext, name);
		if (result_uuid(row, 2) != NULL)
		{
			cleanup->holder_id = *result_uuid(row, 2);
			cleanup->has_holder = true;
		}
		/* SPI has its own. */
		MemoryContextSwitchTo(context);
		chosen = lappend(chosen, cleanup);
	}
	if (nothers > 0)
	{
		values[0] = PointerGetDatum(cleanup_uuid_array(others, nothers));
		values[1] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(now, SAME_RETRY_MS));
		statement_execute(&postpone, values, NULL);
		MemoryContextSwitchTo(context);
	}
	return chosen;
}

static void
set_text(json_t *object, const char *key, const char *text)
{
	if (text != NULL)
		json_object_set_new(object, key, json_string(text_to_utf8(text)));
}

/*
 * Whether another row lives by the name of this one, which another server may
 * have made.  What they name is that row's from now on: it ends it.
 */
static bool
is_of_another(const Cleanup *cleanup)
{
	static Statement find = {
	    "SELECT 1 FROM envrt.provider_leases p WHERE p.provider_lease_id = $1"
	    " AND " LEDGER_MAKER_OF("p.") " = $2"
	                                  " AND p.lease_id <> $3" LEDGER_LIVE_OF("p.") " LIMIT 1",
	    3,
	    {TEXTOID, TEXTOID, UUIDOID},
	};
	Datum values[3];

	if (cleanup->name == NULL)
		return false;
	values[0] = CStringGetTextDatum(cleanup->name);
	values[1] = CStringGetTextDatum(cleanup->maker);
	values[2] = UUIDPGetDatum(&cleanup->call.lease_id);
	return statement_execute(&find, values, NULL) > 0;
}

/*
 * The call's params from the row that was just taken; the result's columns are those of `take`.
 * Nothing is called for what is another row's.
 */
static void
make_call(Cleanup *cleanup, int row, bool of_another)
{
	bool isnull;
	Datum datum;
	char *kind = result_text(row, 1);
	json_t *config;
	json_t *params;
	bytea *secrets = NULL;
	pg_uuid_t company_id = *result_uuid(row, 9);

	cleanup->attempts = DatumGetInt32(result_datum(row, 2, &isnull));
	cleanup->fence = DatumGetInt64(result_datum(row, 11, &isnull));
	if (strncmp(kind, "report", strlen("report")) == 0)
	{
		cleanup->keep = strcmp(kind, "report_keep") == 0;
		return;
	}
	if (of_another)
		return;
	cleanup->keep = strcmp(kind, "keep") == 0;
	cleanup->method =
	    strcmp(kind, "destroy") == 0 ? "environmentDestroyLease" : "environmentReleaseLease";

	config = json_from_jsonb(DatumGetJsonbP(result_datum(row, 3, &isnull)));
	datum = result_datum(row, 4, &isnull);
	if (!isnull)
		secrets = DatumGetByteaPCopy(datum);
	params = cleanup->params = json_object_new();
	datum = result_datum(row, 5, &isnull);
	if (!isnull)
		json_object_set(params, "leaseMetadata", json_from_jsonb(DatumGetJsonbP(datum)));
	set_text(params, "providerLeaseId", result_text(row, 6));
	if (json_object_get(params, "providerLeaseId") == NULL)
		json_object_set_new(params, "providerLeaseId", json_null());
	set_text(params, "driverKey", result_text(row, 7));
	set_text(params, "pluginKey", result_text(row, 8));
	set_text(params, "companyId", uuid_text(result_uuid(row, 9)));
	set_text(params, "environmentId", uuid_text(&cleanup->call.environment_id));
	set_text(params, "hostInstance", result_text(row, 10));
	set_text(params, "leaseId", uuid_text(&cleanup->call.lease_id));
	json_object_set_new(params, "fence", json_integer(cleanup->fence));
	if (cleanup->keep)
		json_object_set_new(params, "keep", json_true());
	/* A plugin may have given it the name of something that lives: let it be said first. */
	if (cleanup->name == NULL && result_text(row, 8) != NULL &&
	    (result_text(row, 12) == NULL || strcmp(result_text(row, 12), UNSPEAKABLE) != 0))
		json_object_set_new(params, "identify", json_true());
	/* Last: to decrypt them, statements of their own are run. */
	if (secrets != NULL)
	{
		json_t *values;

		/* The newest first; next, should that be what fails, those that it was made with. */
		config =
		    config_fill_secrets(config, &cleanup->call.lease_id,
		                        cleanup->attempts % 2 == 1 ? &company_id : NULL, secrets, &values);
		cleanup->values = json_incref(values);
		json_object_set_new(params, "secrets", config_secrets_by_id(values));
	}
	json_object_set(params, "config", config);
	provider_set_limit(params);
}

/* A driver host may wait for a create, list and destroy, each within the limit. */
static int64
call_timeout(const Cleanup *cleanup)
{
	return 3 * provider_patience(cleanup->params) / 2 + 5000;
}

/* Take the chosen rows: they are in flight from the commit on. */
static void
take(List *chosen, TimestampTz now)
{
	static Statement update = {
	    "UPDATE envrt.provider_leases SET state = 'cleaning', cleanup = coalesce(cleanup, "
	    "'destroy'), attempts = attempts + 1,"
	    " fence = fence + 1, next_attempt_at = $2, updated_at = now()"
	    " WHERE lease_id = $1"
	    " RETURNING cleanup, attempts, config, secrets, metadata, provider_lease_id, driver_key, "
	    "plugin_key, company_id, host_instance, fence, last_error",
	    2,
	    {UUIDOID, TIMESTAMPTZOID},
	};
	ListCell *cell;

	foreach (cell, chosen)
	{
		Cleanup *cleanup = lfirst(cell);
		Datum values[2] = {UUIDPGetDatum(&cleanup->call.lease_id)};
		bool of_another = is_of_another(cleanup);

		values[1] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(now, FORGOTTEN_MS));
		if (statement_execute(&update, values, NULL) == 0)
			elog(ERROR, "ledger row \"%s\" has vanished", uuid_text(&cleanup->call.lease_id));
		make_call(cleanup, 0, of_another);
	}
}

/*
 * A row whose call can't even be made, since its secrets can't be decrypted,
 * say: that counts as an attempt that has failed.  False when not even this
 * can be written.
 */
static bool
take_unusable(Cleanup *cleanup, TimestampTz now, const char *error)
{
	static Statement update = {
	    "UPDATE envrt.provider_leases SET state = 'cleaning', cleanup = coalesce(cleanup, "
	    "'destroy'), attempts = attempts + 1, next_attempt_at = $2"
	    " WHERE lease_id = $1 RETURNING cleanup, attempts, fence",
	    2,
	    {UUIDOID, TIMESTAMPTZOID},
	};
	volatile bool taken = false;

	PG_TRY();
	{
		ApiCall call;
		Datum values[2] = {UUIDPGetDatum(&cleanup->call.lease_id)};
		bool isnull;

		ledger_begin(&call);
		values[1] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(now, BACKOFF_MS));
		if (statement_execute(&update, values, NULL) > 0)
		{
			cleanup->keep = strcmp(result_text(0, 1), "keep") == 0;
			cleanup->attempts = DatumGetInt32(result_datum(0, 2, &isnull));
			cleanup->fence = DatumGetInt64(result_datum(0, 3, &isnull));
			cleanup->result = CLEANUP_ERROR;
			set_error(cleanup, text_to_utf8(error), NULL);
			taken = true;
		}
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("beginning to clean up");
		taken = false;
	}
	PG_END_TRY();
	return taken;
}

/* An error that says nothing about the row. */
static bool
is_passing(int sqlstate)
{
	return sqlstate == ERRCODE_LOCK_NOT_AVAILABLE || sqlstate == ERRCODE_QUERY_CANCELED ||
	       sqlstate == ERRCODE_OUT_OF_MEMORY;
}

/* Take them; those that can't be used go to `answered` when they are alone. */
static bool
try_take(List *chosen, TimestampTz now)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool taken = false;
	volatile bool passing = false;
	char message[256] = "";
	ListCell *cell;

	PG_TRY();
	{
		ApiCall call;

		ledger_begin(&call);
		take(chosen, now);
		FAULT_POINT("cleanup-before-taken");
		ledger_commit(&call, false);
		taken = true;
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		HOLD_INTERRUPTS();
		error = CopyErrorData();
		snprintf(message, sizeof(message), "%.*s",
		         pg_mbcliplen(error->message, strlen(error->message), sizeof(message) - 1),
		         error->message);
		passing = is_passing(error->sqlerrcode);
		FreeErrorData(error);
		FlushErrorState();
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (taken)
		return true;
	foreach (cell, chosen)
	{
		Cleanup *cleanup = lfirst(cell);

		json_decref(cleanup->params);
		json_decref(cleanup->values);
		cleanup->params = cleanup->values = NULL;
	}
	if (list_length(chosen) == 1)
	{
		Cleanup *cleanup = linitial(chosen);

		if (!passing && take_unusable(cleanup, now, message))
			dlist_push_tail(&cleanup_calls.answered, &cleanup->call.node);
		else
			cleanup_free(cleanup);
		MemoryContextSwitchTo(context);
	}
	return false;
}

static void
cleanup_start(List *chosen)
{
	ListCell *cell;

	foreach (cell, chosen)
	{
		Cleanup *cleanup = lfirst(cell);

		in_flight_begin(&cleanup_calls, &cleanup->call);
		if (cleanup->params == NULL)
		{
			/* Only to be reported. */
			cleanup->result = CLEANUP_DONE;
			in_flight_answered(&cleanup_calls, &cleanup->call);
			continue;
		}
		FAULT_POINT("cleanup-before-call");
		if (!driver_client_call(cleanup->method, json_incref(cleanup->params),
		                        call_timeout(cleanup), cleanup_answered, cleanup))
			cleanup_answered(cleanup, &(DriverAnswer){NULL, NULL});
	}
}

/* As choose, in a transaction; nothing when that fails. */
static List *
try_choose(TimestampTz now, MemoryContext context, bool *more)
{
	List *volatile chosen = NIL;

	PG_TRY();
	{
		ApiCall call;

		ledger_begin(&call);
		chosen = choose(now, context, more);
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("looking for what is to be cleaned up");
		chosen = NIL;
	}
	PG_END_TRY();
	return chosen;
}

/* Start what is due; true when there is more. */
static bool
start_due(void)
{
	MemoryContext context =
	    AllocSetContextCreate(TopMemoryContext, "envrt cleanup", ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);
	TimestampTz now = GetCurrentTimestamp();
	List *chosen;
	List *taken = NIL;
	bool more = false;
	ListCell *cell;

	chosen = try_choose(now, context, &more);
	MemoryContextSwitchTo(context);
	if (chosen != NIL)
	{
		if (try_take(chosen, now))
			taken = chosen;
		else if (list_length(chosen) > 1)
			foreach (cell, chosen)
			{
				/* One of them is bad: the others must not suffer for it. */
				if (try_take(list_make1(lfirst(cell)), now))
					taken = lappend(taken, lfirst(cell));
			}
		cleanup_start(taken);
	}
	more = more && taken != NIL;
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return more;
}

/*
 * Set the cleanup_status of the leases whose cleanup has come to an end.
 * Marks those whose rows are locked as blocked; without `try`, all that exist.
 */
static void
report_to_leases(List *ended, bool try, const char *status)
{
	static Statement find = {
	    "SELECT id FROM @environment_leases@ WHERE id = ANY ($1)"
	    " AND cleanup_status = ANY (ARRAY['pending', 'failed'])"
	    " AND status <> 'active'",
	    1,
	    {UUIDARRAYOID},
	};
	static Statement update = {
	    "UPDATE @environment_leases@ SET cleanup_status = $2, updated_at = now()"
	    " WHERE id = ANY ("
	    "  SELECT id FROM @environment_leases@ WHERE id = ANY ($1)"
	    "  FOR NO KEY UPDATE SKIP LOCKED)"
	    " RETURNING id, coalesce(cleanup_status = $2, false)",
	    2,
	    {UUIDARRAYOID, TEXTOID},
	};
	Datum *ids = palloc(sizeof(Datum) * list_length(ended));
	Datum values[2] = {(Datum) 0, CStringGetTextDatum(status)};
	int count = 0;
	int found;
	ListCell *cell;

	foreach (cell, ended)
	{
		Cleanup *cleanup = lfirst(cell);

		cleanup->lease_blocked = cleanup->has_holder;
		if (cleanup->has_holder)
			ids[count++] = UUIDPGetDatum(&cleanup->holder_id);
	}
	values[0] = PointerGetDatum(cleanup_uuid_array(ids, count));
	if (count == 0 || !statement_try_read(TABLE_ENVIRONMENT_LEASES, &find, values, NULL, &found))
		return;
	/* What has no such lease has nothing to report to. */
	foreach (cell, ended)
		((Cleanup *) lfirst(cell))->lease_blocked = false;
	for (int row = 0; row < found; row++)
	{
		pg_uuid_t *id = result_uuid(row, 1);

		ids[row] = UUIDPGetDatum(id);
		foreach (cell, ended)
		{
			Cleanup *cleanup = lfirst(cell);

			if (cleanup->has_holder && memcmp(&cleanup->holder_id, id, UUID_LEN) == 0)
				cleanup->lease_blocked = true;
		}
	}
	if (found > 0 && try &&
	    ConditionalLockRelationOid(shared_table_oid(TABLE_ENVIRONMENT_LEASES), RowExclusiveLock))
	{
		ApiCall owner;

		values[0] = PointerGetDatum(cleanup_uuid_array(ids, found));
		owner_enter(&owner);
		found = statement_write(TABLE_ENVIRONMENT_LEASES, &update, values, NULL);
		for (int row = 0; row < found; row++)
		{
			pg_uuid_t *id = result_uuid(row, 1);
			bool isnull;
			/* A trigger may have put the old status back. */
			bool done = DatumGetBool(result_datum(row, 2, &isnull));

			foreach (cell, ended)
			{
				Cleanup *cleanup = lfirst(cell);

				if (cleanup->has_holder && memcmp(&cleanup->holder_id, id, UUID_LEN) == 0)
					cleanup->lease_blocked = !done;
			}
		}
		api_leave(&owner);
	}
}

static bool
given_up(const Cleanup *cleanup)
{
	return cleanup->result == CLEANUP_UNKNOWN ||
	       (cleanup->result == CLEANUP_ERROR && cleanup->attempts >= envrt_cleanup_attempts);
}

/*
 * What can't be released is kept for reuse all the same: whether it is of use
 * is for its provider to say when it is resumed.
 */
static bool
is_done(const Cleanup *cleanup)
{
	return cleanup->result == CLEANUP_DONE ||
	       (cleanup->result == CLEANUP_ERROR && cleanup->keep && given_up(cleanup));
}

static int64
backoff_ms(int attempts)
{
	double delay = Min((double) BACKOFF_MS * (1 << Min(attempts - 1, 20)), MAX_BACKOFF_MS);

	return (int64) (delay * (0.75 + 0.5 * compat_random()));
}

/* What has been changed since is not this answer's business. */
#define AS_TAKEN                                                                                   \
	" lease_id = $1 AND fence = $2"                                                                \
	" AND state = 'cleaning'"

static void
write_done(const Cleanup *cleanup)
{
	static Statement delete = {
	    "DELETE FROM envrt.provider_leases WHERE" AS_TAKEN, 2, {UUIDOID, INT8OID}};
	/* A time of zero is none. */
	static Statement keep = {
	    "UPDATE envrt.provider_leases SET state = 'idle', holder_id = NULL, cleanup = NULL,"
	    " resumed = false, doomed = false, attempts = 0, last_error = NULL,"
	    " next_attempt_at = CASE WHEN $3 = 0 THEN expires_at"
	    "   ELSE least(expires_at, now() + "
	    "   make_interval(secs => $3)) END,"
	    " updated_at = now()"
	    " WHERE" AS_TAKEN,
	    3,
	    {UUIDOID, INT8OID, INT4OID},
	};
	static Statement report = {
	    "UPDATE envrt.provider_leases SET cleanup = $3, next_attempt_at = $4,"
	    " attempts = CASE WHEN cleanup = $3 THEN attempts ELSE 0 END"
	    " WHERE" AS_TAKEN,
	    4,
	    {UUIDOID, INT8OID, TEXTOID, TIMESTAMPTZOID},
	};
	Datum values[4] = {UUIDPGetDatum(&cleanup->call.lease_id), Int64GetDatum(cleanup->fence)};

	work_note(WORK_PARKED);
	if (cleanup->lease_blocked)
	{
		int64 delay = cleanup->method != NULL
		                  ? REPORT_RETRY_MS
		                  : Min(backoff_ms(cleanup->attempts), MAX_REPORT_RETRY_MS);

		values[2] = CStringGetTextDatum(cleanup->keep ? "report_keep" : "report");
		values[3] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay));
		statement_execute(&report, values, NULL);
	}
	else if (cleanup->keep)
	{
		values[2] = Int32GetDatum(envrt_reuse_idle_timeout);
		statement_execute(&keep, values, NULL);
		/* Its environment may have been changed since. */
		hint_look_at_idle();
	}
	else
		statement_execute(&delete, values, NULL);
}

/* What was made has a name now, and may be another row's by it: look again before it is told. */
static void
write_found(const Cleanup *cleanup)
{
	static Statement name = {
	    "UPDATE envrt.provider_leases SET provider_lease_id = $3, metadata = coalesce(metadata, "
	    "$4), last_error = $5, attempts = attempts - 1,"
	    " next_attempt_at = now(), updated_at = now() WHERE" AS_TAKEN,
	    5,
	    {UUIDOID, INT8OID, TEXTOID, JSONBOID, TEXTOID},
	};
	const json_t *id = json_object_get(cleanup->found, "providerLeaseId");
	json_t *metadata = json_object_get(cleanup->found, "metadata");
	bool storable = json_is_string(id) && provider_id_is_storable(id);
	Datum values[5] = {UUIDPGetDatum(&cleanup->call.lease_id), Int64GetDatum(cleanup->fence)};
	char nulls[6] = "     ";

	if (storable)
		values[2] = CStringGetTextDatum(text_from_utf8(json_string_value(id)));
	else
		values[4] = CStringGetTextDatum(UNSPEAKABLE);
	if (json_is_object(metadata))
		values[3] = JsonbPGetDatum(jsonb_from_json(metadata));
	for (int i = 2; i < 5; i++)
		nulls[i] = values[i] == (Datum) 0 ? 'n' : ' ';
	statement_execute(&name, values, nulls);
}

static void
write_not_done(const Cleanup *cleanup)
{
	static Statement retry = {
	    "UPDATE envrt.provider_leases SET last_error = $3, next_attempt_at = $4,"
	    " attempts = attempts - $5, updated_at = now()"
	    " WHERE" AS_TAKEN,
	    5,
	    {UUIDOID, INT8OID, TEXTOID, TIMESTAMPTZOID, INT4OID},
	};
	static Statement unresolved = {
	    "UPDATE envrt.provider_leases SET state = 'unresolved', last_error = $3, next_attempt_at = "
	    "NULL, updated_at = now() WHERE" AS_TAKEN,
	    3,
	    {UUIDOID, INT8OID, TEXTOID},
	};
	Datum values[5] = {UUIDPGetDatum(&cleanup->call.lease_id), Int64GetDatum(cleanup->fence),
	                   CStringGetTextDatum(text_from_utf8(cleanup->error))};
	TimestampTz now = GetCurrentTimestamp();
	bool lost = cleanup->result == CLEANUP_LOST;
	bool over = given_up(cleanup) && !cleanup->lease_blocked;

	/* Who waits for its end need not wait for another try. */
	work_note(WORK_PARKED);
	if (cleanup->result == CLEANUP_UNKNOWN && !cleanup->lease_blocked)
	{
		statement_execute(&unresolved, values, NULL);
		return;
	}
	values[3] = TimestampTzGetDatum(
	    TimestampTzPlusMilliseconds(now, lost ? LOST_RETRY_MS : backoff_ms(cleanup->attempts)));
	/* A loss is the driver host's fault, unless it is always this one that is lost. */
	values[4] = Int32GetDatum(lost && cleanup->attempts <= MAX_LOSSES ? 1 : 0);
	statement_execute(&retry, values, over ? "   n " : NULL);
}

/* Write down how the answered ones ended, in one transaction. */
static void
write_answers(List *ended, bool try_leases)
{
	ApiCall call;
	List *successes = NIL;
	List *failures = NIL;
	ListCell *cell;

	ledger_begin(&call);
	foreach (cell, ended)
	{
		Cleanup *cleanup = lfirst(cell);

		cleanup->lease_blocked = false;
		if (is_done(cleanup))
			successes = lappend(successes, cleanup);
		else if (given_up(cleanup))
			failures = lappend(failures, cleanup);
	}
	if (successes != NIL)
		report_to_leases(successes, try_leases, "success");
	if (failures != NIL)
		report_to_leases(failures, try_leases, "failed");
	foreach (cell, ended)
	{
		Cleanup *cleanup = lfirst(cell);

		if (is_done(cleanup))
			write_done(cleanup);
		else if (cleanup->result == CLEANUP_FOUND)
			write_found(cleanup);
		else
			write_not_done(cleanup);
	}
	FAULT_POINT("cleanup-before-commit");
	ledger_commit(&call, false);
}

static void
log_failures(List *ended)
{
	ListCell *cell;

	foreach (cell, ended)
	{
		const Cleanup *cleanup = lfirst(cell);

		if (cleanup->result == CLEANUP_UNKNOWN)
			ereport(WARNING, (errmsg("provider lease \"%s\" is unresolved",
			                         uuid_text(&cleanup->call.lease_id)),
			                  errdetail_internal("%s", text_from_utf8(cleanup->error)),
			                  errhint("Look whether the provider has it, then SELECT "
			                          "envrt_forget_provider_lease('%s').",
			                          uuid_text(&cleanup->call.lease_id))));
		else if (given_up(cleanup) && cleanup->keep)
			ereport(
			    WARNING,
			    (errmsg("provider lease \"%s\" is kept for reuse though it could not be released",
			            uuid_text(&cleanup->call.lease_id)),
			     errdetail_internal("%s", text_from_utf8(cleanup->error)),
			     errhint("Its provider may have left it running.")));
		else if (given_up(cleanup))
			ereport(WARNING,
			        (errmsg("cleanup of provider lease \"%s\" has failed after %d attempts",
			                uuid_text(&cleanup->call.lease_id), cleanup->attempts),
			         errdetail_internal("%s", text_from_utf8(cleanup->error)),
			         errhint("SELECT envrt_retry_cleanup('%s') when its cause is mended.",
			                 uuid_text(&cleanup->call.lease_id))));
	}
}

static bool
try_write_answers(List *ended, bool try_leases)
{
	volatile bool written = false;
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		write_answers(ended, try_leases);
		written = true;
	}
	PG_CATCH();
	{
		ledger_abort("writing down what came of cleanups");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return written;
}

/* Write these down and forget them; false when that failed. */
static bool
cleanup_finish(List *ended, bool try_leases)
{
	ListCell *cell;

	if (!try_write_answers(ended, try_leases))
		return false;
	log_failures(ended);
	foreach (cell, ended)
	{
		Cleanup *cleanup = lfirst(cell);

		dlist_delete(&cleanup->call.node);
		cleanup_free(cleanup);
	}
	return true;
}

/* Write down what has been answered; false when some of it can't be. */
static bool
finish_answered(void)
{
	MemoryContext context =
	    AllocSetContextCreate(TopMemoryContext, "envrt cleanup answers", ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);
	List *ended = NIL;
	dlist_iter iter;
	ListCell *cell;
	bool finished;

	dlist_foreach(iter, &cleanup_calls.answered)
	{
		ended = lappend(ended, dlist_container(Cleanup, call.node, iter.cur));
	}
	FAULT_POINT("cleanup-after-call");
	finished = cleanup_finish(ended, true);
	if (!finished)
	{
		/* One of the leases can't be updated, for a trigger say: the others must not suffer for it.
		 */
		finished = true;
		foreach (cell, ended)
		{
			List *one = list_make1(lfirst(cell));

			finished = (cleanup_finish(one, true) || cleanup_finish(one, false)) && finished;
		}
	}
	FAULT_POINT("cleanup-after-commit");
	ConditionVariableBroadcast(&shared_state->leases_changed);
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return finished;
}

/*
 * When the next one becomes due.  What is due already waits for others of its
 * like, whose answers wake us; with none in flight it is tried again soon.
 */
static TimestampTz
find_next_due(void)
{
	static Statement find = {
	    "SELECT next_attempt_at FROM envrt.provider_leases"
	    " WHERE state = ANY (ARRAY['idle', 'cleaning'])"
	    " AND next_attempt_at > $5 AND" LEDGER_OWN " ORDER BY next_attempt_at LIMIT 1",
	    5,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID},
	};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz soon = TimestampTzPlusMilliseconds(now, REPORT_RETRY_MS);
	volatile TimestampTz due = DT_NOEND;

	PG_TRY();
	{
		ApiCall call;
		Datum values[5];
		bool isnull;

		ledger_begin(&call);
		ledger_own_arguments(values);
		values[4] = TimestampTzGetDatum(cleanup_calls.nin_flight > 0 ? now : DT_NOBEGIN);
		if (statement_execute(&find, values, NULL) > 0)
			due = DatumGetTimestampTz(result_datum(0, 1, &isnull));
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("looking when the next cleanup is due");
		due = soon;
	}
	PG_END_TRY();
	return due <= now ? soon : due;
}

/*
 * cleanup_tend
 *		Write down answers and start what is due; when to come again at the latest.
 */
TimestampTz
cleanup_tend(void)
{
	TimestampTz now = timer_now();

	if (!dlist_is_empty(&cleanup_calls.answered))
	{
		if (!finish_answered())
			return TimestampTzPlusMilliseconds(now, REPORT_RETRY_MS);
		work_note(WORK_CLEANUPS);
	}
	if (!work_is_noted(WORK_CLEANUPS) && next_due > now)
		return next_due;
	/* Without a driver host nothing can be done; its coming wakes us. */
	if (driver_client_instance() == NULL)
		return driver_client_deadline();
	(void) work_take(WORK_CLEANUPS);
	while (start_due())
		CHECK_FOR_INTERRUPTS();
	next_due = timer_at(find_next_due());
	if (!dlist_is_empty(&cleanup_calls.answered))
		work_note(WORK_CLEANUPS);
	return work_is_noted(WORK_CLEANUPS) ? now : next_due;
}
