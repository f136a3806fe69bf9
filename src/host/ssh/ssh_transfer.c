/*
 * ssh_transfer.c
 *		Files between the server and a workspace on a remote host.
 *
 * The workspace's end is a script with a tar (ssh_transfer_script.c), started like any
 * command of the lease (ssh_execute_script.c); the archive goes through the channel's input or
 * output.  Before that comes, in the output, a list of what is in the workspace, up to an empty
 * record.  The server's end is a process of ours, for a pull two, and pipes to them are in the
 * loop:
 *
 *		push   output -> list    -> the packer
 *		       input  <- archive <- the packer
 *		pull   output -> list    -> the chooser
 *		       input  <- choice  <- the chooser
 *		       output -> archive -> the unpacker
 *
 * A block of input is read when the last one was sent, and the channel's output while little of it
 * is pending, so no more than that is in memory, and each side is as fast as the other.
 *
 *   starting   until the shell of the remote host is ready and is about to be given the script
 *   running    both ends
 *   ending     the client is gone, nothing moves, or one end has failed: the local processes are
 *              ended, and the channel closed.  The script sees the end of its input without the
 *              archive's seal (or can't write any more) and leaves nothing
 *
 * It is over when the command and the processes are, and the pipes are closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "calls/execute_request.h"
#include "transfer/files_process.h"
#include "shared/files_protocol.h"
#include "base/memory.h"
#include "ssh/ssh_command.h"
#include "ssh/ssh_destination.h"
#include "ssh/ssh_execute_script.h"
#include "ssh/ssh_transfer.h"
#include "ssh/ssh_transfer_script.h"
#include "transfer/transfer.h"

#define BLOCK 65536
#define PENDING_MAX ((size_t) 512 * 1024)
#define ERRORS_MAX 16384

/* What a push's script writes while it moves all into place counts as progress, up to here. */
#define SIGNS_MAX ((size_t) 1024 * 1024)

typedef struct SshTransfer SshTransfer;

/* What of the channel's output a process of ours reads. */
typedef struct Feed
{
	SshTransfer *all;
	uv_pipe_t pipe;
	bool open;
	bool over;     /* no more will come */
	Bytes pending; /* what has come */
	Bytes writing; /* and is on its way into the pipe */
	uv_write_t write;
	bool write_running;
} Feed;

struct SshTransfer
{
	Transfer transfer;
	SshDestination *destination;
	ExecuteRequest *command_request;
	ExecuteStart start;
	Bytes input; /* the script's start */
	SshCommand *command;
	FilesProcess *local;
	FilesProcess *chooser; /* pull */
	FilesReport chooser_report;
	uv_pipe_t from_local; /* what is the channel's input */
	bool from_open;
	Feed list;
	Feed archive;   /* pull */
	bool list_nul;  /* the list's last byte was a NUL */
	size_t signs;   /* push: bytes after the list */
	bool may_leave; /* the command can be left, not only cancelled */
	bool stopping;
	char *seal;
	char block[BLOCK]; /* of the channel's input */
	Bytes errors;      /* what the remote end wrote to stderr */
	HostError *error;
};

#define of_transfer(pointer) ((SshTransfer *) ((char *) (pointer) -offsetof(SshTransfer, transfer)))

/*
 * The end
 */

/* Of a push, whose script has not said itself what it has come to. */
static void
ssh_transfer_hint_what_is_there(const SshTransfer *all, HostError *error)
{
	if (error == NULL || error->hint != NULL || !all->transfer.request->push)
		return;
	if (all->transfer.local.end == FILES_DONE && all->command_request != NULL)
		error_hint(error, "All had been sent, and whether it is in place is not known: another "
		                  "push makes sure.");
	else if (all->transfer.local.files > 0)
		error_hint(error, "Nothing in the workspace has changed.");
}

static void
ssh_transfer_finish_if_over(SshTransfer *all)
{
	HostError *error = all->error;
	HostError *local;

	if (all->command != NULL || all->local != NULL || all->chooser != NULL || all->from_open ||
	    all->list.open || all->archive.open)
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
	files_report_clear(&all->chooser_report);
	ssh_transfer_hint_what_is_there(all, error);
	transfer_end(&all->transfer, error);
	ssh_execute_start_clear(&all->start);
	execute_request_free(all->command_request);
	ssh_destination_release(all->destination);
	bytes_free(&all->input);
	bytes_free(&all->list.pending);
	bytes_free(&all->list.writing);
	bytes_free(&all->archive.pending);
	bytes_free(&all->archive.writing);
	bytes_free(&all->errors);
	free(all->seal);
	free(all);
}

