/*
 * settle.c
 *		Deciding what becomes of provider leases whose transaction or lease has ended.
 *
 * For each row of the ledger that is creating or held, in this order:
 *
 *	(a)	Its owner is a transaction that this server has not given out yet: the
 *		row is another server's, and left alone.
 *	(b)	Its owner is in progress, also as a subtransaction: left; the end of
 *		that transaction brings us back.
 *	(c)	Only then, with a snapshot that is taken now, the lease is looked for.
 *		Active or retained: the provider lease is held.  Else it is cleaned up.
 *
 * Whether the owner committed is not asked: what counts is the lease.  The
 * other order, a snapshot before (b), would miss a lease that was committed
 * in between and destroy what it holds.
 *
 * The decision is durable before anybody acts on it.  The commit that ended
 * the lease, asynchronous perhaps, is before ours in the WAL and durable with
 * it: a release that is lost in a crash leaves its sandbox untouched.
 *
 * A lease's row says whether something is held, never what to destroy.  It is
 * read with its table's owner's rights, and no lock of anybody is waited for.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "base/fault_points.h"
#include "ledger/ledger.h"
#include "ledger/settle.h"
#include "miscadmin.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "ledger/in_flight.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#define BATCH 1000

typedef struct Row
{
	pg_uuid_t lease_id;
	pg_uuid_t holder_id;
	bool creating;
	bool resumed;
	bool doomed;
	bool reusable;
	bool known; /* the provider has said what it made */
	/* Of the holder. */
	bool exists;
	bool holds;
} Row;

/* How a row goes on. */
typedef enum Decision
{
	DECISION_LEAVE,
	DECISION_HELD,
	DECISION_RELEASE,
	DECISION_DESTROY,
	DECISION_DISCARD, /* destroy, and there is no lease to tell */
	DECISION_KEEP,
	DECISION_COUNT
} Decision;

