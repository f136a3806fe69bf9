/*
 * command.h
 *		Commands in a lease, as the driver host is asked for them; see command.c.
 */
#ifndef ENVRT_COMMAND_H
#define ENVRT_COMMAND_H

#include "postgres.h"

#include "fmgr.h"
#include "shared/json_library.h"
#include "leases/active_lease.h"
#include "rights/tables.h"
#include "utils/array.h"
#include "utils/jsonb.h"

/* Between SIGTERM and SIGKILL. */
#define COMMAND_GRACE_MS 2000

/* What is to be run in a lease. */
typedef struct Command
{
	text *command;
	ArrayType *args;
	text *cwd;          /* NULL: the driver's own */
	Jsonb *env;         /* references to secrets are references */
	bytea *stdin_bytes; /* one of these two, or neither */
	text *stdin_text;
	int64 timeout_ms; /* 0: none given */
} Command;

/* How long a command may run that is given no time limit by anybody. */
#define EXECUTION_MS 86400000

/* Of a function whose arguments are those of envrt_execute; ERROR 22023. */
extern void command_from_arguments(FunctionCallInfo fcinfo, bool raw, Command *command);

/* ERROR unless the env is one, and the caller may use the secrets in it. */
extern void command_check_env(const ApiCall *call, const CalledLease *lease,
                              const Command *command);

/*
 * command_params
 *		All that the driver host is told, with secrets in place (guarded).  The
 *		env has been checked, when the command was asked for.
 *
 * otherwise_ms is the time limit where neither the command nor the
 * environment has one; *timeout_ms is what the call may take.
 */
extern json_t *command_params(const ApiCall *call, const CalledLease *lease, const Command *command,
                              int64 otherwise_ms, int64 *timeout_ms);

/* Bytes as text of the database's encoding: what is no text is replaced.  *replaced: something was.
 */
extern text *text_of_bytes(const char *bytes, size_t length, bool *replaced);

#endif
