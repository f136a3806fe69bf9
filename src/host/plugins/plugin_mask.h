/*
 * plugin_mask.h
 *		What a plugin hides in all that its worker says.
 */
#ifndef ENVRT_HOST_PLUGIN_MASK_H
#define ENVRT_HOST_PLUGIN_MASK_H

#include <jansson.h>

#include "plugins/plugin_request.h"

/* The texts of a request's params that are to be masked, by numbers; a new object. */
extern json_t *plugin_mask_words(const json_t *params);

/* Learns a request's secrets and words; says in the log, once for each worker, when it is full. */
extern void plugin_mask_learn(const PluginRequest *request);

/* Learns its words once more: others may have pushed them out. */
extern void plugin_mask_learn_words(const PluginRequest *request);

/* For secret_mask_new(): the plugin's mask is about to forget what is in nobody's use any more. */
extern void plugin_mask_make_room(void *plugin);

#endif
