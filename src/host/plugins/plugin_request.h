/*
 * plugin_request.h
 *		What is asked of a plugin's worker: the asker's side.
 */
#ifndef ENVRT_HOST_PLUGIN_REQUEST_H
#define ENVRT_HOST_PLUGIN_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/host_error.h"
#include "plugins/plugin.h"

typedef struct PluginRequest PluginRequest;

typedef enum
{
	REPLY_RESULT,
	REPLY_ERROR,       /* the worker's own */
	REPLY_UNSUPPORTED, /* it has no such method, and was not asked */
	REPLY_NO_WORKER,   /* none will be there in time, so it was not asked */
	REPLY_LOST         /* it was asked and ended */
} PluginReply;

/*
 * The end of a request, from the event loop.  With REPLY_RESULT there is the
 * result, which stays the plugin's; else an error, which is the callee's.
 */
typedef void (*PluginAnswered)(void *data, PluginReply reply, json_t *result, HostError *error);

typedef struct PluginQuestion
{
	const char *method;
	const char *other;    /* what to ask when the worker lacks the method, or NULL */
	json_t *params;       /* taken */
	json_t *secrets;      /* taken: what the worker may resolve meanwhile, or NULL */
	uint64_t patience_ms; /* how long the asker is going to wait, about */
} PluginQuestion;

/* Asks the worker, which is started if need be. */
extern PluginRequest *plugin_ask(Plugin *plugin, const PluginQuestion *question,
                                 PluginAnswered answered, void *data);

/* Whether the worker may have seen it. */
extern bool plugin_request_is_sent(const PluginRequest *request);

/* The asker's time is over: it no longer counts on an answer, but takes one. */
extern void plugin_request_is_late(PluginRequest *request);

/* The asker wants no answer.  One that is not sent yet never will be. */
extern void plugin_request_forget(PluginRequest *request);

#endif
