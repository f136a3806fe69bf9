/*
 * worker_supervisor.c
 *		The process between the host and a plugin's worker.
 *
 * Nothing that a worker has started may outlive it, and it must not outlive
 * its host, whatever ends the host; and it must inherit nothing of the host
 * but three pipes.  A process group is not enough for that: what a worker
 * starts can leave it.  So the host starts its own binary in this mode, in
 * which it
 *
 *   1. asks the kernel to be the parent of all its descendants that lose
 *      theirs (PR_SET_CHILD_SUBREAPER);
 *   2. starts the worker, in a session of its own, with default signals, none
 *      blocked, no descriptor but 0, 1 and 2, the number of open files that
 *      the host itself was started with (core dumps stay off), a limit of
 *      memory, and SIGKILL at the death of its parent;
 *   3. waits for the worker's end, or that of the channel at descriptor 3,
 *      which is the host's end or its wish, and then kills its children until
 *      none is left: whose parent is dead becomes a child;
 *   4. ends as the worker has.
 *
 * On the channel it says the worker's process id, as a line, and hears a byte:
 * a T is SIGTERM for the worker.
 *
 * A worker runs as the same user, so one that is out to do harm can kill this
 * process first.  The worker itself dies with it; what it had started and put
 * into sessions of their own is then out of reach.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "worker_supervisor.h"

#define CHANNEL 3
#define SWEEP_PAUSE_MS 10

static void
close_from(unsigned first)
{
#ifdef SYS_close_range
	if (syscall(SYS_close_range, first, ~0U, 0) == 0)
		return;
#endif
	/* A kernel before 5.9. */
	{
		long last = sysconf(_SC_OPEN_MAX);

		for (int fd = (int) first; fd < (last > 0 ? last : 65536); fd++)
			close(fd);
	}
}

/*
 * The worker's side
 */

static void
reset_signals(void)
{
	sigset_t none;

	/* Those that can't be changed fail, and need not be. */
	for (int number = 1; number <= SIGRTMAX; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void
limit_files(const char *text)
{
	rlim_t wanted = (rlim_t) strtoull(text, NULL, 10);
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) != 0 || wanted == 0 || wanted > files.rlim_max)
		return;
	files.rlim_cur = wanted;
	setrlimit(RLIMIT_NOFILE, &files);
}

/* Of what it has for itself: address space that a runtime only reserves does not count. */
static void
limit_memory(const char *text)
{
	rlim_t bytes = (rlim_t) strtoull(text, NULL, 10);
	struct rlimit memory = {bytes, bytes};

	if (bytes > 0)
		setrlimit(RLIMIT_DATA, &memory);
}

static void __attribute__((noreturn)) become_worker(pid_t supervisor, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != supervisor)
		_exit(1);
	setsid();
	close_from(CHANNEL);
	reset_signals();
	limit_files(argv[2]);
	limit_memory(argv[3]);
	execvp(argv[4], argv + 4);
	/* The host keeps what comes on stderr for its messages. */
	fprintf(stderr, "could not execute %s: %s\n", argv[4], strerror(errno));
	_exit(127);
}

/*
 * Ours
 */

/* The parent of a process, by its line in /proc; 0 when it is gone. */
static pid_t
parent_of(const char *name)
{
	char path[64];
	char text[512];
	const char *after;
	ssize_t length;
	int fd;

	snprintf(path, sizeof path, "/proc/%.20s/stat", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	length = read(fd, text, sizeof text - 1);
	close(fd);
	if (length <= 0)
		return 0;
	text[length] = '\0';
	/* The name of the program, in parentheses, can hold anything. */
	after = strrchr(text, ')');
	return after != NULL && strlen(after) > 4 ? (pid_t) strtol(after + 4, NULL, 10) : 0;
}

static void
kill_children(void)
{
	DIR *processes = opendir("/proc");
	const struct dirent *entry;
	pid_t self = getpid();

	if (processes == NULL)
		return;
	while ((entry = readdir(processes)) != NULL)
	{
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && parent_of(entry->d_name) == self)
			kill((pid_t) strtol(entry->d_name, NULL, 10), SIGKILL);
	}
	closedir(processes);
}

/* Ends all that is left, and ends as the worker did. */
static void __attribute__((noreturn)) sweep(pid_t worker, int status, int signals)
{
	struct pollfd wait = {.fd = signals, .events = POLLIN};
	bool gone = worker == 0;

	if (!gone)
		kill(-worker, SIGKILL);
	for (;;)
	{
		int one;
		pid_t pid = waitpid(-1, &one, WNOHANG);

		if (pid < 0 && errno == ECHILD)
			break;
		if (pid == worker && !gone)
		{
			status = one;
			gone = true;
		}
		if (pid == 0)
		{
			struct signalfd_siginfo information;
			ssize_t length;

			kill_children();
			/* There may be new ones soon: those of them that have just died. */
			poll(&wait, 1, SWEEP_PAUSE_MS);
			length = read(signals, &information, sizeof information);
			(void) length;
		}
	}
	if (WIFSIGNALED(status))
	{
		reset_signals();
		kill(getpid(), WTERMSIG(status));
	}
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

/* False when the channel has ended. */
static bool
hear(pid_t worker)
{
	char wish;
	ssize_t length = read(CHANNEL, &wish, 1);

	if (length == 1 && wish == WORKER_SUPERVISOR_TERMINATE[0])
		kill(-worker, SIGTERM);
	return length > 0 || (length < 0 && (errno == EINTR || errno == EAGAIN));
}

static void __attribute__((noreturn)) watch(pid_t worker, int signals)
{
	struct pollfd wait[] = {
	    {.fd = CHANNEL, .events = POLLIN},
	    {.fd = signals, .events = POLLIN},
	};

	for (;;)
	{
		struct signalfd_siginfo information;
		int status = 0;
		pid_t pid;

		if (poll(wait, 2, -1) < 0 && errno != EINTR)
			sweep(worker, 0, signals);
		if (wait[1].revents != 0 && read(signals, &information, sizeof information) < 0 &&
		    errno != EAGAIN)
			sweep(worker, 0, signals);
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			if (pid == worker)
				sweep(0, status, signals);
		if (wait[0].revents != 0 && !hear(worker))
			sweep(worker, 0, signals);
	}
}

void
worker_supervisor(int argc, char **argv)
{
	pid_t self = getpid();
	pid_t worker;
	sigset_t all;
	int signals;
	int null;

	if (argc < 5 || fcntl(CHANNEL, F_GETFD) < 0)
		_exit(2);
	close_from(CHANNEL + 1);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	/* Of the others none is for us. */
	sigemptyset(&all);
	sigaddset(&all, SIGCHLD);
	signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	worker = fork();
	if (worker == 0)
		become_worker(self, argv);
	if (worker < 0 || signals < 0)
	{
		fprintf(stderr, "could not start the worker: %s\n", strerror(errno));
		_exit(1);
	}
	/* The pipes are the worker's alone, so that their ends tell of its own. */
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = 0; fd < CHANNEL; fd++)
	{
		if (null < 0)
			close(fd);
		else
			dup2(null, fd);
	}
	fcntl(CHANNEL, F_SETFL, fcntl(CHANNEL, F_GETFL) | O_NONBLOCK);
	dprintf(CHANNEL, "%d\n", (int) worker);
	watch(worker, signals);
}
