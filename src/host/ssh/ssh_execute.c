/*
 * ssh_execute.c
 *		environmentExecute of the ssh driver.
 *
 * An execution is what a call needs from its start until its command has ended,
 * which may be later than the call:
 *
 *		STARTING    until the shell is ready and is about to be given the script
 *		RUNNING     until the command exits or its time is over
 *		TERMINATED  SIGTERM has been sent; the grace period runs
 *		KILLED      SIGKILL has been sent
 *		EXITED      the rest of its output is awaited, for a moment
 *
 * The command has ended when the server says so (exit status or signal), not when its
 * output is closed: what it left in the background may keep that open for
 * ever.  Output that is under way then is waited for until there is a pause in it.
 *
 * A signal goes to the command's process group by a `kill` on a second channel of the
 * same session, since few servers heed the signals of the protocol.  A server that
 * opens none gets it over whatever session the pool has, and failing that by the
 * protocol.  When the client goes, its execution goes on without it in just this way
 * until the command has ended; when the host ends, that is hurried.  Each has a lifeline
 * besides (ssh_execute_script.c), for the host that has no time to do anything.  Without a
 * connection (it was lost, or there was none in time) it is done over a new one, once, by a command
 * that does both signals: an SshEnding, which lives by itself.
 */
#include <stdlib.h>
#include <string.h>

#include "calls/execute_output.h"
#include "calls/execute_request.h"
#include "base/log.h"
#include "base/memory.h"
#include "shared/protocol.h"
#include "ssh/ssh_command.h"
#include "ssh/ssh_destination.h"
#include "ssh/ssh_execute.h"
#include "ssh/ssh_execute_script.h"
#include "base/timer.h"

/* After the exit: such a pause in the output is its end, and this is as long as it may take. */
#define OUTPUT_PAUSE_MS 1000
#define OUTPUT_MOST_MS 3500
/* After SIGKILL the end is to be told within. */
#define KILL_ANSWER_MS 1500
/* Far more than a remote system takes as arguments. */
#define MAX_SCRIPT (4 * 1024 * 1024)
/* Beside the grace period. */
#define ENDING_MS 30000
#define ENDING_OUTPUT 4096

typedef enum
{
	STARTING,
	RUNNING,
	TERMINATED,
	KILLED,
	EXITED
} State;

typedef struct SshExecution SshExecution;

struct SshExecution
{
	SshExecution *next;
	SshExecution *previous;
	State state;
	Call *call; /* NULL: the client is gone */
	ExecuteRequest *request;
	ExecuteOutput *output;
	SshDestination *destination; /* with its key, for another connection */
	SshCommand *command;         /* NULL when it is over */
	Bytes input;
	bool keeps_input; /* its end is not sent, since it may be the lifeline */
	ExecuteStart start;
	Timer *timer;
	bool timed_out;
	const char *signal;    /* to be sent as soon as it is known to whom */
	SshChannel *killer;    /* the second channel */
	SshCommand *messenger; /* the same elsewhere */
	uint64_t exited_at;
	uint64_t checked_at;
	uint64_t last_output;
};

/* Signals sent over a connection of their own. */
typedef struct SshEnding
{
	struct SshEnding *next;
	struct SshEnding *previous;
	SshDestination *destination;
	SshCommand *command;
} SshEnding;

static SshExecution *first_execution;
static SshEnding *first_ending;

/*
 * Endings
 */

static void
free_ending(SshEnding *ending)
{
	if (ending->previous != NULL)
		ending->previous->next = ending->next;
	else
		first_ending = ending->next;
	if (ending->next != NULL)
		ending->next->previous = ending->previous;
	ssh_destination_release(ending->destination);
	free(ending);
}

static void
ending_done(void *data, HostError *error, const SshCommandResult *result)
{
	SshEnding *ending = data;

	(void) result;
	if (error != NULL)
		log_message(LOG_WARNING, "a command may still run on %s: %s", ending->destination->target,
		            error->message);
	error_free(error);
	free_ending(ending);
}

static void
end_elsewhere(const SshExecution *execution)
{
	SshEnding *ending;
	SshCommandSpec spec = {0};
	uint64_t grace_ms = execution->request->grace_ms;
	uint64_t connect_ms = execution->request->connect_ms;
	char *line;

	if (execution->start.state != START_DONE)
		return;
	ending = xcalloc(1, sizeof *ending);
	ending->destination = ssh_destination_keep(execution->destination);
	ending->next = first_ending;
	if (first_ending != NULL)
		first_ending->previous = ending;
	first_ending = ending;
	line = ssh_execute_end_line(&execution->start, (now_ms() - execution->start.since) / 1000,
	                            (connect_ms + ENDING_MS) / 1000, (grace_ms + 999) / 1000);
	spec.command_line = line;
	spec.connect_ms = connect_ms;
	spec.command_ms = grace_ms + ENDING_MS;
	spec.max_output = ENDING_OUTPUT;
	spec.repeatable = true;
	spec.done = ending_done;
	spec.data = ending;
	ending->command = ssh_command_start(ending->destination, &spec);
	free(line);
}

