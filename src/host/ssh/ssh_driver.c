/*
 * ssh_driver.c
 *		The ssh driver: environmentAcquireLease and environmentProbe; for
 *		environmentExecute see ssh_execute.c, for transfers of files ssh_transfer.c.
 *
 * Both run the one remote command of ssh_acquire_script.c, which makes and enters the
 * workspace path and, for an acquire, looks for an API that answers there.  An ssh
 * lease is nothing on the remote side but that directory, so there is
 * nothing to release or to undo; cancelling ends the command.
 *
 * A request is what a call needs between its start and its end.  It is freed
 * with the end of its command, or by the call's cancellation.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "calls/call.h"
#include "shared/target.h"
#include "calls/call_limits.h"
#include "ssh/ssh_driver.h"
#include "base/memory.h"
#include "ssh/ssh_command.h"
#include "ssh/ssh_destination.h"
#include "ssh/ssh_execute.h"
#include "ssh/ssh_execute_script.h"
#include "ssh/ssh_acquire_script.h"
#include "ssh/ssh_transfer.h"

#define MAX_OUTPUT (256 * 1024)
#define MAX_CANDIDATES 100
#define MAX_ORIGIN 512
#define MAX_PATH 4096

/* What ssh itself exits with when the connection is at fault. */
#define STATUS_CONNECTION 255

typedef struct SshRequest
{
	Call *call;
	bool probe;
	SshDestination *destination;
	SshCommand *command;
	ExecuteStart start;
	Bytes input;
	char **candidates;
	size_t candidate_count;
} SshRequest;

static void
free_request(SshRequest *request)
{
	for (size_t i = 0; i < request->candidate_count; i++)
		free(request->candidates[i]);
	free(request->candidates);
	ssh_execute_start_clear(&request->start);
	bytes_free(&request->input);
	ssh_destination_release(request->destination);
	free(request);
}

static void
ssh_driver_cancelled(void *data)
{
	SshRequest *request = data;

	ssh_command_cancel(request->command);
	free_request(request);
}

/* JSON holds only valid UTF-8. */
static json_t *
json_clean(const char *text)
{
	json_t *exact = json_string(text);
	char *clean;

	if (exact != NULL)
		return exact;
	clean = clean_text(text, strlen(text), MAX_OUTPUT, true);
	exact = json_string(clean);
	free(clean);
	return exact;
}

static json_t *
describe_destination(const SshDestination *destination)
{
	json_t *object = json_object();

	json_object_set_new(object, "host", json_string(destination->host));
	json_object_set_new(object, "port", json_integer(destination->port));
	json_object_set_new(object, "username", json_string(destination->username));
	json_object_set_new(object, "remoteWorkspacePath", json_string(destination->workspace_path));
	return object;
}

/*
 * What went wrong
 */

/* The first line of what the command wrote, for a message. */
static char *
first_line(const char *text)
{
	return clean_text(text, strcspn(text, "\n"), 300, false);
}

static HostError *
no_path_error(const SshRequest *request, const ScriptAnswer *answer, const char *errors)
{
	char *line = first_line(errors);
	HostError *error = error_new(sqlstate_of_words(errors, "38000"),
	                             "%s: the workspace path \"%s\" can't be made or entered: %s",
	                             request->destination->target, request->destination->workspace_path,
	                             line[0] ? line : "?");

	error_detail(error, "%s", errors);
	if (errors[0] == '\0')
		error_detail(error, "The remote command ended with status %d.", answer->status);
	error_hint(error,
	           "Choose a remoteWorkspacePath that \"%s\" can create, or create it on the host.",
	           request->destination->username);
	free(line);
	return error;
}

/* words: what the login shell or the script wrote. */
static HostError *
no_answer_error(const SshRequest *request, const SshCommandResult *result, const char *words)
{
	char *line = first_line(words + strspn(words, "\r\n \t"));
	const char *sqlstate = sqlstate_of_words(words, "38000");
	HostError *error;

	if (result->signal != NULL)
		error = error_new(sqlstate, "%s: the remote command was ended by signal %s%s%s",
		                  request->destination->target, result->signal, line[0] ? ": " : "", line);
	else
		error = error_new(sqlstate, "%s: the remote command failed with status %d%s%s",
		                  request->destination->target, result->status, line[0] ? ": " : "", line);
	error_detail(error, "%s", words);
	ssh_execute_shell_hint(error, request->destination->username, words);
	free(line);
	return error;
}

