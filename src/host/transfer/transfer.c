/*
 * transfer.c
 *		Transfers of files between the server and a workspace: what every driver's have in common.
 *
 * A transfer has two ends, a packer and an unpacker, with an archive going from one to the
 * other.  The end on the server is a process of ours (files_process.c), the other is the
 * driver's.  It takes as long as it takes, but is ended when nothing has moved for a while.
 *
 * A path in the workspace is looked at here as far as its text goes: it stays below the
 * workspace.  Where links lead, the other end finds out.
 */
#include <stdlib.h>
#include <string.h>

#include "shared/files_protocol.h"
#include "base/memory.h"
#include "shared/protocol.h"
#include "transfer/transfer.h"

#define MAX_PATH 4096
#define DEFAULT_CONNECT_MS 10000
#define DEFAULT_STALL_MS 60000
#define MAX_MS 86400000
#define MAX_PROTECTED 1000
#define MAX_NOTES 20
#define MAX_NOTE 1000
#define LOOKS 10 /* in the time of a stall */

static Transfer *first_transfer;

/*
 * Requests
 */

static HostError *
transfer_invalid(const char *format, const char *field)
{
	HostError *error = error_new("22023", format, field);

	error->code = RPC_INVALID_PARAMS;
	return error;
}

/* A path, to be freed; else NULL and, unless it is not there, *error. */
static char *
take_path(const json_t *params, const char *field, HostError **error)
{
	const json_t *value = json_object_get(params, field);

	if (value == NULL || json_is_null(value))
		return NULL;
	if (!json_is_string(value))
		*error = transfer_invalid("%s must be a string", field);
	else if (strlen(json_string_value(value)) != json_string_length(value))
		*error = transfer_invalid("%s must not hold a NUL character", field);
	else if (json_string_length(value) >= MAX_PATH)
		*error = transfer_invalid("%s is too long", field);
	else
		return xstrdup(json_string_value(value));
	return NULL;
}

/* What a path within the workspace is below it, to be freed; NULL: it leads out of it. */
static char *
below_workspace(const char *path, const char *workspace)
{
	size_t length = strlen(workspace);
	const char *rest = path;

	while (length > 1 && workspace[length - 1] == '/')
		length--;
	if (path[0] == '/')
	{
		if (length > 1 && strncmp(path, workspace, length) != 0)
			return NULL;
		rest = path + (length > 1 ? length : 0);
		if (rest[0] != '\0' && rest[0] != '/')
			return NULL;
		rest += strspn(rest, "/");
	}
	for (const char *name = rest; *name != '\0'; name += strspn(name, "/"))
	{
		size_t name_length = strcspn(name, "/");

		if (name_length == 2 && memcmp(name, "..", 2) == 0)
			return NULL;
		name += name_length;
	}
	return xstrdup(rest);
}

static char *
last_name(const char *path)
{
	size_t end = strlen(path);
	size_t start;

	while (end > 0 && path[end - 1] == '/')
		end--;
	start = end;
	while (start > 0 && path[start - 1] != '/')
		start--;
	return end > start ? xstrndup(path + start, end - start) : xstrdup("root");
}

static char **
take_protected(const json_t *list, HostError **error)
{
	char **paths;
	size_t index;
	json_t *value;
	size_t count = 0;

	if (json_array_size(list) > MAX_PROTECTED)
	{
		*error = error_new("53400", "more than %d protected places", MAX_PROTECTED);
		return NULL;
	}
	paths = xcalloc(json_array_size(list) + 1, sizeof *paths);
	json_array_foreach(list, index, value) if (json_is_string(value)) paths[count++] =
	    xstrdup(json_string_value(value));
	return paths;
}

static void
free_protected(char **paths)
{
	for (char **path = paths; path != NULL && *path != NULL; path++)
		free(*path);
	free(paths);
}

static uint64_t
take_limit(const json_t *params, const char *key, uint64_t otherwise)
{
	const json_t *value = json_object_get(json_object_get(params, "limits"), key);

	if (!json_is_integer(value))
		return otherwise;
	if (json_integer_value(value) < 1)
		return 1;
	return json_integer_value(value) > MAX_MS ? MAX_MS : (uint64_t) json_integer_value(value);
}

