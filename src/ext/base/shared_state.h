/*
 * shared_state.h
 *		What envrt keeps in shared memory; see shared_state.c.
 */
#ifndef ENVRT_SHARED_STATE_H
#define ENVRT_SHARED_STATE_H

#include "postgres.h"

#include "base/compat.h"
#include "datatype/timestamp.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/uuid.h"

typedef enum HostState
{
	HOST_STOPPED,  /* not running, to be started again */
	HOST_STARTING, /* started, does not listen yet */
	HOST_RUNNING
} HostState;

typedef enum SchedulerState
{
	SCHEDULER_FREE,     /* the slot is not in use */
	SCHEDULER_STARTING, /* registered by the launcher */
	SCHEDULER_RUNNING,
	SCHEDULER_STOPPING, /* asked to end */
	SCHEDULER_ENDED     /* has ended; the launcher frees the slot */
} SchedulerState;

/* Leases to look at that a scheduler is told of one by one; more means all of them. */
#define MAX_HINTS 64

typedef struct SchedulerSlot
{
	Oid database;
	SchedulerState state;
	pid_t pid;
	Latch *latch; /* NULL unless running */
	TimestampTz since;
	bool absent;             /* ended because the database has no envrt */
	bool stopped;            /* ended because it was asked to */
	bool recheck;            /* look again whether the extension is there */
	int held_by;             /* backend whose DDL wants the database free, or 0 */
	uint32 generation;       /* tells the slot's uses apart */
	TimestampTz next_expiry; /* the scheduler's timer; DT_NOEND: none */
	int64 left_behind; /* provider leases there were when it was asked to end; -1: not known */
	/* What commits and rollbacks ask for; see scheduler_wake.c. */
	bool look_at_all;
	bool look_at_idle;
	bool look_at_requests;
	bool look_at_executions;
	int executions; /* that the scheduler looks after */
	uint64 rounds;  /* that the scheduler has done: it is not stuck */
	int failing;    /* rows and activities that it tries again later: failures.c */
	int nhints;
	pg_uuid_t hints[MAX_HINTS];
} SchedulerSlot;

/* See fault_points.c. */
typedef enum FaultAction
{
	FAULT_NONE,
	FAULT_WAIT,
	FAULT_ERROR,
	FAULT_EXIT,
	FAULT_CRASH
} FaultAction;

typedef struct FaultPoint
{
	char name[48];
	FaultAction action; /* FAULT_NONE: not in use */
	uint32 arming;      /* tells one arming from the next */
	int64 hits;
	int waiting;
} FaultPoint;

#define MAX_FAULT_POINTS 16

/* What a scheduler could not do, as envrt.stat_failures shows it; see failures.c. */
#define MAX_SHOWN_FAILURES 200

typedef struct ShownFailure
{
	Oid database; /* InvalidOid: not in use */
	char activity[64];
	bool has_id;
	pg_uuid_t id;
	int attempts;
	int sqlstate;
	TimestampTz since;
	TimestampTz last;
	TimestampTz retry_at;
	char message[256];
} ShownFailure;

/* Databases to look at; more than this many at once means all of them. */
#define MAX_WANTED 32

typedef struct SharedState
{
	LWLock *lock; /* protects everything below */

	pg_uuid_t instance; /* see instance.c */
	bool instance_known;

	pid_t launcher_pid; /* 0: not running */
	Latch *launcher_latch;

	HostState host_state;
	pid_t host_pid;
	TimestampTz host_since;
	int64 host_restarts;
	TimestampTz host_settings_since; /* when it took its settings; 0: not yet */
	bool host_suspect;               /* a call got no answer in time: ping it */
	char host_last_exit[128];
	ConditionVariable host_changed;

	volatile int fault_points_armed; /* read without the lock */
	FaultPoint fault_points[MAX_FAULT_POINTS];
	ConditionVariable fault_points_changed;

	ShownFailure failures[MAX_SHOWN_FAILURES];

	bool rescan;      /* databases came or went: read pg_database */
	bool recheck_all; /* any database may have got envrt */
	int nwanted;
	Oid wanted[MAX_WANTED]; /* databases that may have got envrt */
	ConditionVariable scheduler_changed;
	ConditionVariable
	    leases_changed; /* something that is waited for: of leases, cleanups, executions */
	int nslots;
	SchedulerSlot slots[FLEXIBLE_ARRAY_MEMBER];
} SharedState;

/* NULL unless envrt is in shared_preload_libraries. */
extern SharedState *shared_state;

extern void shared_state_add(Size (*size)(void), void (*initialize)(void));
extern void shared_state_reserve(void);
extern void launcher_wake(void);
extern SchedulerSlot *scheduler_slot(Oid database);
extern void scheduler_recheck(SchedulerSlot *slot);

/* In the scheduler: what would wait for it, or for the outside, must not be called. */
extern bool am_scheduler;
extern void forbid_in_scheduler(void);

pg_noreturn extern void ereport_not_preloaded(void);

#endif