/*
 * The end of an execution
 */

static void
drop_killer(SshExecution *execution)
{
	if (execution->killer != NULL)
		ssh_channel_abandon(execution->killer, false);
	if (execution->messenger != NULL)
		ssh_command_cancel(execution->messenger);
	execution->killer = NULL;
	execution->messenger = NULL;
}

/* Also when it has been sent: a command may run for days. */
static void
forget_input(void *data)
{
	SshExecution *execution = data;

	if (execution->input.data != NULL)
		explicit_bzero(execution->input.data, execution->input.allocated);
	bytes_free(&execution->input);
}

static void
free_execution(SshExecution *execution)
{
	if (execution->previous != NULL)
		execution->previous->next = execution->next;
	else
		first_execution = execution->next;
	if (execution->next != NULL)
		execution->next->previous = execution->previous;
	timer_stop(&execution->timer);
	drop_killer(execution);
	ssh_execute_start_clear(&execution->start);
	forget_input(execution);
	execute_output_free(execution->output);
	execute_request_free(execution->request);
	ssh_destination_release(execution->destination);
	free(execution);
}

/* Ends the call, if there still is one, and the execution.  Takes the error. */
static void
ssh_execute_fail(SshExecution *execution, HostError *error)
{
	Call *call = execution->call;

	if (execution->output != NULL)
		execute_output_flush(execution->output);
	free_execution(execution);
	if (call != NULL)
		call_fail(call, error);
	else
		error_free(error);
}

/* The last line of what was written before the command began. */
static char *
last_line(const char *words)
{
	const char *line = strrchr(words, '\n');

	line = line ? line + 1 : words;
	return clean_text(line, strlen(line), 300, false);
}

static HostError *
not_started_error(const SshExecution *execution, const SshCommandResult *result)
{
	const ExecuteStart *start = &execution->start;
	char *words = ssh_execute_start_words(start, true, execution->request);
	char *line = last_line(words);
	const char *target = execution->destination->target;
	HostError *error;

	if (line[0] == '\0' && !start->given)
	{
		free(words);
		free(line);
		words = ssh_execute_start_words(start, false, execution->request);
		line = last_line(words);
	}
	if (start->state == START_NO_CWD)
		error = execute_no_cwd(execution->request, line);
	else
	{
		const char *sqlstate = sqlstate_of_words(words, "38000");

		if (result->signal != NULL)
			error = error_new(sqlstate,
			                  "%s: the command was not started, signal %s ended the login "
			                  "shell%s%s",
			                  target, result->signal, line[0] ? ": " : "", line);
		else
			error = error_new(sqlstate, "%s: the command was not started (status %d)%s%s", target,
			                  result->status, line[0] ? ": " : "", line);
		error_detail(error, "%s", words);
		ssh_execute_shell_hint(error, execution->destination->username, words);
	}
	free(words);
	free(line);
	return error;
}

/* SSH has names for some signals only. */
static char *
signal_name(const char *signal)
{
	if (signal == NULL)
		return NULL;
	if (signal[0] == '\0' || strchr(signal, '@') != NULL)
		return xstrdup("SIGUNKNOWN");
	return xformat("SIG%s", signal);
}

static void
ssh_execute_answer(SshExecution *execution, const SshCommandResult *result)
{
	char *signal = signal_name(result->signal);
	ExecuteEnd end = {.timed_out = execution->timed_out,
	                  .exited = result->exited,
	                  .exit_code = result->status,
	                  .signal = signal};
	Call *call = execution->call;
	json_t *message = call ? execute_output_result(execution->output, &end) : NULL;

	free(signal);
	free_execution(execution);
	if (call != NULL)
		call_answer(call, message);
}

static void
ssh_execute_command_done(void *data, HostError *error, const SshCommandResult *result)
{
	SshExecution *execution = data;

	execution->command = NULL;
	if (error != NULL)
	{
		/* (Unless it had exited, but then there is no error.) */
		end_elsewhere(execution);
		ssh_execute_fail(execution, error);
	}
	else if (execution->start.state != START_DONE && !execution->timed_out)
		ssh_execute_fail(execution, not_started_error(execution, result));
	else
		ssh_execute_answer(execution, result);
}

/*
 * Signals
 */

static const char *
last_signal(const SshExecution *execution)
{
	return execution->state == KILLED ? "KILL" : "TERM";
}

