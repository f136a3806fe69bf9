/*
 * lease_work.h
 *		What the files of lease operations share: see lease_operation.c.
 */
#ifndef ENVRT_HOST_LEASE_WORK_H
#define ENVRT_HOST_LEASE_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "calls/call.h"
#include "calls/lease_keys.h"
#include "plugins/plugin.h"
#include "base/timer.h"

typedef enum
{
	OPERATION_ACQUIRE,
	OPERATION_RESUME,
	OPERATION_RELEASE,
	OPERATION_DESTROY
} OperationKind;

typedef struct LeaseOperation LeaseOperation;

struct LeaseOperation
{
	OperationKind kind;
	LeaseKey *key;
	Call *call;              /* NULL: nobody waits for the answer (any more) */
	Plugin *plugin;          /* NULL: there is none, and ... */
	HostError *plugin_error; /* ... this is what to say when one is needed */
	bool plugin_named;       /* by the client */
	char *driver_key;
	json_t *params;         /* as the worker gets them */
	json_t *secrets;        /* what the worker may resolve, or NULL */
	PluginRequest *request; /* what it is waiting for */
	Timer *limit;
	uint64_t limit_ms;

	/* Makers. */
	bool doomed; /* the lease was ended before the answer came */

	/* Enders. */
	bool same_instance; /* the client asked this host to make the lease, if any */
	bool keep;          /* the lease stays, for reuse */
	bool identify;      /* of what has no name yet, the client is to be told the name first */
	bool own;           /* not a client's: ends what a doomed maker made */
	bool unseen;        /* ends by the key alone, so whether there is something is not known */
	unsigned attempts;
	json_t *found; /* what the plugin listed for the key */
	size_t next_found;

	/* Of lease_operation.c. */
	bool waiting; /* in the key's queue */
	LeaseOperation *next_waiting;
	LeaseOperation *next;
	LeaseOperation *previous;
};

/* Asks the plugin; takes the params.  answered() begins with operation_answered(). */
extern void operation_ask(LeaseOperation *operation, const char *method, const char *other,
                          json_t *params, PluginAnswered answered);
extern void operation_answered(LeaseOperation *operation);

/* Tell the client, if there is one; take their second argument. */
extern void operation_answer(LeaseOperation *operation, json_t *result);
extern void operation_fail(LeaseOperation *operation, HostError *error);

/* It is over: the next one of its key gets its turn.  Frees it. */
extern void operation_done(LeaseOperation *operation);

/* One of the host's own, to end what a doomed maker made. */
extern void operation_start_own(const LeaseOperation *maker);

/* Lets others of the key go first, and comes again. */
extern void operation_retry_later(LeaseOperation *operation, uint64_t delay_ms);

/* The turn of an operation has come (lease_make.c, lease_end.c). */
extern void lease_make_run(LeaseOperation *operation);
extern void lease_end_run(LeaseOperation *operation);

/* A maker ends without having been asked of the plugin. */
extern void lease_make_withdrawn(LeaseOperation *operation);

/* "the lease was ended meanwhile" */
extern HostError *lease_ended_error(const LeaseKey *key);

extern const char *operation_method(OperationKind kind);

#endif
