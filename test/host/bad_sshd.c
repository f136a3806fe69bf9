/*
 * bad_sshd.c
 *		An SSH server that misbehaves, for tests.
 *
 *		bad_sshd MODE
 *
 * Listens on a free port of 127.0.0.1 and prints, a line each: "port" and the
 * port; its known_hosts line; then "accept" for each connection, "exec" for
 * each command that it lets hang, and "close"
 * when the client has closed it.  Ends with its standard input.  Modes:
 *
 *		silent     accepts and never speaks
 *		hangup     closes each connection before its banner
 *		banner     sends its banner and stops
 *		kex        sends its half of the key exchange's start and stops
 *		auth       hangs at authentication
 *		exec       hangs after the request to run a command
 *		flood      accepts the command and writes without end
 *		drop-exec  closes the connection in the middle of the command
 *		signals    says twice that a signal ended the shell, and not that it was the end
 *		junk       sends random bytes
 *
 * Up to the point where it turns bad it accepts every user and every key.
 * Each connection has a process of its own, so one that hangs hangs alone.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <libssh/server.h>

static const char *mode;
static ssh_key host_key;
static ssh_channel channel;
static bool commanded;
static char marker[64]; /* the command's last word */

static bool
is_mode(const char *name)
{
	return strcmp(mode, name) == 0;
}

static void
say(const char *line)
{
	/* One write, since several processes share the pipe. */
	ssize_t written = write(STDOUT_FILENO, line, strlen(line));

	(void) written;
}

/* Reads, and says nothing, until the client has gone. */
static void
hang(int fd)
{
	char buffer[4096];

	while (read(fd, buffer, sizeof buffer) > 0)
		;
	say("close\n");
	_exit(0);
}

static void
send_all(int fd, const void *data, size_t length)
{
	if (send(fd, data, length, MSG_NOSIGNAL) != (ssize_t) length)
		hang(fd);
}

/* A KEXINIT that every client can agree with. */
static void
send_kexinit(int fd)
{
	static const char *const lists[] = {
	    "curve25519-sha256", "ssh-ed25519", "aes256-ctr", "aes256-ctr", "hmac-sha2-256",
	    "hmac-sha2-256",     "none",        "none",       "",           ""};
	unsigned char packet[512] = {0};
	size_t length = 5; /* the packet's length and its padding's */
	size_t padding;

	packet[length++] = 20; /* SSH_MSG_KEXINIT */
	length += 16;          /* the cookie */
	for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
	{
		packet[length + 3] = (unsigned char) strlen(lists[i]);
		memcpy(packet + length + 4, lists[i], strlen(lists[i]));
		length += 4 + strlen(lists[i]);
	}
	length += 5; /* no guess follows; reserved */
	padding = 8 - length % 8 + 8;
	length += padding;
	packet[2] = (unsigned char) ((length - 4) >> 8);
	packet[3] = (unsigned char) (length - 4);
	packet[4] = (unsigned char) padding;
	send_all(fd, packet, length);
}

static void
serve_raw(int fd)
{
	static const char banner[] = "SSH-2.0-OpenSSH_9.2\r\n";
	unsigned char junk[4096];

	if (is_mode("hangup"))
	{
		shutdown(fd, SHUT_RDWR);
		_exit(0);
	}
	if (is_mode("junk") && getrandom(junk, sizeof junk, 0) == (ssize_t) sizeof junk)
	{
		/* A line break would make lines before the banner of it, which are allowed. */
		for (size_t i = 0; i < sizeof junk; i++)
			junk[i] |= 0x80;
		send_all(fd, junk, sizeof junk);
	}
	if (is_mode("banner") || is_mode("kex"))
		send_all(fd, banner, sizeof banner - 1);
	if (is_mode("kex"))
		send_kexinit(fd);
	hang(fd);
}

static int
on_login(ssh_session session, const char *user, struct ssh_key_struct *key, char state, void *data)
{
	(void) user;
	(void) key;
	(void) state;
	(void) data;
	if (is_mode("auth"))
		hang(ssh_get_fd(session));
	return SSH_AUTH_SUCCESS;
}

static int
on_exec(ssh_session session, ssh_channel asked, const char *command, void *data)
{
	const char *last = strrchr(command, ' ');

	(void) asked;
	(void) data;
	snprintf(marker, sizeof marker, "%s", last ? last + 1 : "");
	if (is_mode("exec"))
	{
		say("exec\n");
		hang(ssh_get_fd(session));
	}
	commanded = true;
	return 0;
}

