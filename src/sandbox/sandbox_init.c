/*
 * sandbox_init.c
 *		The first process of a sandbox.
 *
 * bwrap makes the namespaces, the file system and the seccomp filter, and then
 * executes this program as process 1 of the sandbox.  It runs the command, and
 * nothing else ever:
 *
 *   1. close what is not needed; be unreadable for the others of the same user
 *   2. start the command, in a session of its own, with its limits and with
 *      nothing open but 0, 1 and 2
 *   3. until the command ends: reap, hand on SIGTERM, and look now and then
 *      whether all together use more than they may
 *   4. report how the command ended, and exit: the kernel kills the rest
 *
 * When the driver host goes away, the control socket ends, and so does this.
 *
 * It is linked statically, so that it runs in any image, and is a part of the
 * driver host's binary.
 *
 * The two limits that the kernel does not know are kept by looking.  Memory:
 * the sum over the processes, first by what is cheap to know and too much, and
 * only when that is over the limit by what is exact.  Disk: the workspace is
 * walked only when the file system has lost so much room that the limit
 * may have been reached.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sandbox_spec.h"

/* The control socket, when all else is closed. */
#define CONTROL 3

#define OPEN_FILES 1024
#define TICK_MS 100
#define DISK_AT_LEAST_EVERY_MS 30000

/* What a file costs that has nothing in it. */
#define INODE_BYTES 4096

static const SandboxSpec *spec;
static char *cwd;
static char **arguments;
static char **variables;
static pid_t command;
static long page_size;

/* Says how it ended, and ends everything. */
static void __attribute__((noreturn)) finish(SandboxReportKind kind, int value)
{
	SandboxReport report = {.kind = (int32_t) kind, .value = value};
	ssize_t written = write(CONTROL, &report, sizeof report);

	(void) written;
	_exit(0);
}

/*
 * The start
 */

static char **
take_strings(char **next, uint32_t count)
{
	char **list = calloc((size_t) count + 1, sizeof *list);

	if (list == NULL)
		_exit(1);
	for (uint32_t i = 0; i < count; i++)
	{
		list[i] = *next;
		*next += strlen(*next) + 1;
	}
	return list;
}

static void
read_spec(void)
{
	struct stat info;
	char *next;

	if (fstat(SANDBOX_FD_SPEC, &info) < 0 || info.st_size < (off_t) sizeof *spec)
		_exit(1);
	next = mmap(NULL, (size_t) info.st_size, PROT_READ, MAP_PRIVATE, SANDBOX_FD_SPEC, 0);
	if (next == MAP_FAILED)
		_exit(1);
	spec = (const SandboxSpec *) next;
	next += sizeof *spec;
	cwd = next;
	next += strlen(next) + 1;
	arguments = take_strings(&next, spec->argument_count);
	variables = take_strings(&next, spec->variable_count);
}

static void
close_from(int first)
{
	if (syscall(SYS_close_range, first, ~0U, 0) == 0)
		return;
	for (int fd = first; fd < 65536; fd++)
		close(fd);
}

static void
limit(int resource, uint64_t value)
{
	struct rlimit both = {.rlim_cur = value, .rlim_max = value};

	/* Lower limits that are there already stay. */
	setrlimit((__rlimit_resource_t) resource, &both);
}

static void
set_limits(void)
{
	limit(RLIMIT_CORE, 0);
	limit(RLIMIT_NOFILE, OPEN_FILES);
	/* This process is one as well. */
	limit(RLIMIT_NPROC, spec->processes + 1);
	limit(RLIMIT_DATA, spec->memory_bytes);
	limit(RLIMIT_MEMLOCK, 65536);
	limit(RLIMIT_MSGQUEUE, 0);
	limit(RLIMIT_FSIZE, spec->workspace_full ? 0 : spec->file_bytes);
	if (spec->cpu_seconds > 0)
	{
		struct rlimit seconds = {.rlim_cur = spec->cpu_seconds, .rlim_max = spec->cpu_seconds + 1};

		setrlimit(RLIMIT_CPU, &seconds);
	}
}

