/*
 * sandbox_transfer.c
 *		Files between the server and a sandbox's workspace.
 *
 * The workspace's end runs in a sandbox of the lease like any command, with the same limits, so
 * whatever other commands of the lease do to the workspace meanwhile, it can reach no
 * file but those of the workspace, and of the machine's /usr.  The server's end does
 * not know the workspace, only what comes through the pipe between the two.  A third process,
 * on the target's side, first lists what is there, for the source's end, which sends what is not.
 *
 *   preparing   in another thread: is there the lease's folder, what does the sandbox see
 *   running     both ends; the host sees nothing of what they move
 *   ending      the client is gone, nothing moves, or the lease is over: SIGTERM, by which what
 *               is not complete goes, and SIGKILL
 *
 * It is over when both ends are.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "transfer/files_process.h"
#include "shared/files_protocol.h"
#include "base/memory.h"
#include "sandbox/sandbox_lease_folder.h"
#include "sandbox/sandbox_lease.h"
#include "sandbox/sandbox_directory.h"
#include "sandbox/sandbox_file_system.h"
#include "sandbox/sandbox_run.h"
#include "shared/sandbox_spec.h"
#include "sandbox/sandbox_transfer.h"
#include "base/timer.h"

#define MEGABYTE ((uint64_t) 1024 * 1024)
#define GRACE_MS 2000

/* What the transfer itself needs in memory: nothing. */
#define TMP_BYTES MEGABYTE

/* Where its program is, in the sandbox. */
#define PROGRAM_PATH "/.envrt-files"

typedef struct SandboxTransfer
{
	SandboxMember member; /* the first, see sandbox_transfer_evict() */
	Transfer transfer;
	SandboxConfig *config;
	FilesProcess *local;
	SandboxRun *run;
	FilesProcess *local_list; /* pull */
	SandboxRun *list_run;     /* push */
	FilesReport list_report;
	Timer *timer;
	HostError *error; /* of what could not be begun */
	bool evicted;
	int limit; /* what the sandbox was ended for, or 0 */

	/* Of the other thread. */
	uv_work_t work;
	SandboxPlace *place;
	char lease[SANDBOX_ID_LENGTH + 1];
	Bytes arguments;
	SandboxUsage usage;
} SandboxTransfer;

#define of_transfer(pointer)                                                                       \
	((SandboxTransfer *) ((char *) (pointer) -offsetof(SandboxTransfer, transfer)))

/*
 * The end
 */

static HostError *
limit_error(const SandboxTransfer *all)
{
	if (all->limit == SANDBOX_DISK)
		return error_new("53400", "the workspace holds more than workspaceMb allows (%llu MB)",
		                 (unsigned long long) all->config->workspace_mb);
	return error_new("53400", "the transfer uses more memory than memoryMb allows (%llu MB)",
	                 (unsigned long long) all->config->memory_mb);
}

static void
sandbox_transfer_finish(SandboxTransfer *all)
{
	HostError *error = all->error;

	if (all->evicted)
	{
		error_free(error);
		error = error_new("55000", "the lease was ended meanwhile");
	}
	else if (error == NULL && all->limit != 0 && all->transfer.local.end != FILES_ERROR)
		error = limit_error(all);
	else if (error == NULL)
		error = transfer_error(&all->transfer, true);
	bytes_append(&all->transfer.notes, all->list_report.notes.data, all->list_report.notes.length);
	files_report_clear(&all->list_report);
	sandbox_lease_leave(&all->member);
	timer_stop(&all->timer);
	transfer_end(&all->transfer, error);
	sandbox_config_free(all->config);
	sandbox_place_free(all->place);
	bytes_free(&all->arguments);
	free(all);
}

static void
sandbox_transfer_finish_if_over(SandboxTransfer *all)
{
	if (all->local == NULL && all->run == NULL && all->local_list == NULL && all->list_run == NULL)
		sandbox_transfer_finish(all);
}

