/*
 * call_size.c
 *		How much a call to the driver host may carry.
 *
 * The driver host serves everybody, and what it is sent costs it time and
 * memory: bytes, and values even more.  So every request is measured before it
 * is sent, whoever sends it (blocking_calls.c, async_calls.c), and is refused
 * with 54000 here, where it costs its own caller only.
 *
 * config and a provider's metadata have limits of their own, which together
 * are less than a call's: what could be acquired can always be cleaned up.
 */
#include "postgres.h"

#include "hostlink/call_size.h"
#include "shared/jsonrpc.h"
#include "shared/protocol.h"

/* Without stdin, which is as much as a file. */
#define MAX_REST ((size_t) 6 * 1024 * 1024)
/* Of a config, and of what a provider says of a lease. */
#define MAX_PART ((size_t) 1024 * 1024)
#define MAX_PART_VALUES 5000
#define MAX_PART_DEPTH 50

static size_t
dumped_size(const json_t *value)
{
	return value == NULL ? 0 : json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY);
}

/* Whether there are that many values and levels at most; *values counts down. */
static bool
counts_within(const json_t *value, int *values, int depth)
{
	const char *key;
	json_t *member;
	size_t i;
	bool within = --*values >= 0 && depth >= 0;

	if (json_is_array(value))
		json_array_foreach(value, i, member) within =
		    within && counts_within(member, values, depth - 1);
	else if (json_is_object(value))
		json_object_foreach(unconstify(json_t *, value), key, member) within =
		    within && counts_within(member, values, depth - 1);
	return within;
}

static bool
is_small(const json_t *part)
{
	int values = MAX_PART_VALUES;

	return counts_within(part, &values, MAX_PART_DEPTH) && dumped_size(part) <= MAX_PART;
}

const char *
call_size_problem(const json_t *params, const char *line, size_t length)
{
	const char *problem;

	if (length > ENVRT_MAX_LINE)
		return "It is longer than 16 MB.";
	if (length > MAX_REST && length - dumped_size(json_object_get(params, "stdin")) -
	                                 dumped_size(json_object_get(params, "stdinBase64")) >
	                             MAX_REST)
		return "Without stdin it is longer than 6 MB.";
	problem = rpc_line_problem(line, length);
	if (problem != NULL)
		return strstr(problem, "deep") != NULL ? "It is nested more than 100 levels deep."
		                                       : "It has more than 20000 values.";
	if (!is_small(json_object_get(params, "config")))
		return "The config is longer than 1 MB, has more than 5000 values, or more than 50 levels.";
	return NULL;
}

void
call_size_report(const char *problem)
{
	ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg(CALL_TOO_LARGE_MESSAGE),
	                errdetail_internal("%s", problem), errhint(CALL_TOO_LARGE_HINT)));
}

void
call_size_check(const json_t *params)
{
	size_t length;
	char *line = rpc_dump_line(params, &length);
	const char *problem;

	if (line == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	problem = call_size_problem(params, line, length);
	rpc_line_free(line, length);
	if (problem != NULL)
		call_size_report(problem);
}

bool
call_size_takes_metadata(const json_t *metadata)
{
	return is_small(metadata);
}
