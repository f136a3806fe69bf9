/*
 * ssh_connect.c
 *		The TCP connection of an SSH session: from a name to a socket that is ready.
 *
 * The host's addresses that envrt.allowed_hosts allows are tried one after the other, each for its
 * share of the time that is left, once there is a place among the logins to the server
 * (handshake_slots.c).  What went wrong at each of them is told when all have failed.
 *
 * A connection that the server drops before its banner is what an sshd with too
 * many logins under way does (MaxStartups): after a pause that grows, the
 * session begins with the first address again, some times.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sodium.h>

#include "ssh/ssh_connect.h"
#include "ssh/ssh_handshake.h"
#include "ssh/ssh_key.h"
#include "ssh/ssh_session_parts.h"
#include "ssh/ssh_settings.h"

#define MAX_ATTEMPTS 8
#define FIRST_PAUSE_MS 50
#define LEAST_ADDRESS_MS 250

static void ssh_connect_address(SshSession *session);

/*
 * The socket
 */

static void
ssh_connect_socket_ready(uv_poll_t *handle, int status, int events)
{
	Watch *watch = handle->data;

	(void) status;
	(void) events;
	if (watch->session != NULL)
		watch->session->advance(watch->session);
}

/* A delayed acknowledgement would cost 40 ms in each phase, so TCP_QUICKACK is set anew. */
void
ssh_connect_watch(SshSession *session)
{
	int yes = 1;
	int events = UV_READABLE;

	if (session->watch == NULL || session->ssh == NULL)
		return;
	setsockopt(session->watch->fd, IPPROTO_TCP, TCP_QUICKACK, &yes, sizeof yes);
	if (ssh_get_poll_flags(session->ssh) & SSH_WRITE_PENDING)
		events |= UV_WRITABLE;
	uv_poll_start(&session->watch->handle, events, ssh_connect_socket_ready);
}

static void
ssh_connect_set_options(int fd)
{
	static const struct
	{
		int level;
		int name;
		int value;
	} options[] = {{IPPROTO_TCP, TCP_NODELAY, 1},
	               {IPPROTO_TCP, TCP_QUICKACK, 1},
	               /* A server that is gone is noticed, by data and by none. */
	               {IPPROTO_TCP, TCP_USER_TIMEOUT, 30000},
	               {SOL_SOCKET, SO_KEEPALIVE, 1},
	               {IPPROTO_TCP, TCP_KEEPIDLE, 30},
	               {IPPROTO_TCP, TCP_KEEPINTVL, 10},
	               {IPPROTO_TCP, TCP_KEEPCNT, 3}};

	/* Each is an improvement only; without one things still work. */
	for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
		setsockopt(fd, options[i].level, options[i].name, &options[i].value,
		           sizeof options[i].value);
}

/*
 * One address after the other
 */

static void
ssh_connect_note_trouble(SshSession *session, const char *problem)
{
	char address[NI_MAXHOST] = "?";
	char *line;

	getnameinfo((struct sockaddr *) &session->addresses[session->address],
	            session->address_lengths[session->address], address, sizeof address, NULL, 0,
	            NI_NUMERICHOST);
	line = xformat("%s%s: %s", session->troubles.length ? "\n" : "", address, problem);
	bytes_append_text(&session->troubles, line);
	free(line);
}

static void
ssh_connect_next_address(SshSession *session, const char *problem)
{
	HostError *error;

	ssh_connect_note_trouble(session, problem);
	ssh_session_drop_connection(session);
	if (session->address + 1 < session->address_count)
	{
		session->address++;
		ssh_connect_address(session);
		return;
	}
	error = error_new("08001", "could not connect to %s: %s", session->target, problem);
	error_detail(error, "%s", session->troubles.data);
	error_hint(error, "Check the environment's host and port, that the SSH server runs, and that "
	                  "no firewall is between.");
	ssh_session_end(session, error);
}

static void
ssh_connect_timed_out(void *data)
{
	ssh_connect_next_address(data, "no answer");
}

static void
ssh_connect_address(SshSession *session)
{
	const struct sockaddr *address = (struct sockaddr *) &session->addresses[session->address];
	int left = session->address_count - session->address;
	uint64_t now = now_ms();
	uint64_t share = session->deadline > now ? (session->deadline - now) / (uint64_t) left : 0;
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	Watch *watch;

	ssh_session_set_phase(session, SESSION_CONNECTING);
	if (fd < 0)
	{
		ssh_connect_next_address(session, strerror(errno));
		return;
	}
	ssh_connect_set_options(fd);
	watch = xcalloc(1, sizeof *watch);
	watch->fd = fd;
	watch->session = session;
	if (uv_poll_init(uv_default_loop(), &watch->handle, fd) < 0)
	{
		free(watch);
		close(fd);
		ssh_connect_next_address(session, "the event loop can't watch the socket");
		return;
	}
	watch->handle.data = watch;
	session->watch = watch;
	if (connect(fd, address, session->address_lengths[session->address]) < 0 &&
	    errno != EINPROGRESS)
	{
		ssh_connect_next_address(session, strerror(errno));
		return;
	}
	uv_poll_start(&watch->handle, UV_WRITABLE, ssh_connect_socket_ready);
	/* The last address may have all the time that the callers have. */
	if (left > 1)
		timer_start(&session->pause, share > LEAST_ADDRESS_MS ? share : LEAST_ADDRESS_MS,
		            ssh_connect_timed_out, session);
}

