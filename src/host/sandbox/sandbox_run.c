/*
 * sandbox_run.c
 *		One command in a sandbox of its own: its process, its pipes, its end.
 *
 * The host's child is bwrap, whose child is the first process of the sandbox
 * (src/sandbox_init), whose child is the command.  In bwrap's arguments there is nothing:
 * it reads them from a descriptor, and the first process reads from another what the
 * command is.  A run's life:
 *
 *   started   bwrap makes the sandbox
 *   ready     its first process has reported; the kernel says by that who it
 *             is, and a descriptor of it is kept; it is put into a cgroup if that is
 *             possible (sandbox_cgroup.c), and gets the word to go on
 *   reported  how the command ended; what it left behind may go on until the pipes
 *             have been read to their end, for drain_ms at most while we read, and
 *             is killed then
 *   exited    bwrap has, which is after all processes of the sandbox: it waits for the
 *             first one, which the kernel ends last
 *   ended     the pipes have been read to their end
 *
 * To kill a run is to kill the sandbox's first process: the kernel kills the others.  Before it
 * is known there is only bwrap to kill.  Should the host die, the first process is
 * killed by the kernel, twice over: as bwrap's child, and at the end of its
 * control socket.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include "base/log.h"
#include "sandbox/sandbox_cgroup.h"
#include "sandbox/sandbox_fixed_files.h"
#include "sandbox/sandbox_run.h"
#include "base/timer.h"

/* How much is kept of what bwrap writes to stderr. */
#define KEPT_ERRORS 2000

struct SandboxRun
{
	SandboxRun *next;
	SandboxRun *previous;
	SandboxRunEvents events;
	void *data; /* NULL: nobody is told */
	uv_poll_t process;
	uv_pipe_t input;
	uv_pipe_t output;
	uv_pipe_t errors;
	uv_poll_t control;
	int open_handles;
	pid_t pid; /* bwrap */
	int process_fd;
	int control_fd;
	int first; /* a descriptor of the sandbox's first process, or -1 */
	SandboxCgroup *cgroup;
	uint64_t all_bytes;
	uint64_t processes;
	uv_write_t write;
	Bytes kept_errors;
	SandboxReport report; /* kind 0: none */
	Timer *drain;         /* runs from the report on */
	uint64_t drain_ms;
	int status;
	bool ready;
	bool killed;
	bool exited;
	bool output_open;
	bool errors_open;
	bool paused;
	bool ending;
};

static SandboxRun *first_run;
static char receive_buffer[65536];

/*
 * The end
 */

static void
sandbox_run_handle_closed(uv_handle_t *handle)
{
	SandboxRun *run = handle->data;

	if (--run->open_handles > 0)
		return;
	if (run->previous != NULL)
		run->previous->next = run->next;
	else
		first_run = run->next;
	if (run->next != NULL)
		run->next->previous = run->previous;
	close(run->control_fd);
	close(run->process_fd);
	if (run->first >= 0)
		close(run->first);
	if (run->kept_errors.data != NULL)
		explicit_bzero(run->kept_errors.data, run->kept_errors.allocated);
	bytes_free(&run->kept_errors);
	free(run);
}

static void
sandbox_run_close_handle(uv_handle_t *handle)
{
	if (!uv_is_closing(handle))
		uv_close(handle, sandbox_run_handle_closed);
}

static void
sandbox_run_close_all(SandboxRun *run)
{
	run->ending = true;
	timer_stop(&run->drain);
	sandbox_run_close_handle((uv_handle_t *) &run->process);
	sandbox_run_close_handle((uv_handle_t *) &run->input);
	sandbox_run_close_handle((uv_handle_t *) &run->output);
	sandbox_run_close_handle((uv_handle_t *) &run->errors);
	sandbox_run_close_handle((uv_handle_t *) &run->control);
}

