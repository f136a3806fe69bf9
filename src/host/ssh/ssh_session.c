/*
 * ssh_session.c
 *		One SSH connection: from a name to a login, and the channels on it.
 *
 * Phases:
 *
 *		RESOLVING   the host's addresses are looked up (resolve.c)
 *		WAITING     for a place among the logins to this server (handshake_slots.c)
 *		CONNECTING  TCP, to one address after the other
 *		HANDSHAKE   libssh: banner and key exchange; then the host key is checked
 *		LOGIN       libssh: public key authentication
 *		READY       channels come and go (ssh_channel.c)
 *		ENDED       told to the owner, who closes it
 *
 * A connection that the server drops before its banner is what an sshd with too
 * many logins under way does (MaxStartups): after a pause that grows, the
 * session goes back to CONNECTING, some times.
 *
 * Who owns what: the pool owns the session.  The session owns its descriptor,
 * which libuv watches; libssh works on a duplicate of it and closes that when
 * it likes, so that libuv never watches a number that has become something
 * else.  The destination, which holds the private key, is let go as soon as the
 * login is done.
 *
 * All of libssh's calls are non-blocking.  They are made from advance(), which
 * runs whenever the socket is ready or somebody asked for it, and goes on until no
 * more bytes come in, since what libssh has read already wakes nobody up.  The
 * owner's callbacks run from there too, or from timers; they may close the
 * session, which is then freed when advance() is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <libssh/server.h>

#include "ssh/handshake_slots.h"
#include "ssh/known_hosts.h"
#include "base/memory.h"
#include "ssh/resolve.h"
#include "ssh/ssh_settings.h"
#include "ssh/ssh_channel.h"
#include "ssh/ssh_key.h"
#include "ssh/ssh_session.h"
#include "base/timer.h"

#define MAX_ADDRESSES 16
#define MAX_ATTEMPTS 8
#define FIRST_PAUSE_MS 50
#define LEAST_ADDRESS_MS 250
/* So often a server may leave the question whether it lives without an answer. */
#define KEEPALIVE_MISSES 3

/*
 * A server that sends without a pause must not keep the loop from others: after
 * this many reads they have their turn, and the poll handle comes back by itself.
 */
#define READS_A_TURN 16
/* What a server may send before the login is through. */
#define MAX_BEFORE_LOGIN (1024 * 1024)

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

typedef enum
{
	RESOLVING,
	WAITING,
	CONNECTING,
	HANDSHAKE,
	LOGIN,
	READY,
	ENDED
} Phase;

/* A descriptor and its watch, which libuv wants to outlive its closing. */
typedef struct Watch
{
	uv_poll_t handle;
	int fd;
	SshSession *session;
} Watch;

struct SshSession
{
	Phase phase;
	const SshSessionEvents *events;
	void *owner;
	SshDestination *destination; /* NULL once logged in */
	char *target;
	uint64_t deadline;

