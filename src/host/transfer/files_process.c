/*
 * files_process.c
 *		An envrt_files on the server's own file system.
 *
 * A process of its own moves the files, so that no disk, however slow, and no archive, however
 * hostile, can hold up or harm the host.  It has its end of a pipe and its stderr, nothing of
 * our environment, and ends with us.
 *
 * To stop it is to send SIGTERM, upon which it removes what is not complete, and SIGKILL
 * to one that does not react.  It has ended when it has exited and all of stderr was read.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "transfer/files_process.h"
#include "shared/files_protocol.h"
#include "base/memory.h"
#include "base/timer.h"

#define STOP_MS 2000
#define MAX_ARGUMENTS 2100

struct FilesProcess
{
	FilesProcess *next;
	FilesProcess *previous;
	FilesProcessSpec spec; /* of it only the report and the functions */
	uv_process_t process;
	uv_pipe_t errors;
	int open_handles;
	Timer *timer;
	bool stopped;
	bool exited;
	bool errors_open;
	bool ending;
};

static FilesProcess *first_process;
static char receive_buffer[8192];

static void
files_process_handle_closed(uv_handle_t *handle)
{
	FilesProcess *process = handle->data;

	if (--process->open_handles > 0)
		return;
	if (process->previous != NULL)
		process->previous->next = process->next;
	else
		first_process = process->next;
	if (process->next != NULL)
		process->next->previous = process->previous;
	free(process);
}

static void
files_process_close_all(FilesProcess *process)
{
	process->ending = true;
	timer_stop(&process->timer);
	uv_close((uv_handle_t *) &process->process, files_process_handle_closed);
	uv_close((uv_handle_t *) &process->errors, files_process_handle_closed);
}

static void
files_process_end_if_complete(FilesProcess *process)
{
	FilesProcessSpec spec = process->spec;

	if (process->ending || !process->exited || process->errors_open)
		return;
	files_process_close_all(process);
	if (spec.data != NULL)
		spec.ended(spec.data);
}

static void
files_process_exited(uv_process_t *handle, int64_t status, int signal)
{
	FilesProcess *process = handle->data;
	FilesReport *report = process->spec.report;

	(void) status;
	process->exited = true;
	if (signal != 0 && !process->stopped && process->spec.data != NULL && report->end == 0)
	{
		report->end = FILES_ERROR;
		memcpy(report->sqlstate, "38000", 6);
		report->text = xformat("the process that moves files was ended by signal %d", signal);
	}
	files_process_end_if_complete(process);
}

static void
files_process_lend_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
	(void) handle;
	(void) suggested;
	*buffer = uv_buf_init(receive_buffer, sizeof receive_buffer);
}

static void
files_process_errors_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
	FilesProcess *process = stream->data;

	if (count == 0)
		return;
	if (count < 0)
	{
		uv_read_stop(stream);
		process->errors_open = false;
		files_process_end_if_complete(process);
		return;
	}
	if (process->spec.data != NULL &&
	    files_report_take(process->spec.report, buffer->base, (size_t) count))
		process->spec.progress(process->spec.data);
}

static void
files_process_kill_deaf(void *data)
{
	FilesProcess *process = data;

	if (!process->exited)
		uv_process_kill(&process->process, SIGKILL);
}

void
files_process_stop(FilesProcess *process)
{
	if (process->ending || process->exited)
		return;
	process->stopped = true;
	uv_process_kill(&process->process, SIGTERM);
	timer_start(&process->timer, STOP_MS, files_process_kill_deaf, process);
}

/*
 * The start
 */

char *
files_program(void)
{
	char path[4096];
	size_t size = sizeof path;
	char *slash;

	if (uv_exepath(path, &size) < 0 || (slash = strrchr(path, '/')) == NULL)
		return xstrdup(FILES_PROGRAM);
	*slash = '\0';
	return xformat("%s/" FILES_PROGRAM, path);
}