/* bwrap's own words, or what can be said without. */
static HostError *
not_made_error(SandboxRun *run)
{
	Bytes *words = &run->kept_errors;
	char *line;
	HostError *error;

	if (words->length > 0 && run->data != NULL && run->events.mask != NULL)
		run->events.mask(run->data, words->data, words->length);
	line = clean_text(words->data ? words->data : "", words->length, KEPT_ERRORS, true);
	error =
	    error_new("38000", "the sandbox could not be made: %.*s", (int) strcspn(line, "\n"), line);
	error_detail(error, "bwrap ended with status %d.", run->status);
	free(line);
	return error;
}

static void
sandbox_run_end_if_complete(SandboxRun *run)
{
	const SandboxReport *report = &run->report;
	void *data = run->data;
	HostError *error;

	if (run->ending || !run->exited || run->output_open || run->errors_open)
		return;
	error = run->ready || run->killed || data == NULL ? NULL : not_made_error(run);
	run->data = NULL;
	if (data != NULL)
		run->events.ended(data, report->kind != 0 ? report : NULL, error);
	sandbox_run_close_all(run);
}

static void read_control(SandboxRun *run);

static void
sandbox_run_exited(uv_poll_t *handle, int error, int events)
{
	SandboxRun *run = handle->data;
	int status = 0;

	(void) error;
	(void) events;
	if (waitpid(run->pid, &status, WNOHANG) == 0)
		return;
	run->exited = true;
	run->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	uv_poll_stop(handle);
	read_control(run);
	/* It may have left its child behind, making the sandbox. */
	shutdown(run->control_fd, SHUT_RDWR);
	if (run->first >= 0)
		syscall(SYS_pidfd_send_signal, run->first, SIGKILL, NULL, 0);
	/* The kernel has ended them all. */
	if (run->report.kind == 0 && !run->killed && sandbox_cgroup_ran_out_of_memory(run->cgroup))
		run->report.kind = SANDBOX_MEMORY;
	sandbox_cgroup_free(run->cgroup);
	run->cgroup = NULL;
	uv_poll_stop(&run->control);
	sandbox_run_end_if_complete(run);
}

/*
 * The control socket
 */

static void
send_byte(SandboxRun *run, char byte)
{
	/* One that can't take it has ended. */
	ssize_t sent = send(run->control_fd, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);

	(void) sent;
}

