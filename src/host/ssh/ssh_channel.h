/*
 * ssh_channel.h
 *		One command's channel on an SSH session.
 */
#ifndef ENVRT_HOST_SSH_CHANNEL_H
#define ENVRT_HOST_SSH_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libssh/libssh.h>

struct SshSession;

typedef struct SshChannel SshChannel;

/* How a channel ended. */
typedef enum
{
	CHANNEL_EXITED,   /* the command ended with a status */
	CHANNEL_SIGNALED, /* the command was ended by a signal */
	CHANNEL_REFUSED,  /* the server opens no further channel */
	CHANNEL_DENIED,   /* the server did not run the command, and says so */
	CHANNEL_CLOSED,   /* the server closed the channel before it ran the command */
	CHANNEL_LOST      /* the connection or the channel broke */
} ChannelEndKind;

typedef struct ChannelEnd
{
	ChannelEndKind kind;
	int status;       /* CHANNEL_EXITED */
	const char *text; /* the signal's name, or what went wrong */
} ChannelEnd;

typedef struct SshChannelEvents
{
	/* The server answered: the channel is open. */
	void (*opened)(void *owner);

	/* The server runs the command. */
	void (*accepted)(void *owner);

	/*
	 * Output.  Runs from within libssh: it may only store, and must not call
	 * anything of a session or a channel.  False: no more, until ssh_channel_resume().
	 */
	bool (*data)(void *owner, const char *data, size_t length, bool is_stderr);

	/* After data(): here anything may be done. */
	void (*progress)(void *owner);

	/* All input that was given has been sent, and more may be given.  May be NULL. */
	void (*drained)(void *owner);

	/*
	 * The command has ended, in one of the first two ways.  Output of it may still come,
	 * and so may that of what it left behind, without which the channel would be
	 * closed.  May be NULL.
	 */
	void (*exited)(void *owner, const ChannelEnd *end);

	/* The channel is gone; the owner forgets it. */
	void (*ended)(void *owner, const ChannelEnd *end);
} SshChannelEvents;

/* What a command reads. */
typedef struct ChannelInput
{
	const char *data; /* the owner's, as long as it owns the channel */
	size_t length;
	bool keep; /* its end is that of the channel, else that of data */
} ChannelInput;

/* The channels of a session. */
typedef struct ChannelList
{
	struct SshSession *session;
	void (*advance_soon)(struct SshSession *session); /* something is to be sent or read */
	ssh_session ssh;
	SshChannel *first;
	int count;
} ChannelList;

/* Opens a channel on a session that is ready, and runs a command line in it. */
extern SshChannel *ssh_channel_run(ChannelList *list, const char *command_line, ChannelInput input,
                                   const SshChannelEvents *events, void *owner);

/* More for an input that is kept, when what was given has been sent. */
extern void ssh_channel_give(SshChannel *channel, const char *data, size_t length);

/* An input that was to be kept ends with its data after all. */
extern void ssh_channel_end_input(SshChannel *channel);

/* Output is wanted again. */
extern void ssh_channel_resume(SshChannel *channel);

/* Asks the server to signal the command, which not every server does; without "SIG". */
extern void ssh_channel_signal(SshChannel *channel, const char *signal);

/* The owner wants nothing more of it.  kill: the command is to be ended too. */
extern void ssh_channel_abandon(SshChannel *channel, bool kill);

/* For the files of a session. */

/* Does what can be done without waiting; returns whether a channel went. */
extern bool ssh_channels_advance(ChannelList *list);

/* Tells the owners that the connection is lost. */
extern void ssh_channels_lost(ChannelList *list, const char *text);

/* Sends what ends the commands of channels that still run. */
extern void ssh_channels_kill(ChannelList *list);

/* Frees them; libssh's part has been freed with its session before. */
extern void ssh_channels_free(ChannelList *list);

extern uint64_t ssh_channels_closing_since(const ChannelList *list);

/* Whether a channel that is being closed goes on sending without end. */
extern bool ssh_channels_flooded(const ChannelList *list);

#endif
