/*
 * ssh_command.c
 *		One command on a remote host.
 *
 * A command waits for a place on a session (ssh_pool.c), runs in a channel
 * (ssh_channel.c), and ends: it exited, its output is complete, it failed, one of
 * its two deadlines passed, or it was cancelled.  Its caller is told, and then it
 * is freed.
 *
 * What is known to have had no effect is tried again, on whatever session the pool has, some
 * times: a channel that the server did not open, or closed before it ran the command; with a
 * script, also a shell that went with its channel before it was given that; and whatever is
 * said to be repeatable.  A session that has been used before may be dead without a sign, so it
 * has to show within a short time that it is alive.
 */
#include <stdlib.h>
#include <string.h>

#include "shared/protocol.h"
#include "ssh/ssh_channel.h"
#include "ssh/ssh_command.h"
#include "ssh/ssh_pool.h"
#include "base/timer.h"

/* A session that has been used has to show that it is alive within a short time. */
#define STALE_ANSWER_MS 2000
/* So often a command is tried, at first without a pause. */
#define MAX_TRIES 6
#define FIRST_PAUSE_MS 20
/* At the least, by a shell on a busy machine. */
#define BYTES_A_MS 50
/* What a login profile may say. */
#define MAX_WORDS (1024 * 1024)

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
	uint64_t received;   /* by its session, when it got its place */
	unsigned tries;      /* in vain */
	Timer *pause;        /* before the next one */
	bool opened;
	bool accepted; /* the server runs the command */
	bool begun;    /* the shell has read the script */
	bool overflow;
	SshCommandResult result;
	uint64_t end; /* of the command's time; 0: it has not begun */
};

static void
free_command(SshCommand *command)
{
	timer_stop(&command->deadline);
	timer_stop(&command->stale);
	timer_stop(&command->pause);
	bytes_free(&command->result.output);
	bytes_free(&command->result.errors);
	ssh_destination_release(command->destination);
	free(command->command_line);
	free(command);
}

/* Ends the command; it has neither a place nor a channel any more.  Takes the error. */
static void
ssh_command_finish(SshCommand *command, HostError *error)
{
	SshCommandSpec spec = command->spec;

	timer_stop(&command->deadline);
	timer_stop(&command->stale);
	spec.done(spec.data, error, error ? NULL : &command->result);
	free_command(command);
}

static void
ssh_command_set_state(const SshCommand *command, const char *state)
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
	else if (command->pause == NULL)
		ssh_pool_withdraw(&command->waiter);
	free_command(command);
}

bool
ssh_command_detach(SshCommand *command)
{
	command->spec.call = NULL;
	if (command->spec.start != NULL ? command->spec.start->given : command->opened)
		return true;
	ssh_command_cancel(command);
	return false;
}

void
ssh_command_leave(SshCommand *command)
{
	leave_channel(command, false, PLACE_ABANDONED);
	ssh_command_finish(command, NULL);
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

	return ssh_channel_run(ssh_session_channel_list(ssh_pooled_session(command->pooled)),
	                       command_line, none, events, owner);
}

/*
 * Deadlines
 */

/* With its script it may have run, whether we were told or not. */
static bool
may_have_run(const SshCommand *command)
{
	return command->spec.start != NULL ? command->spec.start->given : command->accepted;
}

static HostError *
ssh_command_timeout_error(const SshCommand *command, uint64_t milliseconds, const char *phase,
                          const char *setting)
{
	HostError *error =
	    error_new("08006", "%s: timed out after %llu ms while %s", command->destination->target,
	              (unsigned long long) milliseconds, phase);

	error->code = RPC_TIMEOUT;
	if (may_have_run(command))
		error->outcome = OUTCOME_UNKNOWN;
	if (setting != NULL)
		error_hint(error, "Check that the host answers, or raise %s.", setting);
	return error;
}

static void
connect_timed_out(void *data)
{
	SshCommand *command = data;
	const char *phase = ssh_pool_phase(&command->waiter);
	const char *trouble = ssh_pool_trouble(&command->waiter);
	HostError *error = ssh_command_timeout_error(command, command->spec.connect_ms, phase,
	                                             "envrt.ssh_connect_timeout");

	if (trouble != NULL)
		error_detail(error, "%s", trouble);
	ssh_pool_withdraw(&command->waiter);
	ssh_command_finish(command, error);
}

