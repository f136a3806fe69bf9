/*
 * worker_process.c
 *		The process of a plugin's worker: lines in, lines out, and its end.
 *
 * Our child is the supervisor (worker_supervisor.c), whose child the worker is;
 * its environment holds nothing of ours.  Its life here:
 *
 *   runs      messages on stdout go to the owner; stderr is drained always and
 *             its end kept for messages; what is sent is written in its order
 *   stops     it was sent `shutdown`.  When it has answered, or has not for a
 *             while, its input is closed; then comes SIGTERM; then it is killed
 *   exited    so has all that it had started; its pipes are read to their end,
 *             since the last answers may still be in them, but only for a
 *             moment, should anybody hold them open after all
 *   ended     the owner has been told, and the memory goes when libuv has let
 *             go of the handles
 *
 * To kill it is to close the supervisor's channel, which then kills all there
 * is.  If that takes too long, the supervisor is killed, and the kernel kills
 * the worker.
 *
 * Nothing that a worker writes keeps the event loop from others for long: a
 * thread reads what is large (message_io.c), and lines that a turn of the loop
 * has no time for wait for a later one.  Nothing else is read of its output
 * meanwhile.
 *
 * A process that the owner dismissed runs through the same, with nobody told.
 * The process handle must stay open until the exit, or nobody would reap.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <uv.h>

#include "base/log.h"
#include "base/loop_turns.h"
#include "base/memory.h"
#include "shared/protocol.h"
#include "base/timer.h"
#include "plugins/worker_process.h"
#include "plugins/worker_supervisor.h"
#include "plugins/worker_message.h"

/* How much of stderr is kept, and how much of that is shown: one that is cut off can be masked. */
#define STDERR_KEEP 16384
#define STDERR_SHOW 8000

/* How long pipes are read after the exit, and an exit awaited after the end of stdout. */
#define LINGER_MS 200
#define OUTPUT_END_MS 1000

/* How long one that stops may take to answer, to go then, and to heed SIGTERM. */
#define STOP_ANSWER_MS 10000
#define STOP_EXIT_MS 500
#define STOP_TERMINATE_MS 5000

/* How long the supervisor may take to kill what there is. */
#define KILL_MS 2000

/* The id of `shutdown`: no other request gets as far. */
#define SHUTDOWN_ID ((json_int_t) 9007199254740991)

/* A worker that lets more requests than this pile up does not read them. */
#define MAX_UNREAD ((size_t) 4 * ENVRT_MAX_LINE)

#define ENVIRONMENT_SIZE 6

/* Arguments that are for us, before the program's. */
#define OWN_ARGUMENTS 4

struct WorkerProcess
{
	WorkerProcess *next;
	WorkerProcess *previous;
	char *plugin;
	WorkerProcessEvents events;
	void *owner; /* NULL: dismissed */
	uv_process_t process;
	bool has_process; /* or there were no pipes for it */
	uv_pipe_t input;
	uv_pipe_t output;
	uv_pipe_t errors;
	uv_pipe_t channel; /* to the supervisor */
	uv_write_t terminate;
	int open_handles;
	RpcReader *reader;
	MessageWriter *writer;
	LoopTurn turn; /* it has written lines that no turn had time for */
	Bytes stderr_bytes;
	Timer *timer;
	Timer *kill_timer;
	char channel_line[16]; /* of the supervisor, as far as it has come */
	size_t channel_length;
	pid_t pid;
	char *how; /* how it ended, or is made to end */
	bool stopping;
	bool terminating;
	bool killed;
	bool exited;
	bool ending;  /* the handles are being closed */
	bool reading; /* a large line, in a thread */
	bool output_open;
	bool errors_open;
};

static WorkerProcess *first_process;
static rlim_t file_limit;
static unsigned long long memory_limit; /* bytes; 0: none */
static char receive_buffer[65536];