/* A message, with who sent it. */
static ssize_t
receive(SandboxRun *run, SandboxReport *report, pid_t *sender)
{
	union
	{
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec place = {.iov_base = report, .iov_len = sizeof *report};
	struct msghdr message = {.msg_iov = &place,
	                         .msg_iovlen = 1,
	                         .msg_control = &control,
	                         .msg_controllen = sizeof control};
	ssize_t length = recvmsg(run->control_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *header = length > 0 ? CMSG_FIRSTHDR(&message) : NULL;

	*sender = 0;
	if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_CREDENTIALS)
	{
		struct ucred credentials;

		memcpy(&credentials, CMSG_DATA(header), sizeof credentials);
		*sender = credentials.pid;
	}
	return length;
}

/*
 * What the command left behind has had its time, or nothing more to say.  Not before we have
 * read what is there: that a client is slow is not its fault.
 */
static void
sandbox_run_drained(void *data)
{
	SandboxRun *run = data;

	if (run->paused && (run->output_open || run->errors_open))
		timer_start(&run->drain, run->drain_ms, sandbox_run_drained, run);
	else if (!run->exited && run->first >= 0)
		syscall(SYS_pidfd_send_signal, run->first, SIGKILL, NULL, 0);
}

static void
drain_if_ended(SandboxRun *run)
{
	if (run->report.kind == 0 || run->exited || run->ending)
		return;
	if (!run->output_open && !run->errors_open)
		sandbox_run_drained(run);
	else if (run->drain == NULL)
		timer_start(&run->drain, run->drain_ms, sandbox_run_drained, run);
}

static void
became_ready(SandboxRun *run, pid_t pid)
{
	if (run->ready || pid <= 1)
		return;
	run->first = (int) syscall(SYS_pidfd_open, pid, 0);
	if (run->first < 0)
	{
		log_message(LOG_WARNING, "could not open a sandbox's process: %s", strerror(errno));
		sandbox_run_kill(run);
		return;
	}
	run->ready = true;
	run->cgroup = sandbox_cgroup_new(pid, run->all_bytes, run->processes);
	if (!run->killed)
		send_byte(run, SANDBOX_GO);
	else
		syscall(SYS_pidfd_send_signal, run->first, SIGKILL, NULL, 0);
}

static void
read_control(SandboxRun *run)
{
	SandboxReport report;
	pid_t sender;
	ssize_t length;

	while ((length = receive(run, &report, &sender)) > 0)
	{
		if (length != (ssize_t) sizeof report)
			continue;
		if (report.kind == SANDBOX_READY)
			became_ready(run, sender);
		else if (report.kind == SANDBOX_USAGE && run->data != NULL)
			run->events.measured(run->data, &report.usage, report.value != 0);
		else if (report.kind == SANDBOX_USAGE)
			continue;
		else if (run->report.kind == 0)
		{
			run->report = report;
			drain_if_ended(run);
		}
	}
	/* bwrap's exit is what counts. */
	if (length == 0)
		uv_poll_stop(&run->control);
}

static void
control_readable(uv_poll_t *handle, int status, int events)
{
	SandboxRun *run = handle->data;

	(void) events;
	if (status < 0)
		uv_poll_stop(handle);
	else
		read_control(run);
}

void
sandbox_run_terminate(SandboxRun *run)
{
	if (run->ready && run->report.kind == 0)
		send_byte(run, SANDBOX_TERMINATE);
	else
		sandbox_run_kill(run);
}

void
sandbox_run_kill(SandboxRun *run)
{
	if (run->ending || run->exited)
		return;
	run->killed = true;
	if (!run->ready)
		read_control(run);
	if (run->first >= 0)
		syscall(SYS_pidfd_send_signal, run->first, SIGKILL, NULL, 0);
	else
	{
		/*
		 * The group too: bwrap's child waits for it before anything ties the
		 * two together, and would wait for ever.
		 */
		kill(-run->pid, SIGKILL);
		kill(run->pid, SIGKILL);
	}
}

/*
 * The pipes
 */

static void
sandbox_run_lend_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
	(void) handle;
	(void) suggested;
	*buffer = uv_buf_init(receive_buffer, sizeof receive_buffer);
}

static void
pause_reading(SandboxRun *run)
{
	run->paused = true;
	uv_read_stop((uv_stream_t *) &run->output);
	uv_read_stop((uv_stream_t *) &run->errors);
}

static void
sandbox_run_data_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
	SandboxRun *run = stream->data;
	bool is_stderr = stream == (uv_stream_t *) &run->errors;
	bool room = true;

	if (count == 0)
		return;
	if (count < 0)
	{
		uv_read_stop(stream);
		if (is_stderr)
			run->errors_open = false;
		else
			run->output_open = false;
		drain_if_ended(run);
		sandbox_run_end_if_complete(run);
		return;
	}
	/* The command has not begun, so what comes is bwrap's. */
	if (is_stderr && !run->ready)
	{
		size_t left = KEPT_ERRORS - run->kept_errors.length;

		bytes_append(&run->kept_errors, buffer->base,
		             (size_t) count < left ? (size_t) count : left);
	}
	else if (run->data != NULL)
		room = run->events.output(run->data, is_stderr, buffer->base, (size_t) count);
	explicit_bzero(buffer->base, (size_t) count);
	if (!room)
		pause_reading(run);
}

bool
sandbox_run_command_ended(const SandboxRun *run)
{
	return run->report.kind != 0;
}

