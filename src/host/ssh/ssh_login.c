/*
 * ssh_login.c
 *		The login of an SSH session, by its key.
 *
 * The private key of the environment is all that envrt has, so there is one method and one try.
 * What the server says to whoever logs in becomes a part of the error.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ssh/ssh_login.h"
#include "ssh/ssh_session_parts.h"

/* What the server said to whoever logs in (a banner, or PAM's words), made safe; may be empty. */
static char *
ssh_login_server_words(const SshSession *session)
{
	char *banner = ssh_get_issue_banner(session->ssh);
	char *words = banner ? clean_text(banner, strlen(banner), 2000, true) : xstrdup("");

	ssh_string_free_char(banner);
	return words;
}

/*
 * The connection ended after the key was offered.  A server that ends it because the account has
 * expired, is locked, or may not come from here says so before, if its PAM has words for it.
 */
static HostError *
ssh_login_cut_error(SshSession *session)
{
	char *words = ssh_login_server_words(session);
	char *line;
	HostError *error;

	if (words[0] == '\0')
	{
		free(words);
		error = ssh_session_error(session, "08006", "the connection was lost while logging in");
		error_hint(error, "sshd ends a login so when it may not go on: its log says why.");
		return error;
	}
	line = clean_text(words, strlen(words), 300, false);
	error = error_new("28000", "%s: the server ended the login: %s", session->target, line);
	error_detail(error, "%s", words);
	error_hint(error, "Check the account of \"%s\" on the host.", session->destination->username);
	free(line);
	free(words);
	return error;
}

static HostError *
ssh_login_refused_error(SshSession *session, int outcome)
{
	static const struct
	{
		int method;
		const char *name;
	} methods[] = {{SSH_AUTH_METHOD_PUBLICKEY, "publickey"},
	               {SSH_AUTH_METHOD_PASSWORD, "password"},
	               {SSH_AUTH_METHOD_INTERACTIVE, "keyboard-interactive"},
	               {SSH_AUTH_METHOD_HOSTBASED, "hostbased"},
	               {SSH_AUTH_METHOD_GSSAPI_MIC, "gssapi-with-mic"}};
	int offered = ssh_userauth_list(session->ssh, NULL);
	const char *type = ssh_key_type_to_char(ssh_key_type(session->key));
	HostError *error;
	char *reason;
	char *words;
	char list[128] = "";

	for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++)
		if (offered & methods[i].method)
			snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", list[0] ? ", " : "",
			         methods[i].name);
	if (outcome == SSH_AUTH_PARTIAL)
		error = error_new("28000", "%s: the server wants more than our key: also %s",
		                  session->target, list[0] ? list : "something unknown");
	else
		error = error_new("28000", "%s: the server refused our key (%s)", session->target, type);
	reason = ssh_session_library_error(session);
	words = ssh_login_server_words(session);
	error_detail(error, "The server would take: %s.%s%s%s%s", list[0] ? list : "nothing",
	             reason[0] ? "\n" : "", reason, words[0] ? "\nThe server says: " : "", words);
	free(reason);
	free(words);
	error_hint(error,
	           "Put the key's public half (ssh-keygen -y) into ~/.ssh/authorized_keys of \"%s\" on "
	           "the host, or give the environment the right key or username.",
	           session->destination->username);
	return error;
}

void
ssh_login(SshSession *session)
{
	/* Not as an option: there libssh refuses names (DOMAIN\\user) that a shell would interpret. */
	const char *username = session->destination->username;
	int outcome = SSH_AUTH_DENIED;

	/*
	 * Which signatures an RSA key may make is known only from what the server
	 * sends ahead of its first answer, and libssh looks before it asks.  So an
	 * RSA key is preceded by a question that costs nothing but the answer.
	 */
	if (session->ask_first)
	{
		outcome = ssh_userauth_none(session->ssh, username);
		if (outcome != SSH_AUTH_AGAIN)
			session->ask_first = false;
	}
	if (outcome == SSH_AUTH_DENIED || outcome == SSH_AUTH_PARTIAL)
		outcome = ssh_userauth_publickey(session->ssh, username, session->key);

	switch (outcome)
	{
		case SSH_AUTH_AGAIN:
			break;
		case SSH_AUTH_SUCCESS:
			ssh_session_set_phase(session, SESSION_READY);
			session->channels.ssh = session->ssh;
			ssh_session_forget_login(session);
			session->events->ready(session->owner);
			break;
		case SSH_AUTH_DENIED:
		case SSH_AUTH_PARTIAL:
			ssh_session_end(session, ssh_login_refused_error(session, outcome));
			break;
		default:
			ssh_session_end(session, ssh_login_cut_error(session));
	}
}