void
ssh_connect_done(SshSession *session)
{
	int problem = 0;
	socklen_t length = sizeof problem;
	int fd;
	HostError *error;

	if (getsockopt(session->watch->fd, SOL_SOCKET, SO_ERROR, &problem, &length) < 0)
		problem = errno;
	if (problem != 0)
	{
		ssh_connect_next_address(session, strerror(problem));
		return;
	}
	timer_stop(&session->pause);
	fd = fcntl(session->watch->fd, F_DUPFD_CLOEXEC, 3);
	error = fd < 0 ? error_new("53400", "%s: %s", session->target, strerror(errno))
	               : ssh_handshake_prepare(session, fd);
	if (error != NULL)
		ssh_session_end(session, error);
	else
		ssh_session_set_phase(session, SESSION_HANDSHAKE);
}

static void
ssh_connect_once_more(void *data)
{
	ssh_connect_address(data);
}

void
ssh_connect_again(SshSession *session)
{
	uint64_t pause = FIRST_PAUSE_MS << (session->attempts < 5 ? session->attempts : 5);

	session->attempts++;
	free(session->trouble);
	session->trouble = xformat("the server closed the connection before it said who it is (%d %s)",
	                           session->attempts, session->attempts == 1 ? "time" : "times");
	if (session->attempts >= MAX_ATTEMPTS)
	{
		HostError *error = error_new("08006", "%s: %s", session->target, session->trouble);

		error_hint(error, "Is there an SSH server on that port, and does it let this machine in? "
		                  "sshd does so also while too many logins are under way (MaxStartups).");
		ssh_session_end(session, error);
		return;
	}
	ssh_session_drop_connection(session);
	ssh_session_set_phase(session, SESSION_CONNECTING);
	session->address = 0;
	timer_start(&session->pause, pause / 2 + randombytes_uniform((uint32_t) pause + 1),
	            ssh_connect_once_more, session);
}

/*
 * Names
 */

static void
ssh_connect_slot_granted(void *data)
{
	ssh_connect_address(data);
}

static HostError *
ssh_connect_not_allowed(const SshSession *session)
{
	HostError *error =
	    error_new("42501", "envrt.allowed_hosts does not allow to connect to %s", session->target);

	error_hint(error, "The server's administrator decides in envrt.allowed_hosts where ssh may "
	                  "connect.");
	return error;
}

static void
ssh_connect_resolved(void *data, const struct addrinfo *addresses, const char *problem)
{
	SshSession *session = data;
	bool any = allowed_hosts_name(ssh_settings.allowed_hosts, session->destination->host);
	HostError *error;

	session->resolve = NULL;
	if (addresses == NULL)
	{
		error = error_new("08001", "could not find the host \"%s\" of %s: %s",
		                  session->destination->host, session->target, problem);
		error_hint(error, "Check the environment's host, and that this machine's resolver knows "
		                  "it.");
		ssh_session_end(session, error);
		return;
	}
	for (; addresses != NULL && session->address_count < MAX_ADDRESSES;
	     addresses = addresses->ai_next)
	{
		if (addresses->ai_addrlen > sizeof session->addresses[0] ||
		    (!any && !allowed_hosts_address(ssh_settings.allowed_hosts, addresses->ai_addr)))
			continue;
		memcpy(&session->addresses[session->address_count], addresses->ai_addr,
		       addresses->ai_addrlen);
		session->address_lengths[session->address_count++] = addresses->ai_addrlen;
	}
	if (session->address_count == 0)
	{
		ssh_session_end(session, ssh_connect_not_allowed(session));
		return;
	}
	ssh_session_set_phase(session, SESSION_WAITING);
	session->slot =
	    handshake_slot_ask(session->destination->host, session->destination->port,
	                       session->destination->company_id, ssh_connect_slot_granted, session);
}

void
ssh_connect_begin(void *data)
{
	SshSession *session = data;
	SshDestination *destination = session->destination;
	HostError *error = NULL;
	Resolve *resolve;

	session->key = ssh_key_from_text(destination->private_key, &error);
	if (error != NULL)
	{
		ssh_session_end(session, error);
		return;
	}
	if (destination->strict && destination->known_hosts == NULL)
	{
		error = error_new("08004",
		                  "%s: the host key can't be checked: the environment has no "
		                  "knownHosts",
		                  session->target);
		error_hint(error,
		           "Put the host's line into the config's knownHosts, as \"ssh-keyscan -p %d %s\" "
		           "prints it, once you have checked it. (strictHostKeyChecking false would accept "
		           "any host.)",
		           destination->port, destination->host);
		ssh_session_end(session, error);
		return;
	}
	if (!allowed_hosts_name(ssh_settings.allowed_hosts, destination->host) &&
	    !allowed_hosts_any_address(ssh_settings.allowed_hosts))
	{
		ssh_session_end(session, ssh_connect_not_allowed(session));
		return;
	}
	session->known_hosts =
	    known_hosts_parse(destination->known_hosts, destination->host, destination->port);
	/* An address is answered before the call returns, and the session may be gone then. */
	session->busy++;
	resolve = resolve_start(destination->host, destination->port, ssh_connect_resolved, session);
	session->busy--;
	if (session->closed)
		ssh_session_free(session);
	else
		session->resolve = resolve;
}