static void
messenger_done(void *data, HostError *error, const SshCommandResult *result)
{
	SshExecution *execution = data;

	(void) result;
	execution->messenger = NULL;
	if (error != NULL && execution->command != NULL && execution->state < EXITED)
		ssh_command_signal(execution->command, last_signal(execution));
	error_free(error);
}

static void
send_elsewhere(SshExecution *execution)
{
	char *line = ssh_execute_kill_line(&execution->start, last_signal(execution));
	SshCommandSpec spec = {.command_line = line,
	                       .connect_ms = execution->request->connect_ms,
	                       .command_ms = execution->request->connect_ms,
	                       .max_output = ENDING_OUTPUT,
	                       .done = messenger_done,
	                       .data = execution};

	execution->messenger = ssh_command_start(execution->destination, &spec);
	free(line);
}

static void
killer_ended(void *owner, const ChannelEnd *end)
{
	SshExecution *execution = owner;

	execution->killer = NULL;
	if (execution->command == NULL || execution->state >= EXITED)
		return;
	if (end->kind == CHANNEL_REFUSED)
		send_elsewhere(execution);
	else if (end->kind == CHANNEL_DENIED)
		ssh_command_signal(execution->command, last_signal(execution));
}

static void
killer_nothing(void *owner)
{
	(void) owner;
}

static bool
killer_output(void *owner, const char *data, size_t length, bool is_stderr)
{
	(void) owner;
	(void) data;
	(void) length;
	(void) is_stderr;
	return true;
}

static const SshChannelEvents killer_events = {.opened = killer_nothing,
                                               .accepted = killer_nothing,
                                               .data = killer_output,
                                               .progress = killer_nothing,
                                               .ended = killer_ended};

/* Now, or when the command has said who it is. */
static void
send_signal(SshExecution *execution, const char *signal)
{
	char *line;

	execution->signal = signal;
	if (execution->start.state != START_DONE)
		return;
	execution->signal = NULL;
	drop_killer(execution);
	line = ssh_execute_kill_line(&execution->start, signal);
	execution->killer = ssh_command_beside(execution->command, line, &killer_events, execution);
	free(line);
}

static void
give_up(void *data)
{
	SshExecution *execution = data;
	const char *target = execution->destination->target;
	HostError *error;

	if (execution->start.state == START_DONE)
	{
		error = error_new("08006", "%s: the server does not tell the end of the command", target);
		error_hint(error, "It was sent SIGTERM and SIGKILL, and may have ended or not.");
	}
	else
	{
		/* It was given the script, and may begin yet. */
		char *words = ssh_execute_start_words(&execution->start, true, execution->request);

		error =
		    error_new("08006", "%s: the server did not tell within %llu ms that the command began",
		              target, (unsigned long long) execution->request->timeout_ms);
		error_detail(error, "%s", words);
		error_hint(error, "Check what the login shell of \"%s\" does when it starts.",
		           execution->destination->username);
		free(words);
	}
	error->code = RPC_TIMEOUT;
	error->outcome = OUTCOME_UNKNOWN;
	ssh_command_distrust(execution->command);
	execution->command = NULL;
	end_elsewhere(execution);
	ssh_execute_fail(execution, error);
}

static void
kill_now(void *data)
{
	SshExecution *execution = data;

	execution->state = KILLED;
	/* Who it is was not told in all the time: a last try without. */
	if (execution->start.state != START_DONE)
		ssh_command_signal(execution->command, "KILL");
	else
		send_signal(execution, "KILL");
	timer_start(&execution->timer, KILL_ANSWER_MS, give_up, execution);
}

static void
ssh_execute_terminate(SshExecution *execution)
{
	execution->state = TERMINATED;
	send_signal(execution, "TERM");
	timer_start(&execution->timer, execution->request->grace_ms, kill_now, execution);
}

static void
ssh_execute_time_over(void *data)
{
	SshExecution *execution = data;

	execution->timed_out = true;
	if (execution->call != NULL)
		call_set_state(execution->call, "ending");
	ssh_execute_terminate(execution);
}

static void
ssh_execute_cancelled(void *data)
{
	SshExecution *execution = data;

	execution->call = NULL;
	execute_output_detach(execution->output);
	if (!ssh_command_detach(execution->command))
	{
		free_execution(execution);
		return;
	}
	/* The rest of the start can't be stopped. */
	if (execution->state != STARTING)
		ssh_command_resume(execution->command);
	if (execution->state == RUNNING)
		ssh_execute_terminate(execution);
}

/*
 * Events
 */

static bool
ssh_execute_accepted(void *data)
{
	SshExecution *execution = data;

	execution->state = RUNNING;
	timer_start(&execution->timer, execution->request->timeout_ms, ssh_execute_time_over,
	            execution);
	return true;
}

