/*
 * running_execution.c
 *		One execution that the scheduler looks after, and transactions about it.
 */
#include "postgres.h"

#include "hostlink/async_calls.h"
#include "ledger/failures.h"
#include "ledger/ledger.h"
#include "storage/lmgr.h"
#include "base/timer.h"
#include "scheduler/running_execution.h"

void
running_execution_drop_answer(Running *running)
{
	json_decref(running->result);
	json_decref(running->error);
	running->result = running->error = NULL;
}

void
running_execution_retry_later(Running *running, int64 ms)
{
	running->retry_at = Max(running->retry_at, TimestampTzPlusMilliseconds(timer_now(), ms));
}

/* In PG_CATCH of a transaction on the rows, of which nobody's is to blame. */
void
running_execution_rows_failed(const char *activity)
{
	bool locked = geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE;

	ledger_abort(activity);
	executions_rows_at =
	    TimestampTzPlusMilliseconds(timer_now(), locked ? LOCKED_RETRY_MS : RETRY_MS);
}

/* Whether running_execution_begin_on_all() has raised an error since the shared tables are locked.
 */
static bool shared_tables_locked = false;

const char execution_starting[] = "starting an execution";
const char execution_writing[] = "writing down how an execution goes on";

TimestampTz executions_rows_at = DT_NOBEGIN;
TimestampTz executions_leases_at = DT_NOBEGIN;
char executions_host[64] = "";

/* In PG_CATCH of a transaction on one execution's rows: the others go on. */
void
running_execution_failed(Running *running)
{
	if (execution_rows_were_locked())
		running_execution_rows_failed(execution_writing);
	else
		running->retry_at = failure_caught(execution_writing, &running->id);
}

/* Take every lock on the shared tables that it needs to say what is to be run; false: locked. */
static bool
lock_shared_tables(void)
{
	static const SharedTable tables[] = {
	    TABLE_ENVIRONMENT_LEASES,      TABLE_ENVIRONMENTS, TABLE_COMPANIES, TABLE_COMPANY_SECRETS,
	    TABLE_COMPANY_SECRET_VERSIONS, TABLE_PLUGINS};

	for (int i = 0; i < (int) lengthof(tables); i++)
		if (!ConditionalLockRelationOid(shared_table_oid(tables[i]), AccessShareLock))
			return false;
	return true;
}

/* A transaction on the rows and, as their owner, on the shared tables; ERROR 55P03 when locked. */
void
running_execution_begin_on_all(ApiCall *call)
{
	shared_tables_locked = false;
	owner_begin(call);
	execution_rows_lock();
	shared_tables_locked = true;
	if (!lock_shared_tables())
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
		                errmsg("somebody has what is needed locked")));
	shared_tables_locked = false;
}

bool
running_execution_shared_tables_were_locked(void)
{
	return shared_tables_locked;
}

/*
 * As the direct call loads it.  What the caller may see was looked at when the execution was asked
 * for, for that very company and environment.
 */
void
running_execution_load_lease(const ApiCall *call, const Running *running, CalledLease *lease)
{
	called_lease_load(call, &running->lease_id, lease);
	called_lease_require_same(lease, &running->company_id, &running->environment_id);
}