static void
sandbox_transfer_grace_over(void *data)
{
	SandboxTransfer *all = data;

	if (all->run != NULL)
		sandbox_run_kill(all->run);
	if (all->list_run != NULL)
		sandbox_run_kill(all->list_run);
}

/* What only looks can be ended at once. */
static void
stop_lists(SandboxTransfer *all)
{
	if (all->local_list != NULL)
		files_process_stop(all->local_list);
	if (all->list_run != NULL)
		sandbox_run_kill(all->list_run);
}

static void
sandbox_transfer_stop(Transfer *transfer)
{
	SandboxTransfer *all = of_transfer(transfer);

	stop_lists(all);
	if (all->local != NULL)
		files_process_stop(all->local);
	if (all->run == NULL)
		return;
	sandbox_run_terminate(all->run);
	timer_start(&all->timer, GRACE_MS, sandbox_transfer_grace_over, all);
}

/* The client is gone. */
static void
sandbox_transfer_cancelled(void *data)
{
	SandboxTransfer *all = data;

	all->transfer.call = NULL;
	sandbox_transfer_stop(&all->transfer);
}

static void
sandbox_transfer_evict(SandboxMember *member)
{
	SandboxTransfer *all = (SandboxTransfer *) member;

	all->evicted = true;
	stop_lists(all);
	if (all->local != NULL)
		files_process_stop(all->local);
	if (all->run != NULL)
		sandbox_run_kill(all->run);
}

/*
 * The two ends
 */

static void
sandbox_transfer_local_progress(void *data)
{
	SandboxTransfer *all = data;

	transfer_moved(&all->transfer);
}

static void
sandbox_transfer_local_ended(void *data)
{
	SandboxTransfer *all = data;

	all->local = NULL;
	sandbox_transfer_finish_if_over(all);
}

static bool
remote_output(void *data, bool is_stderr, const char *bytes, size_t length)
{
	SandboxTransfer *all = data;

	if (is_stderr && files_report_take(&all->transfer.remote, bytes, length))
		transfer_moved(&all->transfer);
	return true;
}

static void
sandbox_transfer_measured(void *data, const SandboxUsage *usage, bool full)
{
	SandboxTransfer *all = data;

	if (full && all->transfer.request->push)
		all->limit = SANDBOX_DISK;
	sandbox_lease_measured(&all->member, usage);
}

static void
remote_ended(void *data, const SandboxReport *report, HostError *error)
{
	SandboxTransfer *all = data;

	all->run = NULL;
	if (all->error == NULL)
		all->error = error;
	else
		error_free(error);
	if (report != NULL && (report->kind == SANDBOX_DISK || report->kind == SANDBOX_MEMORY))
		all->limit = report->kind;
	else if (report != NULL && report->kind == SANDBOX_NO_COMMAND && all->error == NULL)
		all->error = error_new("55000", "could not start the transfer's program in the sandbox: %s",
		                       strerror(report->value));
	/* What had room for all of it after all. */
	if (all->limit == SANDBOX_DISK && all->transfer.remote.end == FILES_DONE)
		all->limit = 0;
	sandbox_transfer_finish_if_over(all);
}

/*
 * Lists: whatever becomes of one, what it has not said is sent.
 */

static void
list_progress(void *data)
{
	SandboxTransfer *all = data;

	transfer_moved(&all->transfer);
}

static void
local_list_ended(void *data)
{
	SandboxTransfer *all = data;

	all->local_list = NULL;
	sandbox_transfer_finish_if_over(all);
}

static bool
list_output(void *data, bool is_stderr, const char *bytes, size_t length)
{
	SandboxTransfer *all = data;

	if (is_stderr && files_report_take(&all->list_report, bytes, length))
		transfer_moved(&all->transfer);
	return true;
}

static void
list_measured(void *data, const SandboxUsage *usage, bool full)
{
	SandboxTransfer *all = data;

	(void) full;
	sandbox_lease_measured(&all->member, usage);
}

