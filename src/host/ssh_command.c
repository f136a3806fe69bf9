/*
 * ssh_command.c
 *		One command on a remote host.
 *
 * A command waits for a place on a session (ssh_pool.c), runs in a channel
 * (ssh_channel.c), and ends: it exited, its output is complete, it failed, one of
 * its two deadlines passed, or it was cancelled.  It is freed then, before its
 * caller is told.
 *
 * A session that has been used before may turn out to be dead, and only the
 * attempt shows it.  If it breaks before the server has said that it runs the
 * command, or, after a long idleness, does not even open a channel in time,
 * the command goes back to the pool once, at the head of the queue.
 */
#include <stdlib.h>
#include <string.h>

#include "protocol.h"
#include "ssh_channel.h"
#include "ssh_command.h"
#include "ssh_pool.h"
#include "ssh_shell.h"
#include "timer.h"

/* A session that is not fresh has to show that it is alive within a short time. */
#define STALE_ANSWER_MS 2000
/* So long a login shell may take until it is ready for a script that it does not get before. */
#define READY_MS 5000

struct SshCommand
{
	SshWaiter waiter;
	SshCommandSpec spec;
	char *command_line;
	SshDestination *destination;
	uint64_t started;
	Timer *deadline;
	Timer *stale;
	SshPooled *pooled;   /* NULL while waiting */
	SshChannel *channel; /* likewise */
	bool used_session;   /* others ran on it before */
	bool opened;
	bool accepted;
	bool replaced; /* a dead session, once */
	bool plain;    /* the login shell is to run the script */
	bool waited;   /* it did for it: that its server is alive has not been seen */
	bool overflow;
	SshCommandResult result;
	uint64_t end; /* of the command's time; 0: it has not begun */
};

static void
free_command(SshCommand *command)
{
	timer_stop(&command->deadline);
	timer_stop(&command->stale);
	bytes_free(&command->result.output);
	bytes_free(&command->result.errors);
	ssh_destination_release(command->destination);
	free(command->command_line);
	free(command);
}

/* Ends the command; it has neither a place nor a channel any more.  Takes the error. */
static void
finish(SshCommand *command, HostError *error)
{
	SshCommandSpec spec = command->spec;

	timer_stop(&command->deadline);
	timer_stop(&command->stale);
	spec.done(spec.data, error, error ? NULL : &command->result);
	free_command(command);
}

static void
set_state(const SshCommand *command, const char *state)
{
	if (command->spec.call != NULL)
		call_set_state(command->spec.call, state);
}

static void
leave_channel(SshCommand *command, bool kill, PlaceState state)
{
	SshPooled *pooled = command->pooled;

	ssh_channel_abandon(command->channel, kill);
	command->channel = NULL;
	command->pooled = NULL;
	ssh_pool_done(pooled, state);
}

void
ssh_command_cancel(SshCommand *command)
{
	if (command->channel != NULL)
		leave_channel(command, true, PLACE_ABANDONED);
	else
		ssh_pool_withdraw(&command->waiter);
	free_command(command);
}

bool
ssh_command_detach(SshCommand *command)
{
	command->spec.call = NULL;
	if (command->opened)
		return true;
	ssh_command_cancel(command);
	return false;
}

void
ssh_command_set_plain_shell(SshCommand *command)
{
	ssh_pooled_set_login_shell(command->pooled, LOGIN_SHELL_PLAIN);
}

void
ssh_command_leave(SshCommand *command)
{
	leave_channel(command, false, PLACE_ABANDONED);
	finish(command, NULL);
}

void
ssh_command_distrust(SshCommand *command)
{
	leave_channel(command, true, PLACE_DOUBTFUL);
	free_command(command);
}

void
ssh_command_give(SshCommand *command, const char *data, size_t length)
{
	ssh_channel_give(command->channel, data, length);
}

void
ssh_command_end_input(SshCommand *command)
{
	ssh_channel_end_input(command->channel);
}

void
ssh_command_resume(SshCommand *command)
{
	ssh_channel_resume(command->channel);
}

void
ssh_command_signal(SshCommand *command, const char *signal)
{
	ssh_channel_signal(command->channel, signal);
}

SshChannel *
ssh_command_beside(SshCommand *command, const char *command_line, const SshChannelEvents *events,
                   void *owner)
{
	ChannelInput none = {0};

	return ssh_channel_run(ssh_pooled_session(command->pooled), command_line, none, events, owner);
}

/*
 * Deadlines
 */

static HostError *
timeout_error(const SshCommand *command, uint64_t milliseconds, const char *phase,
              const char *setting)
{
	HostError *error =
	    error_new("08006", "%s: timed out after %llu ms while %s", command->destination->target,
	              (unsigned long long) milliseconds, phase);

	error->code = RPC_TIMEOUT;
	error_hint(error, "Check that the host answers, or raise %s.", setting);
	return error;
}

static void
connect_timed_out(void *data)
{
	SshCommand *command = data;
	const char *phase = ssh_pool_phase(&command->waiter);
	const char *trouble = ssh_pool_trouble(&command->waiter);
	HostError *error =
	    timeout_error(command, command->spec.connect_ms, phase, "envrt.ssh_connect_timeout");

	if (trouble != NULL)
		error_detail(error, "%s", trouble);
	ssh_pool_withdraw(&command->waiter);
	finish(command, error);
}