void
worker_process_note_file_limit(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
		file_limit = files.rlim_cur;
}

void
worker_process_limit_memory(unsigned long long bytes)
{
	memory_limit = bytes;
}

/*
 * The end
 */

static void
free_unused(WorkerProcess *process)
{
	if (process->open_handles > 0 || process->reading)
		return;
	if (process->previous != NULL)
		process->previous->next = process->next;
	else
		first_process = process->next;
	if (process->next != NULL)
		process->next->previous = process->previous;
	rpc_reader_free(process->reader);
	/* What it wrote there is not masked yet. */
	if (process->stderr_bytes.data != NULL)
		explicit_bzero(process->stderr_bytes.data, process->stderr_bytes.allocated);
	bytes_free(&process->stderr_bytes);
	free(process->how);
	free(process->plugin);
	free(process);
}

static void
worker_process_handle_closed(uv_handle_t *handle)
{
	WorkerProcess *process = handle->data;

	process->open_handles--;
	free_unused(process);
}

static void
worker_process_close_handle(uv_handle_t *handle)
{
	if (!uv_is_closing(handle))
		uv_close(handle, worker_process_handle_closed);
}

static void
worker_process_close_all(WorkerProcess *process)
{
	process->ending = true;
	loop_turn_forget(&process->turn);
	message_writer_close(process->writer);
	timer_stop(&process->timer);
	timer_stop(&process->kill_timer);
	if (process->has_process)
		worker_process_close_handle((uv_handle_t *) &process->process);
	worker_process_close_handle((uv_handle_t *) &process->channel);
	worker_process_close_handle((uv_handle_t *) &process->input);
	worker_process_close_handle((uv_handle_t *) &process->output);
	worker_process_close_handle((uv_handle_t *) &process->errors);
}

static void
worker_process_finish(void *data)
{
	WorkerProcess *process = data;
	void *owner = process->owner;

	if (process->ending)
		return;
	if (process->reading || process->turn.waits)
	{
		/* There may be an answer in it. */
		timer_start(&process->timer, LINGER_MS, worker_process_finish, process);
		return;
	}
	process->owner = NULL;
	if (owner != NULL)
		process->events.ended(owner, process->how);
	worker_process_close_all(process);
}

static void
finish_if_drained(WorkerProcess *process)
{
	if (process->exited && !process->output_open && !process->errors_open)
		worker_process_finish(process);
}

static void
worker_process_exited(uv_process_t *handle, int64_t status, int signal)
{
	WorkerProcess *process = handle->data;

	process->exited = true;
	timer_stop(&process->kill_timer);
	if (process->how == NULL)
		process->how = signal != 0 ? xformat("was ended by signal %d", signal)
		                           : xformat("exited with status %d", (int) status);
	timer_start(&process->timer, LINGER_MS, worker_process_finish, process);
	finish_if_drained(process);
}

static void
kill_supervisor(void *data)
{
	WorkerProcess *process = data;

	uv_process_kill(&process->process, SIGKILL);
}

void
worker_process_kill(WorkerProcess *process, const char *why)
{
	if (process->killed || process->ending)
		return;
	process->killed = true;
	if (process->how == NULL)
		process->how = xstrdup(why);
	if (process->exited)
		return;
	worker_process_close_handle((uv_handle_t *) &process->channel);
	timer_start(&process->kill_timer, KILL_MS, kill_supervisor, process);
}

static void
kill_silent(void *data)
{
	worker_process_kill(data, "closed its output");
}

static void
worker_process_kill_deaf(void *data)
{
	worker_process_kill(data, "closed its input");
}

static void
kill_stopped(void *data)
{
	worker_process_kill(data, "did not end when told to");
}

static void
terminate_written(uv_write_t *request, int status)
{
	(void) request;
	(void) status;
}