static void
list_run_ended(void *data, const SandboxReport *report, HostError *error)
{
	SandboxTransfer *all = data;

	(void) report;
	error_free(error);
	all->list_run = NULL;
	sandbox_transfer_finish_if_over(all);
}

static void
sandbox_transfer_append_string(Bytes *bytes, const char *text)
{
	bytes_append(bytes, text, strlen(text) + 1);
}

static void
sandbox_transfer_make_spec(const SandboxTransfer *all, const char *mode, Bytes *bytes)
{
	const SandboxConfig *config = all->config;
	const char *const strings[] = {
	    "/", /* the working directory */
	    PROGRAM_PATH,
	    mode,
	    "--below",
	    SANDBOX_WORKSPACE,
	    "--name",
	    all->transfer.request->remote_name,
	    /* These say nothing to the others. */
	    "--known",
	    all->transfer.request->force ? "--force" : "--known",
	    "--",
	    all->transfer.request->remote_path,
	    "PATH=/usr/bin",
	    "LC_ALL=C",
	};
	const uint32_t count = sizeof strings / sizeof strings[0];
	SandboxSpec spec = {.memory_bytes = config->memory_mb * MEGABYTE,
	                    .all_bytes = config->memory_mb * MEGABYTE + 2 * TMP_BYTES,
	                    .processes = config->processes,
	                    .cpu_seconds = config->cpu_seconds,
	                    .file_bytes = config->file_mb * MEGABYTE,
	                    .workspace_bytes = config->workspace_mb * MEGABYTE,
	                    .usage = all->usage,
	                    .argument_count = count - 3,
	                    .variable_count = 2};

	bytes_append(bytes, &spec, sizeof spec);
	for (uint32_t i = 0; i < count; i++)
		sandbox_transfer_append_string(bytes, strings[i]);
}

static SandboxRun *
sandbox_transfer_start_run(SandboxTransfer *all, const char *mode, int input, int output,
                           const SandboxRunEvents *events)
{
	Bytes spec = {0};
	SandboxRun *run;

	sandbox_transfer_make_spec(all, mode, &spec);
	run =
	    sandbox_run_start_between(&all->arguments, &spec, input, output, events, all, &all->error);
	bytes_free(&spec);
	return run;
}

static void
start_push(SandboxTransfer *all, FilesProcessSpec *local, const int *list, const int *data)
{
	static const SandboxRunEvents events = {
	    .output = remote_output, .measured = sandbox_transfer_measured, .ended = remote_ended};
	static const SandboxRunEvents list_events = {
	    .output = list_output, .measured = list_measured, .ended = list_run_ended};

	all->list_run = sandbox_transfer_start_run(all, "list", -1, list[1], &list_events);
	if (all->list_run != NULL)
		all->run = sandbox_transfer_start_run(all, "unpack", data[0], -1, &events);
	if (all->run == NULL)
		return;
	local->mode = FILES_PACK;
	local->known_fd = list[0];
	local->fd = data[1];
	all->local = files_process_start(local, &all->error);
}

static void
start_pull(SandboxTransfer *all, FilesProcessSpec *local, const int *list, const int *data)
{
	static const SandboxRunEvents events = {
	    .output = remote_output, .measured = sandbox_transfer_measured, .ended = remote_ended};
	FilesProcessSpec lister = *local;

	lister.mode = FILES_LIST;
	lister.fd = list[1];
	lister.report = &all->list_report;
	lister.progress = list_progress;
	lister.ended = local_list_ended;
	all->local_list = files_process_start(&lister, &all->error);
	if (all->local_list != NULL)
		all->run = sandbox_transfer_start_run(all, "pack", list[0], data[1], &events);
	if (all->run == NULL)
		return;
	local->mode = FILES_UNPACK;
	local->fd = data[0];
	all->local = files_process_start(local, &all->error);
}

