/*
 * plugin.h
 *		A plugin, its worker, and what the worker is asked.
 */
#ifndef ENVRT_HOST_PLUGIN_H
#define ENVRT_HOST_PLUGIN_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/host_error.h"
#include "plugins/plugin_manifest.h"

typedef struct Plugin Plugin;

/* Takes the manifest; one reference. */
extern Plugin *plugin_new(PluginManifest *manifest);
extern Plugin *plugin_keep(Plugin *plugin);
extern void plugin_release(Plugin *plugin);

/* Whether any has not been freed yet. */
extern bool plugins_exist(void);

extern const PluginManifest *plugin_manifest(const Plugin *plugin);

/*
 * Ends its worker in order, after what it has been asked is answered or has
 * had some time; another one is started when it is needed, at once.
 */
extern void plugin_restart(Plugin *plugin);

/* For envrt/stats. */
extern json_t *plugin_describe(const Plugin *plugin);

/* Whether its worker has said that it has a method; false before its first start. */
extern bool plugin_supports(const Plugin *plugin, const char *method);

/* What is asked of a worker. */
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

/* What a client is told whose call's time is over. */
extern HostError *plugin_timeout_error(const Plugin *plugin, const char *method, uint64_t limit_ms);

#endif