static void
from_closed(uv_handle_t *handle)
{
	SshTransfer *all = handle->data;

	all->from_open = false;
	ssh_transfer_finish_if_over(all);
}

static void
ssh_transfer_close_from(SshTransfer *all)
{
	if (all->from_open && !uv_is_closing((uv_handle_t *) &all->from_local))
		uv_close((uv_handle_t *) &all->from_local, from_closed);
}

static void
feed_closed(uv_handle_t *handle)
{
	Feed *feed = handle->data;

	feed->open = false;
	ssh_transfer_finish_if_over(feed->all);
}

static void
feed_close(Feed *feed)
{
	if (feed->open && !uv_is_closing((uv_handle_t *) &feed->pipe))
		uv_close((uv_handle_t *) &feed->pipe, feed_closed);
}

static void
stop_processes(SshTransfer *all)
{
	if (all->local != NULL)
		files_process_stop(all->local);
	if (all->chooser != NULL)
		files_process_stop(all->chooser);
}

/* Ends both ends; the last thing that a function does. */
static void
ssh_transfer_stop(Transfer *transfer)
{
	SshTransfer *all = of_transfer(transfer);
	SshCommand *command = all->command;

	all->stopping = true;
	stop_processes(all);
	ssh_transfer_close_from(all);
	feed_close(&all->list);
	feed_close(&all->archive);
	if (command != NULL && all->may_leave)
		ssh_command_leave(command);
	else if (command != NULL)
	{
		all->command = NULL;
		ssh_command_cancel(command);
		ssh_transfer_finish_if_over(all);
	}
	else
		ssh_transfer_finish_if_over(all);
}

/* The client is gone. */
static void
ssh_transfer_cancelled(void *data)
{
	SshTransfer *all = data;

	all->transfer.call = NULL;
	if (all->command != NULL && !ssh_command_detach(all->command))
	{
		all->command = NULL;
		ssh_transfer_finish_if_over(all);
		return;
	}
	ssh_transfer_stop(&all->transfer);
}

/*
 * The server's end
 */

static void
ssh_transfer_local_progress(void *data)
{
	SshTransfer *all = data;

	transfer_moved(&all->transfer);
}

static void
ssh_transfer_local_ended(void *data)
{
	SshTransfer *all = data;

	all->local = NULL;
	/* Who pulls can't go on; what was pushed is complete or not sealed. */
	if (!all->transfer.request->push && all->transfer.local.end != FILES_DONE)
		ssh_transfer_stop(&all->transfer);
	else
		ssh_transfer_finish_if_over(all);
}

/*
 * Without its choice it can't be known that all has come.  One that nobody wants any more is a
 * different matter: the other end had all the say.
 */
static void
chooser_ended(void *data)
{
	SshTransfer *all = data;

	all->chooser = NULL;
	if (all->chooser_report.end == FILES_DONE || all->chooser_report.end == FILES_SECOND ||
	    all->stopping)
	{
		ssh_transfer_finish_if_over(all);
		return;
	}
	if (all->error == NULL)
		all->error = files_report_error(&all->chooser_report);
	if (all->error == NULL)
		all->error = error_new("38000", "the transfer ended early");
	ssh_transfer_stop(&all->transfer);
}

/* A pipe in the loop, of which the process has the other end; *fd: that.  False: there is none. */
static bool
ssh_transfer_make_pipe(SshTransfer *all, uv_pipe_t *pipe, void *data, bool *open, bool from_process,
                       int *fd)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
	{
		if (all->error == NULL)
			all->error = error_new("53400", "could not make a pipe: %s", strerror(errno));
		return false;
	}
	*fd = ends[from_process ? 1 : 0];
	uv_pipe_init(uv_default_loop(), pipe, 0);
	pipe->data = data;
	*open = true;
	uv_pipe_open(pipe, ends[from_process ? 0 : 1]);
	return true;
}

