/*
 * sandbox_execute.c
 *		environmentExecute in a sandbox, and the probe that is one.
 *
 * An execution is a member of its lease (sandbox_lease.c) and goes through:
 *
 *   preparing   in another thread: is there the lease's folder, what does the sandbox
 *               see of the file system
 *   running     sandbox_run.c
 *   ending      its time is over, or its client is gone: SIGTERM, and after
 *               the grace time SIGKILL.  At the end of the lease SIGKILL at once
 *
 * It is freed when the run has ended, or was never begun.  The call may be gone long
 * before.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "calls/execute_output.h"
#include "base/memory.h"
#include "sandbox/sandbox_execute.h"
#include "sandbox/sandbox_lease_folder.h"
#include "sandbox/sandbox_lease.h"
#include "sandbox/sandbox_directory.h"
#include "sandbox/sandbox_file_system.h"
#include "sandbox/sandbox_run.h"
#include "shared/sandbox_spec.h"
#include "base/timer.h"

#define MEGABYTE ((uint64_t) 1024 * 1024)

/* They are memory as well. */
#define TMP_BYTES(memory_mb) ((memory_mb) *MEGABYTE / 2)
#define SHM_BYTES(memory_mb) ((memory_mb) *MEGABYTE / 4)

/* sysexits has no names for what shells say. */
#define STATUS_NOT_EXECUTABLE 126
#define STATUS_NOT_FOUND 127

typedef struct SandboxExecution
{
	SandboxMember member; /* the first, see sandbox_execute_evict() */
	Call *call;           /* NULL: gone */
	SandboxAnswer answer;
	SandboxConfig *config;
	ExecuteRequest *request;
	ExecuteOutput *output;
	SandboxRun *run;
	Timer *timer;
	bool timed_out;
	bool cancelled;
	bool evicted;
	bool full; /* the workspace was, at the start */
	SandboxUsage usage;

	/* Of the other thread. */
	uv_work_t work;
	SandboxPlace *place;
	char lease[SANDBOX_ID_LENGTH + 1]; /* "": none */
	Bytes arguments;
	HostError *error;
} SandboxExecution;

/*
 * The end
 */

static void
sandbox_execute_execution_free(SandboxExecution *execution)
{
	sandbox_lease_leave(&execution->member);
	timer_stop(&execution->timer);
	execute_output_free(execution->output);
	execute_request_free(execution->request);
	sandbox_config_free(execution->config);
	sandbox_place_free(execution->place);
	bytes_free(&execution->arguments);
	error_free(execution->error);
	free(execution);
}

/* Takes both; one of them is NULL. */
static void
sandbox_execute_finish(SandboxExecution *execution, json_t *result, HostError *error)
{
	Call *call = execution->call;

	execution->call = NULL;
	if (call != NULL)
		execution->answer(call, result, error);
	else
	{
		json_decref(result);
		error_free(error);
	}
	sandbox_execute_execution_free(execution);
}

static void
say(SandboxExecution *execution, const char *text)
{
	execute_output_write(execution->output, true, text, strlen(text));
}

static HostError *
ended_error(void)
{
	return error_new("55000", "the lease was ended meanwhile");
}

/* A limit that was kept by ending everything. */
static const char *
limit_reached(SandboxExecution *execution, int kind)
{
	unsigned long long memory = execution->config->memory_mb;
	unsigned long long objects = memory * MEGABYTE / SANDBOX_OBJECT_BYTES;
	const char *limit = kind == SANDBOX_DISK ? "workspaceMb" : "memoryMb";
	char *text;

	if (objects < SANDBOX_LEAST_OBJECTS)
		objects = SANDBOX_LEAST_OBJECTS;
	if (kind == SANDBOX_DISK)
		text = xformat("envrt: ended, since the workspace holds more than workspaceMb allows "
		               "(%llu MB)\n",
		               (unsigned long long) execution->config->workspace_mb);
	else if (kind == SANDBOX_MEMORY)
		text = xformat("envrt: ended, since the processes of the sandbox use more than memoryMb "
		               "allows (%llu MB)\n",
		               memory);
	else
		text = xformat("envrt: ended, since the processes of the sandbox have more open files or "
		               "sockets than memoryMb allows (%llu), or more than %llu epoll watches\n",
		               objects, (unsigned long long) SANDBOX_MAX_WATCHES);
	say(execution, text);
	free(text);
	return limit;
}

static void
not_found(SandboxExecution *execution, int problem, ExecuteEnd *end)
{
	char *text = xformat("envrt: %s: %s\n", execution->request->command, strerror(problem));

	say(execution, text);
	free(text);
	end->exited = true;
	end->exit_code = problem == ENOENT ? STATUS_NOT_FOUND : STATUS_NOT_EXECUTABLE;
}

