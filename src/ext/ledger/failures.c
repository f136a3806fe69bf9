/*
 * failures.c
 *		What the scheduler could not do: tried again later, counted, shown, logged once.
 *
 * Users may put triggers, rules and foreign keys on the tables that the scheduler writes, and
 * these may raise an error or take a change back without one.  No such row may take the
 * scheduler's time twice in a row: each failure puts the row's next try off, from a second to
 * five minutes.  An error that passes by itself, such as a lock of somebody else's, is tried
 * again soon for a while and is no news until then.
 *
 * The entries are in a hash table of the scheduler's, by activity and row.  An episode of an
 * activity lasts from its first entry to the end of its last one; of the errors in an episode
 * the first with each SQLSTATE is logged.  The activity as a whole (without a row) has no
 * certain end: its entry is dropped when it has not failed for ten minutes.
 *
 * The entries are copied to shared memory for envrt.stat_failures (stats.c), as far as there is
 * room.  When there are more than MAX_ENTRIES rows, further ones are not told apart: none of
 * those is tried for a while.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "ledger/failures.h"
#include "ledger/ledger.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "base/shared_state.h"
#include "rights/tables.h"
#include "base/timer.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define MAX_ENTRIES 10000
#define MAX_ACTIVITIES 32
#define MAX_LOGGED 8
#define FIRST_DELAY_MS 1000
#define MAX_DELAY_MS (5 * 60 * 1000)
#define PASSING_DELAY_MS 500
#define PASSING_TRIES 10
#define EPISODE_MS (10 * 60 * 1000)

typedef struct Activity
{
	const char *name; /* compared by its text: the same constant may be there more than once */
	int nentries;
	TimestampTz overflow_until;
	int nlogged;
	int logged[MAX_LOGGED]; /* SQLSTATEs that this episode has logged */
} Activity;

typedef struct Key
{
	Activity *activity;
	pg_uuid_t id; /* all zero: the activity as a whole */
} Key;

typedef struct FailureEntry
{
	Key key;
	int attempts;
	TimestampTz retry_at;
	int shown; /* its place in shared memory, or -1 */
} FailureEntry;

static Activity activities[MAX_ACTIVITIES];
static int nactivities = 0;
static HTAB *entries = NULL;
static const pg_uuid_t no_id;

/* NULL when there are too many activities, which is a fault of the code. */
static Activity *
find_activity(const char *name)
{
	for (int i = 0; i < nactivities; i++)
		if (strcmp(activities[i].name, name) == 0)
			return &activities[i];
	if (nactivities == MAX_ACTIVITIES)
		elog(FATAL, "too many activities");
	activities[nactivities].name = name;
	return &activities[nactivities++];
}

static void
failures_make_key(Key *key, const char *activity, const pg_uuid_t *id)
{
	memset(key, 0, sizeof(Key));
	key->activity = find_activity(activity);
	key->id = id != NULL ? *id : no_id;
}

static FailureEntry *
find_entry(const char *activity, const pg_uuid_t *id)
{
	Key key;

	if (entries == NULL)
		return NULL;
	failures_make_key(&key, activity, id);
	return hash_search(entries, &key, HASH_FIND, NULL);
}

