/*
 * latency.h
 *		How long calls take, by driver and method, for envrt/stats.
 */
#ifndef ENVRT_HOST_LATENCY_H
#define ENVRT_HOST_LATENCY_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

/* A call has ended; driver may be NULL. */
extern void latency_note(const char *driver, const char *method, uint64_t microseconds,
                         bool failed);

/* A list of {driver, method, calls, errors, totalUs, p50Us, p95Us, p99Us, maxUs}. */
extern json_t *latencies_describe(void);

extern void latencies_close(void);

#endif
