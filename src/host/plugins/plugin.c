/*
 * plugin.c
 *		A plugin, its worker, and what the worker is asked.
 *
 * A plugin has at most one worker process.  Its states:
 *
 *   idle      no process and nobody who needs one
 *   starting  a process, and `initialize` on its way
 *   running   initialized: requests are sent
 *   waiting   requests, but for all of them it is too early after a crash for another start
 *   stopping  the process is to end, when it has answered what it was sent, or
 *             has had some time for that; nothing is sent any more
 *
 * A request is first in the list `waiting`, in the order in which it came, and
 * in `sent` from the moment that a byte of it may have reached the worker.
 * Which of them is next is another file's matter (plugin_turns.c).  That line is kept sharp,
 *because it decides what can be said when the worker ends: who waits goes on waiting, for the next
 *worker; who was sent gets REPLY_LOST, since nobody knows how far the worker came.  To keep it
 *sharp, one request at a time is handed to the process, the next when all bytes of that one have
 *left us.
 *
 * Requests have no time limit of their own: the asker has.  When it loses its patience, it says
 * so (plugin_request_is_late) or drops the request (plugin_request_forget), and with it the
 * secrets; the worker is not told, since its protocol has no word for it, and its late answer is
 * known for what it is.  A worker that owes too many answers that are overdue is killed, and so is
 * one that owes nothing else while others wait for their places.  One that has said
 * nothing for some time while several requests ran out of theirs may hang, or only wait for
 * somebody else, while it works well at other requests: so it is asked for its health, and killed
 * when it does not even answer that, or say anything else.
 *
 * The calls of many companies share the worker, so a line that can't be used
 * costs no more than the call whose id it carries: what is in it may be
 * what one company's command has written.  What is no message at all is logged, since libraries
 * like to print, and answers that nobody waits for are dropped; only a flood of
 * such lines ends the worker.  The end of a process that nobody asked for is a crash, whatever
 * its status.  After the first the worker may be started again at once, then
 * ever later, as long as it does not last: for those for whom it was working when it crashed, or
 * for all when it did not get as far.
 *
 * Answers are delivered from the event loop only, so an asker is never called
 * back from within plugin_ask().  The memory of a plugin goes, by way of the
 * event loop too, when nobody refers to it: the registry does, and everybody
 * who waits for an answer.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "base/host_instance.h"
#include "shared/jsonrpc.h"
#include "base/log.h"
#include "base/memory.h"
#include "plugins/plugin.h"
#include "plugins/plugin_error.h"
#include "plugins/plugin_folder.h"
#include "plugins/plugin_turns.h"
#include "shared/protocol.h"
#include "calls/secret_mask.h"
#include "base/timer.h"
#include "base/worker_backoff.h"
#include "plugins/worker_process.h"
#include "plugins/worker_services.h"

#define INITIALIZE_MS 15000
#define MAX_LATE 1000
#define MAX_SILENT 5
#define SILENT_MS 5000
#define HEALTH_MS 5000
/* What a worker may print: so much at once, and so much a second; a line, and each STRAY_BYTES of
 * it. */
#define MAX_STRAY 100000
#define STRAY_RATE 1000
#define STRAY_BYTES 4096
#define DRAIN_MS 10000
#define MAX_LIMIT_MS (25 * 60 * 60 * 1000)
#define MAX_ERROR 500
#define MAX_ANSWERED 4000
#define MAX_METHODS 1000
/*
 * Of what a command is given this is remembered, to be masked: what is shorter is in any text, and
 * more would take too long.
 */
#define MIN_WORD 8
#define MAX_WORDS 128
#define MAX_WORD ((size_t) 64 * 1024)
#define MAX_WORDS_BYTES (4 * MAX_WORD)

typedef enum
{
	STATE_IDLE,
	STATE_STARTING,
	STATE_RUNNING,
	STATE_WAITING,
	STATE_STOPPING
} State;

