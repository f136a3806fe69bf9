/*
 * plugin_metrics.h
 *		Numbers that plugins report of themselves.
 */
#ifndef ENVRT_HOST_PLUGIN_METRICS_H
#define ENVRT_HOST_PLUGIN_METRICS_H

#include <jansson.h>

#include "calls/secret_mask.h"

/* What is wrong with the params of metrics.write, a constant; or NULL. */
extern const char *plugin_metrics_write(const char *plugin, SecretMask *mask, const json_t *params);

extern json_t *plugin_metrics_describe(void);

/* Forgets those of a plugin; NULL: all. */
extern void plugin_metrics_forget(const char *plugin);

#endif