static int
files_process_spawn(FilesProcess *process, const FilesProcessSpec *spec)
{
	static const char *const modes[] = {"pack", "unpack", "list", "choose"};
	char *environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", NULL};
	char *program = files_program();
	char parent[24];
	char max_bytes[24];
	char *arguments[MAX_ARGUMENTS];
	size_t count = 0;
	uv_stdio_container_t stdio[3] = {
	    {.flags = UV_IGNORE},
	    {.flags = UV_IGNORE},
	    {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE,
	     .data.stream = (uv_stream_t *) &process->errors},
	};
	uv_process_options_t options = {
	    .exit_cb = files_process_exited,
	    .file = program,
	    .args = arguments,
	    .env = environment,
	    .cwd = "/",
	    .flags = UV_PROCESS_DETACHED,
	    .stdio_count = 3,
	    .stdio = stdio,
	};
	int result;

	stdio[spec->mode == FILES_UNPACK ? 0 : 1] =
	    (uv_stdio_container_t){.flags = UV_INHERIT_FD, .data.fd = spec->fd};
	snprintf(parent, sizeof parent, "%d", (int) getpid());
	arguments[count++] = FILES_PROGRAM;
	arguments[count++] = (char *) modes[spec->mode];
	arguments[count++] = "--parent";
	arguments[count++] = parent;
	for (char *const *path = spec->protected_paths; *path != NULL && count < MAX_ARGUMENTS - 20;
	     path++)
	{
		arguments[count++] = "--protect";
		arguments[count++] = *path;
	}
	for (char *const *path = spec->hidden_paths; *path != NULL && count < MAX_ARGUMENTS - 16;
	     path++)
	{
		arguments[count++] = "--protect-hidden";
		arguments[count++] = *path;
	}
	if (spec->mode == FILES_UNPACK)
	{
		arguments[count++] = "--from-workspace";
		arguments[count++] = (char *) spec->remote_path;
	}
	if (spec->mode == FILES_UNPACK && spec->max_bytes > 0)
	{
		snprintf(max_bytes, sizeof max_bytes, "%llu", (unsigned long long) spec->max_bytes);
		arguments[count++] = "--max-bytes";
		arguments[count++] = max_bytes;
	}
	if (spec->mode == FILES_PACK && spec->known_fd >= 0)
		arguments[count++] = "--known";
	if (spec->force)
		arguments[count++] = "--force";
	if (spec->known_fd >= 0)
		stdio[0] = (uv_stdio_container_t){.flags = UV_INHERIT_FD, .data.fd = spec->known_fd};
	if (spec->name != NULL)
	{
		arguments[count++] = "--name";
		arguments[count++] = (char *) spec->name;
	}
	if (spec->seal != NULL)
	{
		arguments[count++] = "--seal";
		arguments[count++] = (char *) spec->seal;
	}
	arguments[count++] = "--";
	arguments[count++] = (char *) spec->path;
	arguments[count] = NULL;
	result = uv_spawn(uv_default_loop(), &process->process, &options);
	free(program);
	return result;
}

FilesProcess *
files_process_start(const FilesProcessSpec *spec, HostError **error)
{
	FilesProcess *process = xcalloc(1, sizeof *process);
	int result;

	process->spec = *spec;
	process->process.data = process->errors.data = process;
	process->open_handles = 2;
	process->next = first_process;
	if (first_process != NULL)
		first_process->previous = process;
	first_process = process;
	uv_pipe_init(uv_default_loop(), &process->errors, 0);
	result = files_process_spawn(process, spec);
	if (result < 0)
	{
		process->spec.data = NULL;
		*error = error_new("55000", "could not start " FILES_PROGRAM ": %s", uv_strerror(result));
		error_hint(*error, "It belongs beside the driver host: install envrt completely.");
		files_process_close_all(process);
		return NULL;
	}
	process->errors_open = uv_read_start((uv_stream_t *) &process->errors,
	                                     files_process_lend_buffer, files_process_errors_read) == 0;
	return process;
}

/*
 * The end of the host
 */

void
files_processes_kill(void)
{
	for (FilesProcess *process = first_process; process != NULL; process = process->next)
	{
		process->spec.data = NULL;
		files_process_stop(process);
	}
}

bool
files_processes_exist(void)
{
	return first_process != NULL;
}