static bool
make_feed(SshTransfer *all, Feed *feed, int *fd)
{
	feed->all = all;
	return ssh_transfer_make_pipe(all, &feed->pipe, feed, &feed->open, false, fd);
}

static bool
start_processes(SshTransfer *all)
{
	const TransferRequest *request = all->transfer.request;
	FilesProcessSpec spec = {.known_fd = -1,
	                         .force = request->force,
	                         .path = request->local_path,
	                         .remote_path = request->remote_path,
	                         .max_bytes = request->max_bytes,
	                         .name = request->name,
	                         .seal = request->push ? all->seal : NULL,
	                         .protected_paths = request->protected_paths,
	                         .hidden_paths = request->hidden_paths,
	                         .progress = ssh_transfer_local_progress,
	                         .data = all};
	int list = -1;
	int input = -1;
	int archive = -1;
	bool made = make_feed(all, &all->list, &list) &&
	            ssh_transfer_make_pipe(all, &all->from_local, all, &all->from_open, true, &input) &&
	            (request->push || make_feed(all, &all->archive, &archive));

	if (made && !request->push)
	{
		spec.mode = FILES_CHOOSE;
		spec.known_fd = list;
		spec.fd = input;
		spec.report = &all->chooser_report;
		spec.ended = chooser_ended;
		all->chooser = files_process_start(&spec, &all->error);
		made = all->chooser != NULL;
	}
	if (made)
	{
		spec.mode = request->push ? FILES_PACK : FILES_UNPACK;
		spec.known_fd = request->push ? list : -1;
		spec.fd = request->push ? input : archive;
		spec.report = &all->transfer.local;
		spec.ended = ssh_transfer_local_ended;
		all->local = files_process_start(&spec, &all->error);
	}
	if (list >= 0)
		close(list);
	if (input >= 0)
		close(input);
	if (archive >= 0)
		close(archive);
	return all->local != NULL;
}

/*
 * The channel's input
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
		ssh_transfer_close_from(all);
		if (all->command != NULL)
			ssh_command_end_input(all->command);
	}
	else if (all->command != NULL)
	{
		transfer_moved(&all->transfer);
		ssh_command_give(all->command, all->block, (size_t) count);
	}
}

/* What was given has been sent. */
static void
ssh_transfer_drained(void *data)
{
	SshTransfer *all = data;

	if (all->from_open && !all->stopping && !uv_is_closing((uv_handle_t *) &all->from_local))
		uv_read_start((uv_stream_t *) &all->from_local, lend_block, block_read);
}

/*
 * The channel's output
 */

static void feed_write(Feed *feed);

static void
ssh_transfer_written(uv_write_t *request, int status)
{
	Feed *feed = request->data;

	feed->write_running = false;
	feed->writing.length = 0;
	/* A process that takes no more says why, if that is of interest. */
	if (status < 0)
		feed_close(feed);
	if (feed->all->command != NULL)
		ssh_command_resume(feed->all->command);
	feed_write(feed);
}

static void
feed_write(Feed *feed)
{
	Bytes taken = feed->pending;
	uv_buf_t buffer;

	if (feed->write_running || !feed->open || uv_is_closing((uv_handle_t *) &feed->pipe))
		return;
	if (taken.length == 0)
	{
		if (feed->over)
			feed_close(feed);
		return;
	}
	feed->pending = feed->writing;
	feed->writing = taken;
	feed->write.data = feed;
	buffer = uv_buf_init(taken.data, (unsigned) taken.length);
	feed->write_running =
	    uv_write(&feed->write, (uv_stream_t *) &feed->pipe, &buffer, 1, ssh_transfer_written) == 0;
	if (!feed->write_running)
		feed_close(feed);
}

/*
 * What nobody takes is no progress: a host that writes on and on does not hold us up.  False when
 * enough is pending.
 */
static bool
feed_take(Feed *feed, const char *bytes, size_t length)
{
	if (length == 0 || !feed->open || uv_is_closing((uv_handle_t *) &feed->pipe))
		return true;
	transfer_moved(&feed->all->transfer);
	bytes_append(&feed->pending, bytes, length);
	return feed->pending.length < PENDING_MAX;
}

