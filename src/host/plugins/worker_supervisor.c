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
 *      the host itself was started with (core dumps stay off), and SIGKILL at
 *      the death of its parent;
 *   3. watches what memory the worker and all that it has started have in use
 *      together, and kills the largest of them when that is too much.  Address
 *      space does not count: a thread reserves megabytes and uses kilobytes;
 *   4. waits for the worker's end, or that of the channel at descriptor 3,
 *      which is the host's end or its wish, and then kills its children until
 *      none is left: whose parent is dead becomes a child;
 *   5. ends as the worker has.
 *
 * On the channel it says the worker's process id, as a line, and in a line what it has killed
 * for its memory; it hears a byte: a T is SIGTERM for the worker.
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
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "plugins/worker_supervisor.h"

#define CHANNEL 3
#define SWEEP_PAUSE_MS 10

/* How often memory is looked at, also when more than half of what there may be is in use. */
#define WATCH_MS 1000
#define WATCH_CLOSELY_MS 100

static void
worker_supervisor_close_from(unsigned first)
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

static void __attribute__((noreturn)) become_worker(pid_t supervisor, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != supervisor)
		_exit(1);
	setsid();
	worker_supervisor_close_from(CHANNEL);
	reset_signals();
	limit_files(argv[2]);
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

/*
 * Memory
 */

typedef struct Process
{
	pid_t pid;
	pid_t parent;
	bool ours;
	unsigned long long bytes;
} Process;

/* The sum of these fields of a file in /proc, in bytes; 0 when it can't be read. */
static unsigned long long
sum_of_fields(pid_t pid, const char *file, const char *const *fields)
{
	unsigned long long sum = 0;
	char path[64];
	char line[256];
	FILE *stream;

	snprintf(path, sizeof path, "/proc/%d/%s", (int) pid, file);
	stream = fopen(path, "re");
	if (stream == NULL)
		return 0;
	while (fgets(line, sizeof line, stream) != NULL)
		for (size_t i = 0; fields[i] != NULL; i++)
			if (strncmp(line, fields[i], strlen(fields[i])) == 0)
				sum += strtoull(line + strlen(fields[i]), NULL, 10) * 1024;
	fclose(stream);
	return sum;
}

/* What a process has for itself; what it shares with those that it was forked from counts in full.
 */
static unsigned long long
quick_bytes(pid_t pid)
{
	static const char *const fields[] = {"RssAnon:", "RssShmem:", "VmSwap:", NULL};

	return sum_of_fields(pid, "status", fields);
}

/* The same with its part of what is shared, which takes the kernel longer. */
static unsigned long long
exact_bytes(pid_t pid)
{
	static const char *const fields[] = {"Pss_Anon:", "Pss_Shmem:", "SwapPss:", NULL};
	unsigned long long bytes = sum_of_fields(pid, "smaps_rollup", fields);

	return bytes > 0 ? bytes : quick_bytes(pid);
}

/* All processes; *count: how many.  To be freed. */
static Process *
list_processes(size_t *count)
{
	DIR *directory = opendir("/proc");
	const struct dirent *entry;
	Process *processes = NULL;
	size_t room = 0;

	*count = 0;
	while (directory != NULL && (entry = readdir(directory)) != NULL)
	{
		Process *grown;

		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		if (*count == room)
		{
			room = room > 0 ? room * 2 : 256;
			grown = realloc(processes, room * sizeof *processes);
			if (grown == NULL)
				break;
			processes = grown;
		}
		processes[(*count)++] = (Process){
		    .pid = (pid_t) strtol(entry->d_name, NULL, 10),
		    .parent = parent_of(entry->d_name),
		};
	}
	if (directory != NULL)
		closedir(directory);
	return processes;
}

static void
mark_children(Process *processes, size_t count, pid_t parent)
{
	for (size_t i = 0; i < count; i++)
	{
		if (processes[i].ours || processes[i].parent != parent)
			continue;
		processes[i].ours = true;
		mark_children(processes, count, processes[i].pid);
	}
}

/* Of what is ours: all bytes, and the process that has the most. */
static unsigned long long
measure(Process *processes, size_t count, unsigned long long (*bytes_of)(pid_t pid), pid_t *largest)
{
	unsigned long long total = 0;
	unsigned long long most = 0;

	*largest = 0;
	for (size_t i = 0; i < count; i++)
	{
		if (!processes[i].ours)
			continue;
		processes[i].bytes = bytes_of(processes[i].pid);
		total += processes[i].bytes;
		if (processes[i].bytes <= most)
			continue;
		most = processes[i].bytes;
		*largest = processes[i].pid;
	}
	return total;
}

/* Kills the largest process when there is too much; returns when to look again. */
static int
watch_memory(pid_t worker, unsigned long long limit)
{
	size_t count;
	Process *processes = list_processes(&count);
	unsigned long long total;
	pid_t largest;

	mark_children(processes, count, getpid());
	total = measure(processes, count, quick_bytes, &largest);
	if (total > limit)
		total = measure(processes, count, exact_bytes, &largest);
	free(processes);
	if (total > limit && largest > 0)
	{
		dprintf(CHANNEL, "%s\n",
		        largest == worker ? WORKER_SUPERVISOR_KILLED : WORKER_SUPERVISOR_KILLED_CHILD);
		kill(largest, SIGKILL);
	}
	return total > limit / 2 ? WATCH_CLOSELY_MS : WATCH_MS;
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

static int64_t
monotonic_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void __attribute__((noreturn)) watch(pid_t worker, int signals, unsigned long long limit)
{
	int64_t due = monotonic_ms();

	struct pollfd wait[] = {
	    {.fd = CHANNEL, .events = POLLIN},
	    {.fd = signals, .events = POLLIN},
	};

	for (;;)
	{
		struct signalfd_siginfo information;
		int status = 0;
		pid_t pid;

		int64_t left = due - monotonic_ms();

		if (poll(wait, 2, limit == 0 ? -1 : left > 0 ? (int) left : 0) < 0 && errno != EINTR)
			sweep(worker, 0, signals);
		if (limit > 0 && monotonic_ms() >= due)
			due = monotonic_ms() + watch_memory(worker, limit);
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
	worker_supervisor_close_from(CHANNEL + 1);
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
	watch(worker, signals, strtoull(argv[3], NULL, 10));
}