/* May be called again, to hurry. */
static void
worker_process_terminate(void *data)
{
	WorkerProcess *process = data;
	uv_buf_t buffer = uv_buf_init((char *) WORKER_SUPERVISOR_TERMINATE, 1);

	timer_start(&process->timer, STOP_TERMINATE_MS, kill_stopped, process);
	if (process->terminating || uv_is_closing((uv_handle_t *) &process->channel))
		return;
	process->terminating = true;
	uv_write(&process->terminate, (uv_stream_t *) &process->channel, &buffer, 1, terminate_written);
}

/* It has answered, or does not. */
static void
close_input(void *data)
{
	WorkerProcess *process = data;

	worker_process_close_handle((uv_handle_t *) &process->input);
	timer_start(&process->timer, STOP_EXIT_MS, worker_process_terminate, process);
}

void
worker_process_stop(WorkerProcess *process)
{
	if (process->stopping || process->killed || process->exited)
		return;
	process->stopping = true;
	worker_process_send(process, rpc_request(SHUTDOWN_ID, "shutdown", json_object()));
	if (!process->killed)
		timer_start(&process->timer, STOP_ANSWER_MS, close_input, process);
}

void
worker_process_dismiss(WorkerProcess *process)
{
	worker_process_stop(process);
	process->owner = NULL;
}

void
worker_processes_terminate(void)
{
	for (WorkerProcess *process = first_process; process != NULL; process = process->next)
		if (!process->exited && !process->killed && !process->ending)
			worker_process_terminate(process);
}

/*
 * What it writes
 */

static void
worker_process_lend_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
	(void) handle;
	(void) suggested;
	*buffer = uv_buf_init(receive_buffer, sizeof receive_buffer);
}

static void
output_ended(WorkerProcess *process)
{
	process->output_open = false;
	uv_read_stop((uv_stream_t *) &process->output);
	/* Most often its exit is the next that we hear of. */
	if (!process->exited && process->owner != NULL)
		timer_start(&process->timer, OUTPUT_END_MS, kill_silent, process);
	finish_if_drained(process);
}

/* Whether a message is the answer to `shutdown`, and so for us. */
static bool
is_farewell(const RpcMessage *message)
{
	return message->kind == RPC_RESPONSE && json_is_integer(message->id) &&
	       json_integer_value(message->id) == SHUTDOWN_ID;
}

/* Takes the identity. */
static void
unusable(WorkerProcess *process, RpcIdentity *identity, const char *problem, const char *line,
         size_t length)
{
	if (process->owner != NULL)
		process->events.unusable(process->owner, identity, problem, line, length);
	rpc_identity_clear(identity);
}

static void take_lines(WorkerProcess *process, bool in_turn);

static void
worker_process_take_line(void *owner, MessageLine *line)
{
	WorkerProcess *process = owner;
	bool elsewhere = process->reading;

	process->reading = false;
	if (process->killed || process->ending)
		rpc_identity_clear(&line->identity);
	else if (line->problem != NULL)
		unusable(process, &line->identity, line->problem, line->text, line->length);
	else if (process->stopping && is_farewell(&line->message))
	{
		if (!uv_is_closing((uv_handle_t *) &process->input))
			close_input(process);
	}
	else if (process->owner != NULL)
		process->events.message(process->owner, &line->message);
	if (!elsewhere)
		return;
	if (!process->killed && !process->ending)
		take_lines(process, false);
	free_unused(process);
}

static void
take_skipped(WorkerProcess *process, const char *beginning, size_t length)
{
	RpcIdentity identity;

	if (process->events.line != NULL)
	{
		worker_process_kill(process, "wrote a line longer than 16 MiB");
		return;
	}
	rpc_reader_skipped(process->reader, &identity);
	unusable(process, &identity, "the message is longer than 16 MiB", beginning, length);
}

static void output_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer);

static void
read_output(WorkerProcess *process, bool on)
{
	uv_stream_t *output = (uv_stream_t *) &process->output;

	if (!on)
		uv_read_stop(output);
	else if (process->output_open && !uv_is_active((uv_handle_t *) output))
		uv_read_start(output, worker_process_lend_buffer, output_read);
}