	int busy; /* advance() is running */
	bool closed;
	Timer *soon;
	Timer *pause; /* the time for one address, or before the next attempt */

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

static void connect_address(SshSession *session);
static void ssh_session_advance(SshSession *session);

/* Everything about the present TCP connection. */
static void
drop_connection(SshSession *session)
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

/* What is needed only until the login. */
static void
forget_login(SshSession *session)
{
	ssh_key_free(session->key);
	session->key = NULL;
	known_hosts_free(session->known_hosts);
	session->known_hosts = NULL;
	ssh_destination_release(session->destination);
	session->destination = NULL;
	handshake_slot_release(&session->slot);
}

static void
free_session(SshSession *session)
{
	resolve_cancel(session->resolve);
	timer_stop(&session->soon);
	drop_connection(session);
	forget_login(session);
	bytes_free(&session->troubles);
	free(session->trouble);
	free(session->target);
	free(session);
}

void
ssh_session_close(SshSession *session)
{
	session->closed = true;
	if (session->ssh != NULL && session->phase == READY)
	{
		/* Commands that run are ended; what says so is small and goes out at once or never. */
		ssh_channels_kill(&session->channels);
		for (int i = 0; i < 4 && ssh_event_dopoll(session->event, 0) == SSH_OK; i++)
			;
	}
	session->phase = ENDED;
	if (session->busy == 0)
		free_session(session);
}

/* Takes the error. */
static void
end_session(SshSession *session, HostError *error)
{
	session->phase = ENDED;
	session->busy++;
	ssh_channels_lost(&session->channels, error->message);
	if (!session->closed)
		session->events->ended(session->owner, error);
	session->busy--;
	error_free(error);
	if (session->closed && session->busy == 0)
		free_session(session);
}

/* A clean copy of libssh's last error. */
static char *
library_error(const SshSession *session)
{
	const char *text = ssh_get_error(session->ssh);

	/* What libssh says when the other side just hangs up. */
	if (strcmp(text, "Socket error: disconnected") == 0)
		text = "the server closed the connection";
	return clean_text(text, strlen(text), 300, false);
}

static HostError *
connection_error(SshSession *session, const char *sqlstate, const char *what)
{
	char *reason = library_error(session);
	HostError *error = error_new(sqlstate, "%s: %s: %s", session->target, what, reason);

	free(reason);
	return error;
}

/*
 * Host keys
 */

static HostError *
verdict_error(SshSession *session, HostKeyVerdict verdict, const char *type,
              const char *fingerprint)
{
	const char *target = session->target;
	const KnownHosts *known = session->known_hosts;
	HostError *error;
	char *types;

	switch (verdict)
	{
		case HOST_KEY_CHANGED:
			error = error_new("08004",
			                  "%s: the host key has changed: the server's %s key is not "
			                  "the one in knownHosts",
			                  target, type);
			error_detail(error, "The server's key is %s %s.", type, fingerprint);
			error_hint(error, "Somebody may be impersonating the host, or it was installed anew. "
			                  "Check its fingerprint by another way before you change knownHosts.");
			return error;
		case HOST_KEY_OTHER_TYPE:
			types = known_hosts_types(known);
			error = error_new("08004",
			                  "%s: the server's host key is of another type (%s) than the "
			                  "ones in knownHosts (%s)",
			                  target, type, types);
			error_detail(error, "The server's key is %s %s.", type, fingerprint);
			error_hint(error,
			           "Add the server's %s key to knownHosts, once you have checked its "
			           "fingerprint.",
			           type);
			free(types);
			return error;
		case HOST_KEY_REVOKED:
			error = error_new("08004", "%s: the host key is revoked in knownHosts", target);
			error_detail(error, "The server's key is %s %s.", type, fingerprint);
			error_hint(error, "Give the host a new key. A revoked one is never accepted.");
			return error;
		case HOST_KEY_ONLY_AUTHORITY:
			error = error_new("08004",
			                  "%s: knownHosts has only a @cert-authority line for this "
			                  "host, and envrt can't check host certificates",
			                  target);
			error_detail(error, "The server's key is %s %s.", type, fingerprint);
			error_hint(error, "Add the host's own key to knownHosts.");
			return error;
		case HOST_KEY_UNREADABLE:
			error =
			    error_new("08004", "%s: no line about this host in knownHosts can be read", target);
			break;
		default:
			if (known_hosts_without_port(known))
				error = error_new("08004",
				                  "%s: the host key is unknown: knownHosts has a line for "
				                  "the host, but not for port %d",
				                  target, session->destination->port);
			else
				error = error_new("08004",
				                  "%s: the host key is unknown: knownHosts has no line "
				                  "for this host",
				                  target);
	}
	error_detail(error, "The server's key is %s %s.", type, fingerprint);
	error_hint(error,
	           "If that is the host's fingerprint, add its line to the config's knownHosts, as "
	           "\"ssh-keyscan -p %d %s\" prints it.",
	           session->destination->port, session->destination->host);
	return error;
}

static HostError *
check_host_key(SshSession *session)
{
	ssh_key key = NULL;
	unsigned char *hash = NULL;
	size_t length = 0;
	char *fingerprint = NULL;
	HostKeyVerdict verdict;
	HostError *error = NULL;

	if (ssh_get_server_publickey(session->ssh, &key) != SSH_OK)
		return connection_error(session, "08004", "the host key can't be read");
	verdict = known_hosts_check(session->known_hosts, key);
	if (verdict != HOST_KEY_KNOWN && (session->destination->strict || verdict == HOST_KEY_REVOKED))
	{
		if (ssh_get_publickey_hash(key, SSH_PUBLICKEY_HASH_SHA256, &hash, &length) == SSH_OK)
			fingerprint = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, length);
		error = verdict_error(session, verdict, ssh_key_type_to_char(ssh_key_type(key)),
		                      fingerprint ? fingerprint : "?");
		ssh_clean_pubkey_hash(&hash);
		ssh_string_free_char(fingerprint);
	}
	ssh_key_free(key);
	return error;
}

