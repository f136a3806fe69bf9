/*
 * call_limits.h
 *		The time limits that come with a call.
 */
#ifndef ENVRT_HOST_CALL_LIMITS_H
#define ENVRT_HOST_CALL_LIMITS_H

#include <stdint.h>

#include <jansson.h>

typedef struct CallLimits
{
	uint64_t connect_ms;
	uint64_t command_ms;
	uint64_t api_probe_ms;
	uint64_t call_ms; /* plugins: the whole call */
} CallLimits;

extern CallLimits call_limits(const json_t *params);

#endif
