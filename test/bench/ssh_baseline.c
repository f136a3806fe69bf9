/*
 * ssh_baseline.c
 *		What libssh costs without anything around it: the yardstick for ssh acquires.
 *
 * Usage: ssh_baseline HOST PORT USER KEY-FILE KNOWN-HOSTS-FILE COLD WARM COMMAND
 *
 * Blocking calls, TCP_NODELAY, no config file, strict host key checking.  Each
 * of the COLD rounds connects, logs in by key, runs the command and reads its output
 * to the end; then the same command runs WARM times on new channels of one open
 * session.  Prints each time in microseconds, "cold N" or "warm N" a line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <libssh/libssh.h>

static const char *host;
static const char *port;
static const char *user;
static const char *known_hosts;
static const char *command;
static ssh_key key;

static void
fail(ssh_session session, const char *what)
{
	fprintf(stderr, "%s failed: %s\n", what, session ? ssh_get_error(session) : "no session");
	exit(1);
}

static long
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

static ssh_session
open_session(void)
{
	ssh_session session = ssh_new();
	int process_config = 0;
	int nodelay = 1;

	if (session == NULL)
		fail(NULL, "ssh_new");
	ssh_options_set(session, SSH_OPTIONS_PROCESS_CONFIG, &process_config);
	ssh_options_set(session, SSH_OPTIONS_NODELAY, &nodelay);
	ssh_options_set(session, SSH_OPTIONS_HOST, host);
	ssh_options_set(session, SSH_OPTIONS_PORT_STR, port);
	ssh_options_set(session, SSH_OPTIONS_USER, user);
	ssh_options_set(session, SSH_OPTIONS_KNOWNHOSTS, known_hosts);
	if (ssh_connect(session) != SSH_OK)
		fail(session, "connect");
	if (ssh_session_is_known_server(session) != SSH_KNOWN_HOSTS_OK)
		fail(session, "host key check");
	if (ssh_userauth_publickey(session, NULL, key) != SSH_AUTH_SUCCESS)
		fail(session, "login");
	return session;
}

static void
run_command(ssh_session session)
{
	ssh_channel channel = ssh_channel_new(session);
	char buffer[4096];
	int n;

	if (channel == NULL || ssh_channel_open_session(channel) != SSH_OK)
		fail(session, "channel");
	if (ssh_channel_request_exec(channel, command) != SSH_OK)
		fail(session, "exec");
	while ((n = ssh_channel_read(channel, buffer, sizeof(buffer), 0)) > 0)
		;
	if (n < 0 || ssh_channel_get_exit_status(channel) != 0)
		fail(session, "command");
	ssh_channel_free(channel);
}

int
main(int argc, char **argv)
{
	ssh_session session;
	int cold;
	int warm;

	if (argc != 9)
	{
		fprintf(stderr, "usage: %s HOST PORT USER KEY-FILE KNOWN-HOSTS-FILE COLD WARM COMMAND\n",
		        argv[0]);
		return 2;
	}
	host = argv[1];
	port = argv[2];
	user = argv[3];
	known_hosts = argv[5];
	cold = atoi(argv[6]);
	warm = atoi(argv[7]);
	command = argv[8];
	if (ssh_pki_import_privkey_file(argv[4], NULL, NULL, NULL, &key) != SSH_OK)
	{
		fprintf(stderr, "can't read %s\n", argv[4]);
		return 1;
	}

	for (int i = 0; i < cold; i++)
	{
		long start = now_us();

		session = open_session();
		run_command(session);
		printf("cold %ld\n", now_us() - start);
		ssh_disconnect(session);
		ssh_free(session);
	}

	session = open_session();
	run_command(session);
	for (int i = 0; i < warm; i++)
	{
		long start = now_us();

		run_command(session);
		printf("warm %ld\n", now_us() - start);
	}
	ssh_disconnect(session);
	ssh_free(session);
	ssh_key_free(key);
	return 0;
}
