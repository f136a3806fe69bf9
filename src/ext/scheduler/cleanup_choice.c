/*
 * cleanup_choice.c
 *		Which of the rows that are due are cleaned up next.
 *
 * What is told already, or would be one call too many of its like (in_flight.c),
 * waits.  When more is due than a batch has room for, each company gets a part of
 * the batch, and the next batch begins with the company after the last one.
 */
#include "postgres.h"

#include "ledger/ledger.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "scheduler/cleanup_choice.h"

#define CANDIDATES 256
#define SAME_RETRY_MS 100

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

/* Columns of what is due. */
enum
{
	DUE_LEASE_ID = 1,
	DUE_HOLDER_ID,
	DUE_ENVIRONMENT_ID,
	DUE_PROVIDER,
	DUE_COMPANY_ID,
	DUE_NAME,
	DUE_MAKER
};

#define DUE_COLUMNS                                                                                \
	"SELECT p.lease_id, p.holder_id, p.environment_id, p.driver || ':' || p.driver_key, "          \
	"p.company_id, p.provider_lease_id, " LEDGER_MAKER_OF("p.") " FROM envrt.provider_leases p"
#define DUE                                                                                        \
	" p.state = ANY (ARRAY['idle', 'cleaning'])"                                                   \
	" AND p.next_attempt_at <= $5 AND" LEDGER_OWN_OF(                                              \
	    "p.") " AND p.environment_id <> ALL ($6)"                                                  \
	          " AND (p.driver || ':' || p.driver_key) <> ALL ($7)"                                 \
	          " AND (p.company_id::text || ':' || p.driver || ':' || p.driver_key) <> ALL ($7)"

/*
 * Reads what is due, without those that have their share in flight; how many.
 * *more: there is more than this.
 */
static int
cleanup_find_due(TimestampTz now, bool *more)
{
	static Statement find = {
	    DUE_COLUMNS " WHERE" DUE " ORDER BY p.next_attempt_at LIMIT 256",
	    7,
	    {LEDGER_OWN_TYPES, TIMESTAMPTZOID, UUIDARRAYOID, TEXTARRAYOID},
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
		from = count == CANDIDATES ? *result_uuid(count - 1, DUE_COMPANY_ID) : (pg_uuid_t){{0}};
	}
	return count;
}

static Cleanup *
cleanup_new(const CallInFlight *call, int row)
{
	Cleanup *cleanup = MemoryContextAllocZero(TopMemoryContext, sizeof(Cleanup));
	char *name = result_text(row, DUE_NAME);

	cleanup->call = *call;
	cleanup->maker = MemoryContextStrdup(TopMemoryContext, result_text(row, DUE_MAKER));
	if (name != NULL)
		cleanup->name = MemoryContextStrdup(TopMemoryContext, name);
	if (result_uuid(row, DUE_HOLDER_ID) != NULL)
	{
		cleanup->holder_id = *result_uuid(row, DUE_HOLDER_ID);
		cleanup->has_holder = true;
	}
	return cleanup;
}

/* The turn of these comes when the other one of their name has been answered. */
static void
cleanup_postpone(Datum *lease_ids, int count, TimestampTz until)
{
	static Statement postpone = {
	    "UPDATE envrt.provider_leases SET next_attempt_at = $2 WHERE lease_id = ANY ($1)",
	    2,
	    {UUIDARRAYOID, TIMESTAMPTZOID},
	};
	Datum values[2] = {PointerGetDatum(cleanup_uuid_array(lease_ids, count)),
	                   TimestampTzGetDatum(until)};

	if (count > 0)
		statement_execute(&postpone, values, NULL);
}

/*
 * What is due and may be started, as far as it is in a batch, in `context`; *more: there was more.
 */
static List *
choose(TimestampTz now, MemoryContext context, bool *more)
{
	int count = cleanup_find_due(now, more);
	Datum others[CANDIDATES];
	int nothers = 0;
	List *chosen = NIL;

	for (int row = 0; row < count; row++)
	{
		CallInFlight call = {
		    .lease_id = *result_uuid(row, DUE_LEASE_ID),
		    .company_id = *result_uuid(row, DUE_COMPANY_ID),
		    .environment_id = *result_uuid(row, DUE_ENVIRONMENT_ID),
		};

		strlcpy(call.provider, result_text(row, DUE_PROVIDER), sizeof(call.provider));
		/* A person's retry may have made it due while it is tried. */
		if (in_flight_has(&cleanup_calls, &call.lease_id) ||
		    !in_flight_allows(&cleanup_calls, &call, chosen))
			continue;
		if (thing_is_under_way(result_text(row, DUE_MAKER), result_text(row, DUE_NAME), chosen))
		{
			others[nothers++] = UUIDPGetDatum(result_uuid(row, DUE_LEASE_ID));
			continue;
		}
		/* SPI has its own context. */
		MemoryContextSwitchTo(context);
		chosen = lappend(chosen, cleanup_new(&call, row));
	}
	cleanup_postpone(others, nothers, TimestampTzPlusMilliseconds(now, SAME_RETRY_MS));
	MemoryContextSwitchTo(context);
	return chosen;
}

List *
cleanup_try_choose(TimestampTz now, MemoryContext context, bool *more)
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
