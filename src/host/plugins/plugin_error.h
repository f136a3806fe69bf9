/*
 * plugin_error.h
 *		What clients are told when a plugin does not do what it was asked.
 */
#ifndef ENVRT_HOST_PLUGIN_ERROR_H
#define ENVRT_HOST_PLUGIN_ERROR_H

#include <stdint.h>

#include <jansson.h>

#include "base/host_error.h"

/*
 * In all of them, plugin is its key and last_words is the end of what its
 * worker wrote to stderr.  The outcome of what was asked is unknown; whoever
 * knows better says so.
 */

/* trouble: why there is no worker, or NULL. */
extern HostError *plugin_error_timeout(const char *plugin, const char *last_words,
                                       const char *trouble, const char *method, uint64_t limit_ms);

/*
 * It crashed, and it is too early for another one; how: the end of the last.
 * driver: the environment driver that was asked for, or NULL.
 */
extern HostError *plugin_error_no_worker(const char *plugin, const char *driver,
                                         const char *last_words, const char *how,
                                         uint64_t delay_ms);

/* The worker ended before it answered. */
extern HostError *plugin_error_lost(const char *plugin, const char *last_words);

/* The worker answered with what can't be used; problem: why. */
extern HostError *plugin_error_unusable(const char *plugin, const char *method,
                                        const char *problem);

/* The worker answered with this error. */
extern HostError *plugin_error_answered(const char *plugin, const char *last_words, json_int_t code,
                                        const char *message);

extern HostError *plugin_error_unsupported(const char *method);

#endif
