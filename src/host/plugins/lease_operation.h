/*
 * lease_operation.h
 *		Calls that make and end the lease of a key.
 */
#ifndef ENVRT_HOST_LEASE_OPERATION_H
#define ENVRT_HOST_LEASE_OPERATION_H

#include <stdbool.h>

#include <jansson.h>

#include "calls/call.h"

/*
 * Owns the call from here on and returns true, when it is such a call: an
 * acquire, resume, release or destroy of a plugin's driver with a leaseId.
 */
extern bool lease_operation_start(Call *call, const char *method, const json_t *params);

#endif
