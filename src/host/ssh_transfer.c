/*
 * ssh_transfer.c
 *		Files between the server and a workspace on a remote host.
 *
 * The workspace's end is a script with a tar (ssh_transfer_script.c), started like any
 * command of the lease (ssh_execute_script.c); the archive goes through the channel's input or
 * output.  The server's end is a process of ours, and pipes to it are in the loop:
 *
 *		push   pipe -> block -> channel    a block is read when the last one was sent
 *		pull   channel -> pending -> pipe  the channel is read while little is pending
 *
 * The latter is also the way of the list of what is in the target already, which the script
 * writes before it reads the archive of a push, up to a record that is empty.
 *
 * so no more than that is in memory, and each side is as fast as the other.
 *
 *   starting   waiting for a session, a channel, and the server's consent
 *   running    both ends
 *   ending     the client is gone, nothing moves, or one end has failed: the local process is
 *              ended, and the channel closed.  The script sees the end of its input without the
 *              archive's seal (or can't write any more) and leaves nothing
 *
 * It is over when the command and the process are, and the pipe is closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "execute_request.h"
#include "files_process.h"
#include "files_protocol.h"
#include "memory.h"
#include "ssh_command.h"
#include "ssh_destination.h"
#include "ssh_execute_script.h"
#include "ssh_transfer.h"
#include "ssh_transfer_script.h"
#include "transfer.h"

#define BLOCK 65536
#define PENDING_MAX ((size_t) 512 * 1024)
#define ERRORS_MAX 16384

/* What a push's script writes while it moves all into place counts as progress, up to here. */
#define SIGNS_MAX ((size_t) 1024 * 1024)

typedef struct SshTransfer
{
	Transfer transfer;
	SshDestination *destination;
	ExecuteRequest *command_request;
	ExecuteStart start;
	Bytes input; /* the script's start */
	SshCommand *command;
	FilesProcess *local;
	uv_pipe_t from_local; /* push: the archive */
	uv_pipe_t to_local;   /* pull: the archive; push: the list */
	bool from_open;
	bool to_open;
	bool list_over; /* push: its empty record has come */
	bool list_nul;  /* the last byte was a NUL */
	size_t signs;   /* push: bytes after the list */
	bool may_leave; /* the command can be left, not only cancelled */
	bool stopping;
	char *seal;
	char block[BLOCK]; /* push */
	Bytes pending;     /* pull: what has come */
	Bytes writing;     /* and is on its way into the pipe */
	uv_write_t write;
	bool write_running;
	Bytes errors; /* what the remote end wrote to stderr */
	HostError *error;
} SshTransfer;

#define of_transfer(pointer) ((SshTransfer *) ((char *) (pointer) -offsetof(SshTransfer, transfer)))

/*
 * The end
 */

static void
finish_if_over(SshTransfer *all)
{
	HostError *error = all->error;
	HostError *local;

	if (all->command != NULL || all->local != NULL || all->from_open || all->to_open)
		return;
	/* The server's end knows best, unless it only suffers from the other's. */
	local = transfer_error(&all->transfer, false);
	if (local != NULL && all->transfer.local.end == FILES_ERROR)
	{
		error_free(error);
		error = local;
		local = NULL;
	}
	else if (error == NULL)
	{
		error = local;
		local = NULL;
	}
	error_free(local);
	transfer_end(&all->transfer, error);
	ssh_execute_start_clear(&all->start);
	execute_request_free(all->command_request);
	ssh_destination_release(all->destination);
	bytes_free(&all->input);
	bytes_free(&all->pending);
	bytes_free(&all->writing);
	bytes_free(&all->errors);
	free(all->seal);
	free(all);
}

static void
from_closed(uv_handle_t *handle)
{
	SshTransfer *all = handle->data;

	all->from_open = false;
	finish_if_over(all);
}

static void
close_from(SshTransfer *all)
{
	if (all->from_open && !uv_is_closing((uv_handle_t *) &all->from_local))
		uv_close((uv_handle_t *) &all->from_local, from_closed);
}

static void
to_closed(uv_handle_t *handle)
{
	SshTransfer *all = handle->data;

	all->to_open = false;
	finish_if_over(all);
}

static void
close_to(SshTransfer *all)
{
	if (all->to_open && !uv_is_closing((uv_handle_t *) &all->to_local))
		uv_close((uv_handle_t *) &all->to_local, to_closed);
}

/* Ends both ends; the last thing that a function does. */
static void
stop(Transfer *transfer)
{
	SshTransfer *all = of_transfer(transfer);
	SshCommand *command = all->command;

	all->stopping = true;
	if (all->local != NULL)
		files_process_stop(all->local);
	close_from(all);
	close_to(all);
	if (command != NULL && all->may_leave)
		ssh_command_leave(command);
	else if (command != NULL)
	{
		all->command = NULL;
		ssh_command_cancel(command);
		finish_if_over(all);
	}
	else
		finish_if_over(all);
}

