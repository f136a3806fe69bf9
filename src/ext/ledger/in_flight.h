/*
 * in_flight.h
 *		Calls about provider leases that wait for the driver host; see in_flight.c.
 */
#ifndef ENVRT_IN_FLIGHT_H
#define ENVRT_IN_FLIGHT_H

#include "postgres.h"

#include "lib/ilist.h"
#include "nodes/pg_list.h"
#include "utils/uuid.h"

/* A call, as the limits see it; the first member of what its owner knows of it. */
typedef struct CallInFlight
{
	dlist_node node; /* of one of the lists of its set */
	pg_uuid_t lease_id;
	pg_uuid_t company_id;
	pg_uuid_t environment_id;
	char provider[128]; /* driver and provider: "sandbox:bubblewrap" */
} CallInFlight;

typedef struct CallSet
{
	dlist_head in_flight; /* the driver host has not answered yet */
	dlist_head answered;  /* the answer has to be written down */
	dlist_head later;     /* waits for its next try */
	int nin_flight;
} CallSet;

extern CallSet cleanup_calls;
extern CallSet acquire_calls; /* of requested leases */

extern void in_flight_begin(CallSet *set, CallInFlight *call);
extern void in_flight_answered(CallSet *set, CallInFlight *call);
/* A call that has begun belongs to no list any more. */
extern void in_flight_withdraw(CallSet *set, CallInFlight *call);

/* Whether any list of the set has a call about this lease. */
extern bool in_flight_has(const CallSet *set, const pg_uuid_t *lease_id);

/*
 * Whether the limits let `call` be made beside those in flight and the chosen ones (CallInFlight),
 * itself not counted.
 */
extern bool in_flight_allows(const CallSet *set, const CallInFlight *call, const List *chosen);
/* Whether they let its company make one to any provider. */
extern bool in_flight_allows_company(const CallSet *set, int own);

#endif
