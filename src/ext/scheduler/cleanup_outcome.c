/*
 * cleanup_outcome.c
 *		Writes down how cleanups have ended.
 *
 * The row and the cleanup_status of its lease change in one transaction.  One lease
 * that can't be updated costs only its own row another try.
 */
#include "postgres.h"

#include "base/fault_points.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "scheduler/cleanup_outcome.h"

#define MAX_REPORT_RETRY_MS (2 * 60 * 1000)
#define LOST_RETRY_MS 500
#define MAX_LOSSES 1
#define MAX_BACKOFF_MS (5 * 60 * 1000)

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
bool
cleanup_finish_answered(void)
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
