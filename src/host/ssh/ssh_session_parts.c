/*
 * ssh_session_parts.c
 *		What an SSH session consists of, and how that is let go.
 *
 * A session lets go of its TCP connection before each further attempt, of what it needs for the
 * login as soon as that is done, and of all when its owner has closed it and nothing of it is
 * running any more.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ssh/ssh_key.h"
#include "ssh/ssh_session_parts.h"

void
ssh_session_set_phase(SshSession *session, SshPhase phase)
{
	/* The table at the head of ssh_session.c. */
	static const unsigned allowed[] = {
	    [SESSION_RESOLVING] = 1U << SESSION_WAITING | 1U << SESSION_ENDED,
	    [SESSION_WAITING] = 1U << SESSION_CONNECTING | 1U << SESSION_ENDED,
	    [SESSION_CONNECTING] =
	        1U << SESSION_CONNECTING | 1U << SESSION_HANDSHAKE | 1U << SESSION_ENDED,
	    [SESSION_HANDSHAKE] = 1U << SESSION_CONNECTING | 1U << SESSION_LOGIN | 1U << SESSION_ENDED,
	    [SESSION_LOGIN] = 1U << SESSION_READY | 1U << SESSION_ENDED,
	    [SESSION_READY] = 1U << SESSION_ENDED,
	    [SESSION_ENDED] = 1U << SESSION_ENDED,
	};

	assert((allowed[session->phase] >> phase & 1) != 0);
	(void) allowed;
	session->phase = phase;
}

void
ssh_session_drop_connection(SshSession *session)
{
	session->heard_words = session->foreign = false;
	timer_stop(&session->pause);
	timer_stop(&session->keepalive);
	if (session->event != NULL)
	{
		ssh_event_free(session->event);
		session->event = NULL;
	}
	if (session->ssh != NULL)
	{
		/* Not ssh_disconnect(): it would leave a descriptor open that it was given. */
		ssh_free(session->ssh);
		session->ssh = NULL;
		session->channels.ssh = NULL;
	}
	ssh_channels_free(&session->channels);
	if (session->watch != NULL)
	{
		Watch *watch = session->watch;

		session->watch = NULL;
		watch->session = NULL;
		uv_poll_stop(&watch->handle);
		uv_close((uv_handle_t *) &watch->handle, (uv_close_cb) free);
		close(watch->fd);
	}
}

void
ssh_session_forget_login(SshSession *session)
{
	ssh_key_free(session->key);
	session->key = NULL;
	known_hosts_free(session->known_hosts);
	session->known_hosts = NULL;
	ssh_destination_release(session->destination);
	session->destination = NULL;
	handshake_slot_release(&session->slot);
}

void
ssh_session_free(SshSession *session)
{
	resolve_cancel(session->resolve);
	timer_stop(&session->soon);
	ssh_session_drop_connection(session);
	ssh_session_forget_login(session);
	bytes_free(&session->troubles);
	free(session->trouble);
	free(session->target);
	free(session);
}

void
ssh_session_end(SshSession *session, HostError *error)
{
	ssh_session_set_phase(session, SESSION_ENDED);
	session->busy++;
	ssh_channels_lost(&session->channels, error->message);
	if (!session->closed)
		session->events->ended(session->owner, error);
	session->busy--;
	error_free(error);
	if (session->closed && session->busy == 0)
		ssh_session_free(session);
}

/*
 * Errors
 */

char *
ssh_session_library_error(const SshSession *session)
{
	const char *text = ssh_get_error(session->ssh);

	/* What libssh says when the other side just hangs up. */
	if (strcmp(text, "Socket error: disconnected") == 0)
		text = "the server closed the connection";
	return clean_text(text, strlen(text), 300, false);
}

HostError *
ssh_session_error(const SshSession *session, const char *sqlstate, const char *what)
{
	char *reason = ssh_session_library_error(session);
	HostError *error = error_new(sqlstate, "%s: %s: %s", session->target, what, reason);

	free(reason);
	return error;
}
