/*
 * requested_lease.c
 *		One requested lease that is being served, and its request's row.
 */
#include "postgres.h"

#include "ledger/failures.h"
#include "base/json.h"
#include "ledger/ledger.h"
#include "storage/lmgr.h"
#include "scheduler/requested_lease.h"

/* What one try has brought. */
void
requested_lease_reset(RequestedLease *lease)
{
	json_decref(lease->result);
	json_decref(lease->error);
	json_decref(lease->values);
	lease->result = lease->error = lease->values = NULL;
	lease->reason = NULL;
}

/* What is reserved is not this one's any more. */
void
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

void
requested_lease_free(RequestedLease *lease)
{
	requested_lease_begin_anew(lease);
	json_decref(lease->awaited);
	json_decref(lease->replaced);
	pfree(lease);
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
bool
requested_lease_load_request(const ApiCall *call, const pg_uuid_t *lease_id,
                             AcquireRequest *request, LeaseArguments *arguments)
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

void
requested_lease_delete_request(const pg_uuid_t *lease_id)
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
void
requested_lease_lock_rows(const AcquireRequest *request)
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

/* Have the ledger change the row of a lease by what the driver said. */
LedgerOutcome
requested_lease_tell_ledger(LedgerVerb verb, const json_t *row)
{
	LedgerRequest request = {.verb = verb, .content = jsonb_from_json(row)};
	ApiCall ledger;

	ledger_enter(&ledger);
	ledger_execute(&request);
	api_leave(&ledger);
	return request.reply.outcome;
}