static bool
ssh_execute_output(void *data, bool is_stderr, const char *bytes, size_t length)
{
	SshExecution *execution = data;

	execution->last_output = now_ms();
	return execute_output_write(execution->output, is_stderr, bytes, length);
}

static void
ssh_execute_progress(void *data)
{
	SshExecution *execution = data;

	if (execution->keeps_input && execution->start.state == START_DONE)
	{
		execution->keeps_input = false;
		/* Nothing that a remote shell could repeat is needed any more. */
		execute_request_forget(execution->request);
		if (!execution->start.held)
			ssh_command_end_input(execution->command);
	}
	if (execution->signal != NULL && execution->start.state == START_DONE)
		send_signal(execution, execution->signal);
}

static void
read_again(void *data)
{
	SshExecution *execution = data;

	/* What it has been kept from reading is about to come. */
	execution->last_output = now_ms();
	if (execution->command != NULL && execution->state != STARTING)
		ssh_command_resume(execution->command);
}

static void
check_output(void *data)
{
	SshExecution *execution = data;
	uint64_t now = now_ms();
	uint64_t quiet = now - execution->last_output;
	uint64_t waited = now - execution->checked_at;

	execution->checked_at = now;
	/* What a slow reader has not taken yet is no pause, nor does that time count. */
	if (!execute_output_has_room(execution->output))
	{
		execution->exited_at += waited;
		timer_start(&execution->timer, OUTPUT_PAUSE_MS, check_output, execution);
	}
	else if (quiet < OUTPUT_PAUSE_MS && now - execution->exited_at < OUTPUT_MOST_MS)
		timer_start(&execution->timer, OUTPUT_PAUSE_MS - quiet, check_output, execution);
	else
		ssh_command_leave(execution->command);
}

static void
ssh_execute_exited(void *data)
{
	SshExecution *execution = data;

	execution->state = EXITED;
	execution->exited_at = execution->checked_at = execution->last_output = now_ms();
	drop_killer(execution);
	timer_start(&execution->timer, OUTPUT_PAUSE_MS, check_output, execution);
}

/*
 * The beginning
 */

static void
ssh_execute_begin(SshExecution *execution)
{
	const ExecuteRequest *request = execution->request;
	SshCommandSpec spec = {
	    .call = execution->call,
	    .start = &execution->start,
	    .connect_ms = request->connect_ms,
	    .command_ms = request->connect_ms,
	    .input = {.data = execution->input.data, .length = execution->input.length, .keep = true},
	    .accepted = ssh_execute_accepted,
	    .output = ssh_execute_output,
	    .progress = ssh_execute_progress,
	    .drained = forget_input,
	    .exited = ssh_execute_exited,
	    .done = ssh_execute_command_done,
	    .data = execution};

	ssh_script_marker(execution->start.marker);
	execution->keeps_input = true;
	execution->command = ssh_command_start(execution->destination, &spec);
}

void
ssh_execute(Call *call, const json_t *params)
{
	HostError *error = NULL;
	SshDestination *destination = ssh_destination_new(params, &error);
	ExecuteRequest *request = NULL;
	SshExecution *execution;

	if (error == NULL)
		request = execute_request_new(params, destination->workspace_path, &error);
	if (error != NULL)
	{
		ssh_destination_release(destination);
		call_fail(call, error);
		return;
	}
	execution = xcalloc(1, sizeof *execution);
	execution->call = call;
	execution->destination = destination;
	execution->request = request;
	execution->next = first_execution;
	if (first_execution != NULL)
		first_execution->previous = execution;
	first_execution = execution;
	execution->output = execute_output_new(call, request, read_again, execution);
	ssh_execute_input(request, true, &execution->input);
	if (execution->input.length - request->input_length > MAX_SCRIPT)
	{
		ssh_execute_fail(
		    execution,
		    error_new("22023", "command, args and env are longer than %d bytes", MAX_SCRIPT));
		return;
	}
	call_set_target(call, destination->target);
	call_on_cancel(call, ssh_execute_cancelled, execution);
	ssh_execute_begin(execution);
}

void
ssh_executions_kill(void)
{
	for (SshExecution *execution = first_execution; execution != NULL; execution = execution->next)
		if (execution->state == RUNNING || execution->state == TERMINATED)
			kill_now(execution);
}

bool
ssh_executions_exist(void)
{
	return first_execution != NULL;
}

void
ssh_executions_close(void)
{
	while (first_execution != NULL)
	{
		SshExecution *execution = first_execution;

		ssh_command_cancel(execution->command);
		free_execution(execution);
	}
	while (first_ending != NULL)
	{
		ssh_command_cancel(first_ending->command);
		free_ending(first_ending);
	}
}