/* The client is gone. */
static void
cancelled(void *data)
{
	SshTransfer *all = data;

	all->transfer.call = NULL;
	if (all->command != NULL && !ssh_command_detach(all->command))
	{
		all->command = NULL;
		finish_if_over(all);
		return;
	}
	stop(&all->transfer);
}

/*
 * The server's end
 */

static void
local_progress(void *data)
{
	SshTransfer *all = data;

	transfer_moved(&all->transfer);
}

static void
local_ended(void *data)
{
	SshTransfer *all = data;

	all->local = NULL;
	/* Who pulls can't go on; what was pushed is complete or not sealed. */
	if (!all->transfer.request->push && all->transfer.local.end != FILES_DONE)
		stop(&all->transfer);
	else
		finish_if_over(all);
}

static void
open_pipe(SshTransfer *all, uv_pipe_t *pipe, bool *open, int fd)
{
	uv_pipe_init(uv_default_loop(), pipe, 0);
	pipe->data = all;
	*open = true;
	uv_pipe_open(pipe, fd);
}

static bool
start_local(SshTransfer *all)
{
	const TransferRequest *request = all->transfer.request;
	FilesProcessSpec spec = {.mode = request->push ? FILES_PACK : FILES_UNPACK,
	                         .known_fd = -1,
	                         .path = request->local_path,
	                         .remote_path = request->remote_path,
	                         .max_bytes = request->max_bytes,
	                         .name = request->name,
	                         .seal = request->push ? all->seal : NULL,
	                         .protected_paths = request->protected_paths,
	                         .report = &all->transfer.local,
	                         .progress = local_progress,
	                         .ended = local_ended,
	                         .data = all};
	int to[2] = {-1, -1};
	int from[2] = {-1, -1};

	if (pipe2(to, O_CLOEXEC) < 0 || (request->push && pipe2(from, O_CLOEXEC) < 0))
		all->error = error_new("53400", "could not make a pipe: %s", strerror(errno));
	else
	{
		spec.fd = request->push ? from[1] : to[0];
		spec.known_fd = request->push ? to[0] : -1;
		all->local = files_process_start(&spec, &all->error);
	}
	if (to[0] >= 0)
		close(to[0]);
	if (from[1] >= 0)
		close(from[1]);
	if (to[1] >= 0)
		open_pipe(all, &all->to_local, &all->to_open, to[1]);
	if (from[0] >= 0)
		open_pipe(all, &all->from_local, &all->from_open, from[0]);
	return all->local != NULL;
}

/*
 * Push
 */

static void
lend_block(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
	SshTransfer *all = handle->data;

	(void) suggested;
	*buffer = uv_buf_init(all->block, sizeof all->block);
}

static void
block_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
	SshTransfer *all = stream->data;

	(void) buffer;
	if (count == 0)
		return;
	uv_read_stop(stream);
	if (count < 0)
	{
		close_from(all);
		if (all->command != NULL)
			ssh_command_end_input(all->command);
	}
	else if (all->command != NULL)
		ssh_command_give(all->command, all->block, (size_t) count);
}

/* What was given has been sent. */
static void
drained(void *data)
{
	SshTransfer *all = data;

	if (all->from_open && !all->stopping && !uv_is_closing((uv_handle_t *) &all->from_local))
		uv_read_start((uv_stream_t *) &all->from_local, lend_block, block_read);
}

/*
 * Pull, and the list of a push
 */

static void write_pending(SshTransfer *all);

static void
written(uv_write_t *request, int status)
{
	SshTransfer *all = request->data;

	all->write_running = false;
	all->writing.length = 0;
	/* A process that takes no more says why, if that is of interest. */
	if (status < 0)
		close_to(all);
	if (all->command != NULL)
		ssh_command_resume(all->command);
	write_pending(all);
}

static void
write_pending(SshTransfer *all)
{
	Bytes taken = all->pending;
	uv_buf_t buffer;

	if (all->write_running || !all->to_open || uv_is_closing((uv_handle_t *) &all->to_local))
		return;
	if (taken.length == 0)
	{
		if (all->command == NULL || all->list_over)
			close_to(all);
		return;
	}
	all->pending = all->writing;
	all->writing = taken;
	all->write.data = all;
	buffer = uv_buf_init(taken.data, (unsigned) taken.length);
	all->write_running =
	    uv_write(&all->write, (uv_stream_t *) &all->to_local, &buffer, 1, written) == 0;
	if (!all->write_running)
		close_to(all);
}

/*
 * The workspace's end
 */

/* How much of it still belongs to the list: up to its empty record. */
static size_t
length_of_list(SshTransfer *all, const char *bytes, size_t length)
{
	size_t count = 0;

	while (count < length && !all->list_over)
	{
		bool nul = bytes[count++] == '\0';

		all->list_over = nul && all->list_nul;
		all->list_nul = nul;
	}
	return count;
}

