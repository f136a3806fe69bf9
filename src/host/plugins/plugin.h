/*
 * plugin.h
 *		A plugin: who refers to it, the state of its worker, and what is told of both.
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

/* For envrt/stats. */
extern json_t *plugin_describe(const Plugin *plugin);

/* Whether its worker has said that it has a method; false before its first start. */
extern bool plugin_supports(const Plugin *plugin, const char *method);

/* What a client is told whose call's time is over. */
extern HostError *plugin_timeout_error(const Plugin *plugin, const char *method, uint64_t limit_ms);

/* For the files of a plugin. */

struct PluginRequest;

typedef enum
{
	WORKER_IDLE,
	WORKER_STARTING,
	WORKER_RUNNING,
	WORKER_WAITING,
	WORKER_STOPPING
} PluginWorkerState;

/* By the table in plugin.c; any other change is a fault of the host. */
extern void plugin_set_state(Plugin *plugin, PluginWorkerState state);

/* Sends a message to the worker that has this number, if it is still there; takes the message. */
extern void plugin_send(void *plugin, json_int_t worker, json_t *message);

/* The end of what the worker wrote to stderr, masked; to be freed. */
extern char *plugin_last_words(const Plugin *plugin);

/* Takes a request out of the plugin and frees it; its asker is not told. */
extern void plugin_drop_request(struct PluginRequest *request);

#endif
