/*
 * execute_result.h
 *		How a command has ended, as drivers say it.
 */
#ifndef ENVRT_EXECUTE_RESULT_H
#define ENVRT_EXECUTE_RESULT_H

#include <stdbool.h>
#include <stdint.h>

#include "shared/json_library.h"

typedef struct ExecuteResult
{
	bool has_exit_code;
	int32_t exit_code;
	const char *signal; /* the result's, or NULL */
	bool timed_out;
} ExecuteResult;

/*
 * Reads the result of environmentExecute, whichever driver's it is: nobody else
 * may turn an exitCode into a number.  Returns NULL, or, of a result that must not be
 * used, what is wrong with it, for people.
 */
extern const char *execute_result_read(const json_t *result, ExecuteResult *read);

#endif