/*
 * Takes the lines that the reader has until a thread has one, or the turn has
 * done enough; in_turn: one in any case.  Nothing more is read while there are
 * lines.
 */
static void
take_lines(WorkerProcess *process, bool in_turn)
{
	RpcReadStatus status;
	const char *text;
	size_t length;

	while (!process->killed && !process->ending && !process->reading)
	{
		if (!in_turn && loop_turn_is_long())
		{
			read_output(process, false);
			loop_turn_wait(&process->turn);
			return;
		}
		in_turn = false;
		status = rpc_reader_next(process->reader, &text, &length);
		if (status == RPC_READ_MORE)
		{
			read_output(process, true);
			return;
		}
		if (status == RPC_READ_SKIPPED)
			take_skipped(process, text, length);
		else if (status != RPC_READ_LINE)
			worker_process_kill(process, "wrote a line for which there was no memory");
		else if (process->events.line == NULL)
			process->reading = message_read(process->reader, text, length, worker_message_read_line,
			                                worker_process_take_line, process);
		else if (process->owner != NULL)
			process->events.line(process->owner, text, length);
	}
	if (!process->ending)
		read_output(process, false);
}

static void
take_turn(void *data, bool first)
{
	take_lines(data, first);
}

static void
output_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
	WorkerProcess *process = stream->data;
	RpcReadStatus status;

	if (count == 0)
		return;
	if (count < 0)
	{
		output_ended(process);
		return;
	}
	status = rpc_reader_feed(process->reader, buffer->base, (size_t) count);
	explicit_bzero(buffer->base, (size_t) count);
	if (status == RPC_READ_NO_MEMORY)
		worker_process_kill(process, "wrote a line for which there was no memory");
	else
		take_lines(process, false);
}

static void
worker_process_errors_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
	WorkerProcess *process = stream->data;
	Bytes *kept = &process->stderr_bytes;

	if (count == 0)
		return;
	if (count < 0)
	{
		process->errors_open = false;
		uv_read_stop(stream);
		finish_if_drained(process);
		return;
	}
	bytes_append(kept, buffer->base, (size_t) count);
	explicit_bzero(buffer->base, (size_t) count);
	if (kept->length > STDERR_KEEP)
	{
		memmove(kept->data, kept->data + kept->length - STDERR_KEEP, STDERR_KEEP + 1);
		kept->length = STDERR_KEEP;
	}
}

char *
worker_process_stderr(const WorkerProcess *process, WorkerMask mask, void *data)
{
	const Bytes *kept = &process->stderr_bytes;
	char *copy = xstrndup(kept->data ? kept->data : "", kept->length);
	char *text = copy;
	size_t length = kept->length;
	char *result;

	/* Before anything is cut off or cleaned. */
	if (mask != NULL)
		mask(data, copy, length);
	if (length > STDERR_SHOW)
	{
		text += length - STDERR_SHOW;
		length = STDERR_SHOW;
		/* It may begin in the middle of a character. */
		while (length > 0 && ((unsigned char) *text & 0xc0) == 0x80)
			text++, length--;
	}
	result = clean_text(text, length, STDERR_SHOW, true);
	explicit_bzero(copy, kept->length);
	free(copy);
	return result;
}

void
worker_process_mask_stderr(WorkerProcess *process, WorkerMask mask, void *data)
{
	Bytes *kept = &process->stderr_bytes;

	if (kept->length > 0)
		mask(data, kept->data, kept->length);
}

