/*
 * leases.c
 *		Acquire, request, release and renew: envrt_acquire_lease,
 *		envrt_request_lease, envrt_release_leases, envrt_release_lease,
 *		envrt_renew_lease.
 *
 * They take part in the caller's transaction and do nothing beyond it: a
 * lease is its row.
 *
 * Acquire: (1) look at environment, run and workspace; (2) if the driver
 * calls the outside, do so, holding no lock; (3) lock the run FOR SHARE and
 * look again that it is not over, so that whoever ends the run either waits
 * for this lease and then sees it, or comes first and this acquire fails;
 * lock the environment against deletion, and look again that it is still
 * what it was; (4) INSERT.  Locks are taken in the order run, environment,
 * lease.
 *
 * Release: one UPDATE of the rows that are still active.  Row locks make it
 * exactly-once: a concurrent call waits, finds them no longer active, and
 * gets no rows (a serialization failure above READ COMMITTED).  What the
 * lease says at acquire decides how it ends, not what the environment has
 * become since.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/arguments.h"
#include "catalog/pg_type.h"
#include "base/compat.h"
#include "environments/drivers.h"
#include "environments/environments.h"
#include "ledger/failures.h"
#include "base/fault_points.h"
#include "funcapi.h"
#include "base/json.h"
#include "leases/leases.h"
#include "ledger/ledger.h"
#include "ledger/scheduler_wake.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "rights/tables.h"
#include "utils/array.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(envrt_acquire_lease);
PG_FUNCTION_INFO_V1(envrt_request_lease);
PG_FUNCTION_INFO_V1(envrt_release_leases);
PG_FUNCTION_INFO_V1(envrt_release_lease);
PG_FUNCTION_INFO_V1(envrt_renew_lease);

static int
hint_same_company(void)
{
	return errhint("Environment, run and execution workspace must be of the company that gets "
	               "the lease.");
}

void
run_check(const pg_uuid_t *run_id, const pg_uuid_t *company_id, RunLook look)
{
#define LOOK_AT_RUN "SELECT company_id, status FROM @heartbeat_runs@ WHERE id = $1"
	static Statement statements[] = {
	    [RUN_LOOK] = {LOOK_AT_RUN, 1, {UUIDOID}},
	    [RUN_LOCK] = {LOOK_AT_RUN " FOR SHARE", 1, {UUIDOID}},
	    [RUN_TRY_LOCK] = {LOOK_AT_RUN " FOR SHARE NOWAIT", 1, {UUIDOID}},
	};
	Datum values[1] = {UUIDPGetDatum(run_id)};
	char *status;

	if (statement_execute(&statements[look], values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Run \"%s\" not found.", uuid_text(run_id)),
		                hint_visible_rows(TABLE_HEARTBEAT_RUNS)));
	if (memcmp(result_uuid(0, 1), company_id, UUID_LEN) != 0)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("Run \"%s\" does not belong to this company.", uuid_text(run_id)),
		                hint_same_company()));
	status = result_text(0, 2);
	if (strcmp(status, "succeeded") == 0 || strcmp(status, "failed") == 0 ||
	    strcmp(status, "cancelled") == 0 || strcmp(status, "timed_out") == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("Run \"%s\" is over (status: %s).", uuid_text(run_id), status),
		                errhint("Acquire leases for a run that is queued or running.")));
}

/* The workspace must be of the company; its mode is the default for the lease. */
static char *
workspace_check(const ApiCall *call, const pg_uuid_t *workspace_id, const pg_uuid_t *company_id)
{
	static Statement look = {
	    "SELECT company_id, mode FROM @execution_workspaces@ WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(workspace_id)};

	if (!caller_can_see(call, TABLE_EXECUTION_WORKSPACES, workspace_id) ||
	    statement_execute(&look, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Execution workspace \"%s\" not found.", uuid_text(workspace_id)),
		                hint_visible_rows(TABLE_EXECUTION_WORKSPACES)));
	if (memcmp(result_uuid(0, 1), company_id, UUID_LEN) != 0)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("Execution workspace \"%s\" does not belong to this company.",
		                       uuid_text(workspace_id)),
		                hint_same_company()));
	return result_text(0, 2);
}