static void
sandbox_execute_ended(void *data, const SandboxReport *report, HostError *error)
{
	SandboxExecution *execution = data;
	ExecuteEnd end = {.timed_out = execution->timed_out};
	const char *limit = NULL;
	json_t *result;

	execution->run = NULL;
	if (error == NULL && report != NULL && report->kind == SANDBOX_NO_CWD)
		error = execute_no_cwd(execution->request, strerror(report->value));
	else if (error == NULL && report != NULL && report->kind == SANDBOX_NO_PROCESS)
		error = error_new("53400", "the command could not be started: %s", strerror(report->value));
	if (execution->evicted)
	{
		error_free(error);
		error = ended_error();
	}
	if (error != NULL)
	{
		execute_output_flush(execution->output);
		sandbox_execute_finish(execution, NULL, error);
		return;
	}
	if (report == NULL)
		end.signal = execute_signal_name(SIGKILL);
	else if (report->kind == SANDBOX_NO_COMMAND)
		not_found(execution, report->value, &end);
	else if (report->kind == SANDBOX_EXITED)
	{
		end.exited = true;
		end.exit_code = report->value;
	}
	else if (report->kind == SANDBOX_SIGNALLED)
		end.signal = execute_signal_name(report->value);
	else
	{
		end.signal = execute_signal_name(SIGKILL);
		limit = limit_reached(execution, report->kind);
	}
	result = execute_output_result(execution->output, &end);
	if (limit != NULL)
		json_object_set_new(json_object_get(result, "metadata"), "limit", json_string(limit));
	if (execution->full)
		json_object_set_new(json_object_get(result, "metadata"), "workspaceFull", json_true());
	sandbox_execute_finish(execution, result, NULL);
}

static void
sandbox_execute_grace_over(void *data)
{
	SandboxExecution *execution = data;

	if (execution->run != NULL)
		sandbox_run_kill(execution->run);
}

static void
end_gently(SandboxExecution *execution)
{
	sandbox_run_terminate(execution->run);
	timer_start(&execution->timer, execution->request->grace_ms, sandbox_execute_grace_over,
	            execution);
}

static void
sandbox_execute_time_over(void *data)
{
	SandboxExecution *execution = data;

	/* What the command left behind is not the command. */
	execution->timed_out = !sandbox_run_command_ended(execution->run);
	end_gently(execution);
}

/* The client is gone. */
static void
sandbox_execute_cancelled(void *data)
{
	SandboxExecution *execution = data;

	execution->call = NULL;
	execution->cancelled = true;
	if (execution->output != NULL)
		execute_output_detach(execution->output);
	if (execution->run == NULL)
		return;
	/* What waits for a reader must go on. */
	sandbox_run_read_on(execution->run);
	if (!execution->timed_out && !execution->evicted)
		end_gently(execution);
}

static void
sandbox_execute_evict(SandboxMember *member)
{
	SandboxExecution *execution = (SandboxExecution *) member;

	execution->evicted = true;
	if (execution->output != NULL)
		execute_output_detach(execution->output);
	if (execution->run == NULL)
		return;
	sandbox_run_read_on(execution->run);
	sandbox_run_kill(execution->run);
}

/*
 * The run
 */

static bool
sandbox_execute_output(void *data, bool is_stderr, const char *bytes, size_t length)
{
	SandboxExecution *execution = data;

	return execute_output_write(execution->output, is_stderr, bytes, length);
}

static void
has_room(void *data)
{
	SandboxExecution *execution = data;

	if (execution->run != NULL)
		sandbox_run_read_on(execution->run);
}

static void
mask(void *data, char *text, size_t length)
{
	const SandboxExecution *execution = data;

	execute_request_mask(execution->request, execution->config->env, text, length);
}

static void
sandbox_execute_measured(void *data, const SandboxUsage *usage, bool full)
{
	SandboxExecution *execution = data;

	execution->full = execution->full || full;
	sandbox_lease_measured(&execution->member, usage);
}

static void
sandbox_execute_append_string(Bytes *bytes, const char *text)
{
	bytes_append(bytes, text, strlen(text) + 1);
}

