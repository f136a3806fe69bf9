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
 *   3. until no process is left: reap, hand on SIGTERM, report how the command
 *      ended when it has, and look now and then whether all together use more
 *      than they may
 *   4. exit
 *
 * Processes that the command leaves behind may still have to write what it sent
 * through them (a tee, say), so its end is not theirs.  The driver host kills
 * this process when it has read the output to its end, or has waited for long
 * enough; the kernel kills the rest then.
 *
 * When the driver host goes away, the control socket ends, and so does this.
 *
 * It is linked statically, so that it runs in any image, and is a part of the
 * driver host's binary.
 *
 * The limits that the kernel does not know are kept by looking.  Memory: the sum over the
 * processes, first by what is cheap to know and too much, and only when that is over the limit by
 * what is exact.  What the kernel keeps for the processes: the number of their open files and of
 * their sockets, what waits in their TCP and UDP sockets, and the watches of their epoll files,
 * which it counts for all of the server's user together.  A process that hides its files has as
 * many as it may, and watches that nobody sees.  Disk: the workspace is walked only when the file
 * system has lost so much room since the last time that the limit may have been reached; the host
 * hands on what is known from command to command.  One that is too full at the start stays as it
 * is but for what the command removes: no file can grow.
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

#include "shared/sandbox_spec.h"

/* The control socket, when all else is closed. */
#define CONTROL 3

#define OPEN_FILES 1024
#define TICK_MS 100
#define FULL_TICK_MS 20
#define MAX_PAUSE_MS 1000
#define LOOK_AGAIN_MS 60000

/* What a file costs that has nothing in it. */
#define INODE_BYTES 4096

/* A descriptor each. */
#define MAX_DEPTH 500

/* By so much what is too full may still grow: by the directories of what is moved, say. */
#define FULL_SLACK ((uint64_t) 1024 * 1024)

/* What no workspace holds. */
#define NO_LIMIT (UINT64_MAX / 2)

/* Files without a name that are told apart; more of them may count twice. */
#define MAX_NAMELESS 1024

static const SandboxSpec *spec;
static char *cwd;
static char **arguments;
static char **variables;
static pid_t command;
static bool command_ended; /* and the host knows how */
static long page_size;
static SandboxUsage usage;
static uint64_t disk_limit; /* what the workspace may hold: what it may be, or is already */
static bool full_from_start;
static bool too_deep;       /* the last walk did not see all */
static uint64_t start_room; /* what the file system had left */

static void
report_end(SandboxReportKind kind, int value)
{
	SandboxReport report = {.kind = (int32_t) kind, .value = value};
	ssize_t written = write(CONTROL, &report, sizeof report);

	(void) written;
}

/* Ends everything, and says why unless the host knows the command's end already. */
static void __attribute__((noreturn)) finish(SandboxReportKind kind, int value)
{
	if (!command_ended)
		report_end(kind, value);
	_exit(0);
}

static uint64_t
milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t) now.tv_sec * 1000 + (uint64_t) now.tv_nsec / 1000000;
}

/* When to look again, after a look that began at `start`: not all of the time goes into it. */
static uint64_t
next_time(uint64_t start)
{
	uint64_t now = milliseconds();
	uint64_t pause = 10 * (now - start) + TICK_MS;

	return now + (pause < MAX_PAUSE_MS ? pause : MAX_PAUSE_MS);
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
	next_look = next_time(now);
}

/*
 * What the kernel keeps
 */

/* The watches of an epoll file: a line each. */
static uint64_t
epoll_watches(const char *pid, const char *fd)
{
	static const char word[] = "tfd:";
	char path[64];
	char line[256];
	uint64_t count = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%.20s/fdinfo/%.20s", pid, fd);
	file = fopen(path, "re");
	while (file != NULL && count <= SANDBOX_MAX_WATCHES && fgets(line, sizeof line, file) != NULL)
		if (strncmp(line, word, sizeof word - 1) == 0)
			count++;
	if (file != NULL)
		fclose(file);
	return count;
}

static void
add_objects(const char *pid, uint64_t *files, uint64_t *watches)
{
	static const char epoll[] = "anon_inode:[eventpoll]";
	char path[64];
	char target[sizeof epoll];
	const struct dirent *entry;
	DIR *directory;

	snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
	directory = opendir(path);
	if (directory == NULL)
	{
		/* One that has ended, and so has no memory, hides nothing. */
		if ((errno == EACCES || errno == EPERM) && resident_bytes(pid) > 0)
			*files += OPEN_FILES;
		return;
	}
	while (*watches <= SANDBOX_MAX_WATCHES && (entry = readdir(directory)) != NULL)
	{
		ssize_t length;

		if (entry->d_name[0] == '.')
			continue;
		(*files)++;
		length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target);
		if (length == (ssize_t) sizeof epoll - 1 && memcmp(target, epoll, sizeof epoll - 1) == 0)
			*watches += epoll_watches(pid, entry->d_name);
	}
	closedir(directory);
}