static void
start_reading(SandboxRun *run)
{
	run->paused = false;
	if (run->output_open && uv_read_start((uv_stream_t *) &run->output, sandbox_run_lend_buffer,
	                                      sandbox_run_data_read) < 0)
		run->output_open = false;
	if (run->errors_open && uv_read_start((uv_stream_t *) &run->errors, sandbox_run_lend_buffer,
	                                      sandbox_run_data_read) < 0)
		run->errors_open = false;
}

void
sandbox_run_read_on(SandboxRun *run)
{
	if (run->paused && !run->ending)
		start_reading(run);
}

static void
input_written(uv_write_t *request, int status)
{
	SandboxRun *run = request->data;

	(void) status;
	sandbox_run_close_handle((uv_handle_t *) &run->input);
}

/*
 * The start
 */

static char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", NULL};

void
sandbox_run_arguments(const Bytes *root, Bytes *arguments)
{
	/* The sandbox's user is the server's outside, and 1000 inside. */
	static const char common[] = "--unshare-all\0--unshare-user\0--disable-userns\0"
	                             "--die-with-parent\0--new-session\0--as-pid-1\0"
	                             "--hostname\0sandbox\0--uid\0"
	                             "1000\0--gid\0"
	                             "1000\0--clearenv\0--cap-drop\0ALL\0--chdir\0/";
	char text[64];
	int length;

	bytes_append(arguments, root->data, root->length);
	bytes_append(arguments, common, sizeof common);
	for (int fd = SANDBOX_FD_ALLOWED; fd <= SANDBOX_FD_REFUSED; fd++)
	{
		length = snprintf(text, sizeof text, "--add-seccomp-fd%c%d", '\0', fd);
		bytes_append(arguments, text, (size_t) length + 1);
	}
}

/* Where a command's stdin comes from and its stdout goes to; a descriptor that is none is -1. */
typedef struct Stdio
{
	size_t input_length; /* 0: input_fd, or none */
	int input_fd;
	int output_fd; /* none: the output is ours to read */
} Stdio;

/* The descriptors of the child; -1 where one could not be made. */
typedef struct Descriptors
{
	int child[SANDBOX_FD_COUNT];
	int input;
	int output;
	int errors;
	int control;
} Descriptors;

static bool
sandbox_run_make_pipe(int *reader, int *writer)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return false;
	*reader = ends[0];
	*writer = ends[1];
	return true;
}

static bool
copy_descriptor(int fd, int *copy)
{
	*copy = fcntl(fd, F_DUPFD_CLOEXEC, SANDBOX_FD_COUNT);
	return *copy >= 0;
}

