/*
 * scheduler_wake.c
 *		Telling the scheduler, at commit or rollback, where to look.
 *
 * The scheduler decides by what is in the tables (settle.c); hints only say
 * that it is time to look, and at which leases.  Triggers on the shared
 * tables note what a transaction changes, whoever changes it and by whatever
 * SQL; an acquire notes the lease it is for, since its rollback leaves no
 * trace in a table.  A callback that is registered once a backend hands the
 * notes over when the transaction has ended, also when it was rolled back,
 * for then there is something to clean up; and at a subtransaction's rollback.
 *
 * A hint too many costs a look.  A hint that is lost, with a crash or while
 * no scheduler runs, is made up for by the scheduler's look at everything
 * when it starts.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "ledger/scheduler_wake.h"
#include "miscadmin.h"
#include "base/shared_state.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(envrt_on_lease_change);
PG_FUNCTION_INFO_V1(envrt_on_environment_change);
PG_FUNCTION_INFO_V1(envrt_on_command_lease_end);

/* What the transaction under way has noted. */
static struct
{
	bool all;
	bool idle;
	bool requests;
	bool executions;
	bool forbid_prepare;
	int nleases;
	pg_uuid_t leases[MAX_HINTS];
} noted;

/* Apart from executions, of which there are none mostly: see hand_over(). */
static bool
look_noted(void)
{
	return noted.all || noted.idle || noted.requests || noted.nleases > 0;
}

static bool
anything_noted(void)
{
	return look_noted() || noted.executions;
}

/* Put the notes into the scheduler's slot.  Not an ERROR in here: the transaction has ended. */
static void
hand_over(void)
{
	SchedulerSlot *slot;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot = scheduler_slot(MyDatabaseId);
	if (slot != NULL)
	{
		slot->look_at_all = slot->look_at_all || noted.all;
		slot->look_at_idle = slot->look_at_idle || noted.idle;
		slot->look_at_requests = slot->look_at_requests || noted.requests;
		slot->look_at_executions = slot->look_at_executions || noted.executions;
		for (int i = 0; i < noted.nleases && !slot->look_at_all; i++)
		{
			if (slot->nhints == MAX_HINTS)
				slot->look_at_all = true;
			else
				slot->hints[slot->nhints++] = noted.leases[i];
		}
		/* An execution that begins now finds that its lease has ended. */
		if (slot->latch != NULL && (look_noted() || slot->executions > 0))
			SetLatch(slot->latch);
	}
	LWLockRelease(shared_state->lock);
}

static void
scheduler_wake_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			if (noted.forbid_prepare)
				ereport(ERROR,
				        (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				         errmsg("cannot PREPARE a transaction that has acquired a lease of a "
				                "sandbox or plugin environment"),
				         errhint("Acquire the lease in a transaction of its own.")));
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			if (anything_noted())
				hand_over();
			memset(&noted, 0, sizeof(noted));
			break;
		case XACT_EVENT_PREPARE:
			/* COMMIT PREPARED has the scheduler look at everything. */
			memset(&noted, 0, sizeof(noted));
			break;
		default:
			break;
	}
}

static void
subtransaction_end(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
	/* The notes stay: what they are about may not have ended yet. */
	if (event == SUBXACT_EVENT_ABORT_SUB && anything_noted())
		hand_over();
}

/* False where there is no scheduler to tell. */
static bool
begin(void)
{
	static bool registered = false;

	if (shared_state == NULL)
		return false;
	if (!registered)
	{
		RegisterXactCallback(scheduler_wake_transaction_end, NULL);
		RegisterSubXactCallback(subtransaction_end, NULL);
		registered = true;
	}
	return true;
}

void
hint_lease(const pg_uuid_t *lease_id)
{
	if (!begin() || noted.all || hint_given(lease_id))
		return;
	if (noted.nleases == MAX_HINTS)
		noted.all = true;
	else
		noted.leases[noted.nleases++] = *lease_id;
}

void
hint_requests(void)
{
	noted.requests = begin();
}

void
hint_forbid_prepare(void)
{
	noted.forbid_prepare = begin();
}

bool
hint_given(const pg_uuid_t *lease_id)
{
	for (int i = 0; i < noted.nleases; i++)
		if (memcmp(&noted.leases[i], lease_id, sizeof(pg_uuid_t)) == 0)
			return true;
	return false;
}

static void
look_now(bool at_all)
{
	SchedulerSlot *slot;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot = scheduler_slot(MyDatabaseId);
	if (slot != NULL)
	{
		slot->look_at_idle = true;
		if (at_all)
		{
			slot->look_at_all = slot->look_at_requests = slot->look_at_executions = true;
			/* Long ago: look when the next lease expires. */
			slot->next_expiry = DT_NOBEGIN;
		}
		if (slot->latch != NULL)
			SetLatch(slot->latch);
	}
	LWLockRelease(shared_state->lock);
}

void
hint_look_at_all(void)
{
	look_now(true);
}

void
hint_look_at_idle(void)
{
	look_now(false);
}

void
hints_take(SchedulerSlot *slot, Hints *hints)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	hints->all = slot->look_at_all;
	hints->idle = slot->look_at_idle;
	hints->requests = slot->look_at_requests;
	hints->executions = slot->look_at_executions;
	hints->nleases = slot->nhints;
	memcpy(hints->leases, slot->hints, sizeof(pg_uuid_t) * slot->nhints);
	slot->look_at_all = slot->look_at_idle = slot->look_at_requests = false;
	slot->look_at_executions = false;
	slot->nhints = 0;
	LWLockRelease(shared_state->lock);
}

/*
 * envrt.on_lease_change()
 */
Datum
envrt_on_lease_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool isnull = true;
	Datum id = (Datum) 0;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
		                errmsg("on_lease_change() is a trigger")));
	if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		noted.all = begin();
	else
	{
		TupleDesc desc = RelationGetDescr(trigger->tg_relation);
		int column = SPI_fnumber(desc, "id");

		/* An id that was changed is that of a lease which is gone. */
		if (column > 0 && SPI_gettypeid(desc, column) == UUIDOID)
			id = SPI_getbinval(trigger->tg_trigtuple, desc, column, &isnull);
		if (!isnull)
			hint_lease(DatumGetUUIDP(id));
	}
	return PointerGetDatum(NULL);
}

/*
 * envrt.on_environment_change()
 */
Datum
envrt_on_environment_change(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
		                errmsg("on_environment_change() is a trigger")));
	noted.idle = begin();
	return PointerGetDatum(NULL);
}

/*
 * envrt.on_command_lease_end()
 */
Datum
envrt_on_command_lease_end(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
		                errmsg("on_command_lease_end() is a trigger")));
	noted.executions = begin();
	return PointerGetDatum(NULL);
}