struct PluginRequest
{
	PluginRequest *next;
	PluginRequest *previous;
	Plugin *plugin;
	const char *method;
	const char *other;
	char *names; /* holds the two */
	json_t *params;
	json_t *secrets;
	json_t *words;   /* texts that a command is given, of which any may be a secret */
	json_t *company; /* whose it is: a text, or NULL */
	bool resolves;   /* among the secrets are some that the worker can ask for */
	json_int_t id;   /* once sent */
	PluginTurn turn;
	uint64_t limit_ms; /* after it was sent, for the worker to answer */
	Timer *limit;      /* runs when nobody waits for the answer any more */
	bool sent;
	bool hopeless;           /* its asker won't wait for as long as the delay is */
	bool failed;             /* and counted as such */
	bool late;               /* the answer is overdue */
	PluginAnswered answered; /* NULL: forgotten */
	void *data;
};

typedef struct RequestList
{
	PluginRequest *first;
	PluginRequest *last;
} RequestList;

struct Plugin
{
	int references;
	PluginManifest *manifest;
	State state;
	WorkerProcess *process;
	json_t *supported; /* method names, of the last worker that said them */
	RequestList waiting;
	RequestList sent;
	PluginTurns turns; /* of both */
	json_int_t last_id;
	json_int_t initialize_id;
	json_int_t health_id; /* the last */
	Timer *timer;         /* initialize's limit, or the delay before a start */
	Timer *health;        /* the limit of an answer that is awaited */
	Timer *soon;          /* work for the event loop: requests to look at, or memory to free */
	WorkerBackoff backoff;
	unsigned late;
	unsigned silent; /* requests that ran out of time since the last line of the worker */
	uint64_t silent_since;
	double stray; /* lines of this worker that were no messages, and answers to nothing; decays */
	uint64_t stray_at;
	SecretMask *mask;
	WorkerServices *services;
	json_int_t starts;
	int64_t started_at; /* the last start; milliseconds since 1970 */
	json_int_t calls;
	json_int_t failed;
	json_int_t active;
	char *last_error;
	char *last_stderr; /* of the process before this one */
	bool said_full;    /* that the mask is */
};

static size_t plugin_count;

static void plugin_look(void *data);
static void start_worker(Plugin *plugin);

/*
 * Lists of requests
 */

static void
plugin_list_append(RequestList *list, PluginRequest *request)
{
	request->next = NULL;
	request->previous = list->last;
	if (list->last != NULL)
		list->last->next = request;
	else
		list->first = request;
	list->last = request;
}

static void
plugin_list_remove(RequestList *list, PluginRequest *request)
{
	if (request->previous != NULL)
		request->previous->next = request->next;
	else
		list->first = request->next;
	if (request->next != NULL)
		request->next->previous = request->previous;
	else
		list->last = request->previous;
}

