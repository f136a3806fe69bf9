/*
 * plugin_request.c
 *		What is asked of a plugin's worker: the asker's side.
 *
 * Requests have no time limit of their own: the asker has.  When it loses its patience, it says
 * so (plugin_request_is_late) or drops the request (plugin_request_forget), and with it the
 * secrets; the worker is not told, since its protocol has no word for it, and its late answer is
 * known for what it is.  A worker that owes too many answers that are overdue is killed.  One that
 * has said nothing for some time while several requests ran out of theirs may hang, or only wait
 * for somebody else, while it works well at other requests: so it is asked for its health, and
 * killed when it does not even answer that, or say anything else.
 *
 * Answers are delivered from the event loop only, so an asker is never called
 * back from within plugin_ask().
 */
#include <string.h>

#include "base/memory.h"
#include "plugins/plugin_mask.h"
#include "plugins/plugin_parts.h"
#include "plugins/plugin_queue.h"
#include "plugins/plugin_request.h"
#include "plugins/plugin_worker.h"
#include "shared/jsonrpc.h"

#define MAX_LATE 1000
#define MAX_SILENT 5
#define SILENT_MS 5000
#define HEALTH_MS 5000
#define MAX_LIMIT_MS (25 * 60 * 60 * 1000)

/*
 * Asking
 */

/* Those with a colon in their names are only to be masked. */
static bool
plugin_secrets_are_resolvable(const json_t *secrets)
{
	const char *name;
	json_t *value;

	json_object_foreach((json_t *) secrets, name, value)
	{
		if (strchr(name, ':') == NULL)
			return true;
	}
	return false;
}

PluginRequest *
plugin_ask(Plugin *plugin, const PluginQuestion *question, PluginAnswered answered, void *data)
{
	PluginRequest *request = xcalloc(1, sizeof *request);
	size_t length = strlen(question->method) + 1;

	request->plugin = plugin_keep(plugin);
	request->names =
	    xformat("%s%c%s", question->method, '\0', question->other ? question->other : "");
	request->method = request->names;
	request->other = question->other ? request->names + length : NULL;
	request->params = question->params;
	request->secrets = question->secrets;
	request->words = plugin_mask_words(question->params);
	request->resolves = plugin_secrets_are_resolvable(question->secrets);
	request->company = json_incref(json_object_get(question->params, "companyId"));
	request->answered = answered;
	request->data = data;
	request->limit_ms = question->patience_ms;
	plugin_mask_learn(request);
	TAILQ_INSERT_TAIL(&plugin->waiting, request, link);
	plugin_turns_add(&plugin->turns, &request->turn, json_string_value(request->company),
	                 strcmp(request->method, "environmentExecute") == 0, request);
	plugin->calls++;
	plugin->active++;
	if (plugin->state == WORKER_RUNNING)
		plugin_queue_send(plugin, false);
	else if (plugin->state == WORKER_IDLE)
		plugin_worker_start(plugin);
	else if (plugin->state == WORKER_WAITING && plugin_worker_delay(plugin) == 0)
	{
		/* Others have to wait, and this one need not. */
		timer_stop(&plugin->timer);
		plugin_worker_start_when_due(plugin);
	}
	if (plugin_queue_is_clogged(plugin))
		plugin_queue_look_soon(plugin);
	if (!request->sent && plugin_queue_delay(request) > question->patience_ms)
	{
		request->hopeless = true;
		plugin_queue_look_soon(plugin);
	}
	return request;
}

bool
plugin_request_is_sent(const PluginRequest *request)
{
	return request->sent;
}

/*
 * Answers that are overdue
 */

static void
plugin_request_owe(PluginRequest *request)
{
	Plugin *plugin = request->plugin;

	if (request->late)
		return;
	request->late = true;
	plugin->late++;
	plugin_queue_count_failed(request);
	plugin_turns_overdue(&plugin->turns, &request->turn);
	if (plugin->late > MAX_LATE && plugin->process != NULL)
		worker_process_kill(plugin->process, "owes too many answers");
	if (!TAILQ_EMPTY(&plugin->waiting))
		plugin_queue_look_soon(plugin);
}

static void
plugin_health_overdue(void *data)
{
	Plugin *plugin = data;

	if (plugin->process != NULL)
		worker_process_kill(plugin->process, "is silent while calls of it run out of time");
}

void
plugin_request_is_late(PluginRequest *request)
{
	Plugin *plugin = request->plugin;

	if (request->late)
		return;
	plugin_request_owe(request);
	/* One that is not sent waits for others to be read. */
	if (plugin->state != WORKER_RUNNING)
		return;
	if (plugin->silent++ == 0)
		plugin->silent_since = now_ms();
	if (plugin->silent >= MAX_SILENT && now_ms() - plugin->silent_since >= SILENT_MS &&
	    plugin->health == NULL && plugin->process != NULL)
	{
		plugin->health_id = ++plugin->last_id;
		timer_start(&plugin->health, HEALTH_MS, plugin_health_overdue, plugin);
		worker_process_send(plugin->process,
		                    rpc_request(plugin->health_id, "health", json_object()));
	}
}

/*
 * Answers that nobody wants
 */

static void
plugin_request_limit_over(void *data)
{
	plugin_request_owe(data);
}

/*
 * The worker was not told that nobody wants the answer any more, and goes on; so the
 * place is taken until it has answered or should have.
 */
static void
plugin_request_wait_for_nobody(PluginRequest *request)
{
	uint64_t lasted = now_ms() - request->turn.served_at;
	uint64_t limit = request->limit_ms < MAX_LIMIT_MS ? request->limit_ms : MAX_LIMIT_MS;

	plugin_queue_count_failed(request);
	if (request->late)
		return;
	if (lasted >= limit)
		plugin_request_owe(request);
	else
		timer_start(&request->limit, limit - lasted, plugin_request_limit_over, request);
}

void
plugin_request_forget(PluginRequest *request)
{
	Plugin *plugin = request->plugin;

	request->answered = NULL;
	/* Nor is there anybody any more on whose behalf the worker might resolve them. */
	json_decref(request->secrets);
	request->secrets = NULL;
	json_decref(request->words);
	request->words = NULL;
	if (request->sent)
		plugin_request_wait_for_nobody(request);
	else
		plugin_drop_request(request);
	plugin_release(plugin);
}
