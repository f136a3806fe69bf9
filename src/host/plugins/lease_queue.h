/*
 * lease_queue.h
 *		Operations that make and end the lease of a key; see lease_queue.c.
 */
#ifndef ENVRT_HOST_LEASE_QUEUE_H
#define ENVRT_HOST_LEASE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "calls/call.h"
#include "calls/lease_keys.h"
#include "plugins/plugin.h"
#include "plugins/plugin_request.h"
#include "base/timer.h"

typedef enum
{
	OPERATION_ACQUIRE,
	OPERATION_RESUME,
	OPERATION_RELEASE,
	OPERATION_DESTROY,
	OPERATION_KINDS
} OperationKind;

typedef struct LeaseOperation LeaseOperation;

/* What an operation does; see lease_make.c and lease_end.c. */
typedef struct OperationDoing
{
	/* Its turn has come. */
	void (*run)(LeaseOperation *operation);
	/* A maker's: it ends without having been asked of the plugin. */
	void (*withdrawn)(LeaseOperation *operation);
} OperationDoing;

struct LeaseOperation
{
	OperationKind kind;
	const OperationDoing *doing;
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

	/* Of lease_queue.c. */
	bool waiting; /* in the key's queue */
	LeaseOperation *next_waiting;
	LeaseOperation *next;
	LeaseOperation *previous;
};

extern size_t operations_count(void);
extern LeaseOperation *operation_new(OperationKind kind, const OperationDoing *doing,
                                     const char *key);
/* An operation of a client's call, filled in, enters the queue of its key. */
extern void operation_enter(LeaseOperation *operation);

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
extern void operation_start_own(const LeaseOperation *maker, const OperationDoing *ender);

/* Lets others of the key go first, and comes again. */
extern void operation_retry_later(LeaseOperation *operation, uint64_t delay_ms);

/* "the lease was ended meanwhile" */
extern HostError *lease_ended_error(const LeaseKey *key);

extern const char *operation_method(OperationKind kind);

/* Forgets every operation and all that is known of leases. */
extern void lease_operations_close(void);

#endif
