/*
 * execute_request.c
 *		What environmentExecute is asked, for every driver that has it.
 *
 * A request is made from a call's params when the call begins, belongs to the
 * driver's execution, and is freed with it.  All that can be wrong with it by
 * itself is found here, so that a driver sees only commands that it can hand on
 * byte for byte: no NUL in what becomes an argument or a variable, no
 * variable that a shell could not name, one stdin.
 *
 * The texts of errors name the field and never quote a value, since values of
 * env and stdin are secret.
 *
 * How much it may be is limited, since the event loop reads it: what no system
 * would take as arguments and variables of a process anyway.  stdin, which may be
 * long, is decoded by the thread that has parsed it (execute_request_prepare).
 */
#include <string.h>
#include <stdlib.h>

#include "calls/execute_request.h"
#include "base/memory.h"
#include "shared/protocol.h"
#include "calls/secret_mask.h"

#define DEFAULT_CALL_MS 60000
#define DEFAULT_CONNECT_MS 10000
#define DEFAULT_GRACE_MS 2000
#define DEFAULT_DRAIN_MS 2000
#define DEFAULT_MAX_OUTPUT (1024 * 1024)
#define MAX_MS 86400000
/* Two streams of it, as base64, fit into a line. */
#define LARGEST_MAX_OUTPUT (5 * 1024 * 1024)

/* A string without NUL in it, to be freed; else NULL and, if it is there, *error. */
static char *
execute_request_take_text(const json_t *value, const char *field, HostError **error)
{
	if (value == NULL || json_is_null(value))
		return NULL;
	if (!json_is_string(value))
		*error = error_new("22023", "%s must be a string", field);
	else if (strlen(json_string_value(value)) != json_string_length(value))
		*error = error_new("22023", "%s must not hold a NUL character", field);
	else
		return xstrdup(json_string_value(value));
	return NULL;
}

static HostError *
too_many(const char *field, int most)
{
	return error_new("54000", "%s must not have more than %d elements", field, most);
}

/* Before any of them is copied. */
static void
check_words(const json_t *params, HostError **error)
{
	size_t bytes = json_string_length(json_object_get(params, "command"));
	const char *name;
	json_t *value;
	size_t i;

	json_array_foreach(json_object_get(params, "args"), i, value)
	{
		bytes += json_string_length(value);
	}
	json_object_foreach(json_object_get(params, "env"), name, value)
	{
		bytes += strlen(name) + json_string_length(value);
	}
	if (bytes > ENVRT_MAX_WORD_BYTES)
		*error =
		    error_new("54000", "command, args and env together must not be longer than %d bytes",
		              ENVRT_MAX_WORD_BYTES);
}

static void
take_args(ExecuteRequest *request, const json_t *list, HostError **error)
{
	size_t index;
	json_t *value;

	if (list != NULL && !json_is_null(list) && !json_is_array(list))
	{
		*error = error_new("22023", "args must be a list of strings");
		return;
	}
	if (json_array_size(list) > ENVRT_MAX_ARGUMENTS)
	{
		*error = too_many("args", ENVRT_MAX_ARGUMENTS);
		return;
	}
	request->args = xcalloc(json_array_size(list) + 1, sizeof *request->args);
	json_array_foreach(list, index, value)
	{
		char field[40];

		snprintf(field, sizeof field, "args[%zu]", index);
		request->args[index] = execute_request_take_text(value, field, error);
		if (request->args[index] == NULL && *error == NULL)
			*error = error_new("22023", "%s must be a string", field);
		if (*error != NULL)
			return;
		request->arg_count++;
	}
}

static bool
is_variable_name(const char *name)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_";

	/* A key can't hold a NUL: the JSON reader refuses it. */
	return *name != '\0' && strchr(letters, *name) != NULL &&
	       name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789")] ==
	           '\0';
}