/* What a login shell said that did not become ready. */
static HostError *
not_ready_error(const SshCommand *command)
{
	HostError *error = ssh_command_timeout_error(command, command->spec.command_ms,
	                                             "waiting for the login shell to be ready", NULL);
	char *words = ssh_execute_start_words(command->spec.start, true, NULL);

	error_hint(error,
	           "Check the login profile of \"%s\" on the host (.profile, .bashrc, .zshrc, and what "
	           "they run): it must not read its input, nor redirect it or its output, and it must "
	           "come to an end.",
	           command->destination->username);
	if (words[0] != '\0')
		error_detail(error, "%s", words);
	free(words);
	return error;
}

static void
command_timed_out(void *data)
{
	SshCommand *command = data;
	const ExecuteStart *start = command->spec.start;
	const char *phase = command->begun || (command->accepted && start == NULL)
	                        ? "running the remote command"
	                    : command->opened ? "starting the remote command"
	                                      : "opening a channel";
	HostError *error;

	if (command->accepted && start != NULL && !start->given)
		error = not_ready_error(command);
	else
		error = ssh_command_timeout_error(command, command->spec.command_ms, phase,
		                                  command->spec.accepted ? "envrt.ssh_connect_timeout"
		                                                         : "envrt.ssh_command_timeout");
	if (command->result.errors.length > 0)
		error_detail(error, "%s", command->result.errors.data);
	leave_channel(command, true, PLACE_DOUBTFUL);
	ssh_command_finish(command, error);
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
	command->opened = command->accepted = command->begun = false;
	ssh_command_set_state(command, "connecting");
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

static void
channel_accepted(void *owner)
{
	SshCommand *command = owner;

	command->accepted = true;
	if (command->spec.start != NULL)
		command->spec.start->since = now_ms();
	ssh_command_set_state(command, command->spec.start ? "starting" : "running");
}

static bool
channel_data(void *owner, const char *data, size_t length, bool is_stderr)
{
	SshCommand *command = owner;
	size_t room;

	if (command->spec.start != NULL)
		data = ssh_execute_start_take(command->spec.start, is_stderr, data, &length);
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

/* A shell reads a script byte by byte, and a large one has its time for that. */
static void
give_time_to_read(SshCommand *command)
{
	uint64_t more = command->spec.input.length / BYTES_A_MS;
	uint64_t now = now_ms();

	command->end += more;
	timer_start(&command->deadline, command->end > now ? command->end - now : 1, command_timed_out,
	            command);
}

/* How far the shell has got.  False: the command is gone. */
static bool
advance_start(SshCommand *command)
{
	ExecuteStart *start = command->spec.start;

	if (start->said > MAX_WORDS)
	{
		HostError *error =
		    error_new("38000", "%s: the login shell wrote more than %d bytes before it was ready",
		              command->destination->target, MAX_WORDS);

		error_hint(error, "Check what the user's login shell prints there.");
		if (may_have_run(command))
			error->outcome = OUTCOME_UNKNOWN;
		leave_channel(command, true, PLACE_ABANDONED);
		ssh_command_finish(command, error);
		return false;
	}
	if (!start->given && ssh_execute_start_is_ready(start))
	{
		start->given = true;
		if (command->spec.accepted != NULL && !command->spec.accepted(command->spec.data))
			return false;
		give_time_to_read(command);
		ssh_channel_give(command->channel, command->spec.input.data, command->spec.input.length);
		if (!command->spec.input.keep)
			ssh_channel_end_input(command->channel);
	}
	if (!command->begun && start->state != START_WAITING)
	{
		command->begun = true;
		ssh_command_set_state(command, "running");
		if (command->spec.accepted != NULL)
			timer_stop(&command->deadline);
	}
	return true;
}

static void
channel_progress(void *owner)
{
	SshCommand *command = owner;
	HostError *error = NULL;

	if (command->spec.start != NULL && !advance_start(command))
		return;
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
	ssh_command_finish(command, error);
}

static void
channel_drained(void *owner)
{
	SshCommand *command = owner;

	if (command->spec.drained != NULL && command->spec.start->given)
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

static void
pause_over(void *data)
{
	wait_for_place(data, true);
}

/* Whether it is certain that nothing has run, or does not matter. */
static bool
is_repeatable(const SshCommand *command)
{
	const ExecuteStart *start = command->spec.start;

	return command->spec.repeatable || !command->opened || (start != NULL && !start->given);
}

/* Begins anew; false when it is of no use. */
static bool
ssh_command_try_again(SshCommand *command)
{
	ExecuteStart *start = command->spec.start;

	if (!is_repeatable(command) || ++command->tries >= MAX_TRIES)
		return false;
	command->result.output.length = command->result.errors.length = 0;
	command->overflow = false;
	if (start != NULL)
		ssh_execute_start_reset(start);
	if (command->tries == 1)
		wait_for_place(command, true);
	else
	{
		ssh_command_set_state(command, "connecting");
		timer_start(&command->pause, FIRST_PAUSE_MS << command->tries, pause_over, command);
		timer_stop(&command->deadline);
	}
	return true;
}

static HostError *
lost_error(const SshCommand *command, const ChannelEnd *end)
{
	const char *target = command->destination->target;
	HostError *error;

	if (end->kind == CHANNEL_DENIED || end->kind == CHANNEL_CLOSED)
	{
		error = error_new("38000", "%s: no command can be run: %s", target, end->text);
		error_hint(error, "Check that the user may run commands on the host.");
	}
	else
	{
		bool ran = may_have_run(command);

		error = error_new("08006", "%s: the connection was lost while %s: %s", target,
		                  ran ? "the remote command ran" : "the remote command was being started",
		                  end->text);
		if (ran)
			error->outcome = OUTCOME_UNKNOWN;
	}
	return error;
}

static void
channel_ended(void *owner, const ChannelEnd *end)
{
	SshCommand *command = owner;
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
		error = error_new("08006", "%s: the server opens no session channel: %s",
		                  command->destination->target, end->text);
		error_hint(error, "Check MaxSessions in the host's sshd_config.");
		ssh_command_finish(command, error);
		return;
	}
	ssh_pool_done(pooled, PLACE_FREE);
	if (end->kind == CHANNEL_EXITED || end->kind == CHANNEL_SIGNALED)
		note_exit(command, end);
	else if (end->kind != CHANNEL_DENIED && ssh_command_try_again(command))
		return;
	else
		error = lost_error(command, end);
	ssh_command_finish(command, error);
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
	uint64_t received = ssh_session_received(ssh_pooled_session(command->pooled));

	/* It is slow, but it lives. */
	if (received != command->received)
	{
		command->received = received;
		timer_start(&command->stale, STALE_ANSWER_MS, session_stale, command);
		return;
	}
	leave_channel(command, false, PLACE_DOUBTFUL);
	if (!ssh_command_try_again(command))
		ssh_command_finish(command,
		                   ssh_command_timeout_error(command, STALE_ANSWER_MS, "opening a channel",
		                                             "envrt.ssh_connect_timeout"));
}

/*
 * The place
 */

static void
ssh_command_run(SshCommand *command)
{
	SshSession *session = ssh_pooled_session(command->pooled);
	ExecuteStart *start = command->spec.start;
	char *line = start ? ssh_execute_command_line(start->marker) : xstrdup(command->command_line);
	ChannelInput input = {.keep = true};

	/* A script is given to the shell that is ready for it. */
	if (start == NULL)
		input = command->spec.input;
	command->channel =
	    ssh_channel_run(ssh_session_channel_list(session), line, input, &channel_events, command);
	free(line);
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
	ssh_command_set_state(command, "opening a channel");
	timer_start(&command->deadline, patience, command_timed_out, command);
	/* Only another session can be better, and that only if this one is not new. */
	if (ssh_pooled_is_used(pooled) && patience > STALE_ANSWER_MS)
	{
		command->received = ssh_session_received(ssh_pooled_session(pooled));
		timer_start(&command->stale, STALE_ANSWER_MS, session_stale, command);
	}
	ssh_command_run(command);
}

static void
place_failed(SshWaiter *waiter, const HostError *error)
{
	ssh_command_finish((SshCommand *) waiter, error_copy(error));
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
