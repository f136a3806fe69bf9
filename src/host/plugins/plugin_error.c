/*
 * plugin_error.c
 *		What clients are told when a plugin does not do what it was asked.
 *
 * The worker's own words are passed on, as far as they can be shown; its
 * SQLSTATE is always that of an external routine, so that no plugin can make a
 * caller believe that PostgreSQL, or the host, refused something.
 */
#include <limits.h>

#include "plugins/plugin_error.h"
#include "shared/protocol.h"

#define LAST_WORDS "Worker stderr:\n"

static HostError *
complete(HostError *error, int code, const char *last_words)
{
	error->code = code;
	error->outcome = OUTCOME_UNKNOWN;
	if (last_words[0] != '\0' && error->detail == NULL)
		error_detail(error, LAST_WORDS "%s", last_words);
	return error;
}

/* Before the last words, if there are any. */
static const char *
lead(const char *last_words)
{
	return last_words[0] != '\0' ? "\n\n" LAST_WORDS : "";
}

HostError *
plugin_error_timeout(const char *plugin, const char *last_words, const char *trouble,
                     const char *method, uint64_t limit_ms)
{
	HostError *error = error_new("38000", "Plugin \"%s\" did not answer %s within %llu ms", plugin,
	                             method, (unsigned long long) limit_ms);

	if (trouble != NULL)
		error_detail(error, "Its worker %s.%s%s", trouble, lead(last_words), last_words);
	return complete(error, RPC_TIMEOUT, last_words);
}

HostError *
plugin_error_no_worker(const char *plugin, const char *driver, const char *last_words,
                       const char *how, uint64_t delay_ms)
{
	HostError *error =
	    driver == NULL
	        ? error_new("38000", "Plugin \"%s\" has no running worker", plugin)
	        : error_new("38000", "Plugin environment driver \"%s:%s\" has no running worker.",
	                    plugin, driver);

	error_detail(error, "Its worker %s; it is started again in %llu ms.%s%s", how,
	             (unsigned long long) delay_ms, lead(last_words), last_words);
	error_hint(error, "envrt_restart_plugin() makes it start at once.");
	return complete(error, RPC_WORKER_UNAVAILABLE, last_words);
}

HostError *
plugin_error_lost(const char *plugin, const char *last_words)
{
	return complete(error_new("38000", "Plugin \"%s\" worker ended during the call", plugin),
	                RPC_WORKER_UNAVAILABLE, last_words);
}

HostError *
plugin_error_unusable(const char *plugin, const char *method, const char *problem)
{
	return complete(error_new("38000", "Plugin \"%s\" answered %s with what can't be used: %s",
	                          plugin, method, problem),
	                RPC_WORKER_ERROR, "");
}

HostError *
plugin_error_answered(const char *plugin, const char *last_words, json_int_t code,
                      const char *message)
{
	HostError *error = error_new("38000", "%s", message);

	if (error->message[0] == '\0')
	{
		error_free(error);
		error = error_new("38000", "Plugin \"%s\" failed without a message", plugin);
	}
	return complete(error, code >= INT_MIN && code <= INT_MAX ? (int) code : RPC_WORKER_ERROR,
	                last_words);
}

HostError *
plugin_error_unsupported(const char *method)
{
	return complete(error_new("38000", "%s is not implemented by this plugin", method),
	                RPC_METHOD_NOT_IMPLEMENTED, "");
}