static void
command_timed_out(void *data)
{
	SshCommand *command = data;
	const char *phase = command->accepted && !command->waited ? "running the remote command"
	                    : command->opened                     ? "starting the remote command"
	                                                          : "opening a channel";
	HostError *error = timeout_error(command, command->spec.command_ms, phase,
	                                 command->spec.accepted ? "envrt.ssh_connect_timeout"
	                                                        : "envrt.ssh_command_timeout");

	if (command->result.errors.length > 0)
		error_detail(error, "%s", command->result.errors.data);
	leave_channel(command, true, PLACE_DOUBTFUL);
	finish(command, error);
}

/*
 * The channel
 */

static void
wait_for_place(SshCommand *command, bool first)
{
	uint64_t now = now_ms();
	uint64_t end = command->started + command->spec.connect_ms + command->spec.command_ms;
	uint64_t time = command->spec.connect_ms;

	/* A second try has its own time to connect, but the call has only what it has. */
	if (now + time > end)
		time = end > now ? end - now : 1;
	command->waiter.deadline = now + time;
	command->opened = command->accepted = false;
	set_state(command, "connecting");
	timer_start(&command->deadline, time, connect_timed_out, command);
	ssh_pool_ask(&command->waiter, first);
}

static void
channel_opened(void *owner)
{
	SshCommand *command = owner;

	command->opened = true;
	ssh_pool_opened(command->pooled);
	timer_stop(&command->stale);
}

/* It is slow, or what it says does not arrive; it has been given nothing. */
static void
not_ready(void *data)
{
	SshCommand *command = data;

	ssh_pooled_set_login_shell(command->pooled, LOGIN_SHELL_ODD);
	ssh_command_leave(command);
}

static void
channel_accepted(void *owner)
{
	SshCommand *command = owner;

	command->accepted = true;
	set_state(command, "running");
	if (command->spec.accepted != NULL)
	{
		if (!command->waited)
			timer_stop(&command->deadline);
		if (command->spec.start != NULL && command->spec.start->held_back)
			timer_start(&command->stale, READY_MS, not_ready, command);
		command->spec.accepted(command->spec.data);
	}
}

static bool
channel_data(void *owner, const char *data, size_t length, bool is_stderr)
{
	SshCommand *command = owner;
	size_t room;

	if (command->spec.output != NULL)
		return command->spec.output(command->spec.data, is_stderr, data, length);
	room = command->spec.max_output - command->result.output.length - command->result.errors.length;
	if (length > room)
	{
		command->overflow = true;
		length = room;
	}
	bytes_append(is_stderr ? &command->result.errors : &command->result.output, data, length);
	return true;
}

/* A login shell that is to run the script has said something. */
static void
plain_progress(SshCommand *command)
{
	ExecuteStart *start = command->spec.start;

	if (command->waited)
	{
		command->waited = false;
		timer_stop(&command->deadline);
	}
	if (!start->ready)
		return;
	ssh_pooled_set_login_shell(command->pooled, LOGIN_SHELL_READY);
	if (start->held_back)
	{
		start->held_back = false;
		timer_stop(&command->stale);
		ssh_channel_give(command->channel, command->spec.input.data, command->spec.input.length);
		if (!command->spec.input.keep)
			ssh_channel_end_input(command->channel);
	}
}

static void
channel_progress(void *owner)
{
	SshCommand *command = owner;
	HostError *error = NULL;

	if (command->plain)
		plain_progress(command);
	if (command->spec.progress != NULL)
	{
		command->spec.progress(command->spec.data);
		return;
	}
	if (command->spec.complete != NULL &&
	    command->spec.complete(command->spec.data, &command->result.output))
		leave_channel(command, false, PLACE_ABANDONED);
	else if (command->overflow)
	{
		error = error_new("38000", "%s: the remote command wrote more than %zu bytes",
		                  command->destination->target, command->spec.max_output);
		error_hint(error, "Check what the user's login shell prints there.");
		leave_channel(command, true, PLACE_ABANDONED);
	}
	else
		return;
	finish(command, error);
}

static void
channel_drained(void *owner)
{
	SshCommand *command = owner;

	if (command->spec.drained != NULL)
		command->spec.drained(command->spec.data);
}

static void
note_exit(SshCommand *command, const ChannelEnd *end)
{
	command->result.exited = end->kind == CHANNEL_EXITED;
	command->result.status = end->status;
	command->result.signal = end->text;
}

static void
channel_exited(void *owner, const ChannelEnd *end)
{
	SshCommand *command = owner;

	note_exit(command, end);
	if (command->spec.exited != NULL)
		command->spec.exited(command->spec.data);
}

/* Whether a break means no more than that the session was dead. */
static bool
may_replace(const SshCommand *command)
{
	return command->used_session && !command->replaced && !command->accepted &&
	       (command->spec.repeatable || !command->opened);
}