/* The environment: ours, then the config's, then the command's; the last of a name counts. */
static uint32_t
append_environment(Bytes *bytes, const SandboxExecution *execution)
{
	static const char *const ours[][2] = {
	    {"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	    {"HOME", SANDBOX_WORKSPACE},
	    {"USER", "sandbox"},
	    {"LOGNAME", "sandbox"},
	    {"TMPDIR", "/tmp"},
	    {"LANG", "C.UTF-8"}};
	json_t *all = json_object();
	const char *name;
	json_t *value;
	uint32_t count = 0;

	for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
		json_object_set_new(all, ours[i][0], json_string(ours[i][1]));
	if (execution->config->env != NULL)
		json_object_update(all, execution->config->env);
	for (size_t i = 0; i < execution->request->env_count; i++)
		json_object_set_new(all, execution->request->env[i].name,
		                    json_string(execution->request->env[i].value));
	json_object_foreach(all, name, value)
	{
		bytes_append(bytes, name, strlen(name));
		bytes_append(bytes, "=", 1);
		sandbox_execute_append_string(bytes, json_string_value(value));
		count++;
	}
	json_decref(all);
	return count;
}

static void
sandbox_execute_make_spec(const SandboxExecution *execution, Bytes *bytes)
{
	const ExecuteRequest *request = execution->request;
	const SandboxConfig *config = execution->config;
	SandboxSpec spec = {.memory_bytes = config->memory_mb * MEGABYTE,
	                    .all_bytes = config->memory_mb * MEGABYTE + TMP_BYTES(config->memory_mb) +
	                                 SHM_BYTES(config->memory_mb),
	                    .processes = config->processes,
	                    .cpu_seconds = config->cpu_seconds,
	                    .file_bytes = config->file_mb * MEGABYTE,
	                    .workspace_bytes = config->workspace_mb * MEGABYTE,
	                    .usage = execution->usage,
	                    .argument_count = (uint32_t) request->arg_count + 1};

	bytes_append(bytes, &spec, sizeof spec);
	sandbox_execute_append_string(bytes, request->cwd);
	sandbox_execute_append_string(bytes, request->command);
	for (size_t i = 0; i < request->arg_count; i++)
		sandbox_execute_append_string(bytes, request->args[i]);
	spec.variable_count = append_environment(bytes, execution);
	memcpy(bytes->data, &spec, sizeof spec);
}

static void
sandbox_execute_start(SandboxExecution *execution)
{
	static const SandboxRunEvents events = {.output = sandbox_execute_output,
	                                        .mask = mask,
	                                        .measured = sandbox_execute_measured,
	                                        .ended = sandbox_execute_ended};
	HostError *error = NULL;
	Bytes spec = {0};

	sandbox_lease_exists(&execution->member, &execution->usage);
	sandbox_execute_make_spec(execution, &spec);
	execution->output =
	    execute_output_new(execution->call, execution->request, has_room, execution);
	execution->run = sandbox_run_start(&execution->arguments, &spec, execution->request->input,
	                                   execution->request->input_length,
	                                   execution->request->drain_ms, &events, execution, &error);
	explicit_bzero(spec.data, spec.length);
	bytes_free(&spec);
	if (execution->run == NULL)
	{
		sandbox_execute_finish(execution, NULL, error);
		return;
	}
	call_set_state(execution->call, "running");
	timer_start(&execution->timer, execution->request->timeout_ms, sandbox_execute_time_over,
	            execution);
}

/*
 * The preparation
 */

/* Another thread. */
static void
sandbox_execute_prepare_work(uv_work_t *work)
{
	SandboxExecution *execution = work->data;
	const SandboxConfig *config = execution->config;
	const char *lease = execution->lease[0] ? execution->lease : NULL;
	SandboxSizes sizes = {.tmp = TMP_BYTES(config->memory_mb), .shm = SHM_BYTES(config->memory_mb)};
	int fd;

	execution->error = sandbox_place_open(execution->place, &fd);
	if (execution->error != NULL)
		return;
	if (lease != NULL && !sandbox_folder_exists(fd, lease))
		execution->error = error_new("55000", "the sandbox of lease %s is gone", lease);
	else
		execution->error = sandbox_root_arguments(execution->place, fd, config->image, lease,
		                                          &sizes, &execution->arguments);
	close(fd);
}

static void
sandbox_execute_prepared(uv_work_t *work, int status)
{
	SandboxExecution *execution = work->data;
	HostError *error = execution->error;

	(void) status;
	execution->error = NULL;
	if (error == NULL && (execution->evicted || execution->call == NULL))
		error = ended_error();
	if (error != NULL)
		sandbox_execute_finish(execution, NULL, error);
	else
		sandbox_execute_start(execution);
}

void
sandbox_execute(Call *call, const char *lease, SandboxConfig *config, ExecuteRequest *request,
                SandboxAnswer answer)
{
	SandboxExecution *execution = xcalloc(1, sizeof *execution);
	HostError *error = NULL;

	execution->member.evict = sandbox_execute_evict;
	execution->call = call;
	execution->answer = answer;
	execution->config = config;
	execution->request = request;
	call_set_state(call, "preparing");
	if (lease != NULL)
	{
		call_set_target(call, lease);
		memcpy(execution->lease, lease, SANDBOX_ID_LENGTH + 1);
		error = sandbox_lease_join(&execution->member, lease, config->image);
	}
	if (error != NULL)
	{
		sandbox_execute_finish(execution, NULL, error);
		return;
	}
	call_on_cancel(call, sandbox_execute_cancelled, execution);
	execution->place = sandbox_place_now();
	execution->work.data = execution;
	uv_queue_work(uv_default_loop(), &execution->work, sandbox_execute_prepare_work,
	              sandbox_execute_prepared);
}