static void
transfer_request_free(TransferRequest *request)
{
	if (request == NULL)
		return;
	free_protected(request->protected_paths);
	free_protected(request->hidden_paths);
	free(request->local_path);
	free(request->remote_path);
	free(request->name);
	free(request->remote_name);
	free(request);
}

TransferRequest *
transfer_request_new(const json_t *params, bool push, const char *workspace, HostError **error)
{
	TransferRequest *request = xcalloc(1, sizeof *request);
	const json_t *max_bytes;
	char *remote;

	request->push = push;
	request->force = json_is_true(json_object_get(params, "force"));
	request->connect_ms = take_limit(params, "connectMs", DEFAULT_CONNECT_MS);
	request->stall_ms = take_limit(params, "stallMs", DEFAULT_STALL_MS);
	max_bytes = json_object_get(json_object_get(params, "limits"), "maxBytes");
	if (json_integer_value(max_bytes) > 0)
		request->max_bytes = (uint64_t) json_integer_value(max_bytes);
	request->protected_paths = take_protected(json_object_get(params, "protectedPaths"), error);
	if (*error == NULL)
		request->hidden_paths = take_protected(json_object_get(params, "hiddenPaths"), error);
	if (*error == NULL)
		request->local_path = take_path(params, "localPath", error);
	if (*error == NULL && (request->local_path == NULL || request->local_path[0] != '/'))
		*error = transfer_invalid("%s must be an absolute path", "localPath");
	remote = *error == NULL ? take_path(params, "remotePath", error) : NULL;
	if (*error == NULL)
	{
		request->name = last_name(request->local_path);
		request->remote_path = below_workspace(remote != NULL ? remote : "", workspace);
		if (request->remote_path == NULL)
		{
			*error = transfer_invalid("remote path \"%s\" leads out of the workspace", remote);
			error_hint(*error,
			           "It is relative to the workspace \"%s\", or an absolute path below it.",
			           workspace);
		}
	}
	free(remote);
	if (*error == NULL)
	{
		request->remote_name = last_name(request->remote_path);
		return request;
	}
	transfer_request_free(request);
	return NULL;
}

/*
 * Progress
 */

static void
transfer_look(void *data)
{
	Transfer *transfer = data;

	if (now_ms() - transfer->moved_at < transfer->request->stall_ms)
		transfer_watch(transfer);
	else
	{
		transfer->stalled = true;
		transfer->stop(transfer);
	}
}

/* Not at each step: a timer costs more than a note. */
void
transfer_watch(Transfer *transfer)
{
	if (transfer->moved_at == 0)
		transfer->moved_at = now_ms();
	timer_start(&transfer->watch, transfer->request->stall_ms / LOOKS + 1, transfer_look, transfer);
}

void
transfer_moved(Transfer *transfer)
{
	transfer->moved_at = now_ms();
}

/*
 * Beginning and end
 */

void
transfer_begin(Transfer *transfer, Call *call, const char *driver, const json_t *params,
               TransferRequest *request, void (*stop)(Transfer *transfer))
{
	const char *lease_id =
	    json_string_value(json_object_get(json_object_get(params, "lease"), "id"));

	transfer->call = call;
	transfer->driver = xstrdup(driver);
	transfer->lease_id = lease_id != NULL ? xstrdup(lease_id) : NULL;
	transfer->client = call_peer(call);
	transfer->request = request;
	transfer->since = epoch_ms();
	transfer->stop = stop;
	transfer->next = first_transfer;
	if (first_transfer != NULL)
		first_transfer->previous = transfer;
	first_transfer = transfer;
}

static HostError *
local_error(const Transfer *transfer)
{
	HostError *error = files_report_error(&transfer->local);

	error_detail(error, "On the server, at \"%s\".", transfer->request->local_path);
	return error;
}

void
transfer_error_in_workspace(HostError *error, const TransferRequest *request)
{
	if (request->remote_path[0] == '\0')
		error_detail(error, "In the workspace.");
	else
		error_detail(error, "In the workspace, at \"%s\".", request->remote_path);
}

static HostError *
remote_error(const Transfer *transfer)
{
	HostError *error = files_report_error(&transfer->remote);

	transfer_error_in_workspace(error, transfer->request);
	return error;
}

