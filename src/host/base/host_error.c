/*
 * host_error.c
 *		What a call that fails tells its caller.
 *
 * An error is made where the failure is understood and handed up by pointer:
 * whoever takes one owns it.  Message, detail and hint are cleaned here, once,
 * whatever they were made of: no caller can forget it.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/host_error.h"
#include "shared/jsonrpc.h"
#include "base/memory.h"
#include "shared/protocol.h"

#define MESSAGE_MAX 1000
/* The end of a worker's stderr, and what is said before it. */
#define DETAIL_MAX 9000

static char *__attribute__((format(printf, 3, 0)))
format_clean(size_t max, bool lines, const char *format, va_list arguments)
{
	char *text = NULL;
	char *clean;

	if (vasprintf(&text, format, arguments) < 0)
		return xstrdup("out of memory");
	clean = clean_text(text, strlen(text), max, lines);
	free(text);
	return clean;
}

HostError *
error_new(const char *sqlstate, const char *format, ...)
{
	HostError *error = xcalloc(1, sizeof *error);
	va_list arguments;

	error->code = RPC_WORKER_ERROR;
	snprintf(error->sqlstate, sizeof error->sqlstate, "%s", sqlstate);
	va_start(arguments, format);
	error->message = format_clean(MESSAGE_MAX, false, format, arguments);
	va_end(arguments);
	return error;
}

void
error_detail(HostError *error, const char *format, ...)
{
	va_list arguments;

	free(error->detail);
	va_start(arguments, format);
	error->detail = format_clean(DETAIL_MAX, true, format, arguments);
	va_end(arguments);
}

void
error_hint(HostError *error, const char *format, ...)
{
	va_list arguments;

	free(error->hint);
	va_start(arguments, format);
	error->hint = format_clean(MESSAGE_MAX, true, format, arguments);
	va_end(arguments);
}

HostError *
error_copy(const HostError *error)
{
	HostError *copy = xcalloc(1, sizeof *copy);

	*copy = *error;
	copy->message = xstrdup(error->message);
	copy->detail = error->detail ? xstrdup(error->detail) : NULL;
	copy->hint = error->hint ? xstrdup(error->hint) : NULL;
	return copy;
}

void
error_free(HostError *error)
{
	if (error == NULL)
		return;
	free(error->message);
	free(error->detail);
	free(error->hint);
	free(error);
}

json_t *
error_response(json_t *id, const HostError *error)
{
	json_t *data = json_object();

	json_object_set_new(data, "sqlstate", json_string(error->sqlstate));
	if (error->detail != NULL && error->detail[0] != '\0')
		json_object_set_new(data, "detail", json_string(error->detail));
	if (error->hint != NULL && error->hint[0] != '\0')
		json_object_set_new(data, "hint", json_string(error->hint));
	if (error->outcome != NULL)
		json_object_set_new(data, "outcome", json_string(error->outcome));
	return rpc_error(id, error->code, error->message, data);
}

const char *
sqlstate_of_words(const char *words, const char *otherwise)
{
	/* Of ENOSPC and EDQUOT in the C locale, as GNU's and the BSDs' libraries have them. */
	static const char *const signs[] = {"No space left on device", "no space left on device",
	                                    "isk quota exceeded", "Disc quota exceeded",
	                                    "Quota exceeded"};

	for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++)
		if (strstr(words, signs[i]) != NULL)
			return "53100";
	return otherwise;
}
