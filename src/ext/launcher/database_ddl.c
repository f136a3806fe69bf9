/*
 * database_ddl.c
 *		What CREATE and DROP of databases and of the extension mean to schedulers.
 *
 * CREATE EXTENSION, CREATE DATABASE and DROP EXTENSION are seen by the object
 * access hook; the launcher or the scheduler is told when the transaction
 * commits, and nobody when it rolls back.  What a prepared transaction held
 * is not known any more when another session commits it, so after COMMIT
 * PREPARED both look again.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE, and moving or renaming one,
 * need the database to be free of other sessions, and a scheduler is one.  So
 * before such a statement the scheduler is asked to end and its slot is held,
 * which keeps the launcher from starting another, until the transaction is
 * over; if the database is still there it gets its scheduler back then.  Only
 * for who owns the database: others would stop it for nothing.
 *
 * With the ledger goes all that is known of what exists at providers.  Whoever
 * drops it is told how much that is: for the table, however it comes to be
 * dropped, by a look at it in the object access hook; for a database by its
 * scheduler, which counts before it ends.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "base/compat.h"
#include "executor/tuptable.h"
#include "ledger/instance.h"
#include "ledger/scheduler_wake.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "base/shared_state.h"
#include "tcop/utility.h"
#include "base/timer.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/wait_event.h"
#include "launcher/database_ddl.h"

#define STOP_WAIT_MS 10000

static object_access_hook_type previous_object_access_hook = NULL;
static ProcessUtility_hook_type previous_utility_hook = NULL;

/* Of the transaction under way. */
static bool database_created = false; /* or changed */
static bool extension_created = false;
static bool extension_dropped = false;
static bool holding = false; /* some slot is held by us */

static void
report_left_behind(int64 count, const char *hint)
{
	if (count > 0)
		ereport(WARNING,
		        (errmsg_plural(INT64_FORMAT " provider lease is left behind",
		                       INT64_FORMAT " provider leases are left behind",
		                       (unsigned long) count, count),
		         errdetail("The ledger that is dropped is all that knows of what exists at the "
		                   "providers, and nobody ends it there."),
		         errhint("%s", hint)));
}

/*
 * Count what plugins have made by the ledger that is about to be dropped (what is on this
 * machine goes with it: the driver host is told).  Its indexes may be
 * gone already, and so may all that statements would need: so by hand.
 */
