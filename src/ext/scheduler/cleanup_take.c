/*
 * cleanup_take.c
 *		Takes rows for a cleanup, and makes the calls that they need.
 *
 * A row that was taken counts the attempt and is not due before its call must have
 * ended, so that a scheduler that dies now leaves nothing that would be told twice
 * at once.
 */
#include "postgres.h"

#include "secrets/secret_references.h"
#include "base/fault_points.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "mb/pg_wchar.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "scheduler/cleanup_take.h"

/* When a row is tried again whose call nobody knows of any more. */
#define FORGOTTEN_MS (3 * (int64) envrt_provider_timeout + 6000)

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
int64
cleanup_call_timeout(const Cleanup *cleanup)
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
			cleanup_set_error(cleanup, text_to_utf8(error), NULL);
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
bool
cleanup_try_take(List *chosen, TimestampTz now)
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
