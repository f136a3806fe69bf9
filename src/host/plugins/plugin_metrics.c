/*
 * plugin_metrics.c
 *		Numbers that plugins report of themselves.
 *
 * A series is a plugin's name for something and its tags; what is kept of it
 * is the last value, how many there were, and their sum.  Series live as long
 * as the host.  Their number and size is limited, since workers choose them:
 * when a plugin has its share, it can go on with the series that it has.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "plugins/plugin_metrics.h"
#include "calls/secret_mask.h"
#include "base/timer.h"

#define MAX_SERIES 200 /* of a plugin */
#define MAX_NAME 200
#define MAX_TAGS 2000 /* bytes, as JSON */

typedef struct Series
{
	struct Series *next;
	char *plugin;
	char *name;
	json_t *tags;
	char *tags_text; /* the same, sorted */
	double last;
	double sum;
	json_int_t count;
	int64_t updated_at;
} Series;

static Series *first_series;

static void
series_free(Series *series)
{
	free(series->plugin);
	free(series->name);
	json_decref(series->tags);
	free(series->tags_text);
	free(series);
}

/* Its tags as text, to be freed; NULL when they are too long, or no object. */
static char *
dump_tags(const json_t *tags)
{
	char *dumped;
	char *text;

	if (tags == NULL || json_is_null(tags))
		return xstrdup("{}");
	if (!json_is_object(tags))
		return NULL;
	dumped = json_dumps(tags, JSON_SORT_KEYS | JSON_COMPACT);
	text = dumped != NULL && strlen(dumped) <= MAX_TAGS ? xstrdup(dumped) : NULL;
	free(dumped);
	return text;
}

/* NULL when the plugin has too many. */
static Series *
plugin_metrics_find_or_make(const char *plugin, const char *name, const char *tags_text)
{
	size_t count = 0;
	Series *series;

	for (series = first_series; series != NULL; series = series->next)
	{
		if (strcmp(series->plugin, plugin) != 0)
			continue;
		if (strcmp(series->name, name) == 0 && strcmp(series->tags_text, tags_text) == 0)
			return series;
		count++;
	}
	if (count >= MAX_SERIES)
		return NULL;
	series = xcalloc(1, sizeof *series);
	series->plugin = xstrdup(plugin);
	series->name = xstrdup(name);
	series->tags = json_loads(tags_text, JSON_ALLOW_NUL, NULL);
	series->tags_text = xstrdup(tags_text);
	series->next = first_series;
	first_series = series;
	return series;
}

static json_t *
masked_text(SecretMask *mask, const char *text, size_t length)
{
	char *copy = xstrndup(text, length);
	json_t *masked;

	secret_mask_apply(mask, copy, length);
	/* A part of a long secret may end within a character. */
	masked = json_stringn(copy, length);
	secret_free(copy);
	return masked ? masked : json_string("*");
}

/* A copy with all texts masked, names too.  What is shown of a worker's words must not hold what it
 * was told. */
static json_t *
masked_copy(SecretMask *mask, json_t *value)
{
	json_t *copy;
	const char *name;
	size_t index;
	json_t *member;

	if (json_is_string(value))
		return masked_text(mask, json_string_value(value), json_string_length(value));
	if (json_is_array(value))
	{
		copy = json_array();
		json_array_foreach(value, index, member)
		{
			json_array_append_new(copy, masked_copy(mask, member));
		}
		return copy;
	}
	if (!json_is_object(value))
		return json_incref(value);
	copy = json_object();
	json_object_foreach(value, name, member)
	{
		json_t *key = masked_text(mask, name, strlen(name));

		json_object_set_new_nocheck(copy, json_string_value(key), masked_copy(mask, member));
		json_decref(key);
	}
	return copy;
}

const char *
plugin_metrics_write(const char *plugin, SecretMask *mask, const json_t *params)
{
	const json_t *name = json_object_get(params, "name");
	const json_t *value = json_object_get(params, "value");
	double number = json_number_value(value);
	Series *series;
	json_t *shown;
	char *tags;

	if (!json_is_string(name) || json_string_length(name) == 0 ||
	    json_string_length(name) > MAX_NAME ||
	    strlen(json_string_value(name)) != json_string_length(name))
		return "Metric name must be a text of 1 to 200 bytes";
	if (!json_is_number(value) || !isfinite(number))
		return "Metric value must be a number";
	tags = dump_tags(json_object_get(params, "tags"));
	if (tags == NULL)
		return "Metric tags must be an object of at most 2000 bytes";
	free(tags);
	/* Only now, since there may be megabytes of what is refused. */
	shown = masked_copy(mask, json_object_get(params, "tags"));
	tags = dump_tags(shown);
	json_decref(shown);
	shown = masked_text(mask, json_string_value(name), json_string_length(name));
	series = plugin_metrics_find_or_make(plugin, json_string_value(shown), tags);
	json_decref(shown);
	free(tags);
	if (series == NULL)
		return "Too many metric series";
	series->last = number;
	series->sum += number;
	series->count++;
	series->updated_at = epoch_ms();
	return NULL;
}

/* JSON has no word for what a sum of large numbers may become. */
static json_t *
plugin_metrics_number(double value)
{
	return isfinite(value) ? json_real(value) : json_null();
}

json_t *
plugin_metrics_describe(void)
{
	json_t *rows = json_array();

	for (const Series *series = first_series; series != NULL; series = series->next)
		json_array_append_new(rows,
		                      json_pack("{s:s, s:s, s:O, s:o, s:I, s:o, s:I}", "plugin",
		                                series->plugin, "name", series->name, "tags", series->tags,
		                                "last", plugin_metrics_number(series->last), "count",
		                                series->count, "sum", plugin_metrics_number(series->sum),
		                                "updatedAt", (json_int_t) series->updated_at));
	return rows;
}

void
plugin_metrics_forget(const char *plugin)
{
	Series **link = &first_series;

	while (*link != NULL)
	{
		Series *series = *link;

		if (plugin != NULL && strcmp(series->plugin, plugin) != 0)
		{
			link = &series->next;
			continue;
		}
		*link = series->next;
		series_free(series);
	}
}
