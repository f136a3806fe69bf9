/*
 * worker_signals.c
 *		Signals of the background workers.
 */
#include "postgres.h"

#include "base/worker_signals.h"
#include "tcop/tcopprot.h"
#include "utils/timeout.h"

/*
 * pg_cancel_backend() is for what a user has asked for, and a worker's work is that of many.  The
 * time limits of its own statements come as SIGINT, too.
 */
void
worker_ignore_cancel(SIGNAL_ARGS)
{
	if (get_timeout_indicator(LOCK_TIMEOUT, false) ||
	    get_timeout_indicator(STATEMENT_TIMEOUT, false))
		StatementCancelHandler(postgres_signal_arg);
}