/* Also those that no process has open, on their way through another socket. */
static uint64_t
sockets_in_use(void)
{
	static const char words[] = "sockets: used ";
	char text[1024];

	if (!read_text("/proc/self/net/sockstat", text, sizeof text) ||
	    strncmp(text, words, sizeof words - 1) != 0)
		return 0;
	return strtoull(text + sizeof words - 1, NULL, 10);
}

/* What waits in sockets of a protocol, to be sent or to be read. */
static uint64_t
queued_bytes(const char *protocol)
{
	char path[64];
	char line[512];
	uint64_t sum = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/self/net/%s", protocol);
	file = fopen(path, "re");
	while (file != NULL && fgets(line, sizeof line, file) != NULL)
	{
		unsigned long long sent;
		unsigned long long received;

		if (sscanf(line, "%*s %*s %*s %*s %llx:%llx", &sent, &received) == 2)
			sum += sent + received;
	}
	if (file != NULL)
		fclose(file);
	return sum;
}

static void
check_objects(void)
{
	static const char *const protocols[] = {"tcp", "tcp6", "udp", "udp6"};
	static uint64_t next_look;
	uint64_t most = spec->memory_bytes / SANDBOX_OBJECT_BYTES;
	uint64_t start = milliseconds();
	uint64_t queued = 0;
	uint64_t files = 0;
	uint64_t watches = 0;
	const struct dirent *entry;
	DIR *directory;

	if (start < next_look || (directory = opendir("/proc")) == NULL)
		return;
	if (most < SANDBOX_LEAST_OBJECTS)
		most = SANDBOX_LEAST_OBJECTS;
	while ((entry = readdir(directory)) != NULL)
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && strcmp(entry->d_name, "1") != 0)
			add_objects(entry->d_name, &files, &watches);
	closedir(directory);
	if (files > most || watches > SANDBOX_MAX_WATCHES || sockets_in_use() > most)
		finish(SANDBOX_OBJECTS, 0);
	for (size_t i = 0; i < sizeof protocols / sizeof protocols[0]; i++)
		queued += queued_bytes(protocols[i]);
	if (queued > spec->memory_bytes)
		finish(SANDBOX_MEMORY, 0);
	next_look = next_time(start);
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
file_bytes(const struct stat *info)
{
	uint64_t bytes = (uint64_t) info->st_blocks * 512 + INODE_BYTES;

	return S_ISDIR(info->st_mode) || info->st_nlink == 0 ? bytes : bytes / info->st_nlink;
}