/*
 * Login
 */

/* What the server said to whoever logs in (a banner, or PAM's words), made safe; may be empty. */
static char *
server_words(const SshSession *session)
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
cut_error(SshSession *session)
{
	char *words = server_words(session);
	char *line;
	HostError *error;

	if (words[0] == '\0')
	{
		free(words);
		error = connection_error(session, "08006", "the connection was lost while logging in");
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
refused_error(SshSession *session, int outcome)
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
	reason = library_error(session);
	words = server_words(session);
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

static void
login(SshSession *session)
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
			session->phase = READY;
			session->channels.ssh = session->ssh;
			forget_login(session);
			session->events->ready(session->owner);
			break;
		case SSH_AUTH_DENIED:
		case SSH_AUTH_PARTIAL:
			end_session(session, refused_error(session, outcome));
			break;
		default:
			end_session(session, cut_error(session));
	}
}

/*
 * Handshake
 */

/* Channels that the server opens: libssh would keep each request for us. */
static int
refuse_request(ssh_session ssh, ssh_message message, void *data)
{
	(void) ssh;
	(void) message;
	(void) data;
	return 1;
}

static HostError *
make_ssh(SshSession *session, int fd)
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
		ssh_set_message_callback(ssh, refuse_request, NULL);
		return NULL;
	}
	close(fd);
	return error_new("38000", "%s: libssh could not be set up: %s", session->target,
	                 ssh ? ssh_get_error(ssh) : "out of memory");
}

static void
ssh_session_try_again(void *data)
{
	connect_address(data);
}

/* The connection was dropped before the server said a word. */
static void
handshake_dropped(SshSession *session)
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
		end_session(session, error);
		return;
	}
	drop_connection(session);
	session->phase = CONNECTING;
	session->address = 0;
	timer_start(&session->pause, pause / 2 + randombytes_uniform((uint32_t) pause + 1),
	            ssh_session_try_again, session);
}

/*
 * Looks at what the server says first, before libssh takes it.  What is not the
 * beginning of an SSH server's banner, nor what an sshd says that takes no more
 * logins for now, is another kind of server's, and will not become better.
 */
static void
hear_first_words(SshSession *session)
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
key_exchange_error(SshSession *session)
{
	const char *text = ssh_get_error(session->ssh);
	bool lost = strstr(text, "Socket") != NULL;
	bool no_match = strstr(text, "no match") != NULL;
	HostError *error =
	    connection_error(session, lost ? "08006" : "08001", "the key exchange failed");

	if (no_match)
		error_hint(error, "The server has no algorithm of that kind that envrt takes: enable one "
		                  "in its configuration (of sshd: KexAlgorithms, HostKeyAlgorithms, "
		                  "Ciphers, MACs). README.md lists them.");
	return error;
}

static void
handshake(SshSession *session)
{
	HostError *error;
	int outcome;

	hear_first_words(session);
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
			error = check_host_key(session);
			if (error == NULL)
			{
				session->phase = LOGIN;
				session->ask_first = ssh_key_type(session->key) == SSH_KEYTYPE_RSA;
				login(session);
			}
			else
				end_session(session, error);
			break;
		default:
			if (ssh_get_serverbanner(session->ssh) != NULL)
				end_session(session, key_exchange_error(session));
			else if (!session->foreign && (session->counter.in_bytes == 0 ||
			                               strstr(ssh_get_error(session->ssh), "Socket") != NULL))
				handshake_dropped(session);
			else
			{
				error = connection_error(session, "08001", "no SSH server answers there");
				error_hint(error, "Check the environment's host and port.");
				end_session(session, error);
			}
	}
}

/*
 * The loop
 */

/* Whether libssh still has a connection. */
static bool
is_alive(const SshSession *session)
{
	return ssh_is_connected(session->ssh) &&
	       (ssh_get_status(session->ssh) & (SSH_CLOSED | SSH_CLOSED_ERROR)) == 0;
}

static void advance_now(void *data);

static void
ssh_session_advance_soon(SshSession *session)
{
	if (session->soon == NULL && !session->closed)
		timer_start(&session->soon, 0, advance_now, session);
}

/*
 * A peer that is gone is noticed by TCP, unless something between goes on acknowledging.  So a
 * server that has been silent while it had work is asked for an answer, whatever that is.
 */
