/*
 * statement_log.c
 *		Keeps statements with secrets in them out of the server's log.
 *
 * When a statement fails, PostgreSQL logs it beside the error, with its
 * parameters and with the statements of functions around it as the context.  A
 * statement that gives one of our functions a secret as it is must not get there.
 *
 * While such a function runs, an error context callback hides both of whatever
 * is reported, by us or by PostgreSQL: a duplicate key, a cancel, a termination.
 * That holds for functions around ours, too, whose statement has another name.
 *
 * Outside of it, before it is called or after it has returned, a statement fails for
 * other reasons: no right to the function, a transaction that has failed
 * before, a deferred constraint, a syntax error.  For these, where envrt is
 * preloaded, a hook looks whether the statement names one of the functions.
 *
 * What is logged for other reasons (log_statement, log_min_duration_statement,
 * auto_explain) is the text of the message itself, and can't be hidden: that is
 * what sealing is for.
 */
#include "postgres.h"

#include "base/statement_log.h"
#include "tcop/tcopprot.h"

/* They are given secrets as part of an argument, and commands variables and input. */
static const char *const unlogged[] = {
    "envrt_create_secret",    "envrt_rotate_secret",   "envrt_create_environment",
    "envrt_normalize_config", "envrt_probe_config",    "envrt_execute",
    "envrt_execute_raw",      "envrt_start_execution",
};

static emit_log_hook_type previous_hook = NULL;

static void
hide_statement(void *arg)
{
	errhidestmt(true);
	errhidecontext(true);
}

Datum
call_unlogged(PGFunction function, FunctionCallInfo fcinfo)
{
	ErrorContextCallback callback;
	Datum result;

	callback.callback = hide_statement;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	/* An error takes it off again by itself. */
	error_context_stack = &callback;
	result = function(fcinfo);
	error_context_stack = callback.previous;
	return result;
}

/* Names are folded to lower case, unless they are quoted. */
static void
hide_by_name(ErrorData *error)
{
	for (int i = 0; !error->hide_stmt && debug_query_string != NULL && i < (int) lengthof(unlogged);
	     i++)
		if (strcasestr(debug_query_string, unlogged[i]) != NULL)
			error->hide_stmt = error->hide_ctx = true;
	if (previous_hook != NULL)
		previous_hook(error);
}

void
statement_log_install_hook(void)
{
	previous_hook = emit_log_hook;
	emit_log_hook = hide_by_name;
}