/* Far beyond any use, and well within what a timestamp holds. */
#define MAX_EXPIRES_IN_DAYS (100 * 366)

static TimestampTz
expiry(TimestampTz now, const Interval *expires_in)
{
	double days =
	    expires_in->month * 31.0 + expires_in->day + expires_in->time / (double) USECS_PER_DAY;
	TimestampTz expires_at = now;

	if (days > 0 && days <= MAX_EXPIRES_IN_DAYS)
		expires_at = DatumGetTimestampTz(DirectFunctionCall2(
		    timestamptz_pl_interval, TimestampTzGetDatum(now), IntervalPGetDatum(expires_in)));
	if (expires_at <= now)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("expires_in must be positive, and at most 100 years")));
	return expires_at;
}

/* Whether another active lease of the company holds what this one is to hold. */
static bool
leases_is_held(const pg_uuid_t *company_id, const AcquiredLease *lease)
{
	static Statement find = {
	    "SELECT 1 FROM @environment_leases@ WHERE provider = $1"
	    " AND provider_lease_id = $2"
	    " AND company_id = $3"
	    " AND status = 'active'"
	    " AND lease_policy = ANY (ARRAY['reuse_by_environment', 'reuse_by_execution_workspace'])",
	    3,
	    {TEXTOID, TEXTOID, UUIDOID},
	};
	Datum values[3];

	if (lease->provider_lease_id == NULL)
		return false;
	values[0] = CStringGetTextDatum(lease->provider);
	values[1] = CStringGetTextDatum(lease->provider_lease_id);
	values[2] = UUIDPGetDatum(company_id);
	return statement_execute_latest(&find, values, NULL) > 0;
}

/* Whether the row that was inserted is the one that was asked for: a trigger may change it. */
static bool
is_as_asked(const pg_uuid_t *id)
{
	TupleDesc desc = SPI_tuptable->tupdesc;
	const pg_uuid_t *given = result_uuid(0, SPI_fnumber(desc, "id"));
	const char *status = result_text(0, SPI_fnumber(desc, "status"));

	return given != NULL && memcmp(given, id, sizeof(pg_uuid_t)) == 0 && status != NULL &&
	       strcmp(status, "active") == 0;
}

void
lease_insert(const AcquireRequest *request, const AcquiredLease *lease,
             const LeaseArguments *arguments)
{
#define INSERT_LEASE                                                                               \
	"INSERT INTO @environment_leases@ (id, company_id, environment_id, heartbeat_run_id, "         \
	"issue_id,"                                                                                    \
	" execution_workspace_id, status, lease_policy, provider, provider_lease_id, metadata, "       \
	"expires_at,"                                                                                  \
	" acquired_at, last_used_at, created_at, updated_at)"                                          \
	" VALUES ($1, $2, $3, $4, $5, $6, 'active', $7, $8, $9, $10, $11, $12, $12, $12, $12)"
	static Statement insert = {
	    INSERT_LEASE " RETURNING *",
	    12,
	    {UUIDOID, UUIDOID, UUIDOID, UUIDOID, UUIDOID, UUIDOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID,
	     TIMESTAMPTZOID, TIMESTAMPTZOID},
	};
	/* A reusable provider lease has one holder: environment_leases_holder_idx. */
	static Statement insert_holder = {
	    INSERT_LEASE
	    " ON CONFLICT (company_id, provider, provider_lease_id) WHERE status = 'active'"
	    " AND lease_policy = ANY (ARRAY['reuse_by_environment', 'reuse_by_execution_workspace'])"
	    " DO NOTHING RETURNING *",
	    12,
	    {UUIDOID, UUIDOID, UUIDOID, UUIDOID, UUIDOID, UUIDOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID,
	     TIMESTAMPTZOID, TIMESTAMPTZOID},
	};
	bool reusable = strncmp(lease->lease_policy, "reuse_", strlen("reuse_")) == 0;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz expires_at = lease->expires_at;
	Datum values[12];
	char nulls[13] = "            ";

	values[0] = UUIDPGetDatum(request->lease_id);
	values[1] = UUIDPGetDatum(request->environment->company_id);
	values[2] = UUIDPGetDatum(request->environment->id);
	values[3] = UUIDPGetDatum(request->run_id);
	values[4] = UUIDPGetDatum(arguments->issue_id);
	nulls[4] = arguments->issue_id == NULL ? 'n' : ' ';
	values[5] = UUIDPGetDatum(arguments->workspace_id);
	nulls[5] = arguments->workspace_id == NULL ? 'n' : ' ';
	values[6] = CStringGetTextDatum(lease->lease_policy);
	values[7] = CStringGetTextDatum(lease->provider);
	if (lease->provider_lease_id != NULL)
	{
		require_indexable("the id that the provider has given its lease", lease->provider_lease_id);
		values[8] = CStringGetTextDatum(lease->provider_lease_id);
	}
	else
		nulls[8] = 'n';
	values[9] = JsonbPGetDatum(lease->metadata);
	/* The provider's own end of it, when that is earlier. */
	if (arguments->expires_in != NULL)
		expires_at = Min(expires_at, expiry(now, arguments->expires_in));
	values[10] = TimestampTzGetDatum(expires_at);
	nulls[10] = expires_at == DT_NOEND ? 'n' : ' ';
	values[11] = TimestampTzGetDatum(now);

	if (statement_write(TABLE_ENVIRONMENT_LEASES, reusable ? &insert_holder : &insert, values,
	                    nulls) == 0)
	{
		if (!reusable || !leases_is_held(request->environment->company_id, lease))
			ereport_without_effect("the lease", shared_table(TABLE_ENVIRONMENT_LEASES));
		ereport(
		    ERROR,
		    (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
		     errmsg("Provider lease \"%s\" of environment \"%s\" is held by another active lease.",
		            lease->provider_lease_id, request->environment->name),
		     errdetail("lease_acquire_failed"),
		     errhint("Try again when that lease has been released, or use an environment without "
		             "reuseLease.")));
	}
	if (!is_as_asked(request->lease_id))
		ereport(ERROR, (errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
		                errmsg("a trigger or rule on %s has given the lease another id or status",
		                       shared_table(TABLE_ENVIRONMENT_LEASES)),
		                errhint("A trigger that refuses a lease raises an error.")));
}

