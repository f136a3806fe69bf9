/*
 * plugin_copier.c
 *		A process between a client and a plugin's worker that does nothing but copy bytes: the least
 *		that it costs to have one in between.
 *
 * Usage: plugin_copier SOCKET PROGRAM [ARGUMENT]...
 *
 * Listens at SOCKET, runs PROGRAM with pipes as stdin and stdout, and copies what the first
 * client writes to the one, and what comes from the other to the client.  Ends when one of
 * the two does.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void
check(int result, const char *what)
{
	if (result >= 0)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static int
accept_one(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int client;

	check(listener, "socket");
	if (strlen(path) >= sizeof address.sun_path)
	{
		errno = ENAMETOOLONG;
		check(-1, path);
	}
	memcpy(address.sun_path, path, strlen(path) + 1);
	check(bind(listener, (struct sockaddr *) &address, sizeof address), path);
	check(listen(listener, 1), path);
	client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	check(client, "accept");
	return client;
}

static void
copy(int from, int to)
{
	static char bytes[65536];
	ssize_t count = read(from, bytes, sizeof bytes);

	check((int) count, "read");
	if (count == 0)
		exit(0);
	for (ssize_t done = 0; done < count;)
	{
		ssize_t written = write(to, bytes + done, (size_t) (count - done));

		check((int) written, "write");
		done += written;
	}
}

int
main(int argc, char **argv)
{
	int requests[2];
	int answers[2];
	int loop = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN};
	int client;
	pid_t worker;

	if (argc < 3)
	{
		errno = EINVAL;
		check(-1, "plugin_copier SOCKET PROGRAM [ARGUMENT]...");
	}
	check(pipe2(requests, O_CLOEXEC), "pipe");
	check(pipe2(answers, O_CLOEXEC), "pipe");
	worker = fork();
	check(worker, "fork");
	if (worker == 0)
	{
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(requests[0], STDIN_FILENO);
		dup2(answers[1], STDOUT_FILENO);
		execvp(argv[2], argv + 2);
		check(-1, argv[2]);
	}
	close(requests[0]);
	close(answers[1]);
	client = accept_one(argv[1]);
	event.data.fd = client;
	check(epoll_ctl(loop, EPOLL_CTL_ADD, client, &event), "epoll_ctl");
	event.data.fd = answers[0];
	check(epoll_ctl(loop, EPOLL_CTL_ADD, answers[0], &event), "epoll_ctl");
	for (;;)
	{
		check(epoll_wait(loop, &event, 1, -1), "epoll_wait");
		if (event.data.fd == client)
			copy(client, requests[1]);
		else
			copy(answers[0], client);
	}
}
