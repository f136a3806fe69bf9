/*
 * plugin_queue.h
 *		The requests of a plugin: which wait, which are sent, and how each ends.
 */
#ifndef ENVRT_HOST_PLUGIN_QUEUE_H
#define ENVRT_HOST_PLUGIN_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/host_error.h"
#include "plugins/plugin_request.h"

/* Counts a request among the failed ones, once. */
extern void plugin_queue_count_failed(PluginRequest *request);

/* Tells the asker and frees the request; takes the error. */
extern void plugin_queue_end(PluginRequest *request, PluginReply reply, json_t *result,
                             HostError *error);

/* The request that was sent with this id, or NULL. */
extern PluginRequest *plugin_queue_find_sent(const Plugin *plugin, json_int_t id);

/* Sends what can be sent; with tell, also ends what the worker has no method for. */
extern void plugin_queue_send(Plugin *plugin, bool tell);

/*
 * Whether those that wait do so only for answers that are overdue and that nobody
 * wants: then the end of the worker costs nobody anything.
 */
extern bool plugin_queue_is_clogged(const Plugin *plugin);

/* How long it is, by what is known of crashes, before a request may be sent. */
extern uint64_t plugin_queue_delay(const PluginRequest *request);

/* Sends and ends what is due; askers are called back, so it runs from the event loop only. */
extern void plugin_queue_look(void *plugin);
extern void plugin_queue_look_soon(Plugin *plugin);

/* Ends a worker that is to stop, when nothing is left that it has to answer. */
extern void plugin_queue_stop_when_drained(Plugin *plugin);

#endif
