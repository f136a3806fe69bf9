/*
 * plugin.c
 *		A plugin: who refers to it, the state of its worker, and what is told of both.
 *
 * A plugin has at most one worker process.  The states of that:
 *
 *   idle      no process and nobody who needs one
 *   starting  a process, and `initialize` on its way
 *   running   initialized: requests are sent
 *   waiting   requests, but for all of them it is too early after a crash for another start
 *   stopping  the process is to end, when it has answered what it was sent, or
 *             has had some time for that; nothing is sent any more
 *
 * and how they follow each other:
 *
 *   from      to        when
 *   idle      starting  a request needs a worker, and one may be started
 *   idle      waiting   a request needs a worker, and none may be started yet
 *   waiting   idle      one may be started: the time is over, a request comes that need not wait,
 *                       or an operator wants a restart
 *   starting  running   the worker answered `initialize`
 *   starting  idle      the process ended: a crash
 *   starting  stopping  an operator wants a restart
 *   running   idle      the process ended: a crash
 *   running   stopping  an operator wants a restart
 *   stopping  idle      the process ended, as it was told to
 *
 * What a plugin does is in other files.  Each uses those before it, and all use this one:
 *
 *   plugin_mask.c      what is hidden in all that the worker says
 *   plugin_queue.c     which requests wait, which are sent, and how each ends
 *   plugin_messages.c  what the worker says
 *   plugin_worker.c    the start, the crash and the end of the worker
 *   plugin_request.c   the asker's side of a request
 *
 * The memory of a plugin goes, by way of the event loop, when nobody refers to it: the registry
 * does, and everybody who waits for an answer.
 */
#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "plugins/plugin.h"
#include "plugins/plugin_error.h"
#include "plugins/plugin_mask.h"
#include "plugins/plugin_parts.h"

static const char *const state_names[] = {
    [WORKER_IDLE] = "idle",       [WORKER_STARTING] = "starting", [WORKER_RUNNING] = "running",
    [WORKER_WAITING] = "waiting", [WORKER_STOPPING] = "stopping",
};

static size_t plugin_count;

void
plugin_set_state(Plugin *plugin, PluginWorkerState state)
{
	/* The table at the head of this file. */
	static const bool allowed[][WORKER_STOPPING + 1] = {
	    [WORKER_IDLE] = {[WORKER_STARTING] = true, [WORKER_WAITING] = true},
	    [WORKER_STARTING] =
	        {[WORKER_RUNNING] = true, [WORKER_IDLE] = true, [WORKER_STOPPING] = true},
	    [WORKER_RUNNING] = {[WORKER_IDLE] = true, [WORKER_STOPPING] = true},
	    [WORKER_WAITING] = {[WORKER_IDLE] = true},
	    [WORKER_STOPPING] = {[WORKER_IDLE] = true},
	};

	assert(allowed[plugin->state][state]);
	(void) allowed;
	plugin->state = state;
}

void
plugin_drop_request(PluginRequest *request)
{
	Plugin *plugin = request->plugin;

	if (request->sent)
		TAILQ_REMOVE(&plugin->sent, request, link);
	else
		TAILQ_REMOVE(&plugin->waiting, request, link);
	plugin_turns_remove(&plugin->turns, &request->turn);
	timer_stop(&request->limit);
	if (request->late)
		plugin->late--;
	plugin->active--;
	json_decref(request->params);
	json_decref(request->secrets);
	json_decref(request->words);
	json_decref(request->company);
	free(request->names);
	free(request);
}

/*
 * For the worker's own requests (worker_services.c)
 */

void
plugin_send(void *owner, json_int_t worker, json_t *message)
{
	Plugin *plugin = owner;

	if (plugin->process != NULL && plugin->starts == worker)
		worker_process_send(plugin->process, message);
	else
		json_decref(message);
}

/* The id of a request as the worker's SDK gives it back; so is the one that it is told. */
static bool
plugin_request_is_invocation(const PluginRequest *request, const char *invocation)
{
	char *end;
	long long id = strtoll(invocation, &end, 10);

	return end != invocation && *end == '\0' && id == request->id;
}

static bool
plugin_services_company(void *owner, const char *invocation, const char **company)
{
	const Plugin *plugin = owner;
	bool several = false;

	*company = NULL;
	for (const PluginRequest *request = TAILQ_FIRST(&plugin->sent); request != NULL;
	     request = TAILQ_NEXT(request, link))
	{
		const char *its = json_string_value(request->company);

		if (invocation != NULL ? !plugin_request_is_invocation(request, invocation)
		                       : request->secrets == NULL || !request->resolves)
			continue;
		/* Who says no company is one of its own. */
		its = its != NULL ? its : "";
		several = several || (*company != NULL && strcmp(*company, its) != 0);
		*company = its;
	}
	return !several;
}

static const json_t *
plugin_services_secret(void *owner, const char *invocation, const char *reference)
{
	const Plugin *plugin = owner;

	for (const PluginRequest *request = TAILQ_FIRST(&plugin->sent); request != NULL;
	     request = TAILQ_NEXT(request, link))
	{
		const json_t *value = json_object_get(request->secrets, reference);

		if (value != NULL &&
		    (invocation == NULL || plugin_request_is_invocation(request, invocation)))
			return value;
	}
	return NULL;
}

