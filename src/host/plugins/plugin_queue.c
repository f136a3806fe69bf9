/*
 * plugin_queue.c
 *		The requests of a plugin: which wait, which are sent, and how each ends.
 *
 * A request is first in the list `waiting`, in the order in which it came, and
 * in `sent` from the moment that a byte of it may have reached the worker.
 * Which of them is next is another file's matter (plugin_turns.c).  That line is kept sharp,
 * because it decides what can be said when the worker ends: who waits goes on waiting, for the next
 * worker; who was sent gets REPLY_LOST, since nobody knows how far the worker came.  To keep it
 * sharp, one request at a time is handed to the process, the next when all bytes of that one have
 * left us.
 *
 * A request ends when its answer comes (plugin_messages.c), with the worker
 * (plugin_worker.c), when its asker drops it before it is sent (plugin_request.c), or here: the
 * worker lacks its method, or the next start is further away than its asker will wait.
 *
 * A worker that owes nothing but answers that are overdue and that nobody wants is killed while
 * others wait for their places.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugins/plugin_error.h"
#include "plugins/plugin_parts.h"
#include "plugins/plugin_queue.h"

void
plugin_queue_count_failed(PluginRequest *request)
{
	if (!request->failed)
		request->plugin->failed++;
	request->failed = true;
}

void
plugin_queue_end(PluginRequest *request, PluginReply reply, json_t *result, HostError *error)
{
	Plugin *plugin = request->plugin;
	PluginAnswered answered = request->answered;
	void *data = request->data;

	if (reply != REPLY_RESULT)
		plugin_queue_count_failed(request);
	plugin_drop_request(request);
	if (answered == NULL)
	{
		error_free(error);
		return;
	}
	answered(data, reply, result, error);
	plugin_release(plugin);
}

PluginRequest *
plugin_queue_find_sent(const Plugin *plugin, json_int_t id)
{
	PluginRequest *request = TAILQ_FIRST(&plugin->sent);

	while (request != NULL && request->id != id)
		request = TAILQ_NEXT(request, link);
	return request;
}

void
plugin_queue_stop_when_drained(Plugin *plugin)
{
	if (plugin->state == WORKER_STOPPING && TAILQ_EMPTY(&plugin->sent) && plugin->process != NULL)
	{
		timer_stop(&plugin->timer);
		worker_process_stop(plugin->process);
	}
}

/*
 * Sending
 */

/* False when the worker has neither of its methods. */
static bool
plugin_queue_choose_method(PluginRequest *request)
{
	if (plugin_supports(request->plugin, request->method))
		return true;
	if (request->other == NULL || !plugin_supports(request->plugin, request->other))
		return false;
	request->method = request->other;
	return true;
}

/* With the invocation's id newer SDKs say which call a request of theirs is about. */
static json_t *
plugin_queue_message(json_int_t id, const PluginRequest *request)
{
	json_t *message = rpc_request(id, request->method, json_incref(request->params));
	json_t *company = json_object_get(request->params, "companyId");
	char name[24];

	if (json_is_string(company))
	{
		snprintf(name, sizeof name, "%lld", (long long) id);
		json_object_set_new(message, "paperclipInvocation",
		                    json_pack("{s:s, s:{s:O}}", "id", name, "scope", "companyId", company));
	}
	return message;
}

void
plugin_queue_send(Plugin *plugin, bool tell)
{
	PluginRequest *request;
	uint64_t wait;

	while (plugin->state == WORKER_RUNNING && worker_process_is_drained(plugin->process) &&
	       (request = plugin_turns_next(&plugin->turns, now_ms())) != NULL)
	{
		json_int_t id = plugin->last_id + 1;

		if (!plugin_queue_choose_method(request))
		{
			if (!tell)
			{
				plugin_queue_look_soon(plugin);
				return;
			}
			plugin_queue_end(request, REPLY_UNSUPPORTED, NULL,
			                 plugin_error_unsupported(request->method));
			continue;
		}
		/* One that can't be sent stays for the next process: this one is about to end. */
		if (!worker_process_send(plugin->process, plugin_queue_message(id, request)))
			return;
		TAILQ_REMOVE(&plugin->waiting, request, link);
		request->sent = true;
		request->id = plugin->last_id = id;
		TAILQ_INSERT_TAIL(&plugin->sent, request, link);
		plugin_turns_serve(&plugin->turns, &request->turn, now_ms());
		/* Kept no longer than needed: it may hold secrets. */
		json_decref(request->params);
		request->params = NULL;
	}
	/* Those that may have caused a crash have to wait for their time. */
	wait = plugin->state == WORKER_RUNNING ? plugin_turns_wait(&plugin->turns, now_ms()) : 0;
	if (wait > 0)
		timer_start(&plugin->timer, wait, plugin_queue_look, plugin);
}

/*
 * Those that wait in vain
 */

bool
plugin_queue_is_clogged(const Plugin *plugin)
{
	if (plugin->state != WORKER_RUNNING || TAILQ_EMPTY(&plugin->waiting) ||
	    TAILQ_EMPTY(&plugin->sent) || !worker_process_is_drained(plugin->process) ||
	    plugin_turns_wait(&plugin->turns, now_ms()) > 0)
		return false;
	for (const PluginRequest *request = TAILQ_FIRST(&plugin->sent); request != NULL;
	     request = TAILQ_NEXT(request, link))
		if (!request->late || request->answered != NULL)
			return false;
	return true;
}

uint64_t
plugin_queue_delay(const PluginRequest *request)
{
	const Plugin *plugin = request->plugin;
	uint64_t delay = plugin->process == NULL ? worker_backoff_delay(&plugin->backoff, now_ms()) : 0;
	uint64_t own = plugin_turns_delay(&plugin->turns, &request->turn, now_ms());

	return delay > own ? delay : own;
}

static PluginRequest *
plugin_queue_hopeless(const Plugin *plugin)
{
	PluginRequest *request = TAILQ_FIRST(&plugin->waiting);

	while (request != NULL && !request->hopeless)
		request = TAILQ_NEXT(request, link);
	return request;
}

/* The environment driver that it is about, or NULL: a sandbox provider goes by the plugin. */
static const char *
plugin_queue_driver(const PluginRequest *request)
{
	const char *key = json_string_value(json_object_get(request->params, "driverKey"));
	const PluginDriver *driver =
	    key != NULL ? plugin_manifest_driver(plugin_manifest(request->plugin), key) : NULL;

	return driver != NULL && !driver->sandbox_provider ? key : NULL;
}

void
plugin_queue_look(void *data)
{
	Plugin *plugin = data;
	PluginRequest *request;

	plugin_keep(plugin);
	plugin_queue_send(plugin, true);
	if (plugin_queue_is_clogged(plugin))
		worker_process_kill(plugin->process, "owes answers that are overdue, and nothing else");
	while ((request = plugin_queue_hopeless(plugin)) != NULL)
	{
		char *words = plugin_last_words(plugin);
		HostError *error =
		    plugin_error_no_worker(plugin->manifest->id, plugin_queue_driver(request), words,
		                           plugin->last_error, plugin_queue_delay(request));

		free(words);
		plugin_queue_end(request, REPLY_NO_WORKER, NULL, error);
	}
	plugin_release(plugin);
}

void
plugin_queue_look_soon(Plugin *plugin)
{
	timer_start(&plugin->soon, 0, plugin_queue_look, plugin);
}
