/*
 * async_calls.h
 *		The scheduler's connection to the driver host; see async_calls.c.
 */
#ifndef ENVRT_ASYNC_CALLS_H
#define ENVRT_ASYNC_CALLS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "shared/json_library.h"

/* How a call ended.  Answered: result or error is set, and the callee's to read. */
typedef struct DriverAnswer
{
	const json_t *result;
	const json_t *error; /* both NULL: the driver host was lost, or said nothing */
} DriverAnswer;

/* Called from driver_client_tend, outside of any transaction; must not raise. */
typedef void (*DriverAnswered)(void *data, const DriverAnswer *answer);

/*
 * driver_client_call
 *		Sends a call (takes params); false when there is no driver host now.
 *
 * timeout_ms is how long the driver host may take at most: past it, it is
 * given up as a whole.
 */
extern bool driver_client_call(const char *method, json_t *params, int64 timeout_ms,
                               DriverAnswered answered, void *data);

/* Connects, reads, writes and gives up, as far as it can without waiting; whether some call ended.
 */
extern bool driver_client_tend(void);

/* What the scheduler is to wait for. */
extern pgsocket driver_client_socket(int *events);
extern TimestampTz driver_client_deadline(void);

/* Which driver host it is (a name that no other has); NULL while not connected. */
extern const char *driver_client_instance(void);

#endif
