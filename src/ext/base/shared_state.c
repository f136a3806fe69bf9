/*
 * shared_state.c
 *		What envrt keeps in shared memory: who runs, and who wants what of whom.
 *
 * Written by the launcher (driver host, scheduler slots), by schedulers
 * (their own slot) and by backends (requests: host_suspect, rescan, recheck,
 * held_by), all under one LWLock that is held for a few assignments only.
 * Whoever changes what somebody else waits for sets that one's latch or
 * broadcasts the condition variable after the change.
 *
 * Nothing here has to survive: after a crash restart it is empty and the
 * launcher begins anew.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "base/shared_state.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#define TRANCHE "envrt"

SharedState *shared_state = NULL;

static shmem_startup_hook_type previous_shmem_startup_hook = NULL;
#if PG_VERSION_NUM >= 150000
static shmem_request_hook_type previous_shmem_request_hook = NULL;
#endif

/* Shared memory of layers above, which they add before it is reserved. */
typedef struct SharedPart
{
	Size (*size)(void);
	void (*initialize)(void);
} SharedPart;

static SharedPart parts[4];
static int nparts = 0;

/* initialize is called with AddinShmemInitLock held. */
void
shared_state_add(Size (*size)(void), void (*initialize)(void))
{
	Assert(nparts < (int) lengthof(parts));
	parts[nparts].size = size;
	parts[nparts].initialize = initialize;
	nparts++;
}

/* A slot for each worker that there can be at all. */
static Size
shared_state_size(void)
{
	return add_size(offsetof(SharedState, slots),
	                mul_size(max_worker_processes, sizeof(SchedulerSlot)));
}

static void
request_memory(void)
{
#if PG_VERSION_NUM >= 150000
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
#endif
	RequestAddinShmemSpace(shared_state_size());
	for (int i = 0; i < nparts; i++)
		RequestAddinShmemSpace(parts[i].size());
	RequestNamedLWLockTranche(TRANCHE, 1);
}

static void
initialize_memory(void)
{
	bool found;

	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared_state = ShmemInitStruct("envrt", shared_state_size(), &found);
	if (!found)
	{
		memset(shared_state, 0, shared_state_size());
		shared_state->lock = &GetNamedLWLockTranche(TRANCHE)->lock;
		shared_state->nslots = max_worker_processes;
		ConditionVariableInit(&shared_state->host_changed);
		ConditionVariableInit(&shared_state->scheduler_changed);
		ConditionVariableInit(&shared_state->leases_changed);
		ConditionVariableInit(&shared_state->fault_points_changed);
	}
	for (int i = 0; i < nparts; i++)
		parts[i].initialize();
	LWLockRelease(AddinShmemInitLock);
}

/* Called while shared_preload_libraries are loaded. */
void
shared_state_reserve(void)
{
#if PG_VERSION_NUM >= 150000
	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_memory;
#else
	request_memory();
#endif
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = initialize_memory;
}

void
launcher_wake(void)
{
	LWLockAcquire(shared_state->lock, LW_SHARED);
	if (shared_state->launcher_latch != NULL)
		SetLatch(shared_state->launcher_latch);
	LWLockRelease(shared_state->lock);
}

/* The slot of the database's scheduler, or NULL; the caller holds the lock. */
SchedulerSlot *
scheduler_slot(Oid database)
{
	for (int i = 0; i < shared_state->nslots; i++)
	{
		SchedulerSlot *slot = &shared_state->slots[i];

		if (slot->state != SCHEDULER_FREE && slot->database == database)
			return slot;
	}
	return NULL;
}

/* Have a scheduler (or none: NULL) look again whether the extension is there; the caller holds the
 * lock. */
void
scheduler_recheck(SchedulerSlot *slot)
{
	if (slot == NULL)
		return;
	slot->recheck = true;
	if (slot->latch != NULL)
		SetLatch(slot->latch);
}

bool am_scheduler = false;

/*
 * A trigger may call envrt functions, and run in the scheduler: there a
 * request to the ledger would wait for itself, and everybody for it.
 */
void
forbid_in_scheduler(void)
{
	if (am_scheduler)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("the envrt scheduler can't wait for others"),
		                errdetail("A trigger that it fired calls a function that waits."),
		                errhint("Acquire leases in triggers by envrt_request_lease().")));
}

void
ereport_not_preloaded(void)
{
	ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
	                errmsg("envrt is not preloaded, so there is no driver host to call"),
	                errhint("Put this line into postgresql.conf and restart the server: "
	                        "shared_preload_libraries = 'envrt'")));
}
