/*
 * plugin_messages.c
 *		What a plugin's worker says: events of its process (worker_process.h).
 *
 * It answers `initialize`, a question for its health, or a request; what it asks itself is
 * worker_services.c's matter.  Any line is a sign of life.
 *
 * The calls of many companies share the worker, so a line that can't be used
 * costs no more than the call whose id it carries: what is in it may be
 * what one company's command has written.  What is no message at all is logged, since libraries
 * like to print, and answers that nobody waits for are dropped; only a flood of
 * such lines ends the worker.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "plugins/plugin_error.h"
#include "plugins/plugin_mask.h"
#include "plugins/plugin_messages.h"
#include "plugins/plugin_parts.h"
#include "plugins/plugin_queue.h"
#include "shared/protocol.h"

/* What a worker may print: so much at once, so much a second; a line, and each STRAY_BYTES of it.
 */
#define MAX_STRAY 100000
#define STRAY_RATE 1000
#define STRAY_BYTES 4096
#define MAX_ERROR 500
#define MAX_ANSWERED 4000
#define MAX_METHODS 1000

/* A line of that many bytes that is of no use to anybody. */
static void
plugin_stray(Plugin *plugin, size_t length, const char *how)
{
	uint64_t now = now_ms();

	/* A bucket, so that a worker may print what its calls give it to print. */
	plugin->stray -= (double) (now - plugin->stray_at) * STRAY_RATE / 1000;
	plugin->stray_at = now;
	if (plugin->stray < 0)
		plugin->stray = 0;
	plugin->stray += 1 + (double) length / STRAY_BYTES;
	if (plugin->stray > MAX_STRAY)
		worker_process_kill(plugin->process, how);
}

/* Any sign of life will do. */
static void
plugin_heard(Plugin *plugin)
{
	plugin->silent = 0;
	timer_stop(&plugin->health);
}

/*
 * Answers
 */

static void
plugin_initialized(Plugin *plugin, const RpcMessage *message)
{
	json_t *methods = json_object_get(message->result, "supportedMethods");

	plugin->initialize_id = 0;
	if (plugin->state != WORKER_STARTING)
		return;
	timer_stop(&plugin->timer);
	if (message->error != NULL)
	{
		const char *text = json_string_value(json_object_get(message->error, "message"));
		char *masked = secret_mask_excerpt(plugin->mask, text, strlen(text), MAX_ERROR);
		char *words = clean_text(masked, strlen(masked), MAX_ERROR, false);
		char *how;

		secret_free(masked);
		how = xformat("could not be initialized: %s", words);
		free(words);
		worker_process_kill(plugin->process, how);
		free(how);
	}
	else if (!json_is_array(methods) || json_array_size(methods) > MAX_METHODS ||
	         json_is_false(json_object_get(message->result, "ok")))
		worker_process_kill(plugin->process, "did not say which methods it has");
	else
	{
		json_decref(plugin->supported);
		plugin->supported = json_incref(methods);
		plugin_set_state(plugin, WORKER_RUNNING);
		plugin_queue_look(plugin);
	}
}

static void
plugin_answered(Plugin *plugin, const RpcMessage *message)
{
	json_int_t id = json_integer_value(message->id);
	PluginRequest *request =
	    json_is_integer(message->id) ? plugin_queue_find_sent(plugin, id) : NULL;

	if (json_is_integer(message->id) && id != 0 && id == plugin->initialize_id)
	{
		plugin_initialized(plugin, message);
		return;
	}
	if (request == NULL && json_is_integer(message->id) && id != 0 && id == plugin->health_id)
	{
		plugin->health_id = 0;
		return;
	}
	if (request == NULL)
	{
		plugin_stray(plugin, 0, "answers what it was not asked, again and again");
		return;
	}
	if (message->error != NULL)
	{
		char *words;
		const char *text = json_string_value(json_object_get(message->error, "message"));
		char *masked;
		HostError *error;

		/* Many commands may have been learned since; it may hold what another call brought. */
		plugin_mask_learn_words(request);
		words = plugin_last_words(plugin);
		masked = secret_mask_excerpt(plugin->mask, text, strlen(text), MAX_ANSWERED);
		error = plugin_error_answered(plugin->manifest->id, words,
		                              json_integer_value(json_object_get(message->error, "code")),
		                              masked);

		secret_free(masked);
		free(words);
		plugin_queue_end(request, REPLY_ERROR, NULL, error);
	}
	else
		plugin_queue_end(request, REPLY_RESULT, message->result, NULL);
	plugin_queue_stop_when_drained(plugin);
}

/* A request of the host's whose answer is of no use; problem: what it is instead. */
static void
plugin_answer_lost(Plugin *plugin, json_int_t id, const char *problem)
{
	PluginRequest *request = plugin_queue_find_sent(plugin, id);
	HostError *error;
	char *how;

	if (id != 0 && id == plugin->initialize_id)
	{
		how = xformat("could not be initialized: %s", problem);
		worker_process_kill(plugin->process, how);
		free(how);
		return;
	}
	if (request == NULL)
	{
		plugin_stray(plugin, 0, "answers what it was not asked, again and again");
		return;
	}
	log_message(LOG_WARNING, "plugin \"%s\": its worker's answer to %s can't be used: %s",
	            plugin->manifest->id, request->method, problem);
	error = plugin_error_unusable(plugin->manifest->id, request->method, problem);
	plugin_queue_end(request, REPLY_LOST, NULL, error);
	plugin_queue_stop_when_drained(plugin);
}

/*
 * Lines
 */

/*
 * A line that can't be used costs at most the call whose id it carries.  What does not
 * say that it is a message is a line for the log: libraries like to print, objects too.
 */
void
plugin_messages_unusable(void *owner, const RpcIdentity *identity, const char *problem,
                         const char *line, size_t length)
{
	Plugin *plugin = owner;

	plugin_heard(plugin);
	if (!identity->has_method && identity->is_message && json_is_integer(identity->id))
	{
		plugin_answer_lost(plugin, json_integer_value(identity->id), problem);
		return;
	}
	if (identity->is_message)
		worker_services_log_noise(plugin->services, problem, strlen(problem));
	else
		worker_services_log_noise(plugin->services, line, length);
	plugin_stray(plugin, identity->length, "floods its output with what is no message");
	if (identity->is_message && identity->has_method && identity->id != NULL)
		plugin_send(plugin, plugin->starts,
		            rpc_error(json_incref(identity->id), RPC_INVALID_REQUEST, problem, NULL));
}

void
plugin_messages_came(void *owner, const RpcMessage *message)
{
	Plugin *plugin = owner;

	plugin_heard(plugin);
	if (message->kind == RPC_RESPONSE)
		plugin_answered(plugin, message);
	else
		worker_services_serve(plugin->services, plugin->starts, message);
}
