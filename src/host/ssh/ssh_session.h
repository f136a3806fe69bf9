/*
 * ssh_session.h
 *		One SSH connection: from a name to a login, and the channels on it.
 */
#ifndef ENVRT_HOST_SSH_SESSION_H
#define ENVRT_HOST_SSH_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/host_error.h"
#include "ssh/ssh_channel.h"
#include "ssh/ssh_destination.h"

typedef struct SshSession SshSession;

/* What a session tells its owner.  All run from the event loop, never from within a call. */
typedef struct SshSessionEvents
{
	/* Logged in. */
	void (*ready)(void *owner);

	/* A channel is gone and its place free. */
	void (*channel_gone)(void *owner);

	/*
	 * The session is of no use any more; the owner closes it.  Its channels
	 * have been told before.
	 */
	void (*ended)(void *owner, const HostError *error);
} SshSessionEvents;

/* deadline (in terms of now_ms()) only divides the time between addresses. */
extern SshSession *ssh_session_new(SshDestination *destination, uint64_t deadline,
                                   const SshSessionEvents *events, void *owner);
extern void ssh_session_set_deadline(SshSession *session, uint64_t deadline);

/* Drops the connection at once; no event comes any more, also not from its channels. */
extern void ssh_session_close(SshSession *session);

extern bool ssh_session_is_ready(const SshSession *session);

/* What it does at the moment, as in "timed out while ..."; and what went wrong so far, or NULL. */
extern const char *ssh_session_phase(const SshSession *session);
extern const char *ssh_session_trouble(const SshSession *session);

/* How many bytes have come from the server. */
extern uint64_t ssh_session_received(const SshSession *session);

/* The address it is connected to. */
extern const struct sockaddr *ssh_session_address(const SshSession *session);

/* Where its channels are; for ssh_channel_run(). */
extern ChannelList *ssh_session_channel_list(SshSession *session);

/* Every channel that the server may still count. */
extern int ssh_session_channels(const SshSession *session);

/* Since when a channel waits to be closed by the server (now_ms()); 0: none does. */
extern uint64_t ssh_session_closing_since(const SshSession *session);

#endif
