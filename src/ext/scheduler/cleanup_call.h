/*
 * cleanup_call.h
 *		One row of the ledger that is being cleaned up, in the memory of the scheduler.
 */
#ifndef ENVRT_CLEANUP_CALL_H
#define ENVRT_CLEANUP_CALL_H

#include "postgres.h"

#include "ledger/in_flight.h"
#include "shared/json_library.h"
#include "utils/array.h"

/* In last_error: such a name no row can have, so nothing that lives is meant by it. */
#define UNSPEAKABLE "the provider gave this an id that can't be stored"

#define REPORT_RETRY_MS 1000
#define BACKOFF_MS 1000

typedef enum CleanupResult
{
	CLEANUP_DONE,
	CLEANUP_FOUND,   /* what was made, which the ledger did not know */
	CLEANUP_UNKNOWN, /* nobody knows whether it exists */
	CLEANUP_ERROR,
	CLEANUP_LOST /* no answer */
} CleanupResult;

/* From the choice of the row until its outcome is written. */
typedef struct Cleanup
{
	CallInFlight call; /* first */
	pg_uuid_t holder_id;
	bool has_holder;
	char *maker; /* who calls it so: LEDGER_MAKER_OF */
	char *name;  /* providerLeaseId; NULL: not known */
	bool keep;
	int attempts;
	int64 fence; /* as the row had it when it was taken */
	json_t *params;
	json_t *values; /* of secrets in them */
	const char *method;
	CleanupResult result;
	json_t *found; /* the answer, when something was found */
	char error[1024];
	/* While it is being finished. */
	bool lease_blocked; /* the lease's cleanup_status could not be set */
} Cleanup;

extern ArrayType *cleanup_uuid_array(Datum *ids, int count);
extern void cleanup_free(Cleanup *cleanup);
/* In UTF-8, cut where a character ends; detail: NULL for none. */
extern void cleanup_set_error(Cleanup *cleanup, const char *message, const char *detail);

#endif