static void
keep_alive(void *data)
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
		end_session(session, error_new("08006", "%s: the server has not answered for %llu ms",
		                               session->target,
		                               (unsigned long long) interval * (KEEPALIVE_MISSES + 1)));
		return;
	}
	else
	{
		session->silent++;
		ssh_send_keepalive(session->ssh);
		ssh_session_advance_soon(session);
	}
	timer_start(&session->keepalive, interval, keep_alive, session);
}

static void
watch_over(SshSession *session)
{
	if (session->keepalive != NULL || session->channels.count == 0 ||
	    ssh_settings.keepalive_ms == 0)
		return;
	session->heard = session->counter.in_bytes;
	session->silent = 0;
	timer_start(&session->keepalive, ssh_settings.keepalive_ms, keep_alive, session);
}

static void
serve_channels(SshSession *session)
{
	uint64_t before;
	int reads = READS_A_TURN;
	bool alive = true;

	do
	{
		int outcome;

		before = session->counter.in_bytes;
		outcome = ssh_event_dopoll(session->event, 0);
		alive = outcome != SSH_ERROR && is_alive(session);
		if (ssh_channels_advance(&session->channels) && !session->closed)
			session->events->channel_gone(session->owner);
	}
	while (--reads > 0 && alive && !session->closed && session->counter.in_bytes != before);
	if (session->closed || session->phase != READY)
		return;
	watch_over(session);
	if (ssh_channels_flooded(&session->channels))
		end_session(session, error_new("08006",
		                               "%s: dropped, since it went on sending on a closed "
		                               "channel",
		                               session->target));
	else if (!alive || !is_alive(session))
		end_session(session, connection_error(session, "08006", "the connection was lost"));
}

static void
socket_ready(uv_poll_t *handle, int status, int events)
{
	Watch *watch = handle->data;

	(void) status;
	(void) events;
	if (watch->session != NULL)
		ssh_session_advance(watch->session);
}

static void connected(SshSession *session);

/* The bytes of an acknowledgement that waits for company cost 40 ms in each phase. */
static void
after_packets(SshSession *session)
{
	int yes = 1;
	int events = UV_READABLE;

	if (session->watch == NULL || session->ssh == NULL)
		return;
	setsockopt(session->watch->fd, IPPROTO_TCP, TCP_QUICKACK, &yes, sizeof yes);
	if (ssh_get_poll_flags(session->ssh) & SSH_WRITE_PENDING)
		events |= UV_WRITABLE;
	uv_poll_start(&session->watch->handle, events, socket_ready);
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
	if ((session->phase == HANDSHAKE || session->phase == LOGIN) &&
	    session->counter.in_bytes > MAX_BEFORE_LOGIN)
		end_session(session, error_new("08006", "%s: the server sent too much before the login",
		                               session->target));
	if (session->phase == CONNECTING && session->watch != NULL)
		connected(session);
	if (session->phase == HANDSHAKE)
	{
		uint64_t before;
		int reads = READS_A_TURN;

		do
		{
			before = session->counter.in_bytes;
			handshake(session);
		}
		while (--reads > 0 && session->phase == HANDSHAKE && session->counter.in_bytes != before);
	}
	else if (session->phase == LOGIN)
		login(session);
	if (session->phase == READY && !session->closed)
		serve_channels(session);
	session->busy--;
	if (session->closed)
		free_session(session);
	else if (session->phase == ENDED)
		drop_connection(session);
	else
		after_packets(session);
}

static void
advance_now(void *data)
{
	ssh_session_advance(data);
}

ChannelList *
ssh_session_channel_list(SshSession *session)
{
	return &session->channels;
}

/*
 * TCP
 */

static void
note_trouble(SshSession *session, const char *problem)
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
next_address(SshSession *session, const char *problem)
{
	HostError *error;

	note_trouble(session, problem);
	drop_connection(session);
	if (session->address + 1 < session->address_count)
	{
		session->address++;
		connect_address(session);
		return;
	}
	error = error_new("08001", "could not connect to %s: %s", session->target, problem);
	error_detail(error, "%s", session->troubles.data);
	error_hint(error, "Check the environment's host and port, that the SSH server runs, and that "
	                  "no firewall is between.");
	end_session(session, error);
}

static void
address_timed_out(void *data)
{
	next_address(data, "no answer");
}