Environment *
acquire_check(const ApiCall *call, const pg_uuid_t *company_id, const pg_uuid_t *environment_id,
              const pg_uuid_t *run_id, const pg_uuid_t *workspace_id, char **workspace_mode)
{
	Environment *environment = environment_load(call, environment_id);

	if (!caller_can_see(call, TABLE_COMPANIES, company_id))
		company_require(call, company_id);
	if (memcmp(environment->company_id, company_id, UUID_LEN) != 0)
	{
		company_require(call, company_id);
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("Environment \"%s\" does not belong to this company.",
		                       uuid_text(environment_id)),
		                errdetail("environment_not_found"), hint_same_company()));
	}
	environment_require_active(environment);
	if (!caller_can_see(call, TABLE_HEARTBEAT_RUNS, run_id))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Run \"%s\" not found.", uuid_text(run_id)),
		                hint_visible_rows(TABLE_HEARTBEAT_RUNS)));
	if (workspace_id != NULL)
	{
		char *mode = workspace_check(call, workspace_id, company_id);

		if (*workspace_mode == NULL)
			*workspace_mode = mode;
	}
	return environment;
}

/* What an acquire or a request for one is given, checked as far as it can be without waiting. */
typedef struct CheckedAcquire
{
	AcquireRequest request;
	LeaseArguments arguments;
	const Driver *driver;
} CheckedAcquire;

