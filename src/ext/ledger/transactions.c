/*
 * transactions.c
 *		Transactions of the scheduler.
 *
 * Each piece of the scheduler's work is a transaction of its own, with a snapshot,
 * in the role that the rows belong to.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "ledger/failures.h"
#include "ledger/transactions.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

void
ledger_begin(ApiCall *call)
{
	Oid relid;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	relid = get_relname_relid("provider_leases", get_namespace_oid("envrt", true));
	if (!OidIsValid(relid) || !ConditionalLockRelationOid(relid, RowExclusiveLock))
		ereport(ERROR,
		        (errcode(ERRCODE_LOCK_NOT_AVAILABLE), errmsg("somebody has the ledger locked"),
		         errhint("Try again when that transaction has ended.")));
	ledger_enter(call);
}

/*
 * Flushed, and where there is a synchronous standby flushed there too,
 * whatever users do without for their data.
 */
void
commit_durably(void)
{
	if (synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET, PGC_S_SESSION,
		                         GUC_ACTION_LOCAL, true, 0, false);
	ForceSyncCommit();
	CommitTransactionCommand();
}

void
owner_begin(ApiCall *call)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	owner_enter(call);
}

void
ledger_commit(ApiCall *call, bool durable)
{
	api_leave(call);
	PopActiveSnapshot();
	if (durable)
		commit_durably();
	else
		CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}

void
ledger_abort(const char *activity)
{
	/* What is locked is tried again, and that is no news. */
	if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
	{
		(void) failure_caught(activity, NULL);
		return;
	}
	HOLD_INTERRUPTS();
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(TopMemoryContext);
	RESUME_INTERRUPTS();
}
