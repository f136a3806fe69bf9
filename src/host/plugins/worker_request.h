/*
 * worker_request.h
 *		What a client's call becomes for the worker of a plugin, and what its answer is.
 */
#ifndef ENVRT_HOST_WORKER_REQUEST_H
#define ENVRT_HOST_WORKER_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "plugins/plugin.h"

/* The params as the worker gets them: without what is for the host only. */
extern json_t *plugin_params(const json_t *params);

/* The secrets that came with it: a new reference, or NULL. */
extern json_t *plugin_secrets(const json_t *params);

/* How long the worker may take for a call. */
extern uint64_t plugin_limit(const char *method, const json_t *params);

/* The plugin of a call, for its driverKey and pluginKey.  NULL with *error set. */
extern Plugin *plugin_for(const json_t *params, HostError **error);

/*
 * A worker's answer to an acquire or resume, as clients get it: a new
 * reference, or NULL with *error set when it is not such an answer.
 */
extern json_t *plugin_lease(const Plugin *plugin, const char *method, const json_t *result,
                            HostError **error);

/*
 * Whether the worker's word that it failed to make a lease is not the last
 * one: somebody will be able to ask again, and so has to.
 */
extern bool plugin_can_tell_leases(const Plugin *plugin, const char *driver_key);

#endif