/* To look into a directory and at what is in it, whoever has forbidden that. */
static int
open_directory(int above, const char *name, mode_t mode)
{
	if ((mode & 0500) != 0500)
		fchmodat(above, name, (mode & 0777) | 0500, 0);
	return openat(above, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Gives it the mode back, unless the command has given it another one since. */
static void
close_directory(DIR *directory, mode_t mode)
{
	struct stat info;

	if ((mode & 0500) != 0500 && fstat(dirfd(directory), &info) == 0 &&
	    (info.st_mode & 0777) == ((mode & 0777) | 0500))
		fchmod(dirfd(directory), mode & 0777);
	closedir(directory);
}

/*
 * Adds what a directory holds, until that is over the limit.  It takes the
 * descriptor.  What is nested too deep to be looked at is taken for too much.
 */
static void
add_directory(int fd, mode_t mode, int depth, uint64_t *sum)
{
	DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *entry;
	struct stat info;

	if (directory == NULL)
	{
		if (fd >= 0)
			close(fd);
		return;
	}
	while (*sum <= disk_limit && (entry = readdir(directory)) != NULL)
	{
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
		    fstatat(fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		*sum += file_bytes(&info);
		if (S_ISDIR(info.st_mode) && depth == MAX_DEPTH)
		{
			too_deep = true;
			*sum = disk_limit + 1;
		}
		else if (S_ISDIR(info.st_mode))
			add_directory(open_directory(fd, entry->d_name, info.st_mode), info.st_mode, depth + 1,
			              sum);
	}
	close_directory(directory, mode);
}

/*
 * Files without a name
 */

/* Whether a process's open file is one of the workspace's that has no name, and not counted yet. */
static bool
is_nameless(const struct stat *info, dev_t device)
{
	static ino_t seen[MAX_NAMELESS];
	static size_t count;

	if (info == NULL)
		count = 0;
	if (info == NULL || !S_ISREG(info->st_mode) || info->st_nlink > 0 || info->st_dev != device)
		return false;
	for (size_t i = 0; i < count; i++)
		if (seen[i] == info->st_ino)
			return false;
	if (count < MAX_NAMELESS)
		seen[count++] = info->st_ino;
	return true;
}

static void
add_open_files(const char *pid, dev_t device, uint64_t *sum)
{
	char path[32];
	const struct dirent *entry;
	struct stat info;
	DIR *directory;

	snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
	directory = opendir(path);
	if (directory == NULL)
		return;
	while (*sum <= disk_limit && (entry = readdir(directory)) != NULL)
		if (fstatat(dirfd(directory), entry->d_name, &info, 0) == 0 && is_nameless(&info, device))
			*sum += file_bytes(&info);
	closedir(directory);
}

static void
add_nameless(dev_t device, uint64_t *sum)
{
	DIR *directory = opendir("/proc");
	const struct dirent *entry;

	if (directory == NULL)
		return;
	is_nameless(NULL, device);
	while (*sum <= disk_limit && (entry = readdir(directory)) != NULL)
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
			add_open_files(entry->d_name, device, sum);
	closedir(directory);
}

/*
 * Looks
 */

static bool
is_full(void)
{
	return usage.used > disk_limit;
}

/* Whether it may have become too full since it was looked at. */
static bool
may_be_full(uint64_t room)
{
	uint64_t lost = room < usage.room ? usage.room - room : 0;

	return usage.when_ms == 0 || milliseconds() - usage.when_ms > LOOK_AGAIN_MS ||
	       usage.used + lost > disk_limit;
}

static void
measure(uint64_t room)
{
	struct stat info;

	usage.used = 0;
	usage.room = room;
	usage.when_ms = milliseconds();
	too_deep = false;
	if (lstat(SANDBOX_WORKSPACE, &info) < 0)
		return;
	add_directory(open_directory(AT_FDCWD, SANDBOX_WORKSPACE, info.st_mode), info.st_mode, 0,
	              &usage.used);
	add_nameless(info.st_dev, &usage.used);
}

static void
report_usage(bool is_full_from_start)
{
	SandboxReport report = {.kind = SANDBOX_USAGE, .value = is_full_from_start, .usage = usage};
	ssize_t written = write(CONTROL, &report, sizeof report);

	(void) written;
}

static void
look_at_start(void)
{
	start_room = room_left();
	disk_limit = spec->workspace_bytes;
	if (may_be_full(start_room))
	{
		measure(start_room);
		report_usage(is_full());
	}
	full_from_start = is_full();
	if (!full_from_start)
		return;
	/* From here on all of it is what it may hold. */
	disk_limit = NO_LIMIT;
	measure(start_room);
	disk_limit = usage.used + FULL_SLACK;
}

static void
check_disk(void)
{
	static uint64_t next_look;
	uint64_t start = milliseconds();
	uint64_t room = room_left();

	if (start < next_look || !may_be_full(room))
		return;
	measure(room);
	report_usage(false);
	/* What is too full already is not to get much fuller. */
	next_look = full_from_start ? 2 * milliseconds() - start : next_time(start);
	/* Of what nobody can see all of, nobody knows by how much it has grown. */
	if (full_from_start && too_deep ? room + FULL_SLACK < start_room : is_full())
		finish(SANDBOX_DISK, 0);
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
	limit(RLIMIT_FSIZE, full_from_start ? 0 : spec->file_bytes);
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
			report_end(SANDBOX_EXITED, WEXITSTATUS(status));
		else
			report_end(SANDBOX_SIGNALLED, WTERMSIG(status));
		command_ended = true;
	}
	if (pid < 0 && errno == ECHILD)
		_exit(0);
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
	usage = spec->usage;
	look_at_start();
	start_command();
	/* They are the command's. */
	close(0);
	close(1);
	close(2);
	for (;;)
	{
		int ready = poll(watched, 2, full_from_start ? FULL_TICK_MS : TICK_MS);

		if (ready > 0 && watched[1].revents != 0)
		{
			while (read(watched[1].fd, &info, sizeof info) > 0)
				;
			reap();
		}
		if (ready > 0 && watched[0].revents != 0)
			obey();
		check_memory();
		check_objects();
		check_disk();
	}
}