static void
take_env(ExecuteRequest *request, const json_t *env, HostError **error)
{
	const char *name;
	json_t *value;

	if (env == NULL || json_is_null(env))
		return;
	if (!json_is_object(env))
	{
		*error = error_new("22023", "env must be an object");
		return;
	}
	if (json_object_size(env) > ENVRT_MAX_VARIABLES)
	{
		*error = too_many("env", ENVRT_MAX_VARIABLES);
		return;
	}
	request->env = xcalloc(json_object_size(env) + 1, sizeof *request->env);
	json_object_foreach((json_t *) env, name, value)
	{
		ExecuteVariable *variable = &request->env[request->env_count];
		char *field;

		if (!is_variable_name(name))
		{
			*error = error_new("22023", "Invalid environment variable key: %s", name);
			error_hint(*error,
			           "A name has letters, digits and underscores, and begins with no digit.");
			return;
		}
		field = xformat("env.%s", name);
		variable->value = execute_request_take_text(value, field, error);
		if (variable->value == NULL && *error == NULL)
			*error = error_new("22023", "%s must be a string", field);
		free(field);
		if (*error != NULL)
			return;
		variable->name = xstrdup(name);
		request->env_count++;
	}
}

/*
 * Decodes in one pass over the text, since there may be megabytes of it and
 * everybody waits meanwhile (libsodium's way, which gives nothing away by its
 * time, takes five times as long).  False: it is not base64.
 */
static bool
decode_base64(const char *text, size_t length, char *bytes, size_t *count)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	static signed char values[256];
	char *next = bytes;
	size_t padding = 0;
	unsigned group = 0;

	if (values['B'] == 0)
	{
		memset(values, -1, sizeof values);
		for (int i = 0; i < 64; i++)
			values[(unsigned char) digits[i]] = (signed char) i;
	}
	while (padding < 2 && length > padding && text[length - padding - 1] == '=')
		padding++;
	if (length % 4 != 0)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		int value = i < length - padding ? values[(unsigned char) text[i]] : 0;

		if (value < 0)
			return false;
		group = group << 6 | (unsigned) value;
		if (i % 4 == 3)
		{
			*next++ = (char) (group >> 16);
			*next++ = (char) (group >> 8);
			*next++ = (char) group;
			group = 0;
		}
	}
	/* Bits that nothing is left of must be zero. */
	for (size_t i = 0; i < padding; i++)
		if (*--next != 0)
			return false;
	*count = (size_t) (next - bytes);
	return true;
}

/* What stdinBase64 says, as a string of bytes, which no message may carry; NULL: it is no base64.
 */
static json_t *
decoded(const json_t *base64)
{
	size_t size = json_string_length(base64) / 4 * 3 + 1;
	char *bytes = xcalloc(1, size);
	size_t length;
	json_t *value = NULL;

	if (decode_base64(json_string_value(base64), json_string_length(base64), bytes, &length))
		value = json_stringn_nocheck(bytes, length);
	explicit_bzero(bytes, size);
	free(bytes);
	return value;
}

void
execute_request_prepare(json_t *params)
{
	const json_t *base64 = json_object_get(params, "stdinBase64");
	json_t *bytes = json_is_string(base64) ? decoded(base64) : NULL;

	if (bytes == NULL)
		return;
	json_object_set_new(params, "stdinBytes", bytes);
	json_object_del(params, "stdinBase64");
}

