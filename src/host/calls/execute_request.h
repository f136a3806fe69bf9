/*
 * execute_request.h
 *		What environmentExecute is asked, for every driver that has it.
 */
#ifndef ENVRT_HOST_EXECUTE_REQUEST_H
#define ENVRT_HOST_EXECUTE_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/host_error.h"
#include "base/memory.h"

typedef struct ExecuteVariable
{
	char *name;
	char *value;
} ExecuteVariable;

typedef struct ExecuteRequest
{
	char *command;
	char **args; /* without the command; followed by a NULL */
	size_t arg_count;
	char *cwd; /* absolute */
	ExecuteVariable *env;
	size_t env_count;
	const char *input; /* secret, like the values of env */
	size_t input_length;
	json_t *input_value; /* it belongs to that */

	uint64_t timeout_ms; /* of the command: timeoutMs, else limits.callMs */
	uint64_t grace_ms;   /* between SIGTERM and SIGKILL */
	uint64_t drain_ms;   /* how long others may hold the output open after the command's end */
	uint64_t connect_ms;
	size_t max_output; /* of each stream */
	bool base64;
	bool stream;
} ExecuteRequest;

/* Decodes what is long in a call's params; another thread's part of it. */
extern void execute_request_prepare(json_t *params);

/*
 * Reads and checks a call's params.  NULL with *error set when they are wrong.
 * default_cwd: an absolute path, for a lease that tells none.
 */
extern ExecuteRequest *execute_request_new(const json_t *params, const char *default_cwd,
                                           HostError **error);

/*
 * Hides in a text of the remote side, in place, what it repeats of what the command was given:
 * env, args and stdin, of which any may be a secret, and env of its environment (texts; NULL:
 * none). To be called before they are forgotten.
 */
extern void execute_request_mask(const ExecuteRequest *request, const json_t *env, char *text,
                                 size_t length);

/* Zeroes and drops what the command is made of, once it is handed on: all but cwd and the numbers.
 */
extern void execute_request_forget(ExecuteRequest *request);

/* NULL is fine. */
extern void execute_request_free(ExecuteRequest *request);

/* For a cwd that can't be entered; detail may be NULL. */
extern HostError *execute_no_cwd(const ExecuteRequest *request, const char *detail);

#endif