/* Reads the arguments, which both functions have in common, and looks at what they name. */
static void
check_acquire(FunctionCallInfo fcinfo, const char *function, ApiCall *call, CheckedAcquire *acquire)
{
	pg_uuid_t *company_id = uuid_argument(fcinfo, 0, "company_id");
	pg_uuid_t *environment_id = uuid_argument(fcinfo, 1, "environment_id");
	pg_uuid_t *run_id = uuid_argument(fcinfo, 2, "heartbeat_run_id");
	pg_uuid_t *workspace_id = optional_uuid_argument(fcinfo, 4);
	char *workspace_mode = optional_text_argument(fcinfo, 5);
	Interval *expires_in = PG_ARGISNULL(6) ? NULL : PG_GETARG_INTERVAL_P(6);
	Environment *environment;

	if (expires_in == NULL && envrt_lease_default_ttl > 0)
	{
		expires_in = palloc0(sizeof(Interval));
		expires_in->time = envrt_lease_default_ttl * USECS_PER_SEC;
	}
	if (expires_in != NULL)
		(void) expiry(GetCurrentTimestamp(), expires_in);

	api_enter(call, function);
	environment =
	    acquire_check(call, company_id, environment_id, run_id, workspace_id, &workspace_mode);
	memset(acquire, 0, sizeof(CheckedAcquire));
	acquire->driver = driver_find(environment->driver, environment->config);
	acquire->request.environment = environment;
	acquire->request.run_id = run_id;
	acquire->request.key = acquire->request.lease_id = uuid_generate();
	acquire->request.workspace_mode = workspace_mode;
	acquire->request.workspace_id = workspace_id;
	acquire->arguments.issue_id = optional_uuid_argument(fcinfo, 3);
	acquire->arguments.workspace_id = workspace_id;
	acquire->arguments.expires_in = expires_in;
}

/*
 * envrt_acquire_lease(company_id, environment_id, heartbeat_run_id, issue_id,
 *					   execution_workspace_id, execution_workspace_mode, expires_in)
 *		Leases the environment to the run.
 */
Datum
envrt_acquire_lease(PG_FUNCTION_ARGS)
{
	ApiCall call;
	CheckedAcquire acquire;
	AcquiredLease lease = {.expires_at = DT_NOEND};
	const AcquireRequest *request = &acquire.request;
	Datum result;

	check_acquire(fcinfo, "envrt_acquire_lease()", &call, &acquire);
	if (acquire.driver->calls_outside)
		run_check(request->run_id, request->environment->company_id, RUN_LOOK);
	FAULT_POINT("acquire-before-driver");
	acquire.driver->acquire(request, &lease);
	FAULT_POINT("acquire-before-lock");
	run_check(request->run_id, request->environment->company_id, RUN_LOCK);
	environment_check_again(request->environment, true);
	FAULT_POINT("acquire-before-insert");
	lease_insert(request, &lease, &acquire.arguments);
	result = result_row_datum(fcinfo);
	FAULT_POINT("acquire-after-insert");
	api_leave(&call);
	PG_RETURN_DATUM(result);
}

/*
 * envrt_request_lease(as envrt_acquire_lease)
 *		Has the scheduler acquire the lease after the commit; see requested_leases.c.
 */
Datum
envrt_request_lease(PG_FUNCTION_ARGS)
{
	static Statement insert = {
	    "INSERT INTO envrt.lease_requests (system_identifier, database_id, timeline, instance, "
	    "lease_id, company_id, environment_id, heartbeat_run_id, issue_id, "
	    "execution_workspace_id, execution_workspace_mode, expires_in)"
	    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
	    12,
	    {LEDGER_OWN_TYPES, UUIDOID, UUIDOID, UUIDOID, UUIDOID, UUIDOID, UUIDOID, TEXTOID,
	     INTERVALOID},
	};
	pg_uuid_t *lease_id = palloc(sizeof(pg_uuid_t));
	ApiCall call;
	ApiCall ledger;
	CheckedAcquire acquire;
	const AcquireRequest *request = &acquire.request;
	Datum values[12] = {0};
	char nulls[13] = "        nnnn";

	if (shared_state == NULL)
		ereport_not_preloaded();
	check_acquire(fcinfo, "envrt_request_lease()", &call, &acquire);
	run_check(request->run_id, request->environment->company_id, RUN_LOOK);
	ledger_own_arguments(values);
	values[4] = UUIDPGetDatum(request->lease_id);
	values[5] = UUIDPGetDatum(request->environment->company_id);
	values[6] = UUIDPGetDatum(request->environment->id);
	values[7] = UUIDPGetDatum(request->run_id);
	values[8] = UUIDPGetDatum(acquire.arguments.issue_id);
	values[9] = UUIDPGetDatum(request->workspace_id);
	if (request->workspace_mode != NULL)
		values[10] = CStringGetTextDatum(request->workspace_mode);
	values[11] = IntervalPGetDatum(acquire.arguments.expires_in);
	for (int i = 8; i < 12; i++)
		nulls[i] = values[i] == (Datum) 0 ? 'n' : ' ';
	ledger_enter(&ledger);
	statement_execute(&insert, values, nulls);
	api_leave(&ledger);
	hint_requests();
	hint_lease(request->lease_id);
	*lease_id = *request->lease_id;
	api_leave(&call);
	PG_RETURN_UUID_P(lease_id);
}

