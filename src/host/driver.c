/*
 * driver.c
 *		The drivers, and which methods each answers.
 *
 * A new driver is a file with a Driver in it and a line in the table below.
 */
#include <string.h>

#include "driver.h"

static const Driver *const drivers[] = {&ssh_driver, &bubblewrap_driver};

const Driver *
driver_find(const char *key)
{
	for (size_t i = 0; i < sizeof drivers / sizeof drivers[0]; i++)
		if (strcmp(drivers[i]->key, key) == 0)
			return drivers[i];
	return NULL;
}

const DriverMethod *
driver_method(const Driver *driver, const char *name)
{
	for (const DriverMethod *method = driver->methods; method->name != NULL; method++)
		if (strcmp(method->name, name) == 0)
			return method;
	return NULL;
}

static uint64_t
limit(const json_t *limits, const char *key, uint64_t otherwise)
{
	const json_t *value = json_object_get(limits, key);
	json_int_t milliseconds = json_integer_value(value);

	if (!json_is_integer(value))
		return otherwise;
	if (milliseconds < 1)
		return 1;
	if (milliseconds > 86400000)
		return 86400000;
	return (uint64_t) milliseconds;
}

CallLimits
call_limits(const json_t *params)
{
	const json_t *limits = json_object_get(params, "limits");
	CallLimits result = {
	    .connect_ms = limit(limits, "connectMs", 10000),
	    .command_ms = limit(limits, "commandMs", 15000),
	    .api_probe_ms = limit(limits, "apiProbeMs", 5000),
	    .call_ms = limit(limits, "callMs", 60000),
	};

	return result;
}
