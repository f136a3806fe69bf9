/*
 * ssh_shell.c
 *		A login shell that waits for its command.
 *
 * Most of what a short command takes is the server's fork and the start of the login shell, with
 * all that the user's profile does.  Where commands follow each other, that is done ahead: when one
 * has ended, the session (ssh_pool.c) starts the shell of the next, up to where it reads the
 * script (ssh_execute_script.c).  Whoever needs one takes over its channel, in whatever state that
 * is, and sends the script.
 *
 * Between its start and its command no other of the commands that share its session ends there or
 * begins, so that what the last one has made of the user's profile counts for the next.  (Of those
 * with another key or configuration nothing is known.)  It says that it is ready, and waits
 * for SSH_FRESH_MS at most, and what it says meanwhile is kept as part of the start; one that talks
 * without end is closed.  With its channel, or the connection, its input ends, and it too.
 */
#include <stdlib.h>

#include "memory.h"
#include "ssh_pool.h"
#include "ssh_shell.h"
#include "timer.h"

/* What a profile may say. */
#define MAX_WORDS (1024 * 1024)

struct SshShell
{
	SshChannel *channel;
	ExecuteStart start;
	size_t words;
	Timer *timer;
	void (*gone)(void *owner);
	void *owner;
};

static void
free_shell(SshShell *shell)
{
	timer_stop(&shell->timer);
	ssh_execute_start_clear(&shell->start);
	free(shell);
}

void
ssh_shell_end(SshShell *shell)
{
	ssh_channel_abandon(shell->channel, false);
	free_shell(shell);
}

static void
give_up(void *data)
{
	SshShell *shell = data;

	shell->gone(shell->owner);
	ssh_shell_end(shell);
}

static void
opened(void *owner)
{
	(void) owner;
}

static void
accepted(void *owner)
{
	SshShell *shell = owner;

	shell->start.since = now_ms();
}

static bool
output(void *owner, const char *data, size_t length, bool is_stderr)
{
	SshShell *shell = owner;

	shell->words += length;
	ssh_execute_start_take(&shell->start, is_stderr, data, &length);
	return true;
}

static void
progress(void *owner)
{
	SshShell *shell = owner;

	if (shell->words > MAX_WORDS)
		give_up(shell);
}

static void
ended(void *owner, const ChannelEnd *end)
{
	SshShell *shell = owner;

	(void) end;
	shell->gone(shell->owner);
	free_shell(shell);
}

static const SshChannelEvents events = {
    .opened = opened, .accepted = accepted, .data = output, .progress = progress, .ended = ended};

SshShell *
ssh_shell_start(struct SshSession *session, void (*gone)(void *owner), void *owner)
{
	SshShell *shell = xcalloc(1, sizeof *shell);
	ChannelInput input = {.keep = true};
	char *line;

	shell->gone = gone;
	shell->owner = owner;
	ssh_script_marker(shell->start.marker);
	line = ssh_execute_plain_line(shell->start.marker);
	shell->channel = ssh_channel_run(session, line, input, &events, shell);
	free(line);
	timer_start(&shell->timer, SSH_FRESH_MS, give_up, shell);
	return shell;
}

bool
ssh_shell_is_ready(const SshShell *shell)
{
	return shell->start.ready;
}

SshChannel *
ssh_shell_take(SshShell *shell, ExecuteStart *start, ChannelInput input,
               const SshChannelEvents *its_events, void *owner)
{
	SshChannel *channel = shell->channel;

	ssh_execute_start_clear(start);
	*start = shell->start;
	shell->start = (ExecuteStart){0};
	free_shell(shell);
	ssh_channel_take(channel, input, its_events, owner);
	return channel;
}