static void
plugin_services_keep(void *owner)
{
	plugin_keep(owner);
}

static void
plugin_services_release(void *owner)
{
	plugin_release(owner);
}

/*
 * Its life
 */

Plugin *
plugin_new(PluginManifest *manifest)
{
	static const WorkerServicesOwner functions = {
	    .send = plugin_send,
	    .company = plugin_services_company,
	    .secret = plugin_services_secret,
	    .keep = plugin_services_keep,
	    .release = plugin_services_release,
	};
	Plugin *plugin = xcalloc(1, sizeof *plugin);

	TAILQ_INIT(&plugin->waiting);
	TAILQ_INIT(&plugin->sent);
	plugin->mask = secret_mask_new(plugin_mask_make_room, plugin);
	plugin->services = worker_services_new(manifest, plugin->mask, &functions, plugin);
	plugin->manifest = manifest;
	plugin->references = 1;
	plugin_count++;
	return plugin;
}

static void
plugin_free(Plugin *plugin)
{
	timer_stop(&plugin->timer);
	timer_stop(&plugin->soon);
	timer_stop(&plugin->health);
	timer_stop(&plugin->unused);
	if (plugin->process != NULL)
		worker_process_dismiss(plugin->process);
	while (!TAILQ_EMPTY(&plugin->waiting))
		plugin_drop_request(TAILQ_FIRST(&plugin->waiting));
	while (!TAILQ_EMPTY(&plugin->sent))
		plugin_drop_request(TAILQ_FIRST(&plugin->sent));
	plugin_turns_forgive(&plugin->turns);
	worker_services_free(plugin->services);
	plugin_manifest_free(plugin->manifest);
	json_decref(plugin->supported);
	secret_mask_free(plugin->mask);
	free(plugin->last_error);
	free(plugin->last_stderr);
	free(plugin);
	plugin_count--;
}

static void
plugin_free_unused(void *data)
{
	Plugin *plugin = data;

	if (plugin->references == 0)
		plugin_free(plugin);
}

bool
plugins_exist(void)
{
	return plugin_count > 0;
}

Plugin *
plugin_keep(Plugin *plugin)
{
	plugin->references++;
	return plugin;
}

void
plugin_release(Plugin *plugin)
{
	if (--plugin->references == 0)
		timer_start(&plugin->unused, 0, plugin_free_unused, plugin);
}

/*
 * What is told of it
 */

const PluginManifest *
plugin_manifest(const Plugin *plugin)
{
	return plugin->manifest;
}

bool
plugin_supports(const Plugin *plugin, const char *method)
{
	size_t index;
	json_t *value;

	json_array_foreach(plugin->supported, index, value)
	{
		const char *name = json_string_value(value);

		if (name != NULL && strcmp(name, method) == 0)
			return true;
	}
	return false;
}

char *
plugin_last_words(const Plugin *plugin)
{
	if (plugin->process != NULL)
	{
		char *text = worker_process_stderr(plugin->process, secret_mask_apply, plugin->mask);

		/* Of one that is only starting, the one before may tell more. */
		if (text[0] != '\0' || plugin->last_stderr == NULL || plugin->state == WORKER_RUNNING)
			return text;
		free(text);
	}
	return xstrdup(plugin->last_stderr ? plugin->last_stderr : "");
}

HostError *
plugin_timeout_error(const Plugin *plugin, const char *method, uint64_t limit_ms)
{
	const char *trouble = plugin->state == WORKER_RUNNING ? NULL : plugin->last_error;
	char *words = plugin_last_words(plugin);
	HostError *error = plugin_error_timeout(plugin->manifest->id, words, trouble, method, limit_ms);

	free(words);
	return error;
}

json_t *
plugin_describe(const Plugin *plugin)
{
	json_t *row = json_object();
	pid_t pid = plugin->process ? worker_process_pid(plugin->process) : 0;
	/* Names of files can be anything. */
	char *folder =
	    clean_text(plugin->manifest->folder, strlen(plugin->manifest->folder), PATH_MAX, false);

	json_object_set_new(row, "key", json_string(plugin->manifest->id));
	json_object_set_new(row, "version", json_string(plugin->manifest->version));
	json_object_set_new(row, "displayName", json_string(plugin->manifest->display_name));
	json_object_set_new(row, "path", json_string(folder));
	json_object_set_new(row, "state", json_string(state_names[plugin->state]));
	json_object_set_new(row, "pid", pid > 0 ? json_integer(pid) : json_null());
	json_object_set_new(row, "restarts", json_integer(plugin->starts > 0 ? plugin->starts - 1 : 0));
	json_object_set_new(row, "lastError",
	                    plugin->last_error ? json_string(plugin->last_error) : json_null());
	json_object_set_new(row, "calls", json_integer(plugin->calls));
	json_object_set_new(row, "failedCalls", json_integer(plugin->failed));
	json_object_set_new(row, "activeCalls", json_integer(plugin->active));
	json_object_set_new(row, "startedAt",
	                    plugin->process ? json_integer(plugin->started_at) : json_null());
	free(folder);
	return row;
}
