/*
 * ssh_handshake.c
 *		The handshake of an SSH session: banner, key exchange, host key.
 *
 * libssh works on a duplicate of the session's descriptor and closes that when
 * it likes, so that libuv never watches a number that has become something
 * else.
 *
 * A connection that the server drops before its banner is what an sshd with too
 * many logins under way does (MaxStartups): it is worth another attempt, unless what it said
 * first is no SSH server's.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libssh/server.h>

#include "ssh/ssh_handshake.h"
#include "ssh/ssh_host_key.h"
#include "ssh/ssh_login.h"
#include "ssh/ssh_session_parts.h"

/*
 * Key exchange where the server chooses no primes and none costs the loop more
 * than a moment, no SHA-1 anywhere, and first the ciphers that don't need strict
 * key exchange to be safe from a cut prefix.
 */
#define KEY_EXCHANGE                                                                               \
	"curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384,"        \
	"ecdh-sha2-nistp521,diffie-hellman-group16-sha512,diffie-hellman-group14-sha256"
#define CIPHERS                                                                                    \
	"aes256-gcm@openssh.com,aes128-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,"      \
	"aes192-ctr,aes128-ctr"
#define MACS                                                                                       \
	"hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha2-512"
#define LOGIN_KEYS                                                                                 \
	"ssh-ed25519-cert-v01@openssh.com,ecdsa-sha2-nistp521-cert-v01@openssh.com,"                   \
	"ecdsa-sha2-nistp384-cert-v01@openssh.com,ecdsa-sha2-nistp256-cert-v01@openssh.com,"           \
	"rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-256-cert-v01@openssh.com,ssh-ed25519,"             \
	"ecdsa-sha2-nistp521,ecdsa-sha2-nistp384,ecdsa-sha2-nistp256,rsa-sha2-512,rsa-sha2-256"

/* Channels that the server opens: libssh would keep each request for us. */
static int
ssh_handshake_refuse_request(ssh_session ssh, ssh_message message, void *data)
{
	(void) ssh;
	(void) message;
	(void) data;
	return 1;
}

HostError *
ssh_handshake_prepare(SshSession *session, int fd)
{
	int no = 0;
	char *algorithms = known_hosts_algorithms(session->known_hosts);
	ssh_session ssh = ssh_new();
	bool done;

	session->ssh = ssh;
	if (ssh != NULL)
		ssh_set_blocking(ssh, 0);
	/*
	 * No config, no files, no agent.  The host is not the real one: libssh
	 * gets a connected socket, and would interpret a name.
	 */
	done = ssh != NULL && ssh_options_set(ssh, SSH_OPTIONS_PROCESS_CONFIG, &no) == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_SSH_DIR, "/nonexistent") == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_KNOWNHOSTS, "/dev/null") == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_GLOBAL_KNOWNHOSTS, "/dev/null") == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_HOST, "host") == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_KEY_EXCHANGE, KEY_EXCHANGE) == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_HOSTKEYS, algorithms) == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_CIPHERS_C_S, CIPHERS) == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_CIPHERS_S_C, CIPHERS) == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_HMAC_C_S, MACS) == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_HMAC_S_C, MACS) == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_COMPRESSION, "no") == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_PUBLICKEY_ACCEPTED_TYPES, LOGIN_KEYS) == 0 &&
	       ssh_options_set(ssh, SSH_OPTIONS_FD, &fd) == 0;
	free(algorithms);
	if (done)
	{
		/* Only bytes that come in are of interest. */
		memset(&session->counter, 0, sizeof session->counter);
		ssh_set_counters(ssh, &session->counter, NULL);
		ssh_set_message_callback(ssh, ssh_handshake_refuse_request, NULL);
		return NULL;
	}
	close(fd);
	return error_new("38000", "%s: libssh could not be set up: %s", session->target,
	                 ssh ? ssh_get_error(ssh) : "out of memory");
}

/*
 * Looks at what the server says first, before libssh takes it.  What is not the
 * beginning of an SSH server's banner, nor what an sshd says that takes no more
 * logins for now, is another kind of server's, and will not become better.
 */
static void
ssh_handshake_hear_first_words(SshSession *session)
{
	static const char *const known[] = {"SSH-", "Exceeded MaxStartups", "Not allowed at this time"};
	char words[32];
	ssize_t count;

	if (session->heard_words)
		return;
	count = recv(session->watch->fd, words, sizeof words, MSG_PEEK | MSG_DONTWAIT);
	if (count <= 0)
		return;
	session->heard_words = session->foreign = true;
	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
	{
		size_t length = strlen(known[i]);

		if (strncmp(words, known[i], length < (size_t) count ? length : (size_t) count) == 0)
			session->foreign = false;
	}
}

static HostError *
ssh_handshake_key_exchange_error(SshSession *session)
{
	const char *text = ssh_get_error(session->ssh);
	bool lost = strstr(text, "Socket") != NULL;
	bool no_match = strstr(text, "no match") != NULL;
	HostError *error =
	    ssh_session_error(session, lost ? "08006" : "08001", "the key exchange failed");

	if (no_match)
		error_hint(error, "The server has no algorithm of that kind that envrt takes: enable one "
		                  "in its configuration (of sshd: KexAlgorithms, HostKeyAlgorithms, "
		                  "Ciphers, MACs). README.md lists them.");
	return error;
}

bool
ssh_handshake(SshSession *session)
{
	HostError *error;
	int outcome;

	ssh_handshake_hear_first_words(session);
	outcome = ssh_connect(session->ssh);

	/* libssh makes the socket blocking once it sees it connected. */
	fcntl(session->watch->fd, F_SETFL, O_NONBLOCK);
	switch (outcome)
	{
		case SSH_AGAIN:
			if (session->event == NULL)
			{
				session->event = ssh_event_new();
				ssh_event_add_session(session->event, session->ssh);
			}
			break;
		case SSH_OK:
			error = ssh_host_key_check(session);
			if (error == NULL)
			{
				ssh_session_set_phase(session, SESSION_LOGIN);
				session->ask_first = ssh_key_type(session->key) == SSH_KEYTYPE_RSA;
				ssh_login(session);
			}
			else
				ssh_session_end(session, error);
			break;
		default:
			if (ssh_get_serverbanner(session->ssh) != NULL)
				ssh_session_end(session, ssh_handshake_key_exchange_error(session));
			else if (!session->foreign && (session->counter.in_bytes == 0 ||
			                               strstr(ssh_get_error(session->ssh), "Socket") != NULL))
				return false;
			else
			{
				error = ssh_session_error(session, "08001", "no SSH server answers there");
				error_hint(error, "Check the environment's host and port.");
				ssh_session_end(session, error);
			}
	}
	return true;
}