/* The command's process, up to its program; what goes wrong goes into the pipe. */
static void __attribute__((noreturn)) become_command(int pipe)
{
	SandboxReport report = {.kind = SANDBOX_NO_COMMAND};
	sigset_t none;
	ssize_t written;

	setsid();
	umask(022);
	set_limits();
	if (chdir(cwd) < 0)
		report.kind = SANDBOX_NO_CWD;
	else
	{
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		environ = variables;
		execvp(arguments[0], arguments);
	}
	report.value = errno;
	written = write(pipe, &report, sizeof report);
	(void) written;
	_exit(127);
}

static void
start_command(void)
{
	SandboxReport report;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		finish(SANDBOX_NO_PROCESS, errno);
	command = fork();
	if (command < 0)
		finish(SANDBOX_NO_PROCESS, errno);
	if (command == 0)
		become_command(ends[1]);
	close(ends[1]);
	if (read(ends[0], &report, sizeof report) == (ssize_t) sizeof report)
		finish((SandboxReportKind) report.kind, report.value);
	close(ends[0]);
}

/*
 * Memory
 */

/* A small file's text; false when it can't be read. */
static bool
read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length;

	if (fd < 0)
		return false;
	length = read(fd, text, size - 1);
	close(fd);
	if (length < 0)
		return false;
	text[length] = '\0';
	return true;
}

/* All that is resident, whatever it is and whoever else has it. */
static uint64_t
resident_bytes(const char *pid)
{
	char path[64];
	char text[256];
	unsigned long long total;
	unsigned long long resident;

	snprintf(path, sizeof path, "/proc/%.20s/statm", pid);
	if (!read_text(path, text, sizeof text) || sscanf(text, "%llu %llu", &total, &resident) != 2)
		return 0;
	return resident * (uint64_t) page_size;
}

static uint64_t
rollup_field(const char *text, const char *field)
{
	const char *line = strstr(text, field);

	return line ? strtoull(line + strlen(field), NULL, 10) * 1024 : 0;
}

/* Its share of what is no file's; of a process that hides it, all that is resident. */
static uint64_t
proportional_bytes(const char *pid)
{
	char path[64];
	char text[4096];

	snprintf(path, sizeof path, "/proc/%.20s/smaps_rollup", pid);
	if (!read_text(path, text, sizeof text) || text[0] == '\0')
		return resident_bytes(pid);
	return rollup_field(text, "\nPss_Anon:") + rollup_field(text, "\nPss_Shmem:");
}

static uint64_t
sum_of_processes(uint64_t (*bytes_of)(const char *pid))
{
	DIR *directory = opendir("/proc");
	const struct dirent *entry;
	uint64_t sum = 0;

	if (directory == NULL)
		return 0;
	while ((entry = readdir(directory)) != NULL)
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
			sum += bytes_of(entry->d_name);
	closedir(directory);
	return sum;
}

static uint64_t
milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t) now.tv_sec * 1000 + (uint64_t) now.tv_nsec / 1000000;
}

static void
check_memory(void)
{
	static uint64_t next_look;
	uint64_t now = milliseconds();

	if (now < next_look)
		return;
	if (sum_of_processes(resident_bytes) > spec->memory_bytes &&
	    sum_of_processes(proportional_bytes) > spec->memory_bytes)
		finish(SANDBOX_MEMORY, 0);
	/* Not more than a small part of the time. */
	next_look = milliseconds() + 10 * (milliseconds() - now) + TICK_MS;
}

/*
 * Disk
 */

static uint64_t
room_left(void)
{
	struct statvfs info;

	if (statvfs(SANDBOX_WORKSPACE, &info) < 0)
		return 0;
	return (uint64_t) info.f_bfree * info.f_frsize + (uint64_t) info.f_ffree * INODE_BYTES;
}