/* It is not copied: there may be megabytes of it. */
static void
take_input(ExecuteRequest *request, const json_t *params, HostError **error)
{
	const json_t *text = json_object_get(params, "stdin");
	const json_t *base64 = json_object_get(params, "stdinBase64");
	json_t *bytes = json_object_get(params, "stdinBytes");

	if (json_is_null(text))
		text = NULL;
	if (json_is_null(base64))
		base64 = NULL;
	if (text != NULL && (base64 != NULL || bytes != NULL))
		*error = error_new("22023", "stdin and stdinBase64 must not both be given");
	else if (text != NULL && !json_is_string(text))
		*error = error_new("22023", "stdin must be a string");
	else if (base64 != NULL && !json_is_string(base64))
		*error = error_new("22023", "stdinBase64 must be a string");
	else if (text != NULL)
		request->input_value = json_incref((json_t *) text);
	else if (base64 != NULL)
	{
		request->input_value = decoded(base64);
		if (request->input_value == NULL)
			*error = error_new("22023", "stdinBase64 is not base64");
	}
	else if (json_is_string(bytes))
		request->input_value = json_incref(bytes);
	request->input = json_string_value(request->input_value);
	request->input_length = json_string_length(request->input_value);
}

/* Milliseconds, a whole number; what is missing is *number as it is. */
static void
take_ms(const json_t *object, const char *key, const char *field, json_int_t least,
        uint64_t *number, HostError **error)
{
	const json_t *value = json_object_get(object, key);
	json_int_t given = json_integer_value(value);

	if (*error != NULL || value == NULL || json_is_null(value))
		return;
	if (!json_is_integer(value) || given < least || given > MAX_MS)
		*error = error_new("22023", "%s must be a whole number from %lld to %d", field,
		                   (long long) least, MAX_MS);
	else
		*number = (uint64_t) given;
}

static void
take_limits(ExecuteRequest *request, const json_t *params, HostError **error)
{
	const json_t *limits = json_object_get(params, "limits");
	const json_t *max_output = json_object_get(limits, "maxOutput");
	json_int_t most = json_is_integer(max_output) ? json_integer_value(max_output) : -1;

	request->timeout_ms = DEFAULT_CALL_MS;
	request->grace_ms = DEFAULT_GRACE_MS;
	request->drain_ms = DEFAULT_DRAIN_MS;
	request->connect_ms = DEFAULT_CONNECT_MS;
	take_ms(limits, "callMs", "limits.callMs", 1, &request->timeout_ms, error);
	take_ms(limits, "graceMs", "limits.graceMs", 0, &request->grace_ms, error);
	take_ms(limits, "drainMs", "limits.drainMs", 0, &request->drain_ms, error);
	take_ms(limits, "connectMs", "limits.connectMs", 1, &request->connect_ms, error);
	take_ms(params, "timeoutMs", "timeoutMs", 1, &request->timeout_ms, error);
	if (most < 0)
		most = DEFAULT_MAX_OUTPUT;
	request->max_output = (size_t) (most > LARGEST_MAX_OUTPUT ? LARGEST_MAX_OUTPUT : most);
}

/* The lease's own directory, unless the caller says another; a relative one is below it. */
static void
take_cwd(ExecuteRequest *request, const json_t *params, const char *default_cwd, HostError **error)
{
	const json_t *metadata = json_object_get(json_object_get(params, "lease"), "metadata");
	const char *base = json_string_value(json_object_get(metadata, "remoteCwd"));
	char *cwd = execute_request_take_text(json_object_get(params, "cwd"), "cwd", error);

	if (base == NULL || base[0] != '/')
		base = default_cwd;
	if (*error == NULL && cwd != NULL && cwd[0] == '\0')
		*error = error_new("22023", "cwd must not be empty");
	if (cwd == NULL)
		request->cwd = xstrdup(base);
	else if (cwd[0] == '/')
		request->cwd = xstrdup(cwd);
	else
		request->cwd = xformat("%s/%s", base, cwd);
	free(cwd);
}

static void
take_kind(ExecuteRequest *request, const json_t *params, HostError **error)
{
	const json_t *encoding = json_object_get(params, "encoding");
	const json_t *stream = json_object_get(params, "stream");

	if (encoding != NULL && !json_is_null(encoding))
	{
		const char *name = json_string_value(encoding);

		request->base64 = name != NULL && strcmp(name, "base64") == 0;
		if (!request->base64 && (name == NULL || strcmp(name, "text") != 0))
			*error = error_new("22023", "encoding must be \"text\" or \"base64\"");
	}
	request->stream = json_is_true(stream);
	if (stream != NULL && !json_is_null(stream) && !json_is_boolean(stream))
		*error = error_new("22023", "stream must be true or false");
}

