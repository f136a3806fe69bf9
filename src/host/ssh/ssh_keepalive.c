/*
 * ssh_keepalive.c
 *		Whether the server of an SSH session still lives.
 *
 * A peer that is gone is noticed by TCP, unless something between goes on acknowledging.  So a
 * server that has been silent while it had work is asked for an answer, whatever that is.
 */
#include <libssh/server.h>

#include "ssh/ssh_keepalive.h"
#include "ssh/ssh_session_parts.h"
#include "ssh/ssh_settings.h"

/* So often a server may leave the question whether it lives without an answer. */
#define KEEPALIVE_MISSES 3

static void
ssh_keepalive_due(void *data)
{
	SshSession *session = data;
	uint64_t interval = ssh_settings.keepalive_ms;

	if (interval == 0 || session->channels.count == 0)
		return;
	if (session->counter.in_bytes != session->heard)
	{
		session->heard = session->counter.in_bytes;
		session->silent = 0;
	}
	else if (session->silent == KEEPALIVE_MISSES)
	{
		ssh_session_end(session, error_new("08006", "%s: the server has not answered for %llu ms",
		                                   session->target,
		                                   (unsigned long long) interval * (KEEPALIVE_MISSES + 1)));
		return;
	}
	else
	{
		session->silent++;
		ssh_send_keepalive(session->ssh);
		session->channels.advance_soon(session);
	}
	timer_start(&session->keepalive, interval, ssh_keepalive_due, session);
}

void
ssh_keepalive(SshSession *session)
{
	if (session->keepalive != NULL || session->channels.count == 0 ||
	    ssh_settings.keepalive_ms == 0)
		return;
	session->heard = session->counter.in_bytes;
	session->silent = 0;
	timer_start(&session->keepalive, ssh_settings.keepalive_ms, ssh_keepalive_due, session);
}
