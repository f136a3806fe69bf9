/*
 * execute_result.c
 *		How a command has ended, as drivers say it.
 *
 * What a plugin's worker answers is taken as it is or refused.  A number that
 * does not fit must not become another one, least of all 0, which is success;
 * nor may a member of the wrong type count as one that is not there.
 */
#include <math.h>
#include <string.h>

#include "shared/execute_result.h"

static bool
is_null(const json_t *value)
{
	return value == NULL || json_is_null(value);
}

/* Some languages write whole numbers as reals. */
static bool
read_exit_code(const json_t *value, int32_t *exit_code)
{
	double real;

	if (json_is_integer(value))
	{
		json_int_t integer = json_integer_value(value);

		*exit_code = (int32_t) integer;
		return integer >= INT32_MIN && integer <= INT32_MAX;
	}
	if (!json_is_real(value))
		return false;
	real = json_real_value(value);
	if (!(real >= INT32_MIN && real <= INT32_MAX) || real != trunc(real))
		return false;
	*exit_code = (int32_t) real;
	return true;
}

const char *
execute_result_read(const json_t *result, ExecuteResult *read)
{
	const json_t *exit_code = json_object_get(result, "exitCode");
	const json_t *signal = json_object_get(result, "signal");
	const json_t *timed_out = json_object_get(result, "timedOut");
	static const char *const streams[] = {"stdout", "stderr"};

	memset(read, 0, sizeof *read);
	if (!json_is_object(result))
		return "the result is no object";
	read->has_exit_code = !is_null(exit_code);
	if (read->has_exit_code && !read_exit_code(exit_code, &read->exit_code))
		return "the exit code is no whole number of 32 bits";
	if (!is_null(signal) && !json_is_string(signal))
		return "the signal is no text";
	read->signal = json_string_value(signal);
	if (!is_null(timed_out) && !json_is_boolean(timed_out))
		return "timedOut is neither true nor false";
	read->timed_out = json_is_true(timed_out);
	for (int i = 0; i < 2; i++)
	{
		const json_t *stream = json_object_get(result, streams[i]);

		if (!is_null(stream) && !json_is_string(stream))
			return i == 0 ? "stdout is no text" : "stderr is no text";
	}
	return NULL;
}