static HostError *
no_api_error(const SshRequest *request, const ScriptAnswer *answer, const char *errors)
{
	const SshDestination *destination = request->destination;
	HostError *error = error_new("38000",
	                             "SSH environment %s@%s could not reach any Paperclip API "
	                             "candidates.",
	                             destination->username, destination->host);
	bool no_curl = answer->outcome == SCRIPT_NO_CURL;
	Bytes list = {0};

	for (size_t i = 0; i < request->candidate_count; i++)
	{
		bytes_append_text(&list, i > 0 ? ", " : "");
		bytes_append_text(&list, request->candidates[i]);
	}
	error_detail(error, "Candidates: %s.\n%s", list.data ? list.data : "",
	             no_curl ? "The remote side has no curl to try them with." : errors);
	if (no_curl)
		error_hint(error, "Install curl on the host.");
	else
		error_hint(error, "Each candidate was asked for /api/health, from the host. Give one that "
		                  "is reachable from there in envrt.runtime_api_candidates.");
	bytes_free(&list);
	return error;
}

/*
 * Answers
 */

static json_t *
acquired(const SshRequest *request, const ScriptAnswer *answer)
{
	json_t *result = json_object();
	json_t *metadata = describe_destination(request->destination);
	char *id = xformat("ssh://%s%s", request->destination->target, answer->cwd);

	json_object_set_new(metadata, "remoteCwd", json_clean(answer->cwd));
	json_object_set_new(metadata, "paperclipApiUrl",
	                    answer->outcome == SCRIPT_API
	                        ? json_string(request->candidates[answer->api])
	                        : json_null());
	json_object_set_new(result, "providerLeaseId", json_clean(id));
	json_object_set_new(result, "metadata", metadata);
	json_object_set_new(result, "expiresAt", json_null());
	free(id);
	return result;
}

static json_t *
probe_succeeded(const SshRequest *request, const ScriptAnswer *answer)
{
	const SshDestination *destination = request->destination;
	json_t *details = describe_destination(destination);
	char *summary = xformat("Connected to %s@%s and verified the remote workspace path.",
	                        destination->username, destination->host);
	json_t *result = json_object();

	json_object_set_new(details, "remoteCwd", json_clean(answer->cwd));
	json_object_set_new(result, "ok", json_true());
	json_object_set_new(result, "summary", json_string(summary));
	json_object_set_new(result, "details", details);
	free(summary);
	return result;
}

/* text: what the remote side wrote, or NULL for the error's own words. */
static json_t *
probe_failed(const SshRequest *request, const HostError *error, const char *text, int status)
{
	const SshDestination *destination = request->destination;
	json_t *details = describe_destination(destination);
	char *summary =
	    xformat("SSH probe failed for %s@%s.", destination->username, destination->host);
	char *clean = text ? clean_text(text, strlen(text), 8000, true) : NULL;
	json_t *result = json_object();

	json_object_set_new(details, "error", json_string(clean && clean[0] ? clean : error->message));
	json_object_set_new(details, "code", json_integer(status));
	json_object_set_new(details, "sqlstate", json_string(error->sqlstate));
	if (error->hint != NULL)
		json_object_set_new(details, "hint", json_string(error->hint));
	json_object_set_new(result, "ok", json_false());
	json_object_set_new(result, "summary", json_string(summary));
	json_object_set_new(result, "details", details);
	free(summary);
	free(clean);
	return result;
}

/* Ends the call with an error; takes it.  A probe that fails is an answer. */
static void
ssh_driver_fail(SshRequest *request, HostError *error, const char *text, int status)
{
	if (request->probe)
	{
		json_t *answer = probe_failed(request, error, text, status);

		error_free(error);
		call_answer(request->call, answer);
	}
	else
		call_fail(request->call, error);
}

/*
 * What the remote side calls its directory goes into the lease: it must be a
 * path, without control characters that the configured one has not.
 */
static bool
is_believable(const char *cwd, const char *path)
{
	json_t *text = json_string(cwd);
	bool valid = text != NULL && cwd[0] == '/' && strlen(cwd) < MAX_PATH;

	for (const char *c = cwd; valid && *c != '\0'; c++)
		if (iscntrl((unsigned char) *c) && strchr(path, *c) == NULL)
			valid = false;
	json_decref(text);
	return valid;
}

/* The last that was written there, to stderr rather than to stdout.  To be freed. */
static char *
all_words(const SshRequest *request, const SshCommandResult *result)
{
	char *words;

	for (int i = 1; i >= 0; i--)
	{
		const Bytes *own = i ? &result->errors : &result->output;

		if (own->length > 0)
			return clean_text(own->data, own->length, MAX_OUTPUT, true);
		words = ssh_execute_start_words(&request->start, i, NULL);
		if (words[0] != '\0' || i == 0)
			break;
		free(words);
	}
	return words;
}

