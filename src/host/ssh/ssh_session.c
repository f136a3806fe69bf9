/*
 * ssh_session.c
 *		One SSH connection: from a name to a login, and the channels on it.
 *
 * Phases, and which follow:
 *
 *		RESOLVING   the host's addresses are looked up          WAITING, ENDED
 *		            (resolve.c)
 *		WAITING     for a place among the logins to this        CONNECTING, ENDED
 *		            server (handshake_slots.c)
 *		CONNECTING  TCP, to one address after the other         CONNECTING (to the next one),
 *		                                                        HANDSHAKE, ENDED
 *		HANDSHAKE   libssh: banner and key exchange; then the   LOGIN, ENDED, CONNECTING (dropped
 *		            host key is checked                         before the banner)
 *		LOGIN       libssh: public key authentication           READY, ENDED
 *		READY       channels come and go (ssh_channel.c)        ENDED
 *		ENDED       told to the owner, who closes it            ENDED
 *
 * They are in other files.  Each uses those before it:
 *
 *		ssh_session_parts.c  what a session consists of, and how that is let go
 *		ssh_host_key.c       whether the server's host key is the right one
 *		ssh_login.c          LOGIN
 *		ssh_handshake.c      HANDSHAKE
 *		ssh_connect.c        RESOLVING, WAITING and CONNECTING
 *		ssh_keepalive.c      whether the server still lives, in READY
 *
 * Who owns what: the pool owns the session.  The session owns its descriptor,
 * which libuv watches; libssh works on a duplicate of it (ssh_handshake.c).  The destination, which
 * holds the private key, is let go as soon as the login is done.
 *
 * All of libssh's calls are non-blocking.  They are made from ssh_session_advance(), which
 * runs whenever the socket is ready or somebody asked for it, and goes on until no
 * more bytes come in, since what libssh has read already wakes nobody up.  The
 * owner's callbacks run from there too, or from timers; they may close the
 * session, which is then freed when ssh_session_advance() is left.
 */
#include <string.h>

#include "ssh/ssh_connect.h"
#include "ssh/ssh_handshake.h"
#include "ssh/ssh_keepalive.h"
#include "ssh/ssh_login.h"
#include "ssh/ssh_session.h"
#include "ssh/ssh_session_parts.h"

/*
 * A server that sends without a pause must not keep the loop from others: after
 * this many reads they have their turn, and the poll handle comes back by itself.
 */
#define READS_A_TURN 16
/* What a server may send before the login is through. */
#define MAX_BEFORE_LOGIN (1024 * 1024)

/*
 * The loop
 */

static void ssh_session_advance_soon(SshSession *session);

/* Whether libssh still has a connection. */
static bool
ssh_session_is_alive(const SshSession *session)
{
	return ssh_is_connected(session->ssh) &&
	       (ssh_get_status(session->ssh) & (SSH_CLOSED | SSH_CLOSED_ERROR)) == 0;
}

static void
ssh_session_serve_channels(SshSession *session)
{
	uint64_t before;
	int reads = READS_A_TURN;
	bool alive = true;

	do
	{
		int outcome;

		before = session->counter.in_bytes;
		outcome = ssh_event_dopoll(session->event, 0);
		alive = outcome != SSH_ERROR && ssh_session_is_alive(session);
		if (ssh_channels_advance(&session->channels) && !session->closed)
			session->events->channel_gone(session->owner);
	}
	while (--reads > 0 && alive && !session->closed && session->counter.in_bytes != before);
	if (session->closed || session->phase != SESSION_READY)
		return;
	ssh_keepalive(session);
	if (ssh_channels_flooded(&session->channels))
		ssh_session_end(session, error_new("08006",
		                                   "%s: dropped, since it went on sending on a closed "
		                                   "channel",
		                                   session->target));
	else if (!alive || !ssh_session_is_alive(session))
		ssh_session_end(session, ssh_session_error(session, "08006", "the connection was lost"));
}

/* In phase HANDSHAKE. */
static void
ssh_session_shake_hands(SshSession *session)
{
	uint64_t before;
	int reads = READS_A_TURN;

	do
	{
		before = session->counter.in_bytes;
		if (!ssh_handshake(session))
			ssh_connect_again(session);
	}
	while (--reads > 0 && session->phase == SESSION_HANDSHAKE &&
	       session->counter.in_bytes != before);
}