static ArrayType *
settle_uuid_array(Datum *ids, int count)
{
	return construct_array(ids, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
}

/* Whether the row's owner is still at it, or is none of this server's: (a) and (b). */
bool
settle_owner_undecided(FullTransactionId owner)
{
	FullTransactionId next = ReadNextFullTransactionId();

	if (!FullTransactionIdPrecedes(owner, next))
		return true;
	/* So old that its number is in use again. */
	if (U64FromFullTransactionId(next) - U64FromFullTransactionId(owner) > PG_INT32_MAX)
		return false;
	return TransactionIdIsInProgress(XidFromFullTransactionId(owner));
}

/*
 * Rows that are creating or held and whose owner has ended, of the given
 * leases or (NULL) a batch of all after *last.  *more: of all, there are more;
 * of the given, some have no such row.
 */
static int
settle_read_rows(const Hints *hints, pg_uuid_t *last, Row *rows, bool *more)
{
#define READ_ROWS                                                                                  \
	"SELECT lease_id, holder_id, state = 'creating', resumed, doomed,"                             \
	" lease_policy = ANY (ARRAY['reuse_by_environment', 'reuse_by_execution_workspace']), "        \
	"provider_lease_id IS NOT NULL, owner"                                                         \
	" FROM envrt.provider_leases WHERE" LEDGER_OWN                                                 \
	" AND state = ANY (ARRAY['creating', 'held']) AND "
	static Statement hinted = {
	    READ_ROWS "holder_id = ANY ($5)", 5, {LEDGER_OWN_TYPES, UUIDARRAYOID}};
	static Statement all = {
	    READ_ROWS "lease_id > $5 ORDER BY lease_id LIMIT 1000",
	    5,
	    {LEDGER_OWN_TYPES, UUIDOID},
	};
	Datum values[5];
	Datum ids[MAX_HINTS];
	int found;
	int count = 0;

	ledger_own_arguments(values);
	if (hints != NULL)
	{
		for (int i = 0; i < hints->nleases; i++)
			ids[i] = UUIDPGetDatum(&hints->leases[i]);
		values[4] = PointerGetDatum(settle_uuid_array(ids, hints->nleases));
	}
	else
		values[4] = UUIDPGetDatum(last);
	found = statement_execute(hints != NULL ? &hinted : &all, values, NULL);
	*more = hints != NULL ? found < hints->nleases : found == BATCH;
	for (int i = 0; i < found; i++)
	{
		Row *row = &rows[count];
		bool isnull;
		Datum owner = result_datum(i, 8, &isnull);

		*last = *result_uuid(i, 1);
		if (!isnull && settle_owner_undecided(DatumGetFullTransactionId(owner)))
			continue;
		memset(row, 0, sizeof(Row));
		row->lease_id = *last;
		row->holder_id = *result_uuid(i, 2);
		/* Ours to decide, and not yet. */
		if (in_flight_has(&acquire_calls, &row->holder_id))
			continue;
		row->creating = DatumGetBool(result_datum(i, 3, &isnull));
		row->resumed = DatumGetBool(result_datum(i, 4, &isnull));
		row->doomed = DatumGetBool(result_datum(i, 5, &isnull));
		row->reusable = DatumGetBool(result_datum(i, 6, &isnull));
		row->known = DatumGetBool(result_datum(i, 7, &isnull));
		count++;
	}
	return count;
}

/* (c): look for the holders, now.  False when the table is locked. */
static bool
read_leases(Row *rows, int count)
{
	/* A new statement at READ COMMITTED: a new snapshot. */
	static Statement find = {
	    "SELECT id, coalesce(status = ANY (ARRAY['active', 'retained']), false) FROM "
	    "@environment_leases@ WHERE id = ANY ($1)",
	    1,
	    {UUIDARRAYOID},
	};
	Datum *ids = palloc(sizeof(Datum) * count);
	Datum values[1];
	int found;

	for (int i = 0; i < count; i++)
		ids[i] = UUIDPGetDatum(&rows[i].holder_id);
	values[0] = PointerGetDatum(settle_uuid_array(ids, count));
	if (!statement_try_read(TABLE_ENVIRONMENT_LEASES, &find, values, NULL, &found))
		return false;
	for (int i = 0; i < found; i++)
	{
		pg_uuid_t *id = result_uuid(i, 1);
		bool isnull;
		bool holds = DatumGetBool(result_datum(i, 2, &isnull));

		for (int j = 0; j < count; j++)
			if (memcmp(&rows[j].holder_id, id, sizeof(pg_uuid_t)) == 0)
			{
				rows[j].exists = true;
				rows[j].holds = holds;
			}
	}
	return true;
}

static Decision
decide(const Row *row)
{
	if (row->holds)
		return row->creating ? DECISION_HELD : DECISION_LEAVE;
	if (row->doomed)
		return row->exists ? DECISION_DESTROY : DECISION_DISCARD;
	/* It was idle before, and is so again. */
	if (row->creating && row->resumed)
		return DECISION_KEEP;
	/* Made for a lease that was never there. */
	if (row->creating && !row->exists)
		return DECISION_DISCARD;
	if (row->reusable && row->known)
		return DECISION_KEEP;
	return row->known ? DECISION_RELEASE : DECISION_DESTROY;
}

static void
write_decisions(const Row *rows, int count)
{
	static Statement hold = {
	    "UPDATE envrt.provider_leases SET state = 'held', owner = NULL, updated_at = now() WHERE "
	    "lease_id = ANY ($1)",
	    1,
	    {UUIDARRAYOID},
	};
	static Statement clean = {
	    "UPDATE envrt.provider_leases SET state = 'cleaning', cleanup = $2, owner = NULL,"
	    " holder_id = CASE WHEN $3 THEN NULL ELSE holder_id END, attempts = 0, last_error = NULL, "
	    "next_attempt_at = now(), updated_at = now()"
	    " WHERE lease_id = ANY ($1)",
	    3,
	    {UUIDARRAYOID, TEXTOID, BOOLOID},
	};
	static const char *const cleanups[] = {[DECISION_RELEASE] = "release",
	                                       [DECISION_DESTROY] = "destroy",
	                                       [DECISION_DISCARD] = "destroy",
	                                       [DECISION_KEEP] = "keep"};
	Datum *ids = palloc(sizeof(Datum) * count);

	for (Decision decision = DECISION_HELD; decision < DECISION_COUNT; decision++)
	{
		Datum values[3];
		int nids = 0;

		for (int i = 0; i < count; i++)
			if (decide(&rows[i]) == decision)
				ids[nids++] = UUIDPGetDatum(&rows[i].lease_id);
		if (nids == 0)
			continue;
		values[0] = PointerGetDatum(settle_uuid_array(ids, nids));
		if (decision == DECISION_HELD)
			statement_execute(&hold, values, NULL);
		else
		{
			values[1] = CStringGetTextDatum(cleanups[decision]);
			values[2] = BoolGetDatum(decision == DECISION_DISCARD);
			statement_execute(&clean, values, NULL);
			work_note(WORK_CLEANUPS);
			/* What is on its way out is in nobody's way. */
			if (decision != DECISION_KEEP)
				work_note(WORK_PARKED);
		}
	}
}

/* A batch of rows in a transaction; false when the leases are locked. */
static bool
settle_batch(const Hints *hints, pg_uuid_t *last, bool *more)
{
	ApiCall call;
	Row *rows;
	int count;
	bool readable = true;
	bool decided = false;

	ledger_begin(&call);
	rows = palloc(sizeof(Row) * BATCH);
	count = settle_read_rows(hints, last, rows, more);
	if (count > 0)
	{
		FAULT_POINT("settle-before-look");
		readable = read_leases(rows, count);
		if (readable)
		{
			write_decisions(rows, count);
			for (int i = 0; i < count; i++)
				decided = decided || decide(&rows[i]) > DECISION_HELD;
		}
	}
	FAULT_POINT("settle-before-commit");
	ledger_commit(&call, decided);
	return readable;
}

/* *unknown: whether some of the leases are not in the ledger as held. */
static bool
settle_rows(const Hints *hints, bool *unknown)
{
	volatile bool done = true;

	PG_TRY();
	{
		pg_uuid_t last = {0};
		bool more;

		do
		{
			CHECK_FOR_INTERRUPTS();
			done = settle_batch(hints, &last, &more) && done;
		}
		while (more && hints == NULL);
		*unknown = more || hints == NULL;
	}
	PG_CATCH();
	{
		ledger_abort("deciding about provider leases");
		done = false;
	}
	PG_END_TRY();
	return done;
}

/*
 * Idle ones whose environment was changed, archived or deleted, or whose
 * execution workspace is gone, are of no use to anybody.
 */
typedef struct IdleEnvironment
{
	pg_uuid_t id;
	Jsonb *config; /* that something idle was made by */
	bool usable;   /* and it is still the environment's */
} IdleEnvironment;

static int
compare_environments(const void *a, const void *b)
{
	return memcmp(&((const IdleEnvironment *) a)->id, &((const IdleEnvironment *) b)->id,
	              sizeof(pg_uuid_t));
}

/* Which of them are as they were; false when the table is locked. */
static bool
compare_with_now(IdleEnvironment *idle, int count)
{
	static Statement find = {
	    "SELECT id, config FROM @environments@ WHERE id = ANY ($1)"
	    " AND status = 'active'"
	    " AND driver = ANY (ARRAY['sandbox', 'plugin'])",
	    1,
	    {UUIDARRAYOID},
	};
	Datum *ids = palloc(sizeof(Datum) * count);
	Datum values[1];
	int found;

	for (int i = 0; i < count; i++)
		ids[i] = UUIDPGetDatum(&idle[i].id);
	values[0] = PointerGetDatum(settle_uuid_array(ids, count));
	if (!statement_try_read(TABLE_ENVIRONMENTS, &find, values, NULL, &found))
		return false;
	qsort(idle, count, sizeof(IdleEnvironment), compare_environments);
	for (int row = 0; row < found; row++)
	{
		IdleEnvironment key = {.id = *result_uuid(row, 1)};
		IdleEnvironment *first =
		    bsearch(&key, idle, count, sizeof(IdleEnvironment), compare_environments);
		bool isnull;
		Jsonb *config = DatumGetJsonbP(result_typed(row, 2, JSONBOID, &isnull));

		/* An environment whose config was changed may be there more than once. */
		while (first != NULL && first > idle && compare_environments(first - 1, &key) == 0)
			first--;
		for (; first != NULL && first < idle + count && compare_environments(first, &key) == 0;
		     first++)
			first->usable = compareJsonbContainers(&first->config->root, &config->root) == 0;
	}
	return true;
}

static bool
settle_idle(void)
{
	static Statement list = {
	    "SELECT DISTINCT environment_id, environment_config FROM envrt.provider_leases"
	    " WHERE state = 'idle' AND" LEDGER_OWN,
	    4,
	    {LEDGER_OWN_TYPES},
	};
	static Statement discard = {
	    "UPDATE envrt.provider_leases p SET state = 'cleaning', cleanup = 'destroy', attempts = 0,"
	    " last_error = NULL, next_attempt_at = now(), updated_at = now()"
	    " WHERE p.state = 'idle' AND" LEDGER_OWN " AND p.environment_id = $5"
	    " AND p.lease_policy = ANY (ARRAY['reuse_by_environment', 'reuse_by_execution_workspace'])"
	    " AND p.environment_config = $6",
	    6,
	    {LEDGER_OWN_TYPES, UUIDOID, JSONBOID},
	};
	volatile bool done = true;

	PG_TRY();
	{
		ApiCall call;
		Datum values[6];
		IdleEnvironment *idle;
		int count;
		bool isnull;

		ledger_begin(&call);
		ledger_own_arguments(values);
		count = statement_execute(&list, values, NULL);
		idle = palloc0(sizeof(IdleEnvironment) * Max(count, 1));
		for (int i = 0; i < count; i++)
		{
			idle[i].id = *result_uuid(i, 1);
			idle[i].config = DatumGetJsonbPCopy(result_datum(i, 2, &isnull));
		}
		done = count == 0 || compare_with_now(idle, count);
		for (int i = 0; done && i < count; i++)
		{
			if (idle[i].usable)
				continue;
			values[4] = UUIDPGetDatum(&idle[i].id);
			values[5] = JsonbPGetDatum(idle[i].config);
			if (statement_execute(&discard, values, NULL) > 0)
				work_note(WORK_CLEANUPS);
		}
		ledger_commit(&call, true);
	}
	PG_CATCH();
	{
		ledger_abort("deciding about idle provider leases");
		done = false;
	}
	PG_END_TRY();
	return done;
}

/*
 * Leases that hold something, or wait for a cleanup, of which the ledger knows
 * nothing: restored from a dump, or written by hand.
 */
#define FIND_UNKNOWN                                                                               \
	"SELECT id, status = ANY (ARRAY['active', 'retained'])"                                        \
	" FROM @environment_leases@"                                                                   \
	" WHERE (status = ANY (ARRAY['active', 'retained'])"                                           \
	"   AND provider <> ALL (ARRAY['local', 'ssh', 'fake'])"

/* Those of the ids that are not in the ledger, or (`own`) not as this server's; how many. */
static int
filter_unknown(Datum *ids, int count, bool own)
{
#define NOT_IN_LEDGER                                                                              \
	"SELECT u.id FROM unnest($5) AS u(id)"                                                         \
	" WHERE NOT EXISTS (SELECT 1 FROM envrt.provider_leases p WHERE p.holder_id = u.id"
	static Statement unknown = {NOT_IN_LEDGER ")", 5, {LEDGER_OWN_TYPES, UUIDARRAYOID}};
	static Statement not_own = {
	    NOT_IN_LEDGER " AND" LEDGER_OWN_OF("p.") ")", 5, {LEDGER_OWN_TYPES, UUIDARRAYOID}};
	Datum values[5];
	int found;

	if (count == 0)
		return 0;
	ledger_own_arguments(values);
	values[4] = PointerGetDatum(settle_uuid_array(ids, count));
	found = statement_execute(own ? &not_own : &unknown, values, NULL);
	for (int i = 0; i < found; i++)
		ids[i] = UUIDPGetDatum(result_uuid(i, 1));
	return found;
}

/* Ids of the last statement's rows whose second column is `wanted`. */
static int
collect_ids(int found, bool wanted, Datum *ids)
{
	int count = 0;
	bool isnull;

	for (int i = 0; i < found; i++)
		if (DatumGetBool(result_datum(i, 2, &isnull)) == wanted)
			ids[count++] = UUIDPGetDatum(result_uuid(i, 1));
	return count;
}

/* For leases with nothing behind them that is ours: set them right, where nobody has them locked.
 */
static void
update_leases(Statement *statement, Datum *ids, int count)
{
	ApiCall owner;
	Datum values[1] = {PointerGetDatum(settle_uuid_array(ids, count))};

	if (count == 0 ||
	    !ConditionalLockRelationOid(shared_table_oid(TABLE_ENVIRONMENT_LEASES), RowExclusiveLock))
		return;
	owner_enter(&owner);
	statement_write(TABLE_ENVIRONMENT_LEASES, statement, values, NULL);
	api_leave(&owner);
}

/* There is nothing to clean up that we know of. */
static Statement nothing_to_clean = {
    "UPDATE @environment_leases@ SET cleanup_status = NULL, updated_at = now()"
    " WHERE id = ANY ("
    "  SELECT id FROM @environment_leases@ WHERE id = ANY ($1)"
    "  AND cleanup_status = 'pending' FOR NO KEY UPDATE SKIP LOCKED)",
    1,
    {UUIDARRAYOID},
};

static void
report_number(int64 unknown)
{
	static bool said = false;

	if (unknown == 0 || said)
		return;
	said = true;
	ereport(LOG, (errmsg("left alone what " INT64_FORMAT
	                     " leases hold that this server has not acquired",
	                     unknown),
	              errdetail("They are in envrt.stat_cleanup as foreign; further ones are not said "
	                        "in the log."),
	              errhint("SELECT envrt_claim_instance('forget') if this is a copy: it ends these "
	                      "leases and touches nothing else.")));
}

/* Of the hinted leases. */
static bool
report_hinted(const Hints *hints)
{
	static Statement find = {
	    FIND_UNKNOWN " OR (status <> ALL (ARRAY['active', 'retained'])"
	                 "   AND cleanup_status = 'pending'))"
	                 " AND id = ANY ($1)",
	    1,
	    {UUIDARRAYOID},
	};
	volatile bool done = true;

	PG_TRY();
	{
		ApiCall call;
		Datum ids[MAX_HINTS];
		Datum ended[MAX_HINTS];
		Datum values[1];
		int found = 0;
		int active = 0;

		ledger_begin(&call);
		for (int i = 0; i < hints->nleases; i++)
			ids[i] = UUIDPGetDatum(&hints->leases[i]);
		values[0] = PointerGetDatum(settle_uuid_array(ids, hints->nleases));
		done = statement_try_read(TABLE_ENVIRONMENT_LEASES, &find, values, NULL, &found);
		if (done && found > 0)
		{
			int nended = collect_ids(found, false, ended);

			active = filter_unknown(ids, collect_ids(found, true, ids), true);
			update_leases(&nothing_to_clean, ended, filter_unknown(ended, nended, false));
		}
		ledger_commit(&call, false);
		report_number(active);
	}
	PG_CATCH();
	{
		ledger_abort("looking for leases without a provider lease");
		done = false;
	}
	PG_END_TRY();
	return done;
}

/*
 * Of all leases: the unknown ones, as *ids (NULL when the table is locked).
 *
 * In one go, without an order: so it is environment_leases_active_idx that is
 * read, which has few, and not the table by its primary key.
 */
static int
list_unknown(Datum **ids)
{
	static Statement find = {FIND_UNKNOWN ")", 0, {0}};
	int found;
	int unknown = 0;

	*ids = NULL;
	if (!statement_try_read(TABLE_ENVIRONMENT_LEASES, &find, NULL, NULL, &found))
		return 0;
	*ids = palloc(sizeof(Datum) * Max(found, 1));
	found = collect_ids(found, true, *ids);
	for (int i = 0; i < found; i += BATCH)
	{
		int count = filter_unknown(*ids + i, Min(BATCH, found - i), false);

		memmove(*ids + unknown, *ids + i, sizeof(Datum) * count);
		unknown += count;
	}
	return unknown;
}

/* Once when the scheduler starts, and when it is asked to look at all. */
static bool
report_all(void)
{
	volatile bool done = true;

	PG_TRY();
	{
		ApiCall call;
		Datum *ids;
		int unknown;

		ledger_begin(&call);
		unknown = list_unknown(&ids);
		done = ids != NULL;
		ledger_commit(&call, false);
		report_number(unknown);
	}
	PG_CATCH();
	{
		ledger_abort("looking for leases without a provider lease");
		done = false;
	}
	PG_END_TRY();
	return done;
}

/*
 * After envrt_claim_instance('forget'): leases that hold nothing of this
 * server's have no right to be active, and those that have ended have nothing
 * to wait for.  A person asks for it, so a scan of the table is in order.
 */
void
settle_forget_foreign_leases(void)
{
	static Statement end = {
	    "UPDATE @environment_leases@ SET status = 'released', released_at = now(),"
	    " updated_at = now(), failure_reason = 'forgotten_by_claim_instance'"
	    " WHERE id = ANY ("
	    "  SELECT id FROM @environment_leases@ WHERE id = ANY ($1)"
	    "  FOR NO KEY UPDATE SKIP LOCKED)",
	    1,
	    {UUIDARRAYOID},
	};
	/*
	 * Nothing says which server acquired them, since they leave nothing behind:
	 * what a copy has of them is the original's, in the moment when that is said.
	 */
	static Statement find_ssh = {
	    "SELECT id, true FROM @environment_leases@"
	    " WHERE status = ANY (ARRAY['active', 'retained'])"
	    " AND provider = 'ssh'",
	    0,
	    {0},
	};
	static Statement find_ended = {
	    "SELECT id, false FROM @environment_leases@"
	    " WHERE status <> ALL (ARRAY['active', 'retained'])"
	    " AND cleanup_status = 'pending'",
	    0,
	    {0},
	};

	PG_TRY();
	{
		ApiCall call;
		Datum *unknown;
		int found;

		ledger_begin(&call);
		found = list_unknown(&unknown);
		if (unknown != NULL)
			update_leases(&end, unknown, found);
		if (statement_try_read(TABLE_ENVIRONMENT_LEASES, &find_ssh, NULL, NULL, &found))
		{
			Datum *ids = palloc(sizeof(Datum) * Max(found, 1));

			update_leases(&end, ids, collect_ids(found, true, ids));
		}
		ledger_commit(&call, false);
		ledger_begin(&call);
		if (statement_try_read(TABLE_ENVIRONMENT_LEASES, &find_ended, NULL, NULL, &found))
		{
			Datum *ids = palloc(sizeof(Datum) * Max(found, 1));

			found = collect_ids(found, false, ids);
			update_leases(&nothing_to_clean, ids, filter_unknown(ids, found, false));
		}
		ledger_commit(&call, false);
	}
	PG_CATCH();
	{
		ledger_abort("ending leases of a copied database");
	}
	PG_END_TRY();
}

/*
 * settle_hinted
 *		Look where the hints say; false when something was locked: try again soon.
 */
bool
settle_hinted(const Hints *hints)
{
	bool done = true;
	bool unknown = false;

	if (hints->all)
		done = settle_rows(NULL, &unknown) && report_all();
	else if (hints->nleases > 0)
	{
		done = settle_rows(hints, &unknown);
		if (unknown)
			done = report_hinted(hints) && done;
	}
	if (hints->idle || hints->all)
		done = settle_idle() && done;
	return done;
}