static void
request_free(PluginRequest *request)
{
	Plugin *plugin = request->plugin;

	plugin_list_remove(request->sent ? &plugin->sent : &plugin->waiting, request);
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

static void
count_failed(PluginRequest *request)
{
	if (!request->failed)
		request->plugin->failed++;
	request->failed = true;
}

/* Tells the asker and frees the request; takes the error. */
static void
request_end(PluginRequest *request, PluginReply reply, json_t *result, HostError *error)
{
	Plugin *plugin = request->plugin;
	PluginAnswered answered = request->answered;
	void *data = request->data;

	if (reply != REPLY_RESULT)
		count_failed(request);
	request_free(request);
	if (answered == NULL)
	{
		error_free(error);
		return;
	}
	answered(data, reply, result, error);
	plugin_release(plugin);
}

/*
 * What commands are given
 */

/* *left: how many bytes they may still have. */
static void
add_word(json_t *words, size_t *left, json_t *value)
{
	size_t most = *left < MAX_WORD ? *left : MAX_WORD;
	size_t length = json_string_length(value) < most ? json_string_length(value) : most;
	char name[24];

	if (length < MIN_WORD || json_object_size(words) >= MAX_WORDS)
		return;
	*left -= length;
	snprintf(name, sizeof name, "%zu", json_object_size(words));
	if (length == json_string_length(value))
		json_object_set(words, name, value);
	else
		json_object_set_new(words, name, json_stringn_nocheck(json_string_value(value), length));
}

/* Only environmentExecute has any.  The likeliest secrets come first, since there may be many. */
static json_t *
words_of(const json_t *params)
{
	json_t *words = json_object();
	size_t left = MAX_WORDS_BYTES;
	const char *name;
	size_t index;
	json_t *value;

	json_object_foreach(json_object_get(params, "env"), name, value)
	{
		add_word(words, &left, value);
	}
	add_word(words, &left, json_object_get(params, "stdin"));
	json_array_foreach(json_object_get(params, "args"), index, value)
	{
		add_word(words, &left, value);
	}
	return words;
}

/*
 * Commands bring more than there is room for in the end, so they have an account of their own:
 * they push each other out, also while they run, and no secret.
 */
static void
learn_words(const PluginRequest *request)
{
	const char *company = json_string_value(request->company);
	char *account;

	if (json_object_size(request->words) == 0)
		return;
	account = xformat("commands of %s", company ? company : "nobody");
	secret_mask_learn(request->plugin->mask, account, request->words);
	free(account);
}

/*
 * Errors
 */

static const char *
plugin_id(const Plugin *plugin)
{
	return plugin->manifest->id;
}

/* The end of what the worker wrote to stderr; to be freed. */
static char *
last_words(const Plugin *plugin)
{
	if (plugin->process != NULL)
	{
		char *text = worker_process_stderr(plugin->process, secret_mask_apply, plugin->mask);

		/* Of one that is only starting, the one before may tell more. */
		if (text[0] != '\0' || plugin->last_stderr == NULL || plugin->state == STATE_RUNNING)
			return text;
		free(text);
	}
	return xstrdup(plugin->last_stderr ? plugin->last_stderr : "");
}

HostError *
plugin_timeout_error(const Plugin *plugin, const char *method, uint64_t limit_ms)
{
	const char *trouble = plugin->state == STATE_RUNNING ? NULL : plugin->last_error;
	char *words = last_words(plugin);
	HostError *error = plugin_error_timeout(plugin_id(plugin), words, trouble, method, limit_ms);

	free(words);
	return error;
}

/*
 * What the worker says
 */

static void
broke_protocol(Plugin *plugin, const char *how)
{
	/* The log hears of it when the process has ended. */
	worker_process_kill(plugin->process, how);
}

static void
send_message(Plugin *plugin, json_t *message)
{
	worker_process_send(plugin->process, message);
}

/* For the worker's own requests (worker_services.c). */

static void
services_send(void *owner, json_int_t worker, json_t *message)
{
	Plugin *plugin = owner;

	if (plugin->process != NULL && plugin->starts == worker)
		send_message(plugin, message);
	else
		json_decref(message);
}

/* The id of a request as the worker's SDK gives it back; so is the one that it is told. */
static bool
is_invocation(const PluginRequest *request, const char *invocation)
{
	char *end;
	long long id = strtoll(invocation, &end, 10);

	return end != invocation && *end == '\0' && id == request->id;
}

static bool
services_company(void *owner, const char *invocation, const char **company)
{
	const Plugin *plugin = owner;
	bool several = false;

	*company = NULL;
	for (const PluginRequest *request = plugin->sent.first; request != NULL;
	     request = request->next)
	{
		const char *its = json_string_value(request->company);

		if (invocation != NULL ? !is_invocation(request, invocation)
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
services_secret(void *owner, const char *invocation, const char *reference)
{
	const Plugin *plugin = owner;

	for (const PluginRequest *request = plugin->sent.first; request != NULL;
	     request = request->next)
	{
		const json_t *value = json_object_get(request->secrets, reference);

		if (value != NULL && (invocation == NULL || is_invocation(request, invocation)))
			return value;
	}
	return NULL;
}

static void
services_keep(void *owner)
{
	plugin_keep(owner);
}

static void
services_release(void *owner)
{
	plugin_release(owner);
}

/* A line of that many bytes that is of no use to anybody. */
static void
stray(Plugin *plugin, size_t length, const char *how)
{
	uint64_t now = now_ms();

	/* A bucket, so that a worker may print what its calls give it to print. */
	plugin->stray -= (double) (now - plugin->stray_at) * STRAY_RATE / 1000;
	plugin->stray_at = now;
	if (plugin->stray < 0)
		plugin->stray = 0;
	plugin->stray += 1 + (double) length / STRAY_BYTES;
	if (plugin->stray > MAX_STRAY)
		broke_protocol(plugin, how);
}

static void
stop_when_drained(Plugin *plugin)
{
	if (plugin->state == STATE_STOPPING && plugin->sent.first == NULL && plugin->process != NULL)
	{
		timer_stop(&plugin->timer);
		worker_process_stop(plugin->process);
	}
}

static void
initialized(Plugin *plugin, const RpcMessage *message)
{
	json_t *methods = json_object_get(message->result, "supportedMethods");

	plugin->initialize_id = 0;
	if (plugin->state != STATE_STARTING)
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
		broke_protocol(plugin, how);
		free(how);
	}
	else if (!json_is_array(methods) || json_array_size(methods) > MAX_METHODS ||
	         json_is_false(json_object_get(message->result, "ok")))
		broke_protocol(plugin, "did not say which methods it has");
	else
	{
		json_decref(plugin->supported);
		plugin->supported = json_incref(methods);
		plugin->state = STATE_RUNNING;
		plugin_look(plugin);
	}
}

/* Any sign of life will do. */
static void
heard(Plugin *plugin)
{
	plugin->silent = 0;
	timer_stop(&plugin->health);
}

static PluginRequest *
find_sent(const Plugin *plugin, json_int_t id)
{
	PluginRequest *request = plugin->sent.first;

	while (request != NULL && request->id != id)
		request = request->next;
	return request;
}

static void
worker_answers(Plugin *plugin, const RpcMessage *message)
{
	json_int_t id = json_integer_value(message->id);
	PluginRequest *request = json_is_integer(message->id) ? find_sent(plugin, id) : NULL;

	if (json_is_integer(message->id) && id != 0 && id == plugin->initialize_id)
	{
		initialized(plugin, message);
		return;
	}
	if (request == NULL && json_is_integer(message->id) && id != 0 && id == plugin->health_id)
	{
		plugin->health_id = 0;
		return;
	}
	if (request == NULL)
	{
		stray(plugin, 0, "answers what it was not asked, again and again");
		return;
	}
	if (message->error != NULL)
	{
		char *words;
		const char *text = json_string_value(json_object_get(message->error, "message"));
		char *masked;
		HostError *error;

		/* Many commands may have been learned since.  It may hold what another call brought, too.
		 */
		learn_words(request);
		words = last_words(plugin);
		masked = secret_mask_excerpt(plugin->mask, text, strlen(text), MAX_ANSWERED);
		error = plugin_error_answered(plugin_id(plugin), words,
		                              json_integer_value(json_object_get(message->error, "code")),
		                              masked);

		secret_free(masked);
		free(words);
		request_end(request, REPLY_ERROR, NULL, error);
	}
	else
		request_end(request, REPLY_RESULT, message->result, NULL);
	stop_when_drained(plugin);
}

/* A request of the host's whose answer is of no use; problem: what it is instead. */
static void
answer_is_lost(Plugin *plugin, json_int_t id, const char *problem)
{
	PluginRequest *request = find_sent(plugin, id);
	HostError *error;
	char *how;

	if (id != 0 && id == plugin->initialize_id)
	{
		how = xformat("could not be initialized: %s", problem);
		broke_protocol(plugin, how);
		free(how);
		return;
	}
	if (request == NULL)
	{
		stray(plugin, 0, "answers what it was not asked, again and again");
		return;
	}
	log_message(LOG_WARNING, "plugin \"%s\": its worker's answer to %s can't be used: %s",
	            plugin_id(plugin), request->method, problem);
	error = plugin_error_unusable(plugin_id(plugin), request->method, problem);
	request_end(request, REPLY_LOST, NULL, error);
	stop_when_drained(plugin);
}

/*
 * A line that can't be used costs at most the call whose id it carries.  What does not
 * say that it is a message is a line for the log: libraries like to print, objects too.
 */
static void
line_unusable(void *owner, const RpcIdentity *identity, const char *problem, const char *line,
              size_t length)
{
	Plugin *plugin = owner;

	heard(plugin);
	if (!identity->has_method && identity->is_message && json_is_integer(identity->id))
	{
		answer_is_lost(plugin, json_integer_value(identity->id), problem);
		return;
	}
	if (identity->is_message)
		worker_services_log_noise(plugin->services, problem, strlen(problem));
	else
		worker_services_log_noise(plugin->services, line, length);
	stray(plugin, identity->length, "floods its output with what is no message");
	if (identity->is_message && identity->has_method && identity->id != NULL)
		services_send(plugin, plugin->starts,
		              rpc_error(json_incref(identity->id), RPC_INVALID_REQUEST, problem, NULL));
}

static void
message_came(void *owner, const RpcMessage *message)
{
	Plugin *plugin = owner;

	heard(plugin);
	if (message->kind == RPC_RESPONSE)
		worker_answers(plugin, message);
	else
		worker_services_serve(plugin->services, plugin->starts, message);
}

/*
 * The process
 */

static void
initialize_overdue(void *data)
{
	broke_protocol(data, "was not initialized in time");
}

static void
start_when_due(void *data)
{
	Plugin *plugin = data;

	plugin->state = STATE_IDLE;
	if (plugin->waiting.first != NULL)
		start_worker(plugin);
}

/* There is no process (any more); how: why. */
static void
crashed(Plugin *plugin, const char *how)
{
	log_message(LOG_WARNING, "plugin \"%s\": its worker %s", plugin_id(plugin), how);
	free(plugin->last_error);
	plugin->last_error = xstrdup(how);
	/* Whoever it worked for has to wait; everybody, if it did not get as far. */
	if (plugin->state != STATE_RUNNING ||
	    !plugin_turns_crashed(&plugin->turns, now_ms(), randombytes_uniform(1001)))
		worker_backoff_crashed(&plugin->backoff, now_ms(), randombytes_uniform(1001));
	plugin->state = STATE_IDLE;
	plugin->initialize_id = 0;
	timer_stop(&plugin->timer);
}

static void
plugin_process_ended(void *owner, const char *how)
{
	Plugin *plugin = owner;
	bool stopped = plugin->state == STATE_STOPPING;

	free(plugin->last_stderr);
	plugin->last_stderr = worker_process_stderr(plugin->process, secret_mask_apply, plugin->mask);
	plugin->process = NULL;
	timer_stop(&plugin->health);
	secret_mask_worker_ended(plugin->mask);
	plugin->said_full = false;
	if (stopped)
	{
		log_message(LOG_LOG, "plugin \"%s\": its worker %s, after it was told to end",
		            plugin_id(plugin), how);
		timer_stop(&plugin->timer);
		plugin->state = STATE_IDLE;
		plugin->initialize_id = 0;
	}
	else
		crashed(plugin, how);

	plugin_keep(plugin);
	while (plugin->sent.first != NULL)
		request_end(plugin->sent.first, REPLY_LOST, NULL,
		            plugin_error_lost(plugin_id(plugin), plugin->last_stderr));
	if (plugin->waiting.first != NULL)
		start_worker(plugin);
	plugin_release(plugin);
}

static json_t *
initialize_params(const Plugin *plugin)
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

static void
plugin_process_drained(void *owner)
{
	plugin_look(owner);
}

/* How long it is before a worker may be started for one of those that wait. */
static uint64_t
start_delay(const Plugin *plugin)
{
	uint64_t delay = worker_backoff_delay(&plugin->backoff, now_ms());
	uint64_t wait = plugin_turns_wait(&plugin->turns, now_ms());

	return delay > wait ? delay : wait;
}

/* The same for one of them. */
static uint64_t
request_delay(const PluginRequest *request)
{
	const Plugin *plugin = request->plugin;
	uint64_t delay = plugin->process == NULL ? worker_backoff_delay(&plugin->backoff, now_ms()) : 0;
	uint64_t own = plugin_turns_delay(&plugin->turns, &request->turn, now_ms());

	return delay > own ? delay : own;
}

static void
start_worker(Plugin *plugin)
{
	static const WorkerProcessEvents events = {
	    .message = message_came,
	    .unusable = line_unusable,
	    .drained = plugin_process_drained,
	    .ended = plugin_process_ended,
	};
	const PluginManifest *manifest = plugin->manifest;
	const WorkerProgram program = {
	    .folder = manifest->folder,
	    .plugin = manifest->id,
	    .arguments = {manifest->node ? "node" : manifest->worker,
	                  manifest->node ? manifest->worker : NULL},
	};
	uint64_t delay = start_delay(plugin);
	char *problem = NULL;

	if (plugin->state != STATE_IDLE)
		return;
	if (delay > 0)
	{
		plugin->state = STATE_WAITING;
		timer_start(&plugin->timer, delay, start_when_due, plugin);
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
		crashed(plugin, problem);
		free(problem);
		start_worker(plugin);
		return;
	}
	plugin->state = STATE_STARTING;
	plugin->initialize_id = ++plugin->last_id;
	timer_start(&plugin->timer, INITIALIZE_MS, initialize_overdue, plugin);
	send_message(plugin,
	             rpc_request(plugin->initialize_id, "initialize", initialize_params(plugin)));
}

/*
 * Requests
 */

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

/* False when the worker has neither of its methods. */
static bool
choose_method(PluginRequest *request)
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
request_message(json_int_t id, const PluginRequest *request)
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

/* Sends what can be sent; with tell, also ends what the worker has no method for. */
static void
send_waiting(Plugin *plugin, bool tell)
{
	PluginRequest *request;
	uint64_t wait;

	while (plugin->state == STATE_RUNNING && worker_process_is_drained(plugin->process) &&
	       (request = plugin_turns_next(&plugin->turns, now_ms())) != NULL)
	{
		json_int_t id = plugin->last_id + 1;

		if (!choose_method(request))
		{
			if (!tell)
			{
				timer_start(&plugin->soon, 0, plugin_look, plugin);
				return;
			}
			request_end(request, REPLY_UNSUPPORTED, NULL,
			            plugin_error_unsupported(request->method));
			continue;
		}
		/* One that can't be sent stays for the next process: this one is about to end. */
		if (!worker_process_send(plugin->process, request_message(id, request)))
			return;
		plugin_list_remove(&plugin->waiting, request);
		request->sent = true;
		request->id = plugin->last_id = id;
		plugin_list_append(&plugin->sent, request);
		plugin_turns_serve(&plugin->turns, &request->turn, now_ms());
		/* Kept no longer than needed: it may hold secrets. */
		json_decref(request->params);
		request->params = NULL;
	}
	/* Those that may have caused a crash have to wait for their time. */
	wait = plugin->state == STATE_RUNNING ? plugin_turns_wait(&plugin->turns, now_ms()) : 0;
	if (wait > 0)
		timer_start(&plugin->timer, wait, plugin_look, plugin);
}

/*
 * Whether those that wait do so only for answers that are overdue and that nobody
 * wants: then the end of the worker costs nobody anything.
 */
static bool
is_clogged(const Plugin *plugin)
{
	if (plugin->state != STATE_RUNNING || plugin->waiting.first == NULL ||
	    plugin->sent.first == NULL || !worker_process_is_drained(plugin->process) ||
	    plugin_turns_wait(&plugin->turns, now_ms()) > 0)
		return false;
	for (const PluginRequest *request = plugin->sent.first; request != NULL;
	     request = request->next)
		if (!request->late || request->answered != NULL)
			return false;
	return true;
}

static void
plugin_free(Plugin *plugin)
{
	timer_stop(&plugin->timer);
	timer_stop(&plugin->soon);
	timer_stop(&plugin->health);
	if (plugin->process != NULL)
		worker_process_dismiss(plugin->process);
	while (plugin->waiting.first != NULL)
		request_free(plugin->waiting.first);
	while (plugin->sent.first != NULL)
		request_free(plugin->sent.first);
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

static PluginRequest *
hopeless(const Plugin *plugin)
{
	PluginRequest *request = plugin->waiting.first;

	while (request != NULL && !request->hopeless)
		request = request->next;
	return request;
}

/* The environment driver that it is about, or NULL: a sandbox provider goes by the plugin. */
static const char *
driver_of(const PluginRequest *request)
{
	const char *key = json_string_value(json_object_get(request->params, "driverKey"));
	const PluginDriver *driver =
	    key != NULL ? plugin_manifest_driver(plugin_manifest(request->plugin), key) : NULL;

	return driver != NULL && !driver->sandbox_provider ? key : NULL;
}

/* From the event loop. */
static void
plugin_look(void *data)
{
	Plugin *plugin = data;
	PluginRequest *request;

	if (plugin->references == 0)
	{
		plugin_free(plugin);
		return;
	}
	plugin_keep(plugin);
	send_waiting(plugin, true);
	if (is_clogged(plugin))
		broke_protocol(plugin, "owes answers that are overdue, and nothing else");
	while ((request = hopeless(plugin)) != NULL)
	{
		char *words = last_words(plugin);
		HostError *error = plugin_error_no_worker(plugin_id(plugin), driver_of(request), words,
		                                          plugin->last_error, request_delay(request));

		free(words);
		request_end(request, REPLY_NO_WORKER, NULL, error);
	}
	plugin_release(plugin);
}

/* Those with a colon in their names are only to be masked. */
static bool
are_resolvable(const json_t *secrets)
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

static void
learn_secrets(Plugin *plugin, const PluginRequest *request)
{
	secret_mask_learn(plugin->mask, json_string_value(request->company), request->secrets);
	learn_words(request);
	if (plugin->said_full || !secret_mask_is_full(plugin->mask))
		return;
	plugin->said_full = true;
	log_message(LOG_WARNING,
	            "plugin \"%s\": its worker was told too many secrets: all that it says is hidden "
	            "until it is restarted",
	            plugin_id(plugin));
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
	request->words = words_of(question->params);
	request->resolves = are_resolvable(question->secrets);
	request->company = json_incref(json_object_get(question->params, "companyId"));
	request->answered = answered;
	request->data = data;
	request->limit_ms = question->patience_ms;
	learn_secrets(plugin, request);
	plugin_list_append(&plugin->waiting, request);
	plugin_turns_add(&plugin->turns, &request->turn, json_string_value(request->company),
	                 strcmp(request->method, "environmentExecute") == 0, request);
	plugin->calls++;
	plugin->active++;
	if (plugin->state == STATE_RUNNING)
		send_waiting(plugin, false);
	else if (plugin->state == STATE_IDLE)
		start_worker(plugin);
	else if (plugin->state == STATE_WAITING && start_delay(plugin) == 0)
	{
		/* Others have to wait, and this one need not. */
		timer_stop(&plugin->timer);
		start_when_due(plugin);
	}
	if (is_clogged(plugin))
		timer_start(&plugin->soon, 0, plugin_look, plugin);
	if (!request->sent && request_delay(request) > question->patience_ms)
	{
		request->hopeless = true;
		timer_start(&plugin->soon, 0, plugin_look, plugin);
	}
	return request;
}

bool
plugin_request_is_sent(const PluginRequest *request)
{
	return request->sent;
}

static void
owes_late(PluginRequest *request)
{
	Plugin *plugin = request->plugin;

	if (request->late)
		return;
	request->late = true;
	plugin->late++;
	count_failed(request);
	plugin_turns_overdue(&plugin->turns, &request->turn);
	if (plugin->late > MAX_LATE && plugin->process != NULL)
		broke_protocol(plugin, "owes too many answers");
	if (plugin->waiting.first != NULL)
		timer_start(&plugin->soon, 0, plugin_look, plugin);
}

static void
health_overdue(void *data)
{
	Plugin *plugin = data;

	if (plugin->process != NULL)
		broke_protocol(plugin, "is silent while calls of it run out of time");
}

void
plugin_request_is_late(PluginRequest *request)
{
	Plugin *plugin = request->plugin;

	if (request->late)
		return;
	owes_late(request);
	/* One that is not sent waits for others to be read. */
	if (plugin->state != STATE_RUNNING)
		return;
	if (plugin->silent++ == 0)
		plugin->silent_since = now_ms();
	if (plugin->silent >= MAX_SILENT && now_ms() - plugin->silent_since >= SILENT_MS &&
	    plugin->health == NULL && plugin->process != NULL)
	{
		plugin->health_id = ++plugin->last_id;
		timer_start(&plugin->health, HEALTH_MS, health_overdue, plugin);
		send_message(plugin, rpc_request(plugin->health_id, "health", json_object()));
	}
}

static void
limit_is_over(void *data)
{
	owes_late(data);
}

/*
 * The worker was not told that nobody wants the answer any more, and goes on; so the
 * place is taken until it has answered or should have.
 */
static void
wait_for_nobody(PluginRequest *request)
{
	uint64_t lasted = now_ms() - request->turn.served_at;
	uint64_t limit = request->limit_ms < MAX_LIMIT_MS ? request->limit_ms : MAX_LIMIT_MS;

	count_failed(request);
	if (request->late)
		return;
	if (lasted >= limit)
		owes_late(request);
	else
		timer_start(&request->limit, limit - lasted, limit_is_over, request);
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
		wait_for_nobody(request);
	else
		request_free(request);
	plugin_release(plugin);
}

/*
 * The plugin itself
 */

/* The mask is about to forget what is in nobody's use any more. */
static void
make_room_in_mask(void *owner)
{
	Plugin *plugin = owner;
	const RequestList *lists[] = {&plugin->waiting, &plugin->sent};

	if (plugin->process != NULL)
		worker_process_mask_stderr(plugin->process, secret_mask_apply, plugin->mask);
	for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
		for (const PluginRequest *request = lists[i]->first; request != NULL;
		     request = request->next)
			secret_mask_learn(plugin->mask, json_string_value(request->company), request->secrets);
}

Plugin *
plugin_new(PluginManifest *manifest)
{
	static const WorkerServicesOwner functions = {
	    .send = services_send,
	    .company = services_company,
	    .secret = services_secret,
	    .keep = services_keep,
	    .release = services_release,
	};
	Plugin *plugin = xcalloc(1, sizeof *plugin);

	plugin->mask = secret_mask_new(make_room_in_mask, plugin);
	plugin->services = worker_services_new(manifest, plugin->mask, &functions, plugin);
	plugin->manifest = manifest;
	plugin->references = 1;
	plugin_count++;
	return plugin;
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
		timer_start(&plugin->soon, 0, plugin_look, plugin);
}

static void
drain_over(void *data)
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
		case STATE_IDLE:
		case STATE_STOPPING:
			break;
		case STATE_WAITING:
			timer_stop(&plugin->timer);
			start_when_due(plugin);
			break;
		case STATE_STARTING:
		case STATE_RUNNING:
			plugin->state = STATE_STOPPING;
			timer_start(&plugin->timer, DRAIN_MS, drain_over, plugin);
			stop_when_drained(plugin);
			break;
	}
}

const PluginManifest *
plugin_manifest(const Plugin *plugin)
{
	return plugin->manifest;
}

json_t *
plugin_describe(const Plugin *plugin)
{
	static const char *const states[] = {"idle", "starting", "running", "waiting", "stopping"};
	json_t *row = json_object();
	pid_t pid = plugin->process ? worker_process_pid(plugin->process) : 0;
	/* Names of files can be anything. */
	char *folder =
	    clean_text(plugin->manifest->folder, strlen(plugin->manifest->folder), PATH_MAX, false);

	json_object_set_new(row, "key", json_string(plugin_id(plugin)));
	json_object_set_new(row, "version", json_string(plugin->manifest->version));
	json_object_set_new(row, "displayName", json_string(plugin->manifest->display_name));
	json_object_set_new(row, "path", json_string(folder));
	json_object_set_new(row, "state", json_string(states[plugin->state]));
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
