/*
 * blocking_calls.h
 *		Calls to the driver host; see blocking_calls.c.
 */
#ifndef ENVRT_BLOCKING_CALLS_H
#define ENVRT_BLOCKING_CALLS_H

#include "postgres.h"

#include "base/compat.h"
#include "shared/json_library.h"

/* For who names a provider or a plugin that can't be used here. */
#define PLUGINS_HINT                                                                               \
	"Plugins are installed in envrt.plugin_path: see envrt.stat_plugins, and the server log for "  \
	"folders that could not be read."

/* The time limits of a call's phases, as {connectMs, commandMs, apiProbeMs}. */
extern json_t *host_call_limits(void);

/*
 * driver_host_call
 *		Calls a method and waits for the answer; its result, guarded.
 *
 * timeout_ms is what the driver host may take; it keeps its
 * own limits, so this is for one that does not answer at all.  Raises what
 * the driver reports, and 08006 when the driver host is lost meanwhile.
 */
extern json_t *driver_host_call(const char *method, json_t *params, int64 timeout_ms);

/* The same, but what the driver reports is returned in *error, with NULL. */
extern json_t *driver_host_try(const char *method, json_t *params, int64 timeout_ms,
                               json_t **error);

/* Connects, or raises 55000: before something is begun that needs the driver host. */
extern void driver_host_connect(void);

/* ERROR with what the driver reports. */
pg_noreturn extern void driver_host_raise(const json_t *error);

/*
 * driver_host_ask
 *		For views: like driver_host_call without params, but NULL where there is
 *		no driver host, or none that answers.
 */
extern json_t *driver_host_ask(const char *method, int64 timeout_ms);

#endif
