/*
 * ssh_session_parts.h
 *		What an SSH session consists of, and how that is let go.
 *
 * Only the files of a session (ssh_session.c and those that it names) include this header.
 */
#ifndef ENVRT_HOST_SSH_SESSION_PARTS_H
#define ENVRT_HOST_SSH_SESSION_PARTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include <libssh/callbacks.h>
#include <libssh/libssh.h>

#include "base/host_error.h"
#include "base/memory.h"
#include "base/timer.h"
#include "ssh/handshake_slots.h"
#include "ssh/known_hosts.h"
#include "ssh/resolve.h"
#include "ssh/ssh_channel.h"
#include "ssh/ssh_destination.h"
#include "ssh/ssh_session.h"

#define MAX_ADDRESSES 16

typedef enum
{
	SESSION_RESOLVING,
	SESSION_WAITING,
	SESSION_CONNECTING,
	SESSION_HANDSHAKE,
	SESSION_LOGIN,
	SESSION_READY,
	SESSION_ENDED
} SshPhase;

/* A descriptor and its watch, which libuv wants to outlive its closing. */
typedef struct Watch
{
	uv_poll_t handle;
	int fd;
	SshSession *session;
} Watch;

struct SshSession
{
	SshPhase phase; /* set by ssh_session_set_phase() alone */
	const SshSessionEvents *events;
	void *owner;
	SshDestination *destination; /* NULL once logged in */
	char *target;
	uint64_t deadline;

	void (*advance)(SshSession *session); /* for the socket: does what can be done */
	int busy;                             /* that is running, or an owner's callback */
	bool closed;                          /* by the owner: to be freed when no longer busy */
	Timer *soon;                          /* the start, or an advance() that was asked for */
	Timer *pause;                         /* the time for one address, or before the next attempt */

	Resolve *resolve;
	HandshakeSlot *slot;
	struct sockaddr_storage addresses[MAX_ADDRESSES];
	socklen_t address_lengths[MAX_ADDRESSES];
	int address_count;
	int address; /* the one in use */
	int attempts;
	Bytes troubles; /* what went wrong at the addresses so far */
	char *trouble;  /* why there is a further attempt */

	Watch *watch;
	ssh_session ssh;
	ssh_event event;
	struct ssh_counter_struct counter;
	bool heard_words; /* what the server said first ... */
	bool foreign;     /* ... is no SSH server's */
	Timer *keepalive; /* while there are channels */
	uint64_t heard;   /* bytes that had come when it was last looked at */
	unsigned silent;  /* times in a row that no more had */
	ssh_key key;
	bool ask_first; /* an RSA key */
	KnownHosts *known_hosts;
	ChannelList channels;
};

/* By the table in ssh_session.c; any other change is a fault of the host. */
extern void ssh_session_set_phase(SshSession *session, SshPhase phase);

/* Lets go of everything about the present TCP connection. */
extern void ssh_session_drop_connection(SshSession *session);

/* Lets go of what is needed only until the login. */
extern void ssh_session_forget_login(SshSession *session);

/* Tells the owner, who may close the session: it may be gone afterwards.  Takes the error. */
extern void ssh_session_end(SshSession *session, HostError *error);

extern void ssh_session_free(SshSession *session);

/* A clean copy of libssh's last error. */
extern char *ssh_session_library_error(const SshSession *session);

/* The same as an error, after the target and what went wrong. */
extern HostError *ssh_session_error(const SshSession *session, const char *sqlstate,
                                    const char *what);

#endif