static bool
make_control(int *ours, int *theirs)
{
	static const int on = 1;
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
		return false;
	*ours = ends[0];
	*theirs = ends[1];
	return setsockopt(*ours, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0;
}

static bool
make_descriptors(Descriptors *all, const Bytes *arguments, const Bytes *spec, const Stdio *stdio)
{
	static const struct
	{
		int fd;
		SandboxFile file;
	} same[] = {
	    {SANDBOX_FD_ALLOWED, SANDBOX_FILE_ALLOWED}, {SANDBOX_FD_REFUSED, SANDBOX_FILE_REFUSED},
	    {SANDBOX_FD_INIT, SANDBOX_FILE_INIT},       {SANDBOX_FD_PASSWD, SANDBOX_FILE_PASSWD},
	    {SANDBOX_FD_GROUP, SANDBOX_FILE_GROUP},     {SANDBOX_FD_HOSTS, SANDBOX_FILE_HOSTS}};
	Bytes complete = {0};
	bool made;

	all->input = all->output = all->errors = all->control = -1;
	for (int i = 0; i < SANDBOX_FD_COUNT; i++)
		all->child[i] = -1;
	sandbox_run_arguments(arguments, &complete);
	all->child[SANDBOX_FD_ARGUMENTS] =
	    sandbox_file_of("sandbox arguments", complete.data, complete.length);
	bytes_free(&complete);
	all->child[SANDBOX_FD_SPEC] = sandbox_file_of("sandbox spec", spec->data, spec->length);
	for (size_t i = 0; i < sizeof same / sizeof same[0]; i++)
		all->child[same[i].fd] = sandbox_file_open(same[i].file);
	made = make_control(&all->control, &all->child[SANDBOX_FD_CONTROL]) &&
	       sandbox_run_make_pipe(&all->errors, &all->child[2]) &&
	       (stdio->output_fd >= 0 ? copy_descriptor(stdio->output_fd, &all->child[1])
	                              : sandbox_run_make_pipe(&all->output, &all->child[1])) &&
	       (stdio->input_fd < 0 || copy_descriptor(stdio->input_fd, &all->child[0])) &&
	       (stdio->input_length == 0 || sandbox_run_make_pipe(&all->child[0], &all->input));
	for (int i = SANDBOX_FD_ARGUMENTS; i < SANDBOX_FD_COUNT; i++)
		made = made && all->child[i] >= 0;
	return made;
}

static void
close_descriptors(int *list, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (list[i] >= 0)
			close(list[i]);
}

/* Out of the way of the numbers that they get in the child. */
static bool
move_descriptors(Descriptors *all)
{
	for (int i = 0; i < SANDBOX_FD_COUNT; i++)
	{
		int moved;

		if (all->child[i] < 0 || all->child[i] >= SANDBOX_FD_COUNT)
			continue;
		moved = fcntl(all->child[i], F_DUPFD_CLOEXEC, SANDBOX_FD_COUNT);
		if (moved < 0)
			return false;
		close(all->child[i]);
		all->child[i] = moved;
	}
	return true;
}

/* Without a copy of this process, which takes longer than all the rest.  0, or an errno. */
static int
sandbox_run_spawn(const Descriptors *all, pid_t *pid)
{
	static const char init[] = SANDBOX_INIT_PATH;
	char number[8];
	char *const arguments[] = {"bwrap", "--args", number, (char *) init, NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t signals;
	int problem;

	snprintf(number, sizeof number, "%d", SANDBOX_FD_ARGUMENTS);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes,
	                         POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	sigfillset(&signals);
	posix_spawnattr_setsigdefault(&attributes, &signals);
	sigemptyset(&signals);
	posix_spawnattr_setsigmask(&attributes, &signals);
	if (all->child[0] < 0)
		posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	for (int i = 0; i < SANDBOX_FD_COUNT; i++)
		if (all->child[i] >= 0)
			posix_spawn_file_actions_adddup2(&actions, all->child[i], i);
	posix_spawn_file_actions_addchdir_np(&actions, "/");
	problem = posix_spawnp(pid, "bwrap", &actions, &attributes, arguments, environment);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return problem;
}

static SandboxRun *
run_new(const SandboxRunEvents *events, void *data, const Descriptors *all, pid_t pid,
        int process_fd)
{
	SandboxRun *run = xcalloc(1, sizeof *run);
	uv_loop_t *loop = uv_default_loop();

	run->events = *events;
	run->data = data;
	run->pid = pid;
	run->process_fd = process_fd;
	run->first = -1;
	run->control_fd = all->control;
	uv_poll_init(loop, &run->process, run->process_fd);
	uv_poll_init(loop, &run->control, run->control_fd);
	uv_pipe_init(loop, &run->input, 0);
	uv_pipe_init(loop, &run->output, 0);
	uv_pipe_init(loop, &run->errors, 0);
	run->process.data = run->input.data = run->output.data = run->errors.data = run->control.data =
	    run->write.data = run;
	run->open_handles = 5;
	uv_pipe_open(&run->errors, all->errors);
	if (all->output >= 0)
		uv_pipe_open(&run->output, all->output);
	if (all->input >= 0)
		uv_pipe_open(&run->input, all->input);
	run->output_open = all->output >= 0;
	run->errors_open = true;
	run->next = first_run;
	if (first_run != NULL)
		first_run->previous = run;
	first_run = run;
	return run;
}

/* NULL with *error set.  Of the descriptors, ours are closed then; the child's in any case. */
static SandboxRun *
spawn_run(Descriptors *all, bool made, const SandboxRunEvents *events, void *data,
          HostError **error)
{
	int ours[] = {all->input, all->output, all->errors, all->control};
	int problem = made && move_descriptors(all) ? 0 : errno ? errno : ENOSYS;
	int process_fd;
	pid_t pid;

	if (problem != 0)
		*error = error_new("53400", "could not prepare a sandbox: %s", strerror(problem));
	else if ((problem = sandbox_run_spawn(all, &pid)) != 0)
	{
		*error = error_new("55000", "could not start bwrap: %s", strerror(problem));
		error_hint(*error, "Sandboxes need bubblewrap, from version 0.8 on.");
	}
	close_descriptors(all->child, SANDBOX_FD_COUNT);
	if (problem == 0 && (process_fd = (int) syscall(SYS_pidfd_open, pid, 0)) < 0)
	{
		problem = errno;
		*error = error_new("53400", "could not watch a sandbox: %s", strerror(problem));
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	if (problem == 0)
		return run_new(events, data, all, pid, process_fd);
	close_descriptors(ours, sizeof ours / sizeof ours[0]);
	return NULL;
}

static SandboxRun *
sandbox_run_start_run(const Bytes *arguments, const Bytes *spec, const Stdio *stdio,
                      uint64_t drain_ms, const SandboxRunEvents *events, void *data,
                      HostError **error)
{
	Descriptors all;
	bool made = make_descriptors(&all, arguments, spec, stdio);
	SandboxRun *run = spawn_run(&all, made, events, data, error);

	if (run == NULL)
		return NULL;
	run->all_bytes = ((const SandboxSpec *) spec->data)->all_bytes;
	run->processes = ((const SandboxSpec *) spec->data)->processes;
	run->drain_ms = drain_ms;
	uv_poll_start(&run->process, UV_READABLE, sandbox_run_exited);
	uv_poll_start(&run->control, UV_READABLE, control_readable);
	start_reading(run);
	return run;
}

SandboxRun *
sandbox_run_start(const Bytes *arguments, const Bytes *spec, const char *input, size_t input_length,
                  uint64_t drain_ms, const SandboxRunEvents *events, void *data, HostError **error)
{
	Stdio stdio = {.input_length = input_length, .input_fd = -1, .output_fd = -1};
	SandboxRun *run = sandbox_run_start_run(arguments, spec, &stdio, drain_ms, events, data, error);

	if (run != NULL && input_length > 0)
	{
		uv_buf_t buffer = uv_buf_init((char *) input, (unsigned) input_length);

		if (uv_write(&run->write, (uv_stream_t *) &run->input, &buffer, 1, input_written) < 0)
			sandbox_run_close_handle((uv_handle_t *) &run->input);
	}
	return run;
}

SandboxRun *
sandbox_run_start_between(const Bytes *arguments, const Bytes *spec, int input_fd, int output_fd,
                          const SandboxRunEvents *events, void *data, HostError **error)
{
	Stdio stdio = {.input_fd = input_fd, .output_fd = output_fd};

	return sandbox_run_start_run(arguments, spec, &stdio, 0, events, data, error);
}

/*
 * The end of the host
 */

void
sandbox_runs_kill(void)
{
	for (SandboxRun *run = first_run; run != NULL; run = run->next)
	{
		run->data = NULL;
		sandbox_run_kill(run);
		if (run->paused)
			start_reading(run);
	}
}

bool
sandbox_runs_exist(void)
{
	return first_run != NULL;
}