static struct ssh_channel_callbacks_struct channel_callbacks = {.channel_exec_request_function =
                                                                    on_exec};

static ssh_channel
on_open(ssh_session session, void *data)
{
	(void) data;
	channel = ssh_channel_new(session);
	ssh_callbacks_init(&channel_callbacks);
	ssh_set_channel_callbacks(channel, &channel_callbacks);
	return channel;
}

static void
serve_ssh(int fd)
{
	static struct ssh_server_callbacks_struct callbacks = {
	    .auth_pubkey_function = on_login, .channel_open_request_session_function = on_open};
	static char text[32768];
	ssh_bind binding = ssh_bind_new();
	ssh_session session = ssh_new();
	ssh_event event = ssh_event_new();
	int no = 0;

	ssh_bind_options_set(binding, SSH_BIND_OPTIONS_PROCESS_CONFIG, &no);
	ssh_bind_options_set(binding, SSH_BIND_OPTIONS_IMPORT_KEY, ssh_key_dup(host_key));
	ssh_callbacks_init(&callbacks);
	ssh_set_server_callbacks(session, &callbacks);
	ssh_set_auth_methods(session, SSH_AUTH_METHOD_PUBLICKEY);
	if (ssh_bind_accept_fd(binding, session, fd) != SSH_OK ||
	    ssh_handle_key_exchange(session) != SSH_OK)
	{
		say("close\n");
		_exit(1);
	}
	ssh_event_add_session(event, session);
	while (!commanded && ssh_event_dopoll(event, -1) != SSH_ERROR)
		;
	memset(text, 'x', sizeof text);
	text[sizeof text - 1] = '\n';
	if (commanded && is_mode("drop-exec"))
	{
		ssh_channel_write(channel, "begun\n", 6);
		shutdown(fd, SHUT_RDWR);
		_exit(0);
	}
	if (commanded && is_mode("signals"))
	{
		snprintf(text, sizeof text, "%s ready 1\n", marker);
		ssh_channel_write(channel, text, (uint32_t) strlen(text));
		snprintf(text, sizeof text, "%s ready 2\n", marker);
		ssh_channel_write_stderr(channel, text, (uint32_t) strlen(text));
		ssh_channel_request_send_exit_signal(channel, "FIRST", 0, "", "");
		ssh_blocking_flush(session, 1000);
		usleep(300000);
		ssh_channel_request_send_exit_signal(channel, "SECOND", 0, "", "");
		ssh_blocking_flush(session, 1000);
		hang(fd);
	}
	/* Blocks while the client does not read. */
	while (commanded && is_mode("flood") && ssh_channel_write(channel, text, sizeof text) > 0)
		;
	say("close\n");
	_exit(0);
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
	socklen_t length = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool raw;
	char *base64 = NULL;

	if (argc != 2)
	{
		fprintf(stderr, "usage: bad_sshd MODE\n");
		return 2;
	}
	mode = argv[1];
	raw = is_mode("silent") || is_mode("hangup") || is_mode("banner") || is_mode("kex") ||
	      is_mode("junk");
	if (!raw && !is_mode("auth") && !is_mode("exec") && !is_mode("flood") &&
	    !is_mode("drop-exec") && !is_mode("signals"))
	{
		fprintf(stderr, "bad_sshd: no mode \"%s\"\n", mode);
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	ssh_init();
	if (ssh_pki_generate(SSH_KEYTYPE_ED25519, 0, &host_key) != SSH_OK ||
	    ssh_pki_export_pubkey_base64(host_key, &base64) != SSH_OK ||
	    bind(listener, (struct sockaddr *) &address, length) < 0 || listen(listener, 1024) < 0 ||
	    getsockname(listener, (struct sockaddr *) &address, &length) < 0)
	{
		perror("bad_sshd");
		return 1;
	}
	printf("port %d\n[127.0.0.1]:%d ssh-ed25519 %s\n", ntohs(address.sin_port),
	       ntohs(address.sin_port), base64);
	fflush(stdout);
	while (true)
	{
		struct pollfd events[] = {{.fd = listener, .events = POLLIN},
		                          {.fd = STDIN_FILENO, .events = POLLIN}};
		int fd;

		if (poll(events, 2, -1) < 0)
			continue;
		if (events[1].revents != 0)
			return 0;
		fd = accept(listener, NULL, NULL);
		if (fd < 0)
			continue;
		say("accept\n");
		if (fork() == 0)
		{
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(listener);
			if (raw)
				serve_raw(fd);
			else
				serve_ssh(fd);
			_exit(0);
		}
		close(fd);
	}
}
