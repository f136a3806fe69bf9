/*
 * fault_points.c
 *		Named places where a test can make the code wait, fail or crash.
 *
 * Races and crashes at a given place can't be tested by hoping for them.  A
 * superuser arms a point by envrt.arm_fault_point(name, action), on a stock
 * server; whatever process comes by does what the action says, until the
 * point is disarmed:
 *
 *		wait	until it is disarmed; cancel and termination work
 *		error	raises an error (58000)
 *		exit	ends the process as pg_terminate_backend does
 *		crash	ends the process at once, as kill -9 does
 *
 * Armed points are in shared memory and gone with a restart, also with the
 * one that a crash causes.  While none is armed a point costs one look at a
 * counter; without preload there are none.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "base/arguments.h"
#include "base/compat.h"
#include "base/fault_points.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(envrt_arm_fault_point);
PG_FUNCTION_INFO_V1(envrt_disarm_fault_point);
PG_FUNCTION_INFO_V1(envrt_fault_point_stats);

static const char *const actions[] = {
    [FAULT_WAIT] = "wait", [FAULT_ERROR] = "error", [FAULT_EXIT] = "exit", [FAULT_CRASH] = "crash"};

/* The armed point of that name, or NULL; the caller holds the lock. */
static FaultPoint *
fault_points_find(const char *name)
{
	for (int i = 0; i < MAX_FAULT_POINTS; i++)
		if (shared_state->fault_points[i].action != FAULT_NONE &&
		    strcmp(shared_state->fault_points[i].name, name) == 0)
			return &shared_state->fault_points[i];
	return NULL;
}

static void
stop_waiting(FaultPoint *point, uint32 arming)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (point->arming == arming)
		point->waiting--;
	LWLockRelease(shared_state->lock);
}

static bool
is_armed(const FaultPoint *point, uint32 arming)
{
	bool armed;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	armed = point->action == FAULT_WAIT && point->arming == arming;
	LWLockRelease(shared_state->lock);
	return armed;
}

/* Wait until this arming of the point ends. */
static void
wait_until_disarmed(FaultPoint *point, uint32 arming)
{
	PG_TRY();
	{
		ConditionVariablePrepareToSleep(&shared_state->fault_points_changed);
		while (is_armed(point, arming))
			ConditionVariableSleep(&shared_state->fault_points_changed, PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
	}
	PG_CATCH();
	{
		stop_waiting(point, arming);
		PG_RE_THROW();
	}
	PG_END_TRY();
	stop_waiting(point, arming);
}

void
fault_point_reached(const char *name)
{
	FaultPoint *point;
	FaultAction action = FAULT_NONE;
	uint32 arming = 0;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	point = fault_points_find(name);
	if (point != NULL)
	{
		action = point->action;
		arming = point->arming;
		point->hits++;
		if (action == FAULT_WAIT)
			point->waiting++;
	}
	LWLockRelease(shared_state->lock);

	switch (action)
	{
		case FAULT_NONE:
			break;
		case FAULT_WAIT:
			wait_until_disarmed(point, arming);
			break;
		case FAULT_ERROR:
			ereport(ERROR,
			        (errcode(ERRCODE_SYSTEM_ERROR), errmsg("fault point \"%s\" is armed", name)));
			break;
		case FAULT_EXIT:
			ereport(FATAL,
			        (errcode(ERRCODE_ADMIN_SHUTDOWN), errmsg("fault point \"%s\" is armed", name)));
			break;
		case FAULT_CRASH:
			(void) kill(MyProcPid, SIGKILL);
			break;
	}
}

static void
require_superuser(void)
{
	if (!superuser())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("fault points are for superusers")));
	if (shared_state == NULL)
		ereport_not_preloaded();
}

/*
 * envrt.arm_fault_point(name, action)
 */
Datum
envrt_arm_fault_point(PG_FUNCTION_ARGS)
{
	char *name = text_argument(fcinfo, 0, "name");
	char *action_name = text_argument(fcinfo, 1, "action");
	FaultAction action = FAULT_NONE;
	FaultPoint *point;

	require_superuser();
	for (int i = FAULT_WAIT; i <= FAULT_CRASH; i++)
		if (strcmp(actions[i], action_name) == 0)
			action = i;
	if (action == FAULT_NONE)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("action \"%s\" is not one of a fault point", action_name),
		                errhint("Use wait, error, exit or crash.")));
	if (name[0] == '\0' || strlen(name) >= sizeof(point->name))
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		         errmsg("name must have 1 to %d characters", (int) sizeof(point->name) - 1)));

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	point = fault_points_find(name);
	for (int i = 0; point == NULL && i < MAX_FAULT_POINTS; i++)
		if (shared_state->fault_points[i].action == FAULT_NONE)
		{
			point = &shared_state->fault_points[i];
			shared_state->fault_points_armed++;
		}
	if (point != NULL)
	{
		strlcpy(point->name, name, sizeof(point->name));
		point->action = action;
		point->arming++;
		point->hits = 0;
		point->waiting = 0;
	}
	LWLockRelease(shared_state->lock);
	if (point == NULL)
		ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
		                errmsg("%d fault points are armed already", MAX_FAULT_POINTS)));
	ConditionVariableBroadcast(&shared_state->fault_points_changed);
	PG_RETURN_VOID();
}

/*
 * envrt.disarm_fault_point(name): whether it was armed.
 */
Datum
envrt_disarm_fault_point(PG_FUNCTION_ARGS)
{
	char *name = text_argument(fcinfo, 0, "name");
	FaultPoint *point;

	require_superuser();
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	point = fault_points_find(name);
	if (point != NULL)
	{
		point->action = FAULT_NONE;
		point->arming++;
		shared_state->fault_points_armed--;
	}
	LWLockRelease(shared_state->lock);
	ConditionVariableBroadcast(&shared_state->fault_points_changed);
	PG_RETURN_BOOL(point != NULL);
}

/*
 * envrt.fault_point_stats()
 */
Datum
envrt_fault_point_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	FaultPoint points[MAX_FAULT_POINTS];

	compat_begin_result_set(fcinfo);
	if (shared_state == NULL)
		return (Datum) 0;
	LWLockAcquire(shared_state->lock, LW_SHARED);
	memcpy(points, shared_state->fault_points, sizeof(points));
	LWLockRelease(shared_state->lock);
	for (int i = 0; i < MAX_FAULT_POINTS; i++)
	{
		Datum values[4];
		bool nulls[4] = {false};

		if (points[i].action == FAULT_NONE)
			continue;
		values[0] = CStringGetTextDatum(points[i].name);
		values[1] = CStringGetTextDatum(actions[points[i].action]);
		values[2] = Int64GetDatum(points[i].hits);
		values[3] = Int32GetDatum(points[i].waiting);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
