/*
 * ssh_channel.c
 *		One command's channel on an SSH session.
 *
 * A channel is opened, asks for the command to be run, sends and then closes its
 * input, delivers output, and is gone when the server has closed it:
 *
 *		OPENING -> ASKING -> RUNNING -> (gone)
 *		   any of these -> CLOSING -> (gone)
 *
 * An owner that gives up abandons it.  It is not simply freed then, since the
 * server would go on counting it (MaxSessions) and libssh could not make sense
 * of what still comes for it: it goes on, without an owner, until the server
 * has confirmed its end.  How long it has been trying is what tells the pool
 * whether the session is still to be trusted.
 *
 * libssh's callbacks run deep inside of libssh, so they only take notes; what
 * follows from them happens in ssh_channels_advance(), which the session calls
 * whenever something may have changed.  Within that, owners' callbacks may
 * begin and abandon channels, so the list only shrinks at its end.
 *
 * Output that the owner does not want yet stays with libssh, which lets the
 * server send no more than a window of it.
 */
#include <stdlib.h>
#include <string.h>

#include <libssh/callbacks.h>

#include "base/memory.h"
#include "ssh/ssh_channel.h"
#include "base/timer.h"

/* A channel that still sends so much after it was closed will never stop. */
#define CLOSING_MAX_BYTES (4 * 1024 * 1024)

typedef enum
{
	OPENING,
	ASKING,
	RUNNING,
	CLOSING,
	GONE
} ChannelState;

struct SshChannel
{
	SshChannel *next;
	ChannelList *list;
	ChannelState state;
	const SshChannelEvents *events;
	void *owner; /* NULL: abandoned */
	char *command_line;
	ChannelInput input;
	bool input_ended; /* and so was told */
	bool asked;       /* the command was sent */
	bool paused;      /* the owner wants no output at present */
	bool told_opened;
	bool told_accepted;
	bool told_exit;
	bool told_drained;
	const char *to_signal;  /* a signal to be sent; NULL: none */
	bool kill;              /* abandoned, and the command is to be ended */
	uint64_t closing_since; /* since when it is abandoned */
	size_t closing_bytes;

	ssh_channel channel;
	struct ssh_channel_callbacks_struct callbacks;

	/* Notes of the callbacks. */
	bool has_data;
	bool held; /* libssh has output that was not wanted */
	bool closed;
	bool has_status;
	int status;
	char *signal;
};

static int
on_data(ssh_session session, ssh_channel ssh, void *data, uint32_t length, int is_stderr,
        void *user)
{
	SshChannel *channel = user;

	(void) session;
	(void) ssh;
	if (channel->owner == NULL)
		channel->closing_bytes += length;
	else if (channel->paused)
	{
		channel->held = true;
		return 0;
	}
	else
	{
		channel->paused = !channel->events->data(channel->owner, data, length, is_stderr != 0);
		channel->has_data = true;
	}
	return (int) length;
}

static void
on_close(ssh_session session, ssh_channel ssh, void *user)
{
	SshChannel *channel = user;

	(void) session;
	(void) ssh;
	channel->closed = true;
}

static void
on_exit_status(ssh_session session, ssh_channel ssh, int status, void *user)
{
	SshChannel *channel = user;

	(void) session;
	(void) ssh;
	channel->has_status = true;
	channel->status = status;
}

static void
on_exit_signal(ssh_session session, ssh_channel ssh, const char *signal, int core,
               const char *message, const char *language, void *user)
{
	SshChannel *channel = user;

	(void) session;
	(void) ssh;
	(void) core;
	(void) message;
	(void) language;
	/* The owner has been told of the first one, and may still look at its name. */
	if (channel->signal == NULL)
		channel->signal = clean_text(signal, strlen(signal), 32, false);
}

static void
ssh_channel_advance_soon(const SshChannel *channel)
{
	channel->list->advance_soon(channel->list->session);
}

SshChannel *
ssh_channel_run(ChannelList *list, const char *command_line, ChannelInput input,
                const SshChannelEvents *events, void *owner)
{
	SshChannel *channel = xcalloc(1, sizeof *channel);

	channel->list = list;
	channel->events = events;
	channel->owner = owner;
	channel->input = input;
	channel->command_line = xstrdup(command_line);
	channel->channel = ssh_channel_new(list->ssh);
	channel->callbacks.userdata = channel;
	channel->callbacks.channel_data_function = on_data;
	channel->callbacks.channel_close_function = on_close;
	channel->callbacks.channel_exit_status_function = on_exit_status;
	channel->callbacks.channel_exit_signal_function = on_exit_signal;
	ssh_callbacks_init(&channel->callbacks);
	if (channel->channel != NULL)
		ssh_set_channel_callbacks(channel->channel, &channel->callbacks);
	channel->next = list->first;
	list->first = channel;
	list->count++;
	list->advance_soon(list->session);
	return channel;
}