static char *
release_status_argument(FunctionCallInfo fcinfo, int n)
{
	char *status = text_argument(fcinfo, n, "status");

	if (strcmp(status, "released") != 0 && strcmp(status, "expired") != 0 &&
	    strcmp(status, "failed") != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("status \"%s\" is not one that a lease can end with", status),
		                errhint("Use released, expired or failed.")));
	return status;
}

/* Whether the metadata of a row of the last statement says which driver made the lease. */
static bool
lease_names_driver(int row)
{
	bool isnull;
	Datum metadata =
	    result_typed(row, SPI_fnumber(SPI_tuptable->tupdesc, "metadata"), JSONBOID, &isnull);

	return !isnull && jsonb_string_member(DatumGetJsonbP(metadata), "driver") != NULL;
}

/*
 * Leases that don't say their driver, as others may write them, end by their
 * environment's.  Looked up here and not in the statement that ends leases,
 * which would pay for it each time.
 */
static int
end_by_environment(int count)
{
	static Statement finish = {
	    "UPDATE @environment_leases@ l SET"
	    " failure_reason = CASE WHEN l.status = 'failed'"
	    "   AND e.driver = 'sandbox'"
	    "   AND (l.metadata ->> 'driver') IS NULL"
	    "   THEN coalesce(l.failure_reason, 'adapter_or_run_failure') ELSE l.failure_reason END,"
	    " cleanup_status = CASE WHEN e.driver = 'sandbox'"
	    "   AND coalesce(l.metadata ->> 'provider',"
	    "     e.config ->> 'provider') = 'fake'"
	    "   AND (l.metadata ->> 'driver') IS NULL"
	    "   THEN 'success'"
	    "   WHEN e.driver = ANY (ARRAY['sandbox', 'plugin'])"
	    "   AND (l.metadata ->> 'driver') IS NULL"
	    "   AND l.status <> 'retained' THEN 'pending'"
	    "   ELSE l.cleanup_status END"
	    " FROM @environments@ e WHERE e.id = l.environment_id"
	    " AND l.id = ANY ($1) RETURNING l.*",
	    1,
	    {UUIDARRAYOID},
	};
	Datum *ids = palloc(sizeof(Datum) * count);
	Datum values[1];

	for (int row = 0; row < count; row++)
		ids[row] = UUIDPGetDatum(result_uuid(row, SPI_fnumber(SPI_tuptable->tupdesc, "id")));
	values[0] =
	    PointerGetDatum(construct_array(ids, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	return statement_write(TABLE_ENVIRONMENT_LEASES, &finish, values, NULL);
}

/* In the words of environment_leases_active_run_idx; see end_leases. */
#define ACTIVE_RUN "(CASE WHEN status = 'active' THEN heartbeat_run_id END)"

/*
 * End the active leases of a run, or one lease; how many, in SPI_tuptable.
 *
 * On a table that was empty when the plan was made, all indexes look alike.  So
 * each of the two conditions is such that one index alone serves it: a run's is
 * in the very words of environment_leases_active_run_idx, which has no lease that
 * has ended; beside a lease's id the status is compared in a form that no index
 * has, since one of those with the status would read every active lease there is.
 *
 * With `enforce`, as the runs' trigger has it, no lease of the run may escape.
 *
 * $1: the run or the lease; $2: status; $3: failure reason or null; $4: now;
 * $5: null, or the leases that may be ended.
 */
static int
end_leases(bool by_run, bool enforce, const pg_uuid_t *id, const char *status,
           const char *failure_reason, ArrayType *only)
{
#define RELEASE_RETAINS "($2 = 'failed' AND l.lease_policy = 'retain_on_failure')"
#define RELEASE_DRIVER "(l.metadata ->> 'driver')"
#define RELEASE_PROVIDER "(l.metadata ->> 'provider')"
#define RELEASE(condition)                                                                         \
	"UPDATE @environment_leases@ l SET"                                                            \
	" status = CASE WHEN " RELEASE_RETAINS " THEN 'retained' ELSE $2 END,"                         \
	" released_at = CASE WHEN " RELEASE_RETAINS " THEN NULL ELSE $4 END,"                          \
	" last_used_at = $4, updated_at = $4,"                                                         \
	" failure_reason = CASE WHEN $3 IS NOT NULL THEN $3"                                           \
	"   WHEN $2 = 'failed' AND " RELEASE_DRIVER " = 'sandbox'"                                     \
	"   THEN 'adapter_or_run_failure' ELSE l.failure_reason END,"                                  \
	" cleanup_status = CASE WHEN " RELEASE_DRIVER " = 'sandbox'"                                   \
	"   AND " RELEASE_PROVIDER " = 'fake' THEN 'success'"                                          \
	"   WHEN " RELEASE_DRIVER " = ANY (ARRAY['sandbox', 'plugin'])"                                \
	"   AND NOT " RELEASE_RETAINS " THEN 'pending'"                                                \
	"   ELSE l.cleanup_status END"                                                                 \
	" WHERE " condition " AND ($5 IS NULL OR l.id = ANY ($5))"                                     \
	" RETURNING *"
	static Statement release_run = {RELEASE(ACTIVE_RUN " = $1"),
	                                5,
	                                {UUIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, UUIDARRAYOID},
	                                .plain_index = true};
	static Statement end_run = {RELEASE(ACTIVE_RUN " = $1"),
	                            5,
	                            {UUIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, UUIDARRAYOID},
	                            .plain_index = true};
	/* A retained one ends when it has served: released or expired, not failed again. */
	static Statement release_one = {RELEASE("l.id = $1"
	                                        " AND (coalesce(l.status, '') = 'active'"
	                                        "   OR (coalesce(l.status, '') = 'retained'"
	                                        "     AND $2 <> 'failed'))"),
	                                5,
	                                {UUIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, UUIDARRAYOID}};
	Datum values[5];
	char nulls[6] = "     ";
	int count;

	values[0] = UUIDPGetDatum(id);
	values[1] = CStringGetTextDatum(status);
	if (failure_reason != NULL)
		values[2] = CStringGetTextDatum(failure_reason);
	else
		nulls[2] = 'n';
	values[3] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[4] = PointerGetDatum(only);
	nulls[4] = only == NULL ? 'n' : ' ';
	FAULT_POINT("release-before-update");
	if (enforce)
		count = statement_enforce(TABLE_ENVIRONMENT_LEASES, &end_run, values, nulls);
	else
		count = statement_write(TABLE_ENVIRONMENT_LEASES, by_run ? &release_run : &release_one,
		                        values, nulls);
	FAULT_POINT("release-after-update");
	for (int row = 0; row < count; row++)
		if (!lease_names_driver(row))
			return end_by_environment(count);
	return count;
}

/* The caller has seen to the owner's rights. */
int
leases_end_of_run(const pg_uuid_t *run_id, const char *status, const char *failure_reason)
{
	return end_leases(true, true, run_id, status, failure_reason, NULL);
}

int
lease_end(const pg_uuid_t *lease_id, const char *status)
{
	return end_leases(false, false, lease_id, status, NULL, NULL);
}

/* Those of the run's active leases that the caller can see; NULL: all of them. */
static ArrayType *
visible_leases(const ApiCall *call, const pg_uuid_t *run_id)
{
	static Statement find_run = {
	    "SELECT id FROM @environment_leases@ WHERE " ACTIVE_RUN " = $1",
	    1,
	    {UUIDOID},
	    .plain_index = true,
	};
	Datum values[1] = {UUIDPGetDatum(run_id)};
	Datum *visible;
	int nvisible = 0;
	int count;

	caller_needs_select(call, TABLE_ENVIRONMENT_LEASES);
	if (!caller_is_restricted(call, TABLE_ENVIRONMENT_LEASES))
		return NULL;
	count = statement_execute(&find_run, values, NULL);
	visible = palloc(sizeof(Datum) * Max(count, 1));
	for (int row = 0; row < count; row++)
		visible[row] = UUIDPGetDatum(result_uuid(row, 1));
	for (int row = 0; row < count; row++)
		if (caller_can_see(call, TABLE_ENVIRONMENT_LEASES, DatumGetUUIDP(visible[row])))
			visible[nvisible++] = visible[row];
	return construct_array(visible, nvisible, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
}

/* Put the last statement's rows into the function's result. */
static void
return_leases(FunctionCallInfo fcinfo, int count)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum *values = palloc0(sizeof(Datum) * rsinfo->setDesc->natts);
	bool *nulls = palloc(sizeof(bool) * rsinfo->setDesc->natts);

	for (int row = 0; row < count; row++)
	{
		result_row(row, rsinfo->setDesc, values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

/*
 * envrt_release_leases(heartbeat_run_id, status, failure_reason)
 *		Ends all active leases of a run; the others' rows are left alone.
 */
Datum
envrt_release_leases(PG_FUNCTION_ARGS)
{
	pg_uuid_t *run_id = uuid_argument(fcinfo, 0, "heartbeat_run_id");
	char *status = release_status_argument(fcinfo, 1);
	char *failure_reason = optional_text_argument(fcinfo, 2);
	ApiCall call;

	compat_begin_result_set(fcinfo);
	api_enter(&call, "envrt_release_leases()");
	return_leases(fcinfo, end_leases(true, false, run_id, status, failure_reason,
	                                 visible_leases(&call, run_id)));
	api_leave(&call);
	return (Datum) 0;
}

/*
 * envrt_release_lease(lease_id, status, failure_reason)
 *		Ends one active lease.
 */
Datum
envrt_release_lease(PG_FUNCTION_ARGS)
{
	static Statement find = {
	    "SELECT 1 FROM @environment_leases@ WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	char *status = release_status_argument(fcinfo, 1);
	char *failure_reason = optional_text_argument(fcinfo, 2);
	Datum values[1] = {UUIDPGetDatum(lease_id)};
	ApiCall call;

	compat_begin_result_set(fcinfo);
	api_enter(&call, "envrt_release_lease()");
	if (!caller_can_see(&call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
	    statement_execute(&find, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Lease \"%s\" not found.", uuid_text(lease_id)),
		                hint_visible_rows(TABLE_ENVIRONMENT_LEASES)));
	return_leases(fcinfo, end_leases(false, false, lease_id, status, failure_reason, NULL));
	api_leave(&call);
	return (Datum) 0;
}

/*
 * envrt_renew_lease(lease_id, expires_in)
 *		Moves the end of an active lease to expires_in from now.
 */
Datum
envrt_renew_lease(PG_FUNCTION_ARGS)
{
	static Statement renew = {
	    "UPDATE @environment_leases@ SET expires_at = $2, last_used_at = $3, updated_at = $3"
	    " WHERE id = $1 AND coalesce(status, '') = 'active'"
	    " RETURNING *",
	    3,
	    {UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID},
	};
	static Statement find = {
	    "SELECT status FROM @environment_leases@ WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	TimestampTz now = GetCurrentTimestamp();
	Datum values[3] = {UUIDPGetDatum(lease_id)};
	ApiCall call;
	Datum result;

	require_argument(1, "expires_in");
	values[1] = TimestampTzGetDatum(expiry(now, PG_GETARG_INTERVAL_P(1)));
	values[2] = TimestampTzGetDatum(now);
	api_enter(&call, "envrt_renew_lease()");
	FAULT_POINT("renew-before-update");
	if (!caller_can_see(&call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
	    statement_write(TABLE_ENVIRONMENT_LEASES, &renew, values, NULL) == 0)
	{
		/* As it is now: it may just have been ended. */
		if (!caller_can_see(&call, TABLE_ENVIRONMENT_LEASES, lease_id) ||
		    statement_execute_latest(&find, values, NULL) == 0)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
			                errmsg("Lease \"%s\" not found.", uuid_text(lease_id)),
			                hint_visible_rows(TABLE_ENVIRONMENT_LEASES)));
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("Lease \"%s\" is not active (status: %s).", uuid_text(lease_id),
		                       result_text(0, 1)),
		                errhint("Acquire a new lease.")));
	}
	FAULT_POINT("renew-after-update");
	result = result_row_datum(fcinfo);
	api_leave(&call);
	PG_RETURN_DATUM(result);
}