/* How much of it still belongs to the list: up to its empty record. */
static size_t
length_of_list(SshTransfer *all, const char *bytes, size_t length)
{
	size_t count = 0;

	while (count < length && !all->list.over)
	{
		bool nul = bytes[count++] == '\0';

		all->list.over = nul && all->list_nul;
		all->list_nul = nul;
	}
	return count;
}

static bool
ssh_transfer_output(void *data, bool is_stderr, const char *bytes, size_t length)
{
	SshTransfer *all = data;
	size_t list_length;
	bool more;

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
	if (all->stopping)
		return true;
	list_length = length_of_list(all, bytes, length);
	more = feed_take(&all->list, bytes, list_length);
	return feed_take(&all->archive, bytes + list_length, length - list_length) && more;
}

static void
ssh_transfer_progress(void *data)
{
	SshTransfer *all = data;

	feed_write(&all->list);
	feed_write(&all->archive);
}

static HostError *
not_started(const SshTransfer *all)
{
	char *words = ssh_execute_start_words(&all->start, true, all->command_request);
	HostError *error;

	if (all->start.state == START_NO_CWD)
		error =
		    error_new("55000", "the workspace \"%s\" can't be entered", all->command_request->cwd);
	else
	{
		error = error_new("38000", "%s: the transfer was not started", all->destination->target);
		ssh_execute_shell_hint(error, all->destination->username, words);
	}
	error_detail(error, "%s", words);
	free(words);
	return error;
}

static void
ssh_transfer_command_done(void *data, HostError *error, const SshCommandResult *result)
{
	SshTransfer *all = data;

	all->command = NULL;
	all->may_leave = false;
	if (error == NULL && !all->stopping && all->start.state != START_DONE)
		error = not_started(all);
	else if (error == NULL && !all->stopping)
		error = ssh_transfer_failure(all->transfer.request, result->exited ? result->status : -1,
		                             &all->errors, &all->transfer.notes);
	if (all->error == NULL)
		all->error = error;
	else
		error_free(error);
	/* What is not sent yet is not wanted. */
	ssh_transfer_close_from(all);
	if (all->error != NULL || all->transfer.request->push)
	{
		if (!all->transfer.request->push)
			stop_processes(all);
		feed_close(&all->list);
		feed_close(&all->archive);
	}
	all->list.over = all->archive.over = true;
	feed_write(&all->list);
	feed_write(&all->archive);
	ssh_transfer_finish_if_over(all);
}

static void
ssh_transfer_exited(void *data)
{
	(void) data;
}

static bool
ssh_transfer_accepted(void *data)
{
	SshTransfer *all = data;

	all->may_leave = true;
	/* An empty list is its empty record alone. */
	all->list_nul = true;
	if (!start_processes(all))
	{
		ssh_transfer_stop(&all->transfer);
		return false;
	}
	transfer_watch(&all->transfer);
	return true;
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
ssh_transfer_begin(SshTransfer *all, Call *call, const char *workspace)
{
	const TransferRequest *request = all->transfer.request;
	json_t *command;
	SshCommandSpec spec = {0};

	ssh_script_marker(all->start.marker);
	all->seal = ssh_transfer_seal(all->start.marker);
	command = ssh_transfer_command(request, all->start.marker);
	json_object_set_new(command, "cwd", json_string(workspace));
	all->command_request = execute_request_new(command, workspace, &all->error);
	json_decref(command);
	if (all->command_request == NULL)
	{
		ssh_transfer_finish_if_over(all);
		return;
	}
	ssh_execute_input(all->command_request, false, &all->input);
	call_set_target(call, all->destination->target);
	call_on_cancel(call, ssh_transfer_cancelled, all);
	spec.call = call;
	spec.start = &all->start;
	spec.connect_ms = request->connect_ms;
	spec.command_ms = request->connect_ms;
	spec.input.data = all->input.data;
	spec.input.length = all->input.length;
	spec.input.keep = true;
	spec.accepted = ssh_transfer_accepted;
	spec.output = ssh_transfer_output;
	spec.progress = ssh_transfer_progress;
	spec.drained = ssh_transfer_drained;
	spec.exited = ssh_transfer_exited;
	spec.done = ssh_transfer_command_done;
	spec.data = all;
	all->command = ssh_command_start(all->destination, &spec);
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
	transfer_begin(&all->transfer, call, "ssh", params, request, ssh_transfer_stop);
	ssh_transfer_begin(all, call, workspace);
}