/* The pipes are the ends' alone: when one is gone, the other one sees it. */
static void
sandbox_transfer_start(SandboxTransfer *all)
{
	const TransferRequest *request = all->transfer.request;
	FilesProcessSpec local = {.known_fd = -1,
	                          .force = request->force,
	                          .path = request->local_path,
	                          .remote_path = request->remote_path,
	                          .max_bytes = request->max_bytes,
	                          .name = request->name,
	                          .protected_paths = request->protected_paths,
	                          .hidden_paths = request->hidden_paths,
	                          .report = &all->transfer.local,
	                          .progress = sandbox_transfer_local_progress,
	                          .ended = sandbox_transfer_local_ended,
	                          .data = all};
	int list[2];
	int data[2];

	if (pipe2(list, O_CLOEXEC) < 0)
	{
		all->error = error_new("53400", "could not make a pipe: %s", strerror(errno));
		sandbox_transfer_finish(all);
		return;
	}
	if (pipe2(data, O_CLOEXEC) < 0)
	{
		close(list[0]);
		close(list[1]);
		all->error = error_new("53400", "could not make a pipe: %s", strerror(errno));
		sandbox_transfer_finish(all);
		return;
	}
	sandbox_lease_exists(&all->member, &all->usage);
	if (request->push)
		start_push(all, &local, list, data);
	else
		start_pull(all, &local, list, data);
	for (int i = 0; i < 2; i++)
	{
		close(list[i]);
		close(data[i]);
	}
	call_set_state(all->transfer.call, "running");
	if (all->error == NULL)
		transfer_watch(&all->transfer);
	else
		sandbox_transfer_stop(&all->transfer);
	sandbox_transfer_finish_if_over(all);
}

/*
 * The preparation
 */

/* Another thread. */
static void
sandbox_transfer_prepare_work(uv_work_t *work)
{
	SandboxTransfer *all = work->data;
	SandboxSizes sizes = {.tmp = TMP_BYTES, .shm = TMP_BYTES};
	char *program = files_program();
	int fd;

	/* In any image, it is the machine's own /usr that has what the program needs. */
	sandbox_transfer_append_string(&all->arguments, "--ro-bind");
	sandbox_transfer_append_string(&all->arguments, program);
	sandbox_transfer_append_string(&all->arguments, PROGRAM_PATH);
	free(program);
	all->error = sandbox_place_open(all->place, &fd);
	if (all->error != NULL)
		return;
	if (!sandbox_folder_exists(fd, all->lease))
		all->error = error_new("55000", "the sandbox of lease %s is gone", all->lease);
	else
		all->error =
		    sandbox_root_arguments(all->place, fd, NULL, all->lease, &sizes, &all->arguments);
	close(fd);
}

static void
sandbox_transfer_prepared(uv_work_t *work, int status)
{
	SandboxTransfer *all = work->data;

	(void) status;
	if (all->error != NULL || all->evicted || all->transfer.call == NULL)
		sandbox_transfer_finish(all);
	else
		sandbox_transfer_start(all);
}

void
sandbox_transfer(Call *call, const json_t *params, const char *lease, SandboxConfig *config,
                 TransferRequest *request)
{
	SandboxTransfer *all = xcalloc(1, sizeof *all);

	all->member.evict = sandbox_transfer_evict;
	all->config = config;
	transfer_begin(&all->transfer, call, "bubblewrap", params, request, sandbox_transfer_stop);
	call_set_target(call, lease);
	call_set_state(call, "preparing");
	memcpy(all->lease, lease, SANDBOX_ID_LENGTH + 1);
	all->error = sandbox_lease_join(&all->member, lease, config->image);
	if (all->error != NULL)
	{
		sandbox_transfer_finish(all);
		return;
	}
	call_on_cancel(call, sandbox_transfer_cancelled, all);
	all->place = sandbox_place_now();
	all->work.data = all;
	uv_queue_work(uv_default_loop(), &all->work, sandbox_transfer_prepare_work,
	              sandbox_transfer_prepared);
}