static uint64_t
workspace_bytes(void)
{
	static char root[] = SANDBOX_WORKSPACE;
	char *const roots[] = {root, NULL};
	FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_XDEV, NULL);
	const FTSENT *entry;
	uint64_t sum = 0;

	while (walk != NULL && (entry = fts_read(walk)) != NULL)
	{
		const struct stat *info = entry->fts_statp;
		bool known = entry->fts_info != FTS_DP && entry->fts_info != FTS_NS &&
		             entry->fts_info != FTS_ERR && entry->fts_info != FTS_DNR;

		if (known)
			sum += ((uint64_t) info->st_blocks * 512 + INODE_BYTES) /
			       (S_ISDIR(info->st_mode) || info->st_nlink == 0 ? 1 : info->st_nlink);
	}
	if (walk != NULL)
		fts_close(walk);
	return sum;
}

static void
check_disk(void)
{
	static uint64_t next_look;
	static uint64_t next_walk;
	static uint64_t used_then;
	static uint64_t room_then;
	static bool walked;
	uint64_t now = milliseconds();
	uint64_t room;
	uint64_t lost;

	if (now < next_look)
		return;
	next_look = now + TICK_MS;
	room = room_left();
	lost = room < room_then ? room_then - room : 0;
	if (walked && now < next_walk && used_then + lost <= spec->workspace_bytes)
		return;
	used_then = workspace_bytes();
	room_then = room;
	walked = true;
	/* Not more than a small part of the time. */
	next_look = milliseconds() + TICK_MS + 10 * (milliseconds() - now);
	next_walk = next_look + DISK_AT_LEAST_EVERY_MS;
	if (used_then > spec->workspace_bytes)
		finish(SANDBOX_DISK, 0);
}

/*
 * The rest of its life
 */

static void
reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
	{
		if (pid != command)
			continue;
		if (WIFEXITED(status))
			finish(SANDBOX_EXITED, WEXITSTATUS(status));
		finish(SANDBOX_SIGNALLED, WTERMSIG(status));
	}
}

static void
obey(void)
{
	char byte = '\0';
	ssize_t count = recv(CONTROL, &byte, 1, MSG_DONTWAIT);

	if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
		_exit(0);
	if (byte == SANDBOX_TERMINATE)
		kill(-command, SIGTERM);
}

/* Nothing of the command runs before the host knows this process. */
static void
wait_for_host(void)
{
	static const SandboxReport ready = {.kind = SANDBOX_READY};
	struct pollfd control = {.fd = CONTROL, .events = POLLIN};
	char byte = '\0';

	if (write(CONTROL, &ready, sizeof ready) != (ssize_t) sizeof ready)
		_exit(1);
	while (poll(&control, 1, -1) < 0)
		;
	if (recv(CONTROL, &byte, 1, MSG_DONTWAIT) != 1 || byte != SANDBOX_GO)
		_exit(0);
}

int
main(void)
{
	struct signalfd_siginfo info;
	struct pollfd watched[2];
	sigset_t child;

	/* Others of the sandbox are of the same user: its memory and descriptors are not theirs. */
	prctl(PR_SET_DUMPABLE, 0);
	read_spec();
	if (SANDBOX_FD_CONTROL != CONTROL && dup2(SANDBOX_FD_CONTROL, CONTROL) < 0)
		_exit(1);
	close_from(CONTROL + 1);
	fcntl(CONTROL, F_SETFD, FD_CLOEXEC);
	page_size = sysconf(_SC_PAGESIZE);

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	watched[0] = (struct pollfd){.fd = CONTROL, .events = POLLIN};
	watched[1] =
	    (struct pollfd){.fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK), .events = POLLIN};
	wait_for_host();
	start_command();
	/* They are the command's. */
	close(0);
	close(1);
	close(2);
	for (;;)
	{
		int ready = poll(watched, 2, TICK_MS);

		if (ready > 0 && watched[1].revents != 0)
		{
			while (read(watched[1].fd, &info, sizeof info) > 0)
				;
			reap();
		}
		if (ready > 0 && watched[0].revents != 0)
			obey();
		check_memory();
		if (!spec->workspace_full)
			check_disk();
	}
}
