/*
 * ssh_command.h
 *		One command on a remote host.
 */
#ifndef ENVRT_HOST_SSH_COMMAND_H
#define ENVRT_HOST_SSH_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "call.h"
#include "memory.h"
#include "ssh_destination.h"

typedef struct SshCommand SshCommand;

typedef struct SshCommandResult
{
	bool exited;
	int status;         /* when it exited */
	const char *signal; /* when it did not; NULL when the output told that it was complete */
	Bytes output;
	Bytes errors;
} SshCommandResult;

typedef struct SshCommandSpec
{
	Call *call; /* for its state */
	const char *command_line;
	uint64_t connect_ms;
	uint64_t command_ms;
	size_t max_output;
	bool repeatable; /* to run it twice does no harm */
	bool keep_input; /* its input ends with its channel, else at once */

	/* Whether the output so far is all that is wanted; may be NULL. */
	bool (*complete)(void *data, const Bytes *output);

	/* The end.  One of error and result is NULL; the error is the callee's, the result is not. */
	void (*done)(void *data, HostError *error, const SshCommandResult *result);
	void *data;
} SshCommandSpec;

extern SshCommand *ssh_command_start(SshDestination *destination, const SshCommandSpec *spec);

/* Ends it here and there; done() will not run. */
extern void ssh_command_cancel(SshCommand *command);

#endif
