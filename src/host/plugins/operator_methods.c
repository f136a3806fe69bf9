/*
 * operator_methods.c
 *		What operators ask about plugins, and tell them.
 *
 * These methods are calls like those of drivers, since they may have to wait
 * until the folders have been read.
 */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "plugins/operator_methods.h"
#include "plugins/plugin_metrics.h"
#include "plugins/plugin_registry.h"
#include "plugins/plugin_worker.h"
#include "shared/protocol.h"

typedef struct Method
{
	const char *name;
	enum
	{
		KNOW_ALL,    /* waits until the folders of the path have been read */
		READ_ANEW,   /* until they have been read once more */
		KNOW_DRIVER, /* until it is known who has the driver */
	} wait;
	void (*run)(Call *call, const json_t *params);
} Method;

typedef struct WaitingMethod
{
	Call *call;
	const Method *method;
	json_t *params;
	PluginsWaiter *waiter;
} WaitingMethod;

static void
list(Call *call, const json_t *params)
{
	(void) params;
	call_answer(call, json_pack("{s:o}", "plugins", plugins_list()));
}

static void
restart(Call *call, const json_t *params)
{
	const char *key = json_string_value(json_object_get(params, "key"));
	Plugin *plugin = key ? plugins_find_by_key(key) : NULL;
	HostError *error;

	if (plugin != NULL)
	{
		plugin_restart(plugin);
		call_answer(call, json_null());
		return;
	}
	if (key == NULL)
	{
		error = error_new("22023", "envrt/restartPlugin: key is missing");
		error->code = RPC_INVALID_PARAMS;
	}
	else
	{
		error = error_new("42704", "No plugin \"%s\" is installed.", key);
		error->code = RPC_METHOD_NOT_FOUND;
	}
	call_fail(call, error);
}

static void
find_plugin(Call *call, const json_t *params)
{
	const char *driver_key = json_string_value(json_object_get(params, "driverKey"));
	HostError *error = NULL;
	Plugin *plugin;

	if (driver_key == NULL)
	{
		error = error_new("22023", "envrt/findPlugin: driverKey is missing");
		error->code = RPC_INVALID_PARAMS;
		call_fail(call, error);
		return;
	}
	plugin = plugins_find(NULL, driver_key, json_object_get(params, "pluginsOff"), &error);
	error_free(error);
	call_answer(call,
	            json_pack("{s:s?}", "pluginKey", plugin ? plugin_manifest(plugin)->id : NULL));
}

static void
metrics(Call *call, const json_t *params)
{
	(void) params;
	call_answer(call, json_pack("{s:o}", "metrics", plugin_metrics_describe()));
}

static const Method methods[] = {
    {"envrt/plugins", KNOW_ALL, list},
    {"envrt/reloadPlugins", READ_ANEW, list},
    {"envrt/findPlugin", KNOW_DRIVER, find_plugin},
    {"envrt/restartPlugin", KNOW_ALL, restart},
    {"envrt/pluginMetrics", KNOW_ALL, metrics},
};

static const Method *
operator_methods_find(const char *name)
{
	for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++)
		if (strcmp(methods[i].name, name) == 0)
			return &methods[i];
	return NULL;
}

static void
operator_methods_waiting_free(WaitingMethod *waiting)
{
	json_decref(waiting->params);
	free(waiting);
}

static void
ready(void *data)
{
	WaitingMethod *waiting = data;

	waiting->method->run(waiting->call, waiting->params);
	operator_methods_waiting_free(waiting);
}

static void
operator_methods_cancelled(void *data)
{
	WaitingMethod *waiting = data;

	plugins_wait_no_more(waiting->waiter);
	operator_methods_waiting_free(waiting);
}

bool
plugin_methods_has(const char *method)
{
	return operator_methods_find(method) != NULL;
}

void
plugin_methods_start(Call *call, const char *name, const json_t *params)
{
	const Method *method = operator_methods_find(name);
	const char *driver_key = json_string_value(json_object_get(params, "driverKey"));
	bool wait = method->wait == KNOW_DRIVER
	                ? driver_key != NULL && plugins_must_wait_for(NULL, driver_key)
	                : plugins_must_wait(method->wait == READ_ANEW);
	WaitingMethod *waiting;

	if (!wait)
	{
		method->run(call, params);
		return;
	}
	waiting = xcalloc(1, sizeof *waiting);
	waiting->call = call;
	waiting->method = method;
	waiting->params = json_incref((json_t *) params);
	waiting->waiter = plugins_wait(ready, waiting);
	call_set_state(call, "reading the plugins");
	call_on_cancel(call, operator_methods_cancelled, waiting);
}