static void
channel_ended(void *owner, const ChannelEnd *end)
{
	SshCommand *command = owner;
	const char *target = command->destination->target;
	SshPooled *pooled = command->pooled;
	HostError *error = NULL;

	command->channel = NULL;
	command->pooled = NULL;
	timer_stop(&command->stale);
	if (end->kind == CHANNEL_REFUSED)
	{
		if (ssh_pool_refused(pooled))
		{
			wait_for_place(command, true);
			return;
		}
		error =
		    error_new("08006", "%s: the server opens no session channel: %s", target, end->text);
		error_hint(error, "Check MaxSessions in the host's sshd_config.");
		finish(command, error);
		return;
	}
	ssh_pool_done(pooled, PLACE_FREE);
	switch (end->kind)
	{
		case CHANNEL_EXITED:
		case CHANNEL_SIGNALED:
			note_exit(command, end);
			break;
		case CHANNEL_DENIED:
			error = error_new("38000", "%s: no command can be run: %s", target, end->text);
			error_hint(error, "Check that the user may run commands on the host.");
			break;
		default:
			if (may_replace(command))
			{
				command->replaced = true;
				wait_for_place(command, true);
				return;
			}
			error = error_new("08006", "%s: the connection was lost while %s: %s", target,
			                  command->accepted ? "the remote command ran"
			                                    : "the remote command was being started",
			                  end->text);
	}
	if (error == NULL && command->plain)
	{
		if (command->spec.start->ready)
			ssh_pooled_await_next(pooled);
		else if (end->kind == CHANNEL_EXITED)
			ssh_pooled_set_login_shell(pooled, LOGIN_SHELL_ODD);
	}
	finish(command, error);
}

static const SshChannelEvents channel_events = {.opened = channel_opened,
                                                .accepted = channel_accepted,
                                                .data = channel_data,
                                                .progress = channel_progress,
                                                .drained = channel_drained,
                                                .exited = channel_exited,
                                                .ended = channel_ended};

static void
session_stale(void *data)
{
	SshCommand *command = data;

	command->replaced = true;
	leave_channel(command, false, PLACE_DOUBTFUL);
	wait_for_place(command, true);
}

/*
 * The place
 */

static char *
make_line(const SshCommand *command)
{
	const ExecuteStart *start = command->spec.start;

	if (start == NULL)
		return xstrdup(command->command_line);
	return command->plain ? ssh_execute_plain_line(start->marker)
	                      : ssh_execute_command_line(start->marker);
}

static void
run(SshCommand *command)
{
	SshPooled *pooled = command->pooled;
	LoginShell login_shell = ssh_pooled_login_shell(pooled);
	ExecuteStart *start = command->spec.start;
	ChannelInput input = command->spec.input;
	SshShell *shell = NULL;
	bool hold = false;
	char *line;

	command->plain = start != NULL && command->spec.plain &&
	                 (login_shell == LOGIN_SHELL_PLAIN || login_shell == LOGIN_SHELL_READY);
	if (command->plain)
	{
		shell = ssh_pooled_take_shell(pooled);
		hold = shell ? !ssh_shell_is_ready(shell) : login_shell != LOGIN_SHELL_READY;
	}
	if (hold)
		input = (ChannelInput){.keep = true};
	command->waited = shell != NULL && !hold;
	if (shell != NULL)
		command->channel = ssh_shell_take(shell, start, input, &channel_events, command);
	else
	{
		line = make_line(command);
		command->channel =
		    ssh_channel_run(ssh_pooled_session(pooled), line, input, &channel_events, command);
		free(line);
	}
	if (start != NULL)
	{
		start->in_plain = command->plain;
		start->held_back = hold;
	}
}

static void
place_granted(SshWaiter *waiter, SshPooled *pooled)
{
	SshCommand *command = (SshCommand *) waiter;
	uint64_t now = now_ms();
	uint64_t patience;

	/* Another try on another session gets what is left of the time. */
	if (command->end == 0)
		command->end = now + command->spec.command_ms;
	patience = command->end > now ? command->end - now : 1;
	command->pooled = pooled;
	command->used_session = ssh_pooled_is_used(pooled);
	set_state(command, "opening a channel");
	timer_start(&command->deadline, patience, command_timed_out, command);
	if (patience > STALE_ANSWER_MS)
		patience = STALE_ANSWER_MS;
	if (ssh_pooled_idle_ms(pooled) > SSH_FRESH_MS && !command->replaced)
		timer_start(&command->stale, patience, session_stale, command);
	run(command);
}

static void
place_failed(SshWaiter *waiter, const HostError *error)
{
	finish((SshCommand *) waiter, error_copy(error));
}

SshCommand *
ssh_command_start(SshDestination *destination, const SshCommandSpec *spec)
{
	SshCommand *command = xcalloc(1, sizeof *command);

	command->spec = *spec;
	command->command_line = spec->command_line ? xstrdup(spec->command_line) : NULL;
	command->destination = ssh_destination_keep(destination);
	command->waiter.destination = destination;
	command->waiter.granted = place_granted;
	command->waiter.failed = place_failed;
	command->started = now_ms();
	wait_for_place(command, false);
	return command;
}