static bool
output(void *data, bool is_stderr, const char *bytes, size_t length)
{
	SshTransfer *all = data;

	bytes = ssh_execute_start_take(&all->start, is_stderr, bytes, &length);
	if (is_stderr)
	{
		if (length > ERRORS_MAX - all->errors.length)
			length = ERRORS_MAX - all->errors.length;
		bytes_append(&all->errors, bytes, length);
		return true;
	}
	if (all->transfer.request->push && !all->from_open && length > 0)
	{
		all->signs += length < SIGNS_MAX ? length : SIGNS_MAX;
		if (all->signs <= SIGNS_MAX)
			transfer_moved(&all->transfer);
	}
	/* What nobody takes is no progress: a host that writes on and on does not hold us up. */
	if (all->stopping || !all->to_open || uv_is_closing((uv_handle_t *) &all->to_local))
		return true;
	if (all->transfer.request->push)
		length = length_of_list(all, bytes, length);
	if (length > 0)
		transfer_moved(&all->transfer);
	bytes_append(&all->pending, bytes, length);
	return all->pending.length < PENDING_MAX;
}

static void
progress(void *data)
{
	SshTransfer *all = data;

	write_pending(all);
}

static HostError *
not_started(const SshTransfer *all)
{
	const Bytes *said = &all->start.heads[1];
	HostError *error;

	if (all->start.state == START_NO_CWD)
		error =
		    error_new("55000", "the workspace \"%s\" can't be entered", all->command_request->cwd);
	else
	{
		error = error_new("38000", "%s: the transfer was not started", all->destination->target);
		error_hint(error, "The login shell of \"%s\" must be able to run sh.",
		           all->destination->username);
	}
	error_detail(error, "%s", said->length > 0 ? said->data : "");
	return error;
}

static void
command_done(void *data, HostError *error, const SshCommandResult *result)
{
	SshTransfer *all = data;

	all->command = NULL;
	all->may_leave = false;
	if (error == NULL && !all->stopping && all->start.state != START_DONE)
		error = not_started(all);
	else if (error == NULL && !all->stopping)
		error = ssh_transfer_failure(all->transfer.request, result->exited ? result->status : -1,
		                             &all->errors);
	if (all->error == NULL)
		all->error = error;
	else
		error_free(error);
	if (all->error != NULL || all->transfer.request->push)
	{
		/* What is not sent yet is not wanted. */
		close_from(all);
		close_to(all);
		if (all->error != NULL && all->local != NULL && !all->transfer.request->push)
			files_process_stop(all->local);
		finish_if_over(all);
	}
	else if (!all->to_open)
		finish_if_over(all);
	else
		write_pending(all);
}

static void
exited(void *data)
{
	(void) data;
}

static void
accepted(void *data)
{
	SshTransfer *all = data;

	all->may_leave = true;
	/* An empty list is its empty record alone. */
	all->list_nul = true;
	if (!start_local(all))
	{
		stop(&all->transfer);
		return;
	}
	transfer_watch(&all->transfer);
}

/*
 * The beginning
 */

static const char *
workspace_of(const json_t *params, const SshDestination *destination)
{
	const json_t *metadata = json_object_get(json_object_get(params, "lease"), "metadata");
	const char *cwd = json_string_value(json_object_get(metadata, "remoteCwd"));

	return cwd != NULL && cwd[0] == '/' ? cwd : destination->workspace_path;
}

static void
begin(SshTransfer *all, Call *call, const char *workspace)
{
	const TransferRequest *request = all->transfer.request;
	json_t *command;
	SshCommandSpec spec = {0};
	char *line;

	ssh_script_marker(all->start.marker);
	all->seal = ssh_transfer_seal(all->start.marker);
	command = ssh_transfer_command(request, all->start.marker);
	json_object_set_new(command, "cwd", json_string(workspace));
	all->command_request = execute_request_new(command, workspace, &all->error);
	json_decref(command);
	if (all->command_request == NULL)
	{
		finish_if_over(all);
		return;
	}
	ssh_execute_input(all->command_request, &all->input);
	call_set_target(call, all->destination->target);
	call_on_cancel(call, cancelled, all);
	line = ssh_execute_command_line(all->start.marker);
	spec.call = call;
	spec.command_line = line;
	spec.connect_ms = request->connect_ms;
	spec.command_ms = request->connect_ms;
	spec.input.data = all->input.data;
	spec.input.length = all->input.length;
	spec.input.keep = request->push;
	spec.accepted = accepted;
	spec.output = output;
	spec.progress = progress;
	spec.drained = drained;
	spec.exited = exited;
	spec.done = command_done;
	spec.data = all;
	all->command = ssh_command_start(all->destination, &spec);
	free(line);
}

void
ssh_transfer(Call *call, const json_t *params, bool push)
{
	HostError *error = NULL;
	SshDestination *destination = ssh_destination_new(params, &error);
	TransferRequest *request = NULL;
	const char *workspace = NULL;
	SshTransfer *all;

	if (error == NULL)
	{
		workspace = workspace_of(params, destination);
		request = transfer_request_new(params, push, workspace, &error);
	}
	if (error != NULL)
	{
		ssh_destination_release(destination);
		call_fail(call, error);
		return;
	}
	all = xcalloc(1, sizeof *all);
	all->destination = destination;
	transfer_begin(&all->transfer, call, "ssh", params, request, stop);
	begin(all, call, workspace);
}
