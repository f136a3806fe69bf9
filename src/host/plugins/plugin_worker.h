/*
 * plugin_worker.h
 *		The start, the crash and the end of a plugin's worker.
 */
#ifndef ENVRT_HOST_PLUGIN_WORKER_H
#define ENVRT_HOST_PLUGIN_WORKER_H

#include <stdint.h>

#include "plugins/plugin.h"

/*
 * Ends its worker in order, after what it has been asked is answered or has
 * had some time; another one is started when it is needed, at once.
 */
extern void plugin_restart(Plugin *plugin);

/* Starts one for the requests that wait, now or when it is time; nothing when there is one. */
extern void plugin_worker_start(Plugin *plugin);

/* How long it is before a worker may be started for one of those that wait. */
extern uint64_t plugin_worker_delay(const Plugin *plugin);

/* The wait for the start is over: it starts one now, if there still are requests. */
extern void plugin_worker_start_when_due(void *plugin);

#endif
