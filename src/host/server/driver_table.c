/*
 * driver_table.c
 *		The drivers, and which methods each answers.
 *
 * A new driver is a file with a HostDriver in it and a line in the table below.
 */
#include <string.h>

#include "plugins/plugin_call.h"
#include "sandbox/sandbox_driver.h"
#include "server/driver_table.h"
#include "shared/protocol.h"
#include "ssh/ssh_driver.h"

static const HostDriver *const drivers[] = {&ssh_host_driver, &bubblewrap_host_driver};

static const HostDriver *
driver_find(const char *key)
{
	for (size_t i = 0; i < sizeof drivers / sizeof drivers[0]; i++)
		if (strcmp(drivers[i]->key, key) == 0)
			return drivers[i];
	return NULL;
}

static const DriverMethod *
driver_method(const HostDriver *driver, const char *name)
{
	for (const DriverMethod *method = driver->methods; method->name != NULL; method++)
		if (strcmp(method->name, name) == 0)
			return method;
	return NULL;
}

bool
driver_is_own(const json_t *params)
{
	const char *key = json_string_value(json_object_get(params, "driverKey"));

	return key != NULL && !json_is_string(json_object_get(params, "pluginKey")) &&
	       driver_find(key) != NULL;
}

HostError *
driver_choose(const char *method, const json_t *params, DriverChoice *choice)
{
	const char *key = json_string_value(json_object_get(params, "driverKey"));
	/* Who names a plugin means it, whatever its driver is called. */
	bool names_plugin = json_is_string(json_object_get(params, "pluginKey"));
	const HostDriver *driver = key != NULL && !names_plugin ? driver_find(key) : NULL;
	HostError *error = NULL;

	choice->key = key;
	choice->name = method;
	choice->method = driver != NULL ? driver_method(driver, method) : NULL;
	if (key == NULL)
	{
		error = error_new("22023", "%s: driverKey is missing", method);
		error->code = RPC_INVALID_PARAMS;
	}
	else if (driver != NULL && choice->method == NULL)
	{
		error = error_new("42704", "the %s driver has no method %s", key, method);
		error->code = RPC_METHOD_NOT_FOUND;
	}
	return error;
}

void
driver_start(const DriverChoice *choice, Call *call, const json_t *params)
{
	if (choice->method != NULL)
		choice->method->start(call, params);
	else
		plugin_call_start(call, choice->name, params);
}
