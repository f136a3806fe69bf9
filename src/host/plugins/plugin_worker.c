/*
 * plugin_worker.c
 *		The start, the crash and the end of a plugin's worker.
 *
 * The end of a process that nobody asked for is a crash, whatever
 * its status.  After the first the worker may be started again at once, then
 * ever later, as long as it does not last: for those for whom it was working when it crashed
 * (plugin_turns.c), or for all when it did not get as far (worker_backoff.c).
 *
 * A worker that breaks the protocol is killed, and what it did is the reason of its end; the log
 * hears of it when the process has ended.
 */
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "base/host_instance.h"
#include "base/log.h"
#include "base/memory.h"
#include "plugins/plugin_error.h"
#include "plugins/plugin_folder.h"
#include "plugins/plugin_messages.h"
#include "plugins/plugin_parts.h"
#include "plugins/plugin_queue.h"
#include "plugins/plugin_worker.h"
#include "shared/jsonrpc.h"
#include "shared/protocol.h"

#define INITIALIZE_MS 15000
#define DRAIN_MS 10000

/*
 * The end
 */

/* There is no process (any more); how: why. */
static void
plugin_worker_crashed(Plugin *plugin, const char *how)
{
	log_message(LOG_WARNING, "plugin \"%s\": its worker %s", plugin->manifest->id, how);
	free(plugin->last_error);
	plugin->last_error = xstrdup(how);
	/* Whoever it worked for has to wait; everybody, if it did not get as far. */
	if (plugin->state != WORKER_RUNNING ||
	    !plugin_turns_crashed(&plugin->turns, now_ms(), randombytes_uniform(1001)))
		worker_backoff_crashed(&plugin->backoff, now_ms(), randombytes_uniform(1001));
	/* It is idle still when no process could be started. */
	if (plugin->state != WORKER_IDLE)
		plugin_set_state(plugin, WORKER_IDLE);
	plugin->initialize_id = 0;
	timer_stop(&plugin->timer);
}

static void
plugin_worker_ended(void *owner, const char *how)
{
	Plugin *plugin = owner;
	bool stopped = plugin->state == WORKER_STOPPING;

	free(plugin->last_stderr);
	plugin->last_stderr = worker_process_stderr(plugin->process, secret_mask_apply, plugin->mask);
	plugin->process = NULL;
	timer_stop(&plugin->health);
	secret_mask_worker_ended(plugin->mask);
	plugin->said_full = false;
	if (stopped)
	{
		log_message(LOG_LOG, "plugin \"%s\": its worker %s, after it was told to end",
		            plugin->manifest->id, how);
		timer_stop(&plugin->timer);
		plugin_set_state(plugin, WORKER_IDLE);
		plugin->initialize_id = 0;
	}
	else
		plugin_worker_crashed(plugin, how);

	plugin_keep(plugin);
	while (!TAILQ_EMPTY(&plugin->sent))
		plugin_queue_end(TAILQ_FIRST(&plugin->sent), REPLY_LOST, NULL,
		                 plugin_error_lost(plugin->manifest->id, plugin->last_stderr));
	if (!TAILQ_EMPTY(&plugin->waiting))
		plugin_worker_start(plugin);
	plugin_release(plugin);
}

/*
 * The start
 */

static void
plugin_worker_initialize_overdue(void *data)
{
	Plugin *plugin = data;

	worker_process_kill(plugin->process, "was not initialized in time");
}

static json_t *
plugin_worker_initialize_params(const Plugin *plugin)
{
	json_t *params = json_object();
	json_t *instance = json_object();

	json_object_set_new(instance, "instanceId", json_string(host_instance()));
	json_object_set_new(instance, "hostVersion", json_string(ENVRT_HOST_VERSION));
	json_object_set(params, "manifest", plugin->manifest->json);
	json_object_set_new(params, "config", json_object());
	json_object_set_new(params, "instanceInfo", instance);
	json_object_set_new(params, "apiVersion", json_integer(1));
	json_object_set_new(params, "databaseNamespace", json_null());
	return params;
}

uint64_t
plugin_worker_delay(const Plugin *plugin)
{
	uint64_t delay = worker_backoff_delay(&plugin->backoff, now_ms());
	uint64_t wait = plugin_turns_wait(&plugin->turns, now_ms());

	return delay > wait ? delay : wait;
}

void
plugin_worker_start_when_due(void *data)
{
	Plugin *plugin = data;

	plugin_set_state(plugin, WORKER_IDLE);
	if (!TAILQ_EMPTY(&plugin->waiting))
		plugin_worker_start(plugin);
}

void
plugin_worker_start(Plugin *plugin)
{
	static const WorkerProcessEvents events = {
	    .message = plugin_messages_came,
	    .unusable = plugin_messages_unusable,
	    .drained = plugin_queue_look,
	    .ended = plugin_worker_ended,
	};
	const PluginManifest *manifest = plugin->manifest;
	const WorkerProgram program = {
	    .folder = manifest->folder,
	    .plugin = manifest->id,
	    .arguments = {manifest->node ? "node" : manifest->worker,
	                  manifest->node ? manifest->worker : NULL},
	};
	uint64_t delay = plugin_worker_delay(plugin);
	char *problem = NULL;

	if (plugin->state != WORKER_IDLE)
		return;
	if (delay > 0)
	{
		plugin_set_state(plugin, WORKER_WAITING);
		timer_start(&plugin->timer, delay, plugin_worker_start_when_due, plugin);
		return;
	}
	plugin->starts++;
	plugin->stray = 0;
	plugin->silent = 0;
	plugin->started_at = epoch_ms();
	worker_backoff_started(&plugin->backoff, now_ms());
	problem = plugin_folder_check_worker(plugin->manifest);
	if (problem == NULL)
		plugin->process = worker_process_start(&program, &events, plugin, &problem);
	if (plugin->process == NULL)
	{
		plugin_worker_crashed(plugin, problem);
		free(problem);
		plugin_worker_start(plugin);
		return;
	}
	plugin_set_state(plugin, WORKER_STARTING);
	plugin->initialize_id = ++plugin->last_id;
	timer_start(&plugin->timer, INITIALIZE_MS, plugin_worker_initialize_overdue, plugin);
	worker_process_send(plugin->process, rpc_request(plugin->initialize_id, "initialize",
	                                                 plugin_worker_initialize_params(plugin)));
}

/*
 * A restart
 */

static void
plugin_worker_drain_over(void *data)
{
	Plugin *plugin = data;

	worker_process_stop(plugin->process);
}

void
plugin_restart(Plugin *plugin)
{
	memset(&plugin->backoff, 0, sizeof plugin->backoff);
	plugin_turns_forgive(&plugin->turns);
	switch (plugin->state)
	{
		case WORKER_IDLE:
		case WORKER_STOPPING:
			break;
		case WORKER_WAITING:
			timer_stop(&plugin->timer);
			plugin_worker_start_when_due(plugin);
			break;
		case WORKER_STARTING:
		case WORKER_RUNNING:
			plugin_set_state(plugin, WORKER_STOPPING);
			timer_start(&plugin->timer, DRAIN_MS, plugin_worker_drain_over, plugin);
			plugin_queue_stop_when_drained(plugin);
			break;
	}
}