static void
channel_says(WorkerProcess *process, const char *line)
{
	if (strcmp(line, WORKER_SUPERVISOR_KILLED_CHILD) == 0)
		log_message(
		    LOG_WARNING,
		    "plugin \"%s\": the largest process that its worker had started was killed, since "
		    "together they took more memory than envrt.plugin_memory",
		    process->plugin);
	else if (strcmp(line, WORKER_SUPERVISOR_KILLED) != 0)
		process->pid = (pid_t) strtol(line, NULL, 10);
	else if (process->how == NULL)
		process->how = xstrdup("took more memory than envrt.plugin_memory");
}

static void
channel_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
	WorkerProcess *process = stream->data;

	if (count < 0)
		uv_read_stop(stream);
	for (ssize_t i = 0; i < count; i++)
	{
		if (buffer->base[i] == '\n')
		{
			process->channel_line[process->channel_length] = '\0';
			process->channel_length = 0;
			channel_says(process, process->channel_line);
		}
		else if (process->channel_length + 1 < sizeof process->channel_line)
			process->channel_line[process->channel_length++] = buffer->base[i];
	}
}

/*
 * What is sent to it
 */

static void
worker_process_written(void *owner, int status)
{
	WorkerProcess *process = owner;

	if (process->owner == NULL || process->killed)
		return;
	/* What it has answered may still be on its way. */
	if (status < 0 && !process->exited)
		timer_start(&process->timer, OUTPUT_END_MS, worker_process_kill_deaf, process);
	else if (status == 0 && worker_process_is_drained(process))
		process->events.drained(process->owner);
}

static void
worker_process_unwritable(void *owner)
{
	worker_process_kill(owner, "could not be written to");
}

bool
worker_process_is_drained(const WorkerProcess *process)
{
	return message_writer_unsent(process->writer) == 0;
}

bool
worker_process_send(WorkerProcess *process, json_t *message)
{
	if (process->killed || process->exited || uv_is_closing((uv_handle_t *) &process->input))
	{
		json_decref(message);
		return false;
	}
	message_writer_send(process->writer, message);
	if (process->killed)
		return false;
	if (message_writer_unsent(process->writer) > MAX_UNREAD)
		worker_process_kill(process, "does not read its requests");
	return true;
}

/*
 * The start
 */

static void
make_environment(const WorkerProgram *program, char **environment)
{
	const char *path = getenv("PATH");
	const char *node_path = getenv("NODE_PATH");

	environment[0] = xformat("PATH=%s", path ? path : "/usr/local/bin:/usr/bin:/bin");
	environment[1] = xformat("NODE_PATH=%s", node_path ? node_path : "");
	environment[2] = xformat("PAPERCLIP_PLUGIN_ID=%s", program->plugin);
	environment[3] = xstrdup("NODE_ENV=production");
	environment[4] = xstrdup("TZ=UTC");
	environment[5] = NULL;
}

/*
 * One that the worker reads (or writes); *theirs: its end.  Not libuv's own kind, which is a pair
 * of sockets: a pipe costs less.
 */
static int
worker_process_make_pipe(uv_pipe_t *ours, bool worker_reads, int *theirs)
{
	int ends[2];
	int result;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	result = uv_pipe_open(ours, ends[worker_reads ? 1 : 0]);
	if (result < 0)
		close(ends[worker_reads ? 1 : 0]);
	*theirs = ends[worker_reads ? 0 : 1];
	return result;
}

