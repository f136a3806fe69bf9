/*
 * driver_table.h
 *		The drivers, and which methods each answers.
 */
#ifndef ENVRT_HOST_DRIVER_TABLE_H
#define ENVRT_HOST_DRIVER_TABLE_H

#include "calls/driver.h"

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

#endif
