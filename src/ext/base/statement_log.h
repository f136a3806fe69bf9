/*
 * statement_log.h
 *		Statements that the server's log must not have; see statement_log.c.
 */
#ifndef ENVRT_STATEMENT_LOG_H
#define ENVRT_STATEMENT_LOG_H

#include "postgres.h"

#include "fmgr.h"

/* The function's result; whatever is reported meanwhile comes into the log without the statement.
 */
extern Datum call_unlogged(PGFunction function, FunctionCallInfo fcinfo);

/*
 * DEFINE_UNLOGGED_FUNCTION(name)
 *		Begins an SQL function that may be given secrets as they are: its body follows.
 */
#define DEFINE_UNLOGGED_FUNCTION(name)                                                             \
	static Datum unlogged_##name(PG_FUNCTION_ARGS);                                                \
	PG_FUNCTION_INFO_V1(name);                                                                     \
	Datum name(PG_FUNCTION_ARGS)                                                                   \
	{                                                                                              \
		return call_unlogged(unlogged_##name, fcinfo);                                             \
	}                                                                                              \
	static Datum unlogged_##name(PG_FUNCTION_ARGS)

extern void statement_log_install_hook(void);

#endif