static void
ssh_driver_command_done(void *data, HostError *error, const SshCommandResult *result)
{
	SshRequest *request = data;
	ScriptAnswer answer = {0};
	const char *errors;
	char *words;

	if (error != NULL)
	{
		ssh_driver_fail(request, error, NULL, STATUS_CONNECTION);
		free_request(request);
		return;
	}
	errors = result->errors.length ? result->errors.data : "";
	ssh_script_parse(request->start.marker, &result->output, request->candidate_count, &answer);
	if (answer.cwd != NULL && !is_believable(answer.cwd, request->destination->workspace_path))
		answer.outcome = SCRIPT_NO_ANSWER;
	switch (answer.outcome)
	{
		case SCRIPT_PATH:
		case SCRIPT_API:
			if (request->probe)
				call_answer(request->call, probe_succeeded(request, &answer));
			else
				call_answer(request->call, acquired(request, &answer));
			break;
		case SCRIPT_NO_PATH:
			ssh_driver_fail(request, no_path_error(request, &answer, errors), errors,
			                answer.status);
			break;
		case SCRIPT_NO_CURL:
		case SCRIPT_NO_API:
			ssh_driver_fail(request, no_api_error(request, &answer, errors), errors, 1);
			break;
		case SCRIPT_NO_ANSWER:
			words = all_words(request, result);
			ssh_driver_fail(request, no_answer_error(request, result, words), words,
			                result->exited ? result->status : STATUS_CONNECTION);
			free(words);
			break;
	}
	ssh_script_answer_clear(&answer);
	free_request(request);
}

static bool
is_complete(void *data, const Bytes *output)
{
	const SshRequest *request = data;

	return ssh_script_is_complete(request->start.marker, output);
}

/*
 * Requests
 */

/* The origins to try, each once. */
static HostError *
take_candidates(SshRequest *request, const json_t *list)
{
	size_t index;
	json_t *value;

	if (list == NULL || json_is_null(list))
		return NULL;
	if (!json_is_array(list) || json_array_size(list) > MAX_CANDIDATES)
		return error_new("22023", "apiCandidates must be a list of at most %d URLs",
		                 MAX_CANDIDATES);
	request->candidates = xcalloc(json_array_size(list) + 1, sizeof *request->candidates);
	json_array_foreach(list, index, value)
	{
		char origin[MAX_ORIGIN];
		bool known = false;

		if (!json_is_string(value) || !api_origin(json_string_value(value), origin, sizeof origin))
			return error_new("22023", "apiCandidates: element %zu is no http or https URL",
			                 index + 1);
		for (size_t i = 0; i < request->candidate_count; i++)
			known = known || strcmp(request->candidates[i], origin) == 0;
		if (!known)
			request->candidates[request->candidate_count++] = xstrdup(origin);
	}
	return NULL;
}

static void
ssh_driver_start(Call *call, const json_t *params, bool probe)
{
	CallLimits limits = call_limits(params);
	SshRequest *request = xcalloc(1, sizeof *request);
	HostError *error = NULL;
	SshCommandSpec spec = {0};

	request->call = call;
	request->probe = probe;
	request->destination = ssh_destination_new(params, &error);
	if (error == NULL && !probe)
		error = take_candidates(request, json_object_get(params, "apiCandidates"));
	if (error != NULL)
	{
		free_request(request);
		call_fail(call, error);
		return;
	}
	call_set_target(call, request->destination->target);
	call_on_cancel(call, ssh_driver_cancelled, request);
	ssh_script_marker(request->start.marker);
	ssh_script_input(request->destination->workspace_path, (double) limits.api_probe_ms / 1000,
	                 (const char *const *) request->candidates, request->candidate_count,
	                 &request->input);
	spec.call = call;
	spec.start = &request->start;
	spec.connect_ms = limits.connect_ms;
	spec.command_ms = limits.command_ms + limits.api_probe_ms * request->candidate_count;
	spec.max_output = MAX_OUTPUT;
	spec.repeatable = true;
	spec.input.data = request->input.data;
	spec.input.length = request->input.length;
	spec.input.keep = request->candidate_count > 0;
	spec.complete = is_complete;
	spec.done = ssh_driver_command_done;
	spec.data = request;
	request->command = ssh_command_start(request->destination, &spec);
}

static void
ssh_driver_acquire_lease(Call *call, const json_t *params)
{
	ssh_driver_start(call, params, false);
}

static void
ssh_driver_probe(Call *call, const json_t *params)
{
	ssh_driver_start(call, params, true);
}

static void
ssh_driver_push_files(Call *call, const json_t *params)
{
	ssh_transfer(call, params, true);
}

static void
ssh_driver_pull_files(Call *call, const json_t *params)
{
	ssh_transfer(call, params, false);
}

static const DriverMethod methods[] = {{"environmentAcquireLease", ssh_driver_acquire_lease},
                                       {"environmentProbe", ssh_driver_probe},
                                       {"environmentExecute", ssh_execute},
                                       {"environmentPushFiles", ssh_driver_push_files},
                                       {"environmentPullFiles", ssh_driver_pull_files},
                                       {NULL, NULL}};

const HostDriver ssh_host_driver = {"ssh", methods};