static int
worker_process_spawn(WorkerProcess *process, const WorkerProgram *program)
{
	char files[24];
	char memory[24];
	int pipes[3] = {-1, -1, -1};
	char *arguments[OWN_ARGUMENTS + sizeof program->arguments / sizeof program->arguments[0]] = {
	    ENVRT_HOST_PROGRAM, WORKER_SUPERVISOR_OPTION, files, memory};
	char *environment[ENVIRONMENT_SIZE];
	uv_stdio_container_t stdio[4] = {
	    {.flags = UV_INHERIT_FD},
	    {.flags = UV_INHERIT_FD},
	    {.flags = UV_INHERIT_FD},
	    {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE | UV_WRITABLE_PIPE,
	     .data.stream = (uv_stream_t *) &process->channel},
	};
	uv_process_options_t options = {
	    .exit_cb = worker_process_exited,
	    .file = "/proc/self/exe",
	    .args = arguments,
	    .env = environment,
	    .cwd = program->folder,
	    .flags = UV_PROCESS_DETACHED,
	    .stdio_count = 4,
	    .stdio = stdio,
	};
	int result;

	snprintf(files, sizeof files, "%llu", (unsigned long long) file_limit);
	snprintf(memory, sizeof memory, "%llu", memory_limit);
	for (int i = 0; program->arguments[i] != NULL; i++)
		arguments[OWN_ARGUMENTS + i] = (char *) program->arguments[i];
	result = worker_process_make_pipe(&process->input, true, &pipes[0]);
	if (result == 0)
		result = worker_process_make_pipe(&process->output, false, &pipes[1]);
	if (result == 0)
		result = worker_process_make_pipe(&process->errors, false, &pipes[2]);
	if (result == 0)
	{
		for (int i = 0; i < 3; i++)
			stdio[i].data.fd = pipes[i];
		make_environment(program, environment);
		process->has_process = true;
		process->open_handles++;
		result = uv_spawn(uv_default_loop(), &process->process, &options);
		for (int i = 0; environment[i] != NULL; i++)
			free(environment[i]);
	}
	for (int i = 0; i < 3; i++)
		if (pipes[i] >= 0)
			close(pipes[i]);
	return result;
}

WorkerProcess *
worker_process_start(const WorkerProgram *program, const WorkerProcessEvents *events, void *owner,
                     char **problem)
{
	static const MessageWriterEvents writing = {.written = worker_process_written,
	                                            .failed = worker_process_unwritable};
	WorkerProcess *process = xcalloc(1, sizeof *process);
	int result;

	process->plugin = xstrdup(program->plugin);
	process->events = *events;
	process->owner = owner;
	process->reader = rpc_reader_new(ENVRT_MAX_LINE);
	if (process->reader == NULL)
	{
		*problem = xformat("could not be started: out of memory");
		free(process->plugin);
		free(process);
		return NULL;
	}
	rpc_reader_skip_long(process->reader);
	process->writer = message_writer_new((uv_stream_t *) &process->input, &writing, process);
	process->turn = (LoopTurn){.serve = take_turn, .data = process};
	uv_pipe_init(uv_default_loop(), &process->input, 0);
	uv_pipe_init(uv_default_loop(), &process->output, 0);
	uv_pipe_init(uv_default_loop(), &process->errors, 0);
	uv_pipe_init(uv_default_loop(), &process->channel, 0);
	process->process.data = process->input.data = process->output.data = process->errors.data =
	    process->channel.data = process;
	process->open_handles = 4;
	process->next = first_process;
	if (first_process != NULL)
		first_process->previous = process;
	first_process = process;

	result = worker_process_spawn(process, program);
	if (result < 0)
	{
		*problem = xformat("could not be started: %s", uv_strerror(result));
		process->owner = NULL;
		worker_process_close_all(process);
		return NULL;
	}
	process->output_open = uv_read_start((uv_stream_t *) &process->output,
	                                     worker_process_lend_buffer, output_read) == 0;
	process->errors_open =
	    uv_read_start((uv_stream_t *) &process->errors, worker_process_lend_buffer,
	                  worker_process_errors_read) == 0;
	uv_read_start((uv_stream_t *) &process->channel, worker_process_lend_buffer, channel_read);
	return process;
}

pid_t
worker_process_pid(const WorkerProcess *process)
{
	return process->pid;
}

void
worker_processes_kill(void)
{
	for (WorkerProcess *process = first_process; process != NULL; process = process->next)
		worker_process_kill(process, "is not needed any more");
}

bool
worker_processes_exist(void)
{
	return first_process != NULL;
}