HostError *
transfer_error(const Transfer *transfer, bool has_remote)
{
	HostError *error;

	if (transfer->local.end == FILES_ERROR)
		return local_error(transfer);
	if (has_remote && transfer->remote.end == FILES_ERROR)
		return remote_error(transfer);
	/* What lasts after that is of no interest. */
	if (transfer->local.end == FILES_DONE && (!has_remote || transfer->remote.end == FILES_DONE))
		return NULL;
	if (transfer->stalled)
	{
		error = error_new("08006", "the transfer made no progress for %llu ms",
		                  (unsigned long long) transfer->request->stall_ms);
		error->code = RPC_TIMEOUT;
		return error;
	}
	if (transfer->local.end == FILES_SECOND)
		return local_error(transfer);
	if (has_remote && transfer->remote.end == FILES_SECOND)
		return remote_error(transfer);
	return error_new("38000", "the transfer ended early");
}

static void
add_notes(json_t *list, const Bytes *notes)
{
	const char *line = notes->data;

	while (line != NULL && *line != '\0')
	{
		size_t length = strcspn(line, "\n");
		char *text = clean_text(line, length, MAX_NOTE, false);

		if (text[0] != '\0' && json_array_size(list) < MAX_NOTES)
			json_array_append_new(list, json_string(text));
		free(text);
		line += length + (line[length] == '\n');
	}
}

/* In the order in which it all happened, as far as there is one. */
static json_t *
transfer_answer(const Transfer *transfer)
{
	json_t *result = json_pack("{s:I, s:I}", "files", (json_int_t) transfer->local.files, "bytes",
	                           (json_int_t) transfer->local.bytes);
	json_t *notices = json_array();

	add_notes(notices, &transfer->notes);
	add_notes(notices, &transfer->remote.notes);
	add_notes(notices, &transfer->local.notes);
	if (json_array_size(notices) > 0)
		json_object_set(result, "notices", notices);
	json_decref(notices);
	return result;
}

void
transfer_end(Transfer *transfer, HostError *error)
{
	Call *call = transfer->call;
	json_t *result = error == NULL && call != NULL ? transfer_answer(transfer) : NULL;
	/* What has got to the target. */
	uint64_t files = transfer->request->push ? transfer->remote.files : transfer->local.files;

	if (transfer->previous != NULL)
		transfer->previous->next = transfer->next;
	else
		first_transfer = transfer->next;
	if (transfer->next != NULL)
		transfer->next->previous = transfer->previous;
	timer_stop(&transfer->watch);
	files_report_clear(&transfer->local);
	files_report_clear(&transfer->remote);
	bytes_free(&transfer->notes);
	transfer_request_free(transfer->request);
	free(transfer->driver);
	free(transfer->lease_id);
	transfer->call = NULL;
	if (call == NULL)
		error_free(error);
	else if (error != NULL)
	{
		if (error->hint == NULL && files > 0)
			error_hint(error, "%llu files that were complete before have stayed.",
			           (unsigned long long) files);
		call_fail(call, error);
	}
	else
		call_answer(call, result);
}

json_t *
transfers_describe(void)
{
	json_t *list = json_array();

	for (const Transfer *transfer = first_transfer; transfer != NULL; transfer = transfer->next)
	{
		const TransferRequest *request = transfer->request;
		json_t *row = json_object();

		json_object_set_new(row, "pid", json_integer(transfer->client));
		json_object_set_new(row, "leaseId",
		                    transfer->lease_id ? json_string(transfer->lease_id) : json_null());
		json_object_set_new(row, "driver", json_string(transfer->driver));
		json_object_set_new(row, "direction", json_string(request->push ? "push" : "pull"));
		json_object_set_new(row, "localPath", json_string(request->local_path));
		json_object_set_new(row, "remotePath", json_string(request->remote_path));
		json_object_set_new(row, "files", json_integer((json_int_t) transfer->local.files));
		json_object_set_new(row, "bytes", json_integer((json_int_t) transfer->local.bytes));
		json_object_set_new(row, "startedAt", json_integer(transfer->since));
		json_array_append_new(list, row);
	}
	return list;
}
