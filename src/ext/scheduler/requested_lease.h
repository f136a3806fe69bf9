/*
 * requested_lease.h
 *		One requested lease that is being served, and its request's row; see requested_lease.c.
 */
#ifndef ENVRT_REQUESTED_LEASE_H
#define ENVRT_REQUESTED_LEASE_H

#include "postgres.h"

#include "environments/drivers.h"
#include "ledger/in_flight.h"
#include "leases/leases.h"
#include "ledger/requests.h"
#include "shared/json_library.h"

typedef enum HeldUp
{
	HELD_UP_BY_NOTHING,
	HELD_UP_BY_LIMIT,  /* as many calls of its like as may be are in flight */
	HELD_UP_BY_HOLDER, /* another lease has what is reused, and nobody of the environment gets it */
	HELD_UP_BY_PLUGINS /* which plugin has the provider was asked just now; the answer wakes us */
} HeldUp;

/* One request that is being served, in the memory of the scheduler. */
typedef struct RequestedLease
{
	CallInFlight call; /* first */
	pg_uuid_t key;     /* of the provider lease */
	bool in_ledger;    /* there is a row for it */
	bool resumed;
	Jsonb *config;           /* the environment's, as the driver was asked by */
	json_t *values;          /* of secrets in the call's params */
	char *provider_lease_id; /* of what is to be resumed; NULL: not known */
	json_t *result;          /* the answer */
	json_t *error;
	const char *reason; /* why it could not be resumed; in the answer */
	/* Across tries. */
	TimestampTz since; /* of the first that came to nothing; 0: none */
	long pause;
	TimestampTz again_at;
	HeldUp held_up;   /* left queued by this try */
	bool waits;       /* it is wanted, but could not be reserved */
	json_t *awaited;  /* the id of what has to be gone first; NULL: nothing */
	json_t *replaced; /* what it takes the place of; NULL: nothing */
} RequestedLease;

/* Forgets what one try has brought. */
extern void requested_lease_reset(RequestedLease *lease);
/* The same, and what is reserved is not this one's any more. */
extern void requested_lease_begin_anew(RequestedLease *lease);
extern void requested_lease_free(RequestedLease *lease);

/* Within owner_begin(): the request as its row has it; false: there is none any more. */
extern bool requested_lease_load_request(const ApiCall *call, const pg_uuid_t *lease_id,
                                         AcquireRequest *request, LeaseArguments *arguments);
extern void requested_lease_delete_request(const pg_uuid_t *lease_id);
/* Locks what the lease refers to, and looks at it again. */
extern void requested_lease_lock_rows(const AcquireRequest *request);
/* Has the ledger do something with a row (provider_lease.h). */
extern LedgerOutcome requested_lease_tell_ledger(LedgerVerb verb, const json_t *row);

#endif
