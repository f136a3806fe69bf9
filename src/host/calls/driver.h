/*
 * driver.h
 *		The drivers, and which methods each answers.
 */
#ifndef ENVRT_HOST_DRIVER_H
#define ENVRT_HOST_DRIVER_H

#include <stdint.h>

#include <jansson.h>

#include "calls/call.h"

typedef struct DriverMethod
{
	const char *name;
	/* Owns the call from here on; params are the caller's. */
	void (*start)(Call *call, const json_t *params);
} DriverMethod;

typedef struct Driver
{
	const char *key;
	const DriverMethod *methods; /* up to one without a name */
} Driver;

/* Who answers a call: a driver of the host's own, or a plugin. */
typedef struct DriverChoice
{
	const char *key;
	const char *name;           /* of the method */
	const DriverMethod *method; /* NULL: a plugin's */
} DriverChoice;

/* Whether these params are for a driver of the host's own. */
extern bool driver_is_own(const json_t *params);

/* NULL, or what is wrong with the params.  The strings are the caller's. */
extern HostError *driver_choose(const char *method, const json_t *params, DriverChoice *choice);
extern void driver_start(const DriverChoice *choice, Call *call, const json_t *params);

/* The time limits that come with a call. */
typedef struct CallLimits
{
	uint64_t connect_ms;
	uint64_t command_ms;
	uint64_t api_probe_ms;
	uint64_t call_ms; /* plugins: the whole call */
} CallLimits;

extern CallLimits call_limits(const json_t *params);

/* The drivers. */
extern const Driver ssh_driver;
extern const Driver bubblewrap_driver;

#endif