void
ssh_channel_abandon(SshChannel *channel, bool kill)
{
	channel->owner = NULL;
	channel->kill = kill;
	channel->closing_since = now_ms();
	channel->input.data = NULL;
	ssh_channel_advance_soon(channel);
}

void
ssh_channel_give(SshChannel *channel, const char *data, size_t length)
{
	channel->input.data = data;
	channel->input.length = length;
	channel->told_drained = false;
	ssh_channel_advance_soon(channel);
}

void
ssh_channel_end_input(SshChannel *channel)
{
	channel->input.keep = false;
	ssh_channel_advance_soon(channel);
}

void
ssh_channel_resume(SshChannel *channel)
{
	if (!channel->paused)
		return;
	channel->paused = false;
	ssh_channel_advance_soon(channel);
}

void
ssh_channel_signal(SshChannel *channel, const char *signal)
{
	channel->to_signal = signal;
	ssh_channel_advance_soon(channel);
}

static void
end_channel(SshChannel *channel, ChannelEndKind kind, int status, const char *text)
{
	ChannelEnd end = {.kind = kind, .status = status, .text = text};
	void *owner = channel->owner;

	channel->state = GONE;
	channel->owner = NULL;
	if (owner != NULL)
		channel->events->ended(owner, &end);
}

static bool
has_exited(const SshChannel *channel)
{
	return channel->signal != NULL || channel->has_status;
}

static void
end_closed_channel(SshChannel *channel)
{
	if (channel->signal != NULL)
		end_channel(channel, CHANNEL_SIGNALED, 0, channel->signal);
	else if (channel->has_status)
		end_channel(channel, CHANNEL_EXITED, channel->status, NULL);
	else
		end_channel(channel, CHANNEL_LOST, 0,
		            "the server closed the channel without an exit status");
}

/* Ends the command, if asked to, and the channel on our side. */
static void
close_channel(SshChannel *channel)
{
	if (channel->kill && channel->state == RUNNING && !has_exited(channel))
		ssh_channel_request_send_signal(channel->channel, "KILL");
	/* The first try may get no further than the end of file, which goes before. */
	if (ssh_channel_close(channel->channel) == SSH_AGAIN)
		ssh_channel_close(channel->channel);
	channel->state = CLOSING;
}

static void
advance_opening(SshChannel *channel)
{
	char *reason;

	switch (channel->channel ? ssh_channel_open_session(channel->channel) : SSH_ERROR)
	{
		case SSH_AGAIN:
			break;
		case SSH_OK:
			channel->state = ASKING;
			break;
		default:
			/* If it was the session that broke, it will tell with a better text. */
			if (!ssh_is_connected(channel->list->ssh))
				break;
			reason = xstrdup(ssh_get_error(channel->list->ssh));
			end_channel(channel, CHANNEL_REFUSED, 0, reason);
			free(reason);
	}
}

/* Sends as much as the server's window has room for. */
static void
send_input(SshChannel *channel)
{
	ChannelInput *input = &channel->input;

	/* All may be over already. */
	if (channel->input_ended || channel->closed)
		return;
	while (input->data != NULL && input->length > 0)
	{
		uint32_t room = ssh_channel_window_size(channel->channel);
		int sent = 0;

		if (room > 0)
			sent = ssh_channel_write(channel->channel, input->data,
			                         input->length < room ? (uint32_t) input->length : room);
		if (sent == 0)
			return;
		/* Nobody can be told any more. */
		if (sent < 0)
			sent = (int) input->length;
		input->data += sent;
		input->length -= (size_t) sent;
	}
	if (input->keep)
		return;
	channel->input_ended = true;
	ssh_channel_send_eof(channel->channel);
}

static void
advance_asking(SshChannel *channel)
{
	channel->asked = true;
	switch (ssh_channel_request_exec(channel->channel, channel->command_line))
	{
		case SSH_AGAIN:
			if (channel->closed)
				end_channel(channel, CHANNEL_CLOSED, 0,
				            "the server closed the channel before it answered");
			break;
		case SSH_OK:
			channel->state = RUNNING;
			break;
		default:
			if (!ssh_is_connected(channel->list->ssh))
				break;
			end_channel(channel, CHANNEL_DENIED, 0, "the server refused to run a command");
			channel->closing_since = now_ms();
			close_channel(channel);
	}
}

/*
 * Hands over what libssh has kept, all of it, whether the owner takes a pause meanwhile or not:
 * at a part of it libssh would tell the server of room for more, as if the rest were not
 * there, and so keep more and more.
 */
static void
deliver_held(SshChannel *channel)
{
	char bytes[16384];

	channel->held = false;
	for (int is_stderr = 0; is_stderr < 2; is_stderr++)
	{
		int left = ssh_channel_poll(channel->channel, is_stderr);

		while (channel->owner != NULL && left > 0)
		{
			uint32_t wanted = left < (int) sizeof bytes ? (uint32_t) left : sizeof bytes;
			int count = ssh_channel_read_nonblocking(channel->channel, bytes, wanted, is_stderr);

			if (count <= 0)
				break;
			channel->paused =
			    !channel->events->data(channel->owner, bytes, (size_t) count, is_stderr != 0);
			channel->has_data = true;
			left -= count;
		}
	}
	explicit_bzero(bytes, sizeof bytes);
}