/* NULL when there is no room for another one. */
static FailureEntry *
make_entry(const char *activity, const pg_uuid_t *id)
{
	Key key;
	bool found;
	FailureEntry *entry;

	if (entries == NULL)
	{
		HASHCTL control = {
		    .keysize = sizeof(Key), .entrysize = sizeof(FailureEntry), .hcxt = TopMemoryContext};

		entries =
		    hash_create("envrt failures", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	failures_make_key(&key, activity, id);
	entry = hash_search(entries, &key, HASH_FIND, NULL);
	if (entry != NULL || hash_get_num_entries(entries) >= MAX_ENTRIES)
		return entry;
	entry = hash_search(entries, &key, HASH_ENTER, &found);
	entry->attempts = 0;
	entry->retry_at = DT_NOBEGIN;
	entry->shown = -1;
	key.activity->nentries++;
	return entry;
}

/* Copies the entry to shared memory. */
static void
show(FailureEntry *entry, int sqlstate, const char *message)
{
	SchedulerSlot *slot;
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_SHOWN_FAILURES && entry->shown < 0; i++)
		if (!OidIsValid(shared_state->failures[i].database))
		{
			entry->shown = i;
			memset(&shared_state->failures[i], 0, sizeof(ShownFailure));
			shared_state->failures[i].database = MyDatabaseId;
			strlcpy(shared_state->failures[i].activity, entry->key.activity->name,
			        sizeof(shared_state->failures[i].activity));
			shared_state->failures[i].id = entry->key.id;
			shared_state->failures[i].has_id =
			    memcmp(&entry->key.id, &no_id, sizeof(pg_uuid_t)) != 0;
			shared_state->failures[i].since = now;
		}
	if (entry->shown >= 0)
	{
		ShownFailure *shown = &shared_state->failures[entry->shown];

		shown->attempts = entry->attempts;
		shown->last = now;
		shown->retry_at = now + (entry->retry_at - timer_now());
		shown->sqlstate = sqlstate;
		strlcpy(shown->message, message, sizeof(shown->message));
	}
	slot = scheduler_slot(MyDatabaseId);
	if (slot != NULL)
		slot->failing = (int) hash_get_num_entries(entries);
	LWLockRelease(shared_state->lock);
}

static void
drop_entry(FailureEntry *entry)
{
	Activity *activity = entry->key.activity;
	SchedulerSlot *slot;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (entry->shown >= 0)
		shared_state->failures[entry->shown].database = InvalidOid;
	slot = scheduler_slot(MyDatabaseId);
	if (slot != NULL)
		slot->failing = (int) hash_get_num_entries(entries) - 1;
	LWLockRelease(shared_state->lock);
	if (--activity->nentries == 0)
		activity->nlogged = 0;
	hash_search(entries, &entry->key, HASH_REMOVE, NULL);
}

/* Whether the episode has logged no such error yet; it has from now on. */
static bool
is_news(Activity *activity, int sqlstate)
{
	for (int i = 0; i < activity->nlogged; i++)
		if (activity->logged[i] == sqlstate)
			return false;
	if (activity->nlogged == MAX_LOGGED)
		return false;
	activity->logged[activity->nlogged++] = sqlstate;
	return true;
}

/* Whole activities that have not failed for long. */
static void
drop_old(TimestampTz now)
{
	HASH_SEQ_STATUS scan;
	FailureEntry *entry;

	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (memcmp(&entry->key.id, &no_id, sizeof(pg_uuid_t)) == 0 &&
		    TimestampDifferenceExceeds(entry->retry_at, now, EPISODE_MS))
			drop_entry(entry);
}

bool
error_is_passing(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
	       error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED ||
	       error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE;
}

/* Counts a failure; *news: it is to be logged. */
static TimestampTz
failures_note(const char *activity, const pg_uuid_t *id, const ErrorData *error, bool *news)
{
	TimestampTz now = timer_now();
	bool passing = error_is_passing(error);
	FailureEntry *entry;
	int64 delay;
	char message[sizeof(((ShownFailure *) NULL)->message)];

	if (entries != NULL)
		drop_old(now);
	entry = make_entry(activity, id);
	if (entry == NULL)
	{
		Activity *of = find_activity(activity);

		*news = is_news(of, error->sqlerrcode);
		of->overflow_until = TimestampTzPlusMilliseconds(now, MAX_DELAY_MS / 5);
		return of->overflow_until;
	}
	entry->attempts++;
	if (passing && entry->attempts < PASSING_TRIES)
		delay = PASSING_DELAY_MS;
	else
		delay =
		    Min((int64) FIRST_DELAY_MS << Min(entry->attempts - (passing ? PASSING_TRIES : 1), 16),
		        MAX_DELAY_MS);
	entry->retry_at = TimestampTzPlusMilliseconds(now, delay);
	*news = (!passing || entry->attempts >= PASSING_TRIES) &&
	        is_news(entry->key.activity, error->sqlerrcode);
	snprintf(message, sizeof(message), "%.*s",
	         pg_mbcliplen(error->message, strlen(error->message), sizeof(message) - 1),
	         error->message);
	show(entry, error->sqlerrcode, message);
	return entry->retry_at;
}

static void
add_context(const char *activity, const pg_uuid_t *id)
{
	if (id != NULL)
		errcontext("%s: row \"%s\"", activity, uuid_text(id));
	else
		errcontext("%s", activity);
	errcontext("Further failures like it are counted in envrt.stat_failures and not logged.");
}

TimestampTz
failure_caught(const char *activity, const pg_uuid_t *id)
{
	ErrorData *error;
	TimestampTz retry_at;
	bool news;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(TopMemoryContext);
	error = CopyErrorData();
	retry_at = failures_note(activity, id, error, &news);
	if (news)
	{
		add_context(activity, id);
		EmitErrorReport();
	}
	FreeErrorData(error);
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(TopMemoryContext);
	RESUME_INTERRUPTS();
	return retry_at;
}

TimestampTz
failure_noted(const char *activity, const pg_uuid_t *id, const ErrorData *error)
{
	bool news;
	TimestampTz retry_at = failures_note(activity, id, error, &news);

	if (news)
		ereport(WARNING,
		        (errcode(error->sqlerrcode), errmsg_internal("%s", error->message),
		         error->detail != NULL ? errdetail_internal("%s", error->detail) : 0,
		         error->hint != NULL ? errhint("%s", error->hint) : 0,
		         errcontext("%s: row \"%s\"", activity, uuid_text(id)),
		         errcontext("Further failures like it are counted in envrt.stat_failures and not "
		                    "logged.")));
	return retry_at;
}

TimestampTz
failure_without_effect(const char *activity, const pg_uuid_t *id)
{
	char message[] = "a trigger or rule has taken back a change of the row";
	char detail[] = "The row is as it was, without an error; it is tried again later.";
	ErrorData error = {
	    .sqlerrcode = ERRCODE_TRIGGERED_ACTION_EXCEPTION, .message = message, .detail = detail};

	return failure_noted(activity, id, &error);
}

void
ereport_without_effect(const char *what, const char *table)
{
	ereport(ERROR, (errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
	                errmsg("%s was refused by a trigger or rule on %s", what, table),
	                errdetail("The statement raised no error and left the row as it was."),
	                errhint("The table's owner knows which of its triggers and rules do this.")));
}

void
failure_put_off(const char *activity, const pg_uuid_t *id, int64 ms)
{
	FailureEntry *entry = find_entry(activity, id);

	if (entry != NULL)
		entry->retry_at = TimestampTzPlusMilliseconds(timer_now(), ms);
}

void
failure_over(const char *activity, const pg_uuid_t *id)
{
	FailureEntry *entry = find_entry(activity, id);

	if (entry != NULL)
		drop_entry(entry);
}

bool
failure_holds(const char *activity, const pg_uuid_t *id, TimestampTz *retry_at)
{
	FailureEntry *entry = find_entry(activity, id);

	if (entries == NULL)
		return false;
	*retry_at = entry != NULL ? entry->retry_at : find_activity(activity)->overflow_until;
	return *retry_at > timer_now();
}

/* The next entry of a row of the activity; NULL at the end. */
static FailureEntry *
next_entry(HASH_SEQ_STATUS *scan, const Activity *activity)
{
	FailureEntry *entry;

	while ((entry = hash_seq_search(scan)) != NULL)
		if (entry->key.activity == activity &&
		    memcmp(&entry->key.id, &no_id, sizeof(pg_uuid_t)) != 0)
			return entry;
	return NULL;
}

ArrayType *
failures_array(const char *activity)
{
	Activity *of = find_activity(activity);
	Datum *ids = palloc(sizeof(Datum) * (of->nentries + 1));
	int count = 0;
	HASH_SEQ_STATUS scan;
	FailureEntry *entry;

	if (of->nentries > 0)
		hash_seq_init(&scan, entries);
	while (of->nentries > 0 && (entry = next_entry(&scan, of)) != NULL)
		ids[count++] = UUIDPGetDatum(&entry->key.id);
	return construct_array(ids, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
}

int
failures_due(const char *activity, pg_uuid_t *ids, int most)
{
	Activity *of = find_activity(activity);
	TimestampTz now = timer_now();
	int count = 0;
	HASH_SEQ_STATUS scan;
	FailureEntry *entry;

	if (of->nentries > 0)
		hash_seq_init(&scan, entries);
	while (of->nentries > 0 && (entry = next_entry(&scan, of)) != NULL)
		if (count < most && entry->retry_at <= now)
			ids[count++] = entry->key.id;
	return count;
}

TimestampTz
failures_next(const char *activity)
{
	Activity *of = find_activity(activity);
	TimestampTz next = DT_NOEND;
	HASH_SEQ_STATUS scan;
	FailureEntry *entry;

	if (of->nentries > 0)
		hash_seq_init(&scan, entries);
	while (of->nentries > 0 && (entry = next_entry(&scan, of)) != NULL)
		next = Min(next, entry->retry_at);
	if (of->overflow_until > timer_now())
		next = Min(next, of->overflow_until);
	return next;
}

void
failures_forget(Oid database)
{
	for (int i = 0; i < MAX_SHOWN_FAILURES; i++)
		if (shared_state->failures[i].database == database)
			shared_state->failures[i].database = InvalidOid;
}