static int64
count_rows(Oid relid)
{
	Relation relation = table_open(relid, NoLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	AttrNumber system = get_attnum(relid, "system_identifier");
	AttrNumber database = get_attnum(relid, "database_id");
	AttrNumber uuid = get_attnum(relid, "instance");
	AttrNumber plugin = get_attnum(relid, "plugin_key");
	Instance own;
	bool known = instance_get(&own);
	int64 count = 0;

	while (known && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool isnull;

		CHECK_FOR_INTERRUPTS();
		(void) slot_getattr(slot, plugin, &isnull);
		if (isnull)
			continue;
		if ((uint64) DatumGetInt64(slot_getattr(slot, system, &isnull)) == own.system_identifier &&
		    DatumGetObjectId(slot_getattr(slot, database, &isnull)) == own.database &&
		    memcmp(DatumGetUUIDP(slot_getattr(slot, uuid, &isnull)), &own.uuid, UUID_LEN) == 0)
			count++;
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(relation, NoLock);
	return count;
}

static bool
is_ledger(Oid relid)
{
	char *name = get_rel_name(relid);

	return name != NULL && strcmp(name, "provider_leases") == 0 &&
	       get_rel_namespace(relid) == get_namespace_oid("envrt", true);
}

static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (previous_object_access_hook)
		previous_object_access_hook(access, classId, objectId, subId, arg);
	if (access == OAT_DROP && classId == RelationRelationId && subId == 0 && is_ledger(objectId))
		report_left_behind(count_rows(objectId),
		                   "ROLLBACK, release the leases, archive the environments, and drop it "
		                   "when envrt.stat_cleanup has no rows any more.");
	if (access == OAT_POST_CREATE && classId == DatabaseRelationId)
		database_created = true;
	else if (access == OAT_POST_CREATE && classId == ExtensionRelationId)
		extension_created = true; /* ours or another: the scheduler will see */
	else if (access == OAT_DROP && classId == ExtensionRelationId)
	{
		char *name = get_extension_name(objectId);

		if (name != NULL && strcmp(name, "envrt") == 0)
			extension_dropped = true;
	}
}

static void
database_ddl_transaction_end(XactEvent event, void *arg)
{
	bool committed = event == XACT_EVENT_COMMIT;
	bool wake = false;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	if (!database_created && !extension_created && !extension_dropped && !holding)
		return;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (committed && database_created)
		shared_state->rescan = wake = true;
	if (committed && extension_created)
	{
		wake = true;
		if (shared_state->nwanted < MAX_WANTED)
			shared_state->wanted[shared_state->nwanted++] = MyDatabaseId;
		else
			shared_state->recheck_all = true;
	}
	if (committed && extension_dropped)
		scheduler_recheck(scheduler_slot(MyDatabaseId));
	if (holding)
	{
		for (int i = 0; i < shared_state->nslots; i++)
			if (shared_state->slots[i].held_by == MyProcPid)
				shared_state->slots[i].held_by = 0;
		shared_state->rescan = wake = true;
	}
	if (wake && shared_state->launcher_latch != NULL)
		SetLatch(shared_state->launcher_latch);
	LWLockRelease(shared_state->lock);
	database_created = extension_created = extension_dropped = holding = false;
}

/*
 * Have the database's scheduler end, and stay away until the transaction is over.
 * Returns how many provider leases it had then; -1: not known.
 */
static int64
hold_database(const char *name)
{
	Oid database = name != NULL ? get_database_oid(name, true) : InvalidOid;
	TimestampTz deadline = TimestampTzPlusMilliseconds(timer_now(), STOP_WAIT_MS);
	SchedulerSlot *slot;
	bool held = false;
	int64 count = -1;

	if (!OidIsValid(database) || !object_ownercheck_database(database, GetUserId()))
		return -1;
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot = scheduler_slot(database);
	if (slot != NULL && slot->held_by == 0)
	{
		slot->held_by = MyProcPid;
		held = holding = true;
		if (slot->state == SCHEDULER_RUNNING || slot->state == SCHEDULER_STARTING)
			slot->state = SCHEDULER_STOPPING;
		if (slot->latch != NULL)
			SetLatch(slot->latch);
	}
	LWLockRelease(shared_state->lock);
	if (!held)
		return -1;

	ConditionVariablePrepareToSleep(&shared_state->scheduler_changed);
	for (;;)
	{
		bool ended;
		long left = TimestampDifferenceMilliseconds(timer_now(), deadline);

		LWLockAcquire(shared_state->lock, LW_SHARED);
		ended = slot->state == SCHEDULER_ENDED;
		count = ended ? slot->left_behind : -1;
		LWLockRelease(shared_state->lock);
		/* Late: the statement itself says what is in its way. */
		if (ended || left == 0)
			break;
		(void) ConditionVariableTimedSleep(&shared_state->scheduler_changed, left,
		                                   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return count;
}

/* The database that a statement needs free of sessions, or NULL. */
static const char *
needed_database(Node *statement)
{
	ListCell *cell;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) statement)->dbname;
		case T_CreatedbStmt:
			foreach (cell, ((CreatedbStmt *) statement)->options)
			{
				DefElem *option = lfirst_node(DefElem, cell);

				if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
					return defGetString(option);
			}
			return NULL;
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) statement)->subname;
			return NULL;
		case T_AlterDatabaseStmt:
			foreach (cell, ((AlterDatabaseStmt *) statement)->options)
				if (strcmp(lfirst_node(DefElem, cell)->defname, "tablespace") == 0)
					return ((AlterDatabaseStmt *) statement)->dbname;
			return NULL;
		default:
			return NULL;
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
                ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
                DestReceiver *dest, QueryCompletion *qc)
{
	Node *statement = pstmt->utilityStmt;
	const char *name = needed_database(statement);

	int64 count = name != NULL ? hold_database(name) : -1;

	if (IsA(statement, DropdbStmt))
		report_left_behind(count,
		                   "They have to be ended at their providers by hand. Before a database is "
		                   "dropped, release its leases, archive its environments, and wait until "
		                   "envrt.stat_cleanup has no rows there.");
	/* Whether it takes connections or is a template decides about its scheduler. */
	if (IsA(statement, AlterDatabaseStmt))
		database_created = true;
	if (IsA(statement, TransactionStmt) &&
	    ((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED)
		database_created = extension_created = extension_dropped = true;
	if (previous_utility_hook)
		previous_utility_hook(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest,
		                      qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest,
		                        qc);
	/* Which leases it has ended is known no more. */
	if (IsA(statement, TransactionStmt) &&
	    ((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED)
		hint_look_at_all();
}

void
database_ddl_install_hooks(void)
{
	previous_object_access_hook = object_access_hook;
	object_access_hook = object_access;
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	RegisterXactCallback(database_ddl_transaction_end, NULL);
}