static void
tell_exit(SshChannel *channel)
{
	ChannelEnd end = {.kind = CHANNEL_EXITED, .status = channel->status};

	channel->told_exit = true;
	if (channel->signal != NULL)
	{
		end.kind = CHANNEL_SIGNALED;
		end.text = channel->signal;
	}
	channel->events->exited(channel->owner, &end);
}

static void
advance_running(SshChannel *channel)
{
	if (channel->owner != NULL && !channel->told_accepted)
	{
		channel->told_accepted = true;
		channel->events->accepted(channel->owner);
	}
	if (channel->owner != NULL)
		send_input(channel);
	if (channel->owner != NULL && channel->events->drained != NULL && channel->input.keep &&
	    channel->input.length == 0 && !channel->told_drained)
	{
		channel->told_drained = true;
		channel->events->drained(channel->owner);
	}
	if (channel->owner != NULL && channel->held && !channel->paused)
		deliver_held(channel);
	if (channel->to_signal != NULL && !channel->closed && !has_exited(channel))
		ssh_channel_request_send_signal(channel->channel, channel->to_signal);
	channel->to_signal = NULL;
	if (channel->owner != NULL && channel->has_data)
	{
		channel->has_data = false;
		channel->events->progress(channel->owner);
	}
	if (channel->owner != NULL && channel->events->exited != NULL && !channel->told_exit &&
	    has_exited(channel))
		tell_exit(channel);
	/* Before its end the owner gets all. */
	if (channel->owner != NULL && channel->held)
		return;
	if (channel->closed)
		end_closed_channel(channel);
	else if (channel->owner == NULL)
		close_channel(channel);
}

static void
ssh_channel_advance(SshChannel *channel)
{
	if (channel->state == OPENING)
		advance_opening(channel);
	if ((channel->state == ASKING || channel->state == RUNNING) && channel->owner != NULL &&
	    !channel->told_opened)
	{
		channel->told_opened = true;
		channel->events->opened(channel->owner);
	}
	/* An open channel whose owner has gone need not ask for anything. */
	if (channel->state == ASKING && channel->owner == NULL && !channel->asked)
		close_channel(channel);
	if (channel->state == ASKING)
		advance_asking(channel);
	if (channel->state == RUNNING)
		advance_running(channel);
	if (channel->state == CLOSING && channel->closed)
		channel->state = GONE;
}

static void
free_channel(SshChannel *channel)
{
	free(channel->command_line);
	free(channel->signal);
	free(channel);
}

bool
ssh_channels_advance(ChannelList *list)
{
	bool gone = false;

	for (SshChannel *channel = list->first; channel != NULL; channel = channel->next)
		if (channel->state != GONE)
			ssh_channel_advance(channel);

	for (SshChannel **link = &list->first; *link != NULL;)
	{
		SshChannel *channel = *link;

		if (channel->state != GONE)
		{
			link = &channel->next;
			continue;
		}
		*link = channel->next;
		list->count--;
		gone = true;
		if (channel->channel != NULL)
		{
			ssh_remove_channel_callbacks(channel->channel, &channel->callbacks);
			ssh_channel_free(channel->channel);
		}
		free_channel(channel);
	}
	return gone;
}

void
ssh_channels_lost(ChannelList *list, const char *text)
{
	for (SshChannel *channel = list->first; channel != NULL; channel = channel->next)
	{
		if (channel->state == GONE)
			continue;
		if (channel->state == RUNNING && has_exited(channel))
			end_closed_channel(channel);
		else
			end_channel(channel, CHANNEL_LOST, 0, text);
	}
}

void
ssh_channels_kill(ChannelList *list)
{
	for (SshChannel *channel = list->first; channel != NULL; channel = channel->next)
	{
		channel->owner = NULL;
		if (channel->state == RUNNING && !channel->closed)
		{
			channel->kill = true;
			close_channel(channel);
		}
	}
}

void
ssh_channels_free(ChannelList *list)
{
	while (list->first != NULL)
	{
		SshChannel *channel = list->first;

		list->first = channel->next;
		free_channel(channel);
	}
	list->count = 0;
}

uint64_t
ssh_channels_closing_since(const ChannelList *list)
{
	uint64_t since = 0;

	for (const SshChannel *channel = list->first; channel != NULL; channel = channel->next)
		if (channel->closing_since != 0 && channel->state != GONE &&
		    (since == 0 || channel->closing_since < since))
			since = channel->closing_since;
	return since;
}

bool
ssh_channels_flooded(const ChannelList *list)
{
	for (const SshChannel *channel = list->first; channel != NULL; channel = channel->next)
		if (channel->closing_bytes > CLOSING_MAX_BYTES)
			return true;
	return false;
}
