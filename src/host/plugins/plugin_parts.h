/*
 * plugin_parts.h
 *		What a plugin and a request to its worker consist of.
 *
 * Only the files of a plugin (plugin.c and those that it names) include this header.
 */
#ifndef ENVRT_HOST_PLUGIN_PARTS_H
#define ENVRT_HOST_PLUGIN_PARTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include <jansson.h>

#include "base/timer.h"
#include "base/worker_backoff.h"
#include "calls/secret_mask.h"
#include "plugins/plugin.h"
#include "plugins/plugin_manifest.h"
#include "plugins/plugin_request.h"
#include "plugins/plugin_turns.h"
#include "plugins/worker_process.h"
#include "plugins/worker_services.h"

struct PluginRequest
{
	TAILQ_ENTRY(PluginRequest) link; /* in the plugin's waiting, or sent */
	Plugin *plugin;
	const char *method;
	const char *other;
	char *names;     /* holds the two */
	json_t *params;  /* NULL once sent */
	json_t *secrets; /* what the worker may resolve; NULL once forgotten */
	json_t *words;   /* texts that a command is given, of which any may be a secret */
	json_t *company; /* whose it is: a text, or NULL */
	bool resolves;   /* among the secrets are some that the worker can ask for */
	json_int_t id;   /* once sent */
	PluginTurn turn;
	uint64_t limit_ms;       /* after it was sent, for the worker to answer */
	Timer *limit;            /* runs when nobody waits for the answer any more */
	bool sent;               /* in which of the two lists it is */
	bool hopeless;           /* its asker won't wait for as long as the delay is */
	bool failed;             /* and counted as such */
	bool late;               /* the answer is overdue */
	PluginAnswered answered; /* NULL: forgotten */
	void *data;              /* the asker's */
};

TAILQ_HEAD(PluginRequestList, PluginRequest);

struct Plugin
{
	int references;
	Timer *unused; /* runs when there are none: the memory goes */
	PluginManifest *manifest;
	PluginWorkerState state; /* set by plugin_set_state() alone */
	WorkerProcess *process;  /* while starting, running or stopping */
	json_t *supported;       /* method names, of the last worker that said them */
	struct PluginRequestList waiting;
	struct PluginRequestList sent;
	PluginTurns turns; /* of both */
	json_int_t last_id;
	json_int_t initialize_id; /* while its answer is awaited, else 0 */
	json_int_t health_id;     /* the last */
	Timer *timer;             /* starting: initialize's limit; running: until a company may be
	                           * served after a crash; waiting: until the next start; stopping:
	                           * the limit of what was sent */
	Timer *health;            /* the limit of an answer that is awaited */
	Timer *soon;              /* requests to look at, from the event loop */
	WorkerBackoff backoff;
	unsigned late;         /* requests whose answers are overdue */
	unsigned silent;       /* requests that ran out of time since the last line of the worker */
	uint64_t silent_since; /* the first of them */
	double stray; /* lines of this worker that were no messages, and answers to nothing; decays */
	uint64_t stray_at;
	SecretMask *mask;
	bool said_full; /* that the mask is */
	WorkerServices *services;
	json_int_t starts;  /* also the number of the present worker */
	int64_t started_at; /* the last start; milliseconds since 1970 */
	json_int_t calls;
	json_int_t failed;
	json_int_t active;
	char *last_error;
	char *last_stderr; /* of the process before this one */
};

#endif
