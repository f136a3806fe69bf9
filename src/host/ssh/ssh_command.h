/*
 * ssh_command.h
 *		One command on a remote host.
 */
#ifndef ENVRT_HOST_SSH_COMMAND_H
#define ENVRT_HOST_SSH_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "calls/call.h"
#include "base/memory.h"
#include "ssh/ssh_channel.h"
#include "ssh/ssh_destination.h"
#include "ssh/ssh_execute_script.h"

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
	Call *call; /* for its state; NULL: none */
	const char *command_line;
	ExecuteStart *start; /* instead: a script is the input, for the shell that says it is ready */
	uint64_t connect_ms;
	uint64_t command_ms;
	size_t max_output;
	bool repeatable; /* to run it twice does no harm */
	ChannelInput input;

	/*
	 * For a command with a start whose owner keeps its time, and its output, by itself: all
	 * of these or none.  command_ms is then the time for the start: until the shell has read
	 * the script.
	 */
	/* The shell is about to be given the script; false: the command has been ended instead. */
	bool (*accepted)(void *data);
	/*
	 * As the data() and progress() of a channel, of what is the command's own; done() gets no
	 * output then.
	 */
	bool (*output)(void *data, bool is_stderr, const char *bytes, size_t length);
	void (*progress)(void *data);
	void (*drained)(void *data); /* the same of the input, which is kept; may be NULL */
	void (*exited)(
	    void *data); /* done() comes when its output is closed, or by ssh_command_leave() */

	/* Whether the output so far is all that is wanted; may be NULL. */
	bool (*complete)(void *data, const Bytes *output);

	/* The end.  One of error and result is NULL; the error is the callee's, the result is not. */
	void (*done)(void *data, HostError *error, const SshCommandResult *result);
	void *data;
} SshCommandSpec;

extern SshCommand *ssh_command_start(SshDestination *destination, const SshCommandSpec *spec);

/* Ends it here and there; done() will not run. */
extern void ssh_command_cancel(SshCommand *command);

/* The call is gone; false: so is the command, since it had been given nothing. */
extern bool ssh_command_detach(SshCommand *command);

/*
 * For those who keep the time: only between accepted() and done().
 */

/* What it has left behind may live on; done() runs, with how it exited, if it has. */
extern void ssh_command_leave(SshCommand *command);

/* As ssh_command_cancel(), and nobody else gets that session any more. */
extern void ssh_command_distrust(SshCommand *command);

/* More of its input, which was to be kept open; when it was drained. */
extern void ssh_command_give(SshCommand *command, const char *data, size_t length);

/* Its input, which was to be kept open, ends with its data after all. */
extern void ssh_command_end_input(SshCommand *command);

/* Output is wanted again. */
extern void ssh_command_resume(SshCommand *command);

/* Asks the server to signal it; without "SIG". */
extern void ssh_command_signal(SshCommand *command, const char *signal);

/* Runs another command on its session, whatever the limit of channels there. */
extern SshChannel *ssh_command_beside(SshCommand *command, const char *command_line,
                                      const SshChannelEvents *events, void *owner);

#endif