/* Does what can be done without waiting.  The session may be gone afterwards. */
static void
ssh_session_advance(SshSession *session)
{
	/* Whoever is called from here and asks for more gets it from the loop below. */
	if (session->busy > 0)
	{
		ssh_session_advance_soon(session);
		return;
	}
	session->busy++;
	if ((session->phase == SESSION_HANDSHAKE || session->phase == SESSION_LOGIN) &&
	    session->counter.in_bytes > MAX_BEFORE_LOGIN)
		ssh_session_end(session, error_new("08006", "%s: the server sent too much before the login",
		                                   session->target));
	if (session->phase == SESSION_CONNECTING && session->watch != NULL)
		ssh_connect_done(session);
	if (session->phase == SESSION_HANDSHAKE)
		ssh_session_shake_hands(session);
	else if (session->phase == SESSION_LOGIN)
		ssh_login(session);
	if (session->phase == SESSION_READY && !session->closed)
		ssh_session_serve_channels(session);
	session->busy--;
	if (session->closed)
		ssh_session_free(session);
	else if (session->phase == SESSION_ENDED)
		ssh_session_drop_connection(session);
	else
		ssh_connect_watch(session);
}

static void
ssh_session_advance_now(void *data)
{
	ssh_session_advance(data);
}

static void
ssh_session_advance_soon(SshSession *session)
{
	if (session->soon == NULL && !session->closed)
		timer_start(&session->soon, 0, ssh_session_advance_now, session);
}

/*
 * Its life
 */

SshSession *
ssh_session_new(SshDestination *destination, uint64_t deadline, const SshSessionEvents *events,
                void *owner)
{
	SshSession *session = xcalloc(1, sizeof *session);

	session->events = events;
	session->owner = owner;
	session->destination = ssh_destination_keep(destination);
	session->target = xstrdup(destination->target);
	session->deadline = deadline;
	session->advance = ssh_session_advance;
	session->channels.session = session;
	session->channels.advance_soon = ssh_session_advance_soon;
	timer_start(&session->soon, 0, ssh_connect_begin, session);
	return session;
}

void
ssh_session_close(SshSession *session)
{
	session->closed = true;
	if (session->ssh != NULL && session->phase == SESSION_READY)
	{
		/* Commands that run are ended; what says so is small and goes out at once or never. */
		ssh_channels_kill(&session->channels);
		for (int i = 0; i < 4 && ssh_event_dopoll(session->event, 0) == SSH_OK; i++)
			;
	}
	ssh_session_set_phase(session, SESSION_ENDED);
	if (session->busy == 0)
		ssh_session_free(session);
}

void
ssh_session_set_deadline(SshSession *session, uint64_t deadline)
{
	session->deadline = deadline;
}

/*
 * What is told of it
 */

ChannelList *
ssh_session_channel_list(SshSession *session)
{
	return &session->channels;
}

bool
ssh_session_is_ready(const SshSession *session)
{
	return session->phase == SESSION_READY;
}

const char *
ssh_session_phase(const SshSession *session)
{
	switch (session->phase)
	{
		case SESSION_RESOLVING:
			return "looking up the host name";
		case SESSION_WAITING:
			return "waiting for other logins to that server";
		case SESSION_CONNECTING:
			return "connecting";
		case SESSION_HANDSHAKE:
			return ssh_get_serverbanner(session->ssh) ? "exchanging keys"
			                                          : "waiting for the server's banner";
		case SESSION_LOGIN:
			return "logging in";
		default:
			return "connected";
	}
}

const char *
ssh_session_trouble(const SshSession *session)
{
	return session->trouble ? session->trouble : session->troubles.data;
}

const struct sockaddr *
ssh_session_address(const SshSession *session)
{
	return (const struct sockaddr *) &session->addresses[session->address];
}

uint64_t
ssh_session_received(const SshSession *session)
{
	return session->counter.in_bytes;
}

int
ssh_session_channels(const SshSession *session)
{
	return session->channels.count;
}

uint64_t
ssh_session_closing_since(const SshSession *session)
{
	return ssh_channels_closing_since(&session->channels);
}
