/*
 * call_limits.c
 *		The time limits that come with a call.
 */
#include "calls/call_limits.h"

static uint64_t
limit(const json_t *limits, const char *key, uint64_t otherwise)
{
	const json_t *value = json_object_get(limits, key);
	json_int_t milliseconds = json_integer_value(value);

	if (!json_is_integer(value))
		return otherwise;
	if (milliseconds < 1)
		return 1;
	if (milliseconds > 86400000)
		return 86400000;
	return (uint64_t) milliseconds;
}

CallLimits
call_limits(const json_t *params)
{
	const json_t *limits = json_object_get(params, "limits");
	CallLimits result = {
	    .connect_ms = limit(limits, "connectMs", 10000),
	    .command_ms = limit(limits, "commandMs", 15000),
	    .api_probe_ms = limit(limits, "apiProbeMs", 5000),
	    .call_ms = limit(limits, "callMs", 60000),
	};

	return result;
}