/* The socket is writable: connected, or not to be connected. */
static void
connected(SshSession *session)
{
	int problem = 0;
	socklen_t length = sizeof problem;
	int fd;
	HostError *error;

	if (getsockopt(session->watch->fd, SOL_SOCKET, SO_ERROR, &problem, &length) < 0)
		problem = errno;
	if (problem != 0)
	{
		next_address(session, strerror(problem));
		return;
	}
	timer_stop(&session->pause);
	fd = fcntl(session->watch->fd, F_DUPFD_CLOEXEC, 3);
	error = fd < 0 ? error_new("53400", "%s: %s", session->target, strerror(errno))
	               : make_ssh(session, fd);
	if (error != NULL)
		end_session(session, error);
	else
		session->phase = HANDSHAKE;
}

static void
set_options(int fd)
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

static void
connect_address(SshSession *session)
{
	const struct sockaddr *address = (struct sockaddr *) &session->addresses[session->address];
	int left = session->address_count - session->address;
	uint64_t now = now_ms();
	uint64_t share = session->deadline > now ? (session->deadline - now) / (uint64_t) left : 0;
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	Watch *watch;

	session->phase = CONNECTING;
	if (fd < 0)
	{
		next_address(session, strerror(errno));
		return;
	}
	set_options(fd);
	watch = xcalloc(1, sizeof *watch);
	watch->fd = fd;
	watch->session = session;
	if (uv_poll_init(uv_default_loop(), &watch->handle, fd) < 0)
	{
		free(watch);
		close(fd);
		next_address(session, "the event loop can't watch the socket");
		return;
	}
	watch->handle.data = watch;
	session->watch = watch;
	if (connect(fd, address, session->address_lengths[session->address]) < 0 &&
	    errno != EINPROGRESS)
	{
		next_address(session, strerror(errno));
		return;
	}
	uv_poll_start(&watch->handle, UV_WRITABLE, socket_ready);
	/* The last address may have all the time that the callers have. */
	if (left > 1)
		timer_start(&session->pause, share > LEAST_ADDRESS_MS ? share : LEAST_ADDRESS_MS,
		            address_timed_out, session);
}

static void
slot_granted(void *data)
{
	connect_address(data);
}

/*
 * Names
 */

static HostError *
not_allowed(const SshSession *session)
{
	HostError *error =
	    error_new("42501", "envrt.allowed_hosts does not allow to connect to %s", session->target);

	error_hint(error, "The server's administrator decides in envrt.allowed_hosts where ssh may "
	                  "connect.");
	return error;
}

static void
resolved(void *data, const struct addrinfo *addresses, const char *problem)
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
		end_session(session, error);
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
		end_session(session, not_allowed(session));
		return;
	}
	session->phase = WAITING;
	session->slot = handshake_slot_ask(session->destination->host, session->destination->port,
	                                   session->destination->company_id, slot_granted, session);
}

static void
ssh_session_begin(void *data)
{
	SshSession *session = data;
	SshDestination *destination = session->destination;
	HostError *error = NULL;
	Resolve *resolve;

	session->key = ssh_key_from_text(destination->private_key, &error);
	if (error != NULL)
	{
		end_session(session, error);
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
		end_session(session, error);
		return;
	}
	if (!allowed_hosts_name(ssh_settings.allowed_hosts, destination->host) &&
	    !allowed_hosts_any_address(ssh_settings.allowed_hosts))
	{
		end_session(session, not_allowed(session));
		return;
	}
	session->known_hosts =
	    known_hosts_parse(destination->known_hosts, destination->host, destination->port);
	/* An address is answered before the call returns, and the session may be gone then. */
	session->busy++;
	resolve = resolve_start(destination->host, destination->port, resolved, session);
	session->busy--;
	if (session->closed)
		free_session(session);
	else
		session->resolve = resolve;
}

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
	session->channels.session = session;
	session->channels.advance_soon = ssh_session_advance_soon;
	timer_start(&session->soon, 0, ssh_session_begin, session);
	return session;
}

void
ssh_session_set_deadline(SshSession *session, uint64_t deadline)
{
	session->deadline = deadline;
}

bool
ssh_session_is_ready(const SshSession *session)
{
	return session->phase == READY;
}

const char *
ssh_session_phase(const SshSession *session)
{
	switch (session->phase)
	{
		case RESOLVING:
			return "looking up the host name";
		case WAITING:
			return "waiting for other logins to that server";
		case CONNECTING:
			return "connecting";
		case HANDSHAKE:
			return ssh_get_serverbanner(session->ssh) ? "exchanging keys"
			                                          : "waiting for the server's banner";
		case LOGIN:
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
