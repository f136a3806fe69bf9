/*
 * latency.c
 *		How long calls take, by driver and method, for envrt/stats.
 *
 * Each pair has a histogram of a fixed size, as long as the host lives.  A bucket is an
 * eighth of a power of two wide, so that a percentile, which is told as the upper end of
 * its bucket, is too long by an eighth at most; and never longer than the longest.
 *
 * Names come from callers, so there are only so many rows: what comes later is counted
 * together, as the driver "other".
 */
#include <stdlib.h>
#include <string.h>

#include "base/latency.h"
#include "base/memory.h"

#define PARTS 8 /* of a power of two */
#define PARTS_BITS 3
/* Up to 2^40 microseconds, which is 12 days. */
#define POWERS 40
#define BUCKETS ((POWERS - PARTS_BITS + 1) * PARTS)
#define MAX_ROWS 200

typedef struct Latency
{
	struct Latency *next;
	char *driver; /* NULL: none */
	char *method;
	uint64_t calls;
	uint64_t errors;
	uint64_t total;
	uint64_t longest;
	uint64_t buckets[BUCKETS];
} Latency;

static Latency *first_latency;
static int count;

/* Below 2 * PARTS each bucket is one microsecond. */
static size_t
latency_bucket_of(uint64_t microseconds)
{
	int power;

	if (microseconds < PARTS)
		return (size_t) microseconds;
	power = 63 - __builtin_clzll(microseconds);
	if (power >= POWERS)
		return BUCKETS - 1;
	return (size_t) (power - PARTS_BITS + 1) * PARTS +
	       (size_t) ((microseconds >> (power - PARTS_BITS)) & (PARTS - 1));
}

/* The longest time that falls into a bucket. */
static uint64_t
end_of(size_t bucket)
{
	int shift;

	if (bucket < PARTS)
		return bucket;
	shift = (int) (bucket / PARTS) - 1;
	return ((PARTS + bucket % PARTS + 1) << shift) - 1;
}

static bool
is_same(const char *one, const char *other)
{
	return one == NULL || other == NULL ? one == other : strcmp(one, other) == 0;
}

static Latency *
latency_find(const char *driver, const char *method)
{
	Latency *latency = first_latency;

	while (latency != NULL &&
	       !(is_same(latency->driver, driver) && is_same(latency->method, method)))
		latency = latency->next;
	return latency;
}

static Latency *
get(const char *driver, const char *method)
{
	Latency *latency = latency_find(driver, method);

	if (latency == NULL && count >= MAX_ROWS)
	{
		driver = "other";
		method = "other";
		latency = latency_find(driver, method);
	}
	if (latency != NULL)
		return latency;
	latency = xcalloc(1, sizeof *latency);
	latency->driver = driver ? xstrdup(driver) : NULL;
	latency->method = xstrdup(method);
	latency->next = first_latency;
	first_latency = latency;
	count++;
	return latency;
}

void
latency_note(const char *driver, const char *method, uint64_t microseconds, bool failed)
{
	Latency *latency = get(driver, method);

	latency->calls++;
	if (failed)
		latency->errors++;
	latency->total += microseconds;
	if (microseconds > latency->longest)
		latency->longest = microseconds;
	latency->buckets[latency_bucket_of(microseconds)]++;
}

static uint64_t
percentile(const Latency *latency, uint64_t percent)
{
	/* How many calls are not longer. */
	uint64_t wanted = (latency->calls * percent + 99) / 100;
	uint64_t seen = 0;
	uint64_t end;

	for (size_t i = 0; i < BUCKETS; i++)
	{
		seen += latency->buckets[i];
		if (seen < wanted)
			continue;
		end = end_of(i);
		return end < latency->longest ? end : latency->longest;
	}
	return latency->longest;
}

json_t *
latencies_describe(void)
{
	json_t *list = json_array();

	for (const Latency *latency = first_latency; latency != NULL; latency = latency->next)
	{
		json_t *row = json_object();

		json_object_set_new(row, "driver",
		                    latency->driver ? json_string(latency->driver) : json_null());
		json_object_set_new(row, "method", json_string(latency->method));
		json_object_set_new(row, "calls", json_integer((json_int_t) latency->calls));
		json_object_set_new(row, "errors", json_integer((json_int_t) latency->errors));
		json_object_set_new(row, "totalUs", json_integer((json_int_t) latency->total));
		json_object_set_new(row, "p50Us", json_integer((json_int_t) percentile(latency, 50)));
		json_object_set_new(row, "p95Us", json_integer((json_int_t) percentile(latency, 95)));
		json_object_set_new(row, "p99Us", json_integer((json_int_t) percentile(latency, 99)));
		json_object_set_new(row, "maxUs", json_integer((json_int_t) latency->longest));
		json_array_append_new(list, row);
	}
	return list;
}

void
latencies_close(void)
{
	while (first_latency != NULL)
	{
		Latency *latency = first_latency;

		first_latency = latency->next;
		free(latency->driver);
		free(latency->method);
		free(latency);
	}
	count = 0;
}