ExecuteRequest *
execute_request_new(const json_t *params, const char *default_cwd, HostError **error)
{
	ExecuteRequest *request = xcalloc(1, sizeof *request);

	*error = NULL;
	check_words(params, error);
	if (*error == NULL)
		request->command =
		    execute_request_take_text(json_object_get(params, "command"), "command", error);
	if (*error == NULL && (request->command == NULL || request->command[0] == '\0'))
		*error = error_new("22023", "command must be a string that is not empty");
	if (*error == NULL)
		take_args(request, json_object_get(params, "args"), error);
	if (*error == NULL)
		take_env(request, json_object_get(params, "env"), error);
	if (*error == NULL)
		take_input(request, params, error);
	if (*error == NULL)
		take_limits(request, params, error);
	if (*error == NULL)
		take_cwd(request, params, default_cwd, error);
	if (*error == NULL)
		take_kind(request, params, error);
	if (*error == NULL)
		return request;
	execute_request_free(request);
	return NULL;
}

/* Finds it as it is, and with its quotes as scripts of ours and shells that trace write them. */
static void
find_text(SecretParts *parts, const char *text)
{
	static const char *const quotes[] = {"'\\''", "'\"'\"'", "\\'"};

	secret_parts_find(parts, text, strlen(text));
	for (size_t i = 0; strchr(text, '\'') != NULL && i < sizeof quotes / sizeof quotes[0]; i++)
	{
		size_t length = 0;
		char *quoted = xcalloc(1, strlen(text) * strlen("'\"'\"'") + 1);

		for (const char *c = text; *c != '\0'; c++)
			if (*c == '\'')
				length += (size_t) (stpcpy(quoted + length, quotes[i]) - (quoted + length));
			else
				quoted[length++] = *c;
		secret_parts_find(parts, quoted, length);
		secret_free(quoted);
	}
}

void
execute_request_mask(const ExecuteRequest *request, const json_t *env, char *text, size_t length)
{
	SecretParts *parts = secret_parts_new(text, length);
	const char *name;
	json_t *value;

	for (size_t i = 0; i < request->env_count; i++)
		find_text(parts, request->env[i].value);
	for (size_t i = 0; i < request->arg_count; i++)
		find_text(parts, request->args[i]);
	json_object_foreach((json_t *) env, name, value)
	{
		find_text(parts, json_string_value(value));
	}
	if (request->input_length > 0)
		secret_parts_find(parts, request->input, request->input_length);
	secret_parts_hide(parts);
}

void
execute_request_forget(ExecuteRequest *request)
{
	secret_free(request->command);
	request->command = NULL;
	for (size_t i = 0; i < request->arg_count; i++)
		secret_free(request->args[i]);
	free(request->args);
	request->args = NULL;
	request->arg_count = 0;
	/* One more may have been begun. */
	for (size_t i = 0; request->env != NULL && i <= request->env_count; i++)
	{
		free(request->env[i].name);
		secret_free(request->env[i].value);
	}
	free(request->env);
	request->env = NULL;
	request->env_count = 0;
	json_decref(request->input_value);
	request->input_value = NULL;
	request->input = NULL;
	request->input_length = 0;
}

void
execute_request_free(ExecuteRequest *request)
{
	if (request == NULL)
		return;
	execute_request_forget(request);
	free(request->cwd);
	free(request);
}

HostError *
execute_no_cwd(const ExecuteRequest *request, const char *detail)
{
	HostError *error =
	    error_new("22023", "cwd \"%s\" does not exist in the environment", request->cwd);

	if (detail != NULL && detail[0] != '\0')
		error_detail(error, "%s", detail);
	return error;
}
