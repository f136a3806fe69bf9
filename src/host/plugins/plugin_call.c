/*
 * plugin_call.c
 *		Calls of clients that a plugin answers.
 *
 * A call is found its plugin, freed of what is not for the worker, and asked.
 * It ends with the worker's answer, with the end of the worker, or when its
 * time is over.  A client that goes away takes its call along: the worker, if
 * it was asked already, answers to nobody.
 *
 * The calls that make and end leases are told apart here and are another
 * file's matter when they name the lease (lease_operation.c).
 */
#include <stdlib.h>
#include <string.h>

#include "shared/execute_result.h"
#include "plugins/lease_operation.h"
#include "base/memory.h"
#include "plugins/plugin_call.h"
#include "plugins/plugin_error.h"
#include "plugins/plugin_registry.h"
#include "plugins/plugin_request.h"
#include "plugins/worker_request.h"
#include "shared/protocol.h"
#include "base/timer.h"

typedef struct PluginCall
{
	Call *call;
	Plugin *plugin;
	PluginRequest *request;
	Timer *limit;
	uint64_t limit_ms;
	char *method;
	char *driver_key;
} PluginCall;

/* One that has to wait until the plugins have been read. */
typedef struct WaitingCall
{
	Call *call;
	char *method;
	json_t *params;
	PluginsWaiter *waiter;
} WaitingCall;

static bool
is_acquire(const char *method)
{
	return strcmp(method, "environmentAcquireLease") == 0;
}

static bool
makes_lease(const char *method)
{
	return is_acquire(method) || strcmp(method, "environmentResumeLease") == 0;
}

static void
plugin_call_free(PluginCall *state)
{
	timer_stop(&state->limit);
	plugin_release(state->plugin);
	free(state->method);
	free(state->driver_key);
	free(state);
}

static void
plugin_call_cancelled(void *data)
{
	PluginCall *state = data;

	plugin_request_forget(state->request);
	plugin_call_free(state);
}

static void
expired(void *data)
{
	PluginCall *state = data;
	HostError *error = plugin_timeout_error(state->plugin, state->method, state->limit_ms);

	if (is_acquire(state->method) && !plugin_request_is_sent(state->request))
		error->outcome = OUTCOME_ABSENT;
	plugin_request_is_late(state->request);
	plugin_request_forget(state->request);
	call_fail(state->call, error);
	plugin_call_free(state);
}

/* The answer for the client, or NULL with *error set. */
static json_t *
take_result(const PluginCall *state, json_t *result, HostError **error)
{
	const char *problem;
	ExecuteResult read;

	if (makes_lease(state->method))
		return plugin_lease(state->plugin, state->method, result, error);
	problem = strcmp(state->method, "environmentExecute") == 0 ? execute_result_read(result, &read)
	                                                           : NULL;
	if (problem == NULL)
		return json_incref(result);
	*error = plugin_error_unusable(plugin_manifest(state->plugin)->id, state->method, problem);
	return NULL;
}

static void
plugin_call_answered(void *data, PluginReply reply, json_t *result, HostError *error)
{
	PluginCall *state = data;
	json_t *answer = NULL;

	if (reply == REPLY_RESULT)
		answer = take_result(state, result, &error);
	else if (is_acquire(state->method) &&
	         (reply == REPLY_UNSUPPORTED || reply == REPLY_NO_WORKER ||
	          (reply == REPLY_ERROR && !plugin_can_tell_leases(state->plugin, state->driver_key))))
		error->outcome = OUTCOME_ABSENT;
	if (answer != NULL)
		call_answer(state->call, answer);
	else
		call_fail(state->call, error);
	plugin_call_free(state);
}

static void
plugin_call_send(Call *call, const char *method, const json_t *params)
{
	HostError *error = NULL;
	PluginCall *state;
	Plugin *plugin;

	if (lease_operation_start(call, method, params))
		return;
	plugin = plugin_for(params, &error);
	if (plugin == NULL)
	{
		if (is_acquire(method))
			error->outcome = OUTCOME_ABSENT;
		call_fail(call, error);
		return;
	}
	state = xcalloc(1, sizeof *state);
	state->call = call;
	state->plugin = plugin_keep(plugin);
	state->limit_ms = plugin_limit(method, params);
	state->method = xstrdup(method);
	state->driver_key = xstrdup(json_string_value(json_object_get(params, "driverKey")));
	call_set_target(call, plugin_manifest(plugin)->id);
	call_set_state(call, "asking the plugin");
	call_on_cancel(call, plugin_call_cancelled, state);
	timer_start(&state->limit, state->limit_ms, expired, state);
	state->request = plugin_ask(plugin,
	                            &(PluginQuestion){
	                                .method = method,
	                                .params = plugin_params(params),
	                                .secrets = plugin_secrets(params),
	                                .patience_ms = state->limit_ms,
	                            },
	                            plugin_call_answered, state);
}

/*
 * Before the plugins are known
 */

static void
plugin_call_waiting_free(WaitingCall *waiting)
{
	json_decref(waiting->params);
	free(waiting->method);
	free(waiting);
}

static void
plugins_are_ready(void *data)
{
	WaitingCall *waiting = data;

	plugin_call_send(waiting->call, waiting->method, waiting->params);
	plugin_call_waiting_free(waiting);
}

static void
waiting_cancelled(void *data)
{
	WaitingCall *waiting = data;

	plugins_wait_no_more(waiting->waiter);
	plugin_call_waiting_free(waiting);
}

void
plugin_call_start(Call *call, const char *method, const json_t *params)
{
	WaitingCall *waiting;

	if (!plugins_must_wait_for(json_string_value(json_object_get(params, "pluginKey")),
	                           json_string_value(json_object_get(params, "driverKey"))))
	{
		plugin_call_send(call, method, params);
		return;
	}
	waiting = xcalloc(1, sizeof *waiting);
	waiting->call = call;
	waiting->method = xstrdup(method);
	waiting->params = json_incref((json_t *) params);
	waiting->waiter = plugins_wait(plugins_are_ready, waiting);
	call_set_state(call, "reading the plugins");
	call_on_cancel(call, waiting_cancelled, waiting);
}
