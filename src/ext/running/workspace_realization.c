/*
 * workspace_realization.c
 *		envrt_realize_workspace: where a run's workspace is in its lease.
 *
 * A workspace is described by its caller: localPath, remotePath, mode, and
 * perhaps a request (version 1) in its metadata, which says where it comes from.  Without a
 * valid request one is made of the rest.  For leases of the plugins, the plugin
 * makes the workspace and answers {cwd, metadata}, which is returned as it is.  For
 * the built-in drivers nothing is done outside: the answer is a record (version 1) of
 * where the workspace is on both sides and how it gets there, which is stored by who
 * wants it (files are moved by envrt_push_files and envrt_pull_files).
 *
 * Request and record are the control plane's own formats, to the letter.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "hostlink/blocking_calls.h"
#include "base/json.h"
#include "leases/active_lease.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "rights/tables.h"

PG_FUNCTION_INFO_V1(envrt_realize_workspace);

#define RECORD_VERSION 1

/*
 * Reading
 */

/* A member's text without blanks around it (a new reference); NULL: none, or blank. */
static json_t *
workspace_realization_text_member(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));
	size_t length;

	if (text == NULL)
		return NULL;
	text += strspn(text, " \t\r\n\f\v");
	length = strlen(text);
	while (length > 0 && strchr(" \t\r\n\f\v", text[length - 1]) != NULL)
		length--;
	return length > 0 ? json_stringn(text, length) : NULL;
}

/* The same, with null for none. */
static json_t *
text_or_null(const json_t *object, const char *key)
{
	json_t *text = workspace_realization_text_member(object, key);

	return text != NULL ? text : json_null();
}

static void
copy_texts(json_t *to, const json_t *from, const char *const *keys, int count)
{
	for (int i = 0; i < count; i++)
		json_object_set_new(to, keys[i], text_or_null(from, keys[i]));
}

static bool
workspace_realization_has_text(const json_t *object, const char *key)
{
	json_t *text = workspace_realization_text_member(object, key);

	json_decref(text);
	return text != NULL;
}

/* The workspace, an object whose own members are of the right types (guarded). */
static json_t *
read_workspace(Jsonb *given)
{
	static const char *const texts[] = {"localPath", "remotePath", "cwd", "mode"};
	json_t *workspace;
	const json_t *metadata;

	if (!JB_ROOT_IS_OBJECT(given))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("workspace must be a JSON object")));
	workspace = json_from_jsonb(given);
	for (int i = 0; i < (int) lengthof(texts); i++)
	{
		const json_t *value = json_object_get(workspace, texts[i]);

		if (value != NULL && !json_is_string(value) && !json_is_null(value))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			                errmsg("workspace.%s: Expected a string", texts[i])));
	}
	metadata = json_object_get(workspace, "metadata");
	if (metadata != NULL && !json_is_object(metadata) && !json_is_null(metadata))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("workspace.metadata: Expected an object")));
	return workspace;
}

/*
 * The request
 */

static const char *const source_texts[] = {"projectId", "projectWorkspaceId", "repoUrl",
                                           "repoRef",   "branchName",         "worktreePath"};
static const char *const overlay_texts[] = {"provisionCommand", "teardownCommand",
                                            "cleanupCommand"};

static bool
is_valid_request(const json_t *request)
{
	static const char *const required[] = {"companyId", "environmentId", "heartbeatRunId",
	                                       "adapterType"};
	const json_t *version = json_object_get(request, "version");

	if (!json_is_integer(version) || json_integer_value(version) != RECORD_VERSION ||
	    !workspace_realization_has_text(json_object_get(request, "source"), "localPath"))
		return false;
	for (int i = 0; i < (int) lengthof(required); i++)
		if (!workspace_realization_has_text(request, required[i]))
			return false;
	return true;
}

static json_t *
one_of(const json_t *object, const char *key, const char *const *names, int count)
{
	json_t *text = workspace_realization_text_member(object, key);

	for (int i = 0; text != NULL && i < count; i++)
		if (strcmp(json_string_value(text), names[i]) == 0)
			return text;
	json_decref(text);
	return json_string(names[0]);
}

static json_t *
workspace_path(const json_t *workspace)
{
	static const char *const keys[] = {"localPath", "cwd", "remotePath"};

	for (int i = 0; i < (int) lengthof(keys); i++)
	{
		json_t *path = workspace_realization_text_member(workspace, keys[i]);

		if (path != NULL)
			return path;
	}
	return json_string("/");
}

/* What of a request the record needs (guarded): the caller's own, or one made for the workspace. */
static json_t *
realization_request(const CalledLease *lease, const json_t *workspace)
{
	static const char *const keys[] = {"workspaceRealizationRequest", "request"};
	static const char *const kinds[] = {"project_primary", "task_session", "agent_home"};
	static const char *const strategies[] = {"project_primary", "git_worktree"};
	const json_t *metadata = json_object_get(workspace, "metadata");
	const json_t *given = NULL;
	json_t *request = json_guard(json_object_new());
	json_t *source = json_object_new();
	json_t *overlay = json_object_new();
	json_t *runtime;

	json_object_set_new(request, "source", source);
	json_object_set_new(request, "runtimeOverlay", overlay);
	for (int i = 0; given == NULL && i < (int) lengthof(keys); i++)
		if (is_valid_request(json_object_get(metadata, keys[i])))
			given = json_object_get(metadata, keys[i]);
	if (given != NULL)
	{
		const json_t *from = json_object_get(given, "source");

		json_object_set_new(request, "executionWorkspaceId",
		                    text_or_null(given, "executionWorkspaceId"));
		json_object_set_new(request, "requestedMode", text_or_null(given, "requestedMode"));
		json_object_set_new(source, "kind", one_of(from, "kind", kinds, lengthof(kinds)));
		json_object_set_new(source, "localPath", text_or_null(from, "localPath"));
		json_object_set_new(source, "strategy",
		                    one_of(from, "strategy", strategies, lengthof(strategies)));
		copy_texts(source, from, source_texts, lengthof(source_texts));
	}
	else
	{
		json_object_set_new(request, "executionWorkspaceId",
		                    lease->workspace_id != NULL
		                        ? json_string(uuid_text(lease->workspace_id))
		                        : json_null());
		json_object_set_new(request, "requestedMode", text_or_null(workspace, "mode"));
		json_object_set_new(source, "kind", json_string("task_session"));
		json_object_set_new(source, "localPath", workspace_path(workspace));
		json_object_set_new(source, "strategy", json_string("project_primary"));
		copy_texts(source, NULL, source_texts, lengthof(source_texts));
	}
	copy_texts(overlay, json_object_get(given, "runtimeOverlay"), overlay_texts,
	           lengthof(overlay_texts));
	runtime = json_object_get(json_object_get(given, "runtimeOverlay"), "workspaceRuntime");
	json_object_set_new(overlay, "workspaceRuntime",
	                    json_is_object(runtime) ? json_incref(runtime) : json_null());
	return request;
}

/*
 * The record
 */

typedef struct Transport
{
	const char *driver;
	const char *sync;
	const char *prepare;
	const char *sync_back; /* NULL: none */
} Transport;

static const Transport transports[] = {
    {"local", "none", "Use the realized local execution workspace directly.", NULL},
    {"ssh", "ssh_git_import_export",
     "Import the local git workspace to the remote SSH workspace before adapter execution.",
     "Export remote SSH workspace changes back to the local execution workspace after adapter "
     "execution."},
    {"sandbox", "sandbox_archive_upload_download",
     "Upload a workspace archive into the sandbox filesystem before adapter execution.",
     "Download a workspace archive from the sandbox and mirror it back locally after adapter "
     "execution."}};

/* What the lease says of the other side; what it does not say is left out, but for the path. */
static json_t *
remote_side(const json_t *metadata, const json_t *provider_metadata)
{
	json_t *remote = json_object_new();
	json_t *path = workspace_realization_text_member(provider_metadata, "remoteCwd");
	json_t *sandbox_id = workspace_realization_text_member(metadata, "sandboxId");
	const json_t *port = json_object_get(metadata, "port");
	json_t *text;

	if (path == NULL)
		path = workspace_realization_text_member(metadata, "remoteCwd");
	if (path == NULL)
		path = workspace_realization_text_member(provider_metadata, "remotePath");
	json_object_set_new(remote, "path", path != NULL ? path : json_null());
	if ((text = workspace_realization_text_member(metadata, "host")) != NULL)
		json_object_set_new(remote, "host", text);
	if (json_is_integer(port) && json_integer_value(port) != 0)
		json_object_set(remote, "port", (json_t *) port);
	if ((text = workspace_realization_text_member(metadata, "username")) != NULL)
		json_object_set_new(remote, "username", text);
	if (sandbox_id == NULL)
		sandbox_id = workspace_realization_text_member(provider_metadata, "sandboxId");
	if (sandbox_id != NULL)
		json_object_set_new(remote, "sandboxId", sandbox_id);
	return remote;
}

static const char *
workspace_realization_text_of(const json_t *object, const char *key, const char *otherwise)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text != NULL ? text : otherwise;
}

/* In UTF-8. */
static char *
summary(const char *driver, const char *local_path, const json_t *remote)
{
	const json_t *port = json_object_get(remote, "port");
	const char *sandbox_id = workspace_realization_text_of(remote, "sandboxId", NULL);

	if (strcmp(driver, "local") == 0)
		return psprintf("Local workspace realized at %s.", local_path);
	if (strcmp(driver, "ssh") == 0)
		return psprintf("SSH workspace realized at %s@%s:%d:%s.",
		                workspace_realization_text_of(remote, "username", "user"),
		                workspace_realization_text_of(remote, "host", "host"),
		                json_is_integer(port) ? (int) json_integer_value(port) : 22,
		                workspace_realization_text_of(remote, "path", local_path));
	return psprintf("Sandbox workspace realized at %s%s%s.",
	                workspace_realization_text_of(remote, "path", "/"),
	                sandbox_id != NULL ? " in " : "", sandbox_id != NULL ? sandbox_id : "");
}

static json_t *
provider_json(const CalledLease *lease)
{
	if (lease->provider != NULL)
		return json_string(text_to_utf8(lease->provider));
	return strcmp(lease->driver, "sandbox") != 0 ? json_string(lease->driver) : json_null();
}

/* A new reference. */
static json_t *
realization_record(const CalledLease *lease, const Transport *transport, const json_t *workspace)
{
	json_t *request = realization_request(lease, workspace);
	json_t *source = json_object_get(request, "source");
	json_t *overlay = json_object_get(request, "runtimeOverlay");
	json_t *metadata = lease->metadata != NULL ? json_from_jsonb(lease->metadata) : NULL;
	json_t *provider_metadata = json_object_get(metadata, "providerMetadata");
	json_t *record = json_guard(json_object_new());
	json_t *local = json_object_new();
	json_t *rebuild = json_object_new();
	json_t *details = json_object_new();
	json_t *id = lease->provider_lease_id != NULL
	                 ? json_string(text_to_utf8(lease->provider_lease_id))
	                 : json_null();
	json_t *remote;

	if (!json_is_object(provider_metadata))
		provider_metadata = json_guard(json_object_new());
	remote = remote_side(metadata, provider_metadata);

	json_object_set_new(record, "version", json_integer(RECORD_VERSION));
	json_object_set_new(record, "transport", json_string(transport->driver));
	json_object_set_new(record, "provider", provider_json(lease));
	json_object_set_new(record, "environmentId", json_string(uuid_text(lease->environment_id)));
	json_object_set_new(record, "leaseId", json_string(uuid_text(lease->id)));
	json_object_set_new(record, "providerLeaseId", id);

	json_object_set(local, "path", json_object_get(source, "localPath"));
	json_object_set(local, "source", json_object_get(source, "kind"));
	json_object_set(local, "strategy", json_object_get(source, "strategy"));
	copy_texts(local, source, source_texts, lengthof(source_texts));
	json_object_set_new(record, "local", local);
	json_object_set_new(record, "remote", remote);
	json_object_set_new(record, "sync",
	                    json_pack("{s:s, s:s, s:s?}", "strategy", transport->sync, "prepare",
	                              transport->prepare, "syncBack", transport->sync_back));
	json_object_set_new(
	    record, "bootstrap",
	    json_pack("{s:O}", "command", json_object_get(overlay, "provisionCommand")));

	json_object_set(rebuild, "executionWorkspaceId",
	                json_object_get(request, "executionWorkspaceId"));
	json_object_set(rebuild, "mode", json_object_get(request, "requestedMode"));
	json_object_set(rebuild, "repoUrl", json_object_get(source, "repoUrl"));
	json_object_set(rebuild, "repoRef", json_object_get(source, "repoRef"));
	json_object_set(rebuild, "localPath", json_object_get(source, "localPath"));
	json_object_set(rebuild, "remotePath", json_object_get(remote, "path"));
	json_object_set(rebuild, "providerLeaseId", id);
	json_object_set(details, "source", source);
	json_object_set(details, "runtimeOverlay", overlay);
	json_object_set_new(details, "environmentDriver", json_string(lease->driver));
	json_object_set_new(details, "provider", provider_json(lease));
	json_object_set(details, "providerMetadata", provider_metadata);
	json_object_set_new(rebuild, "metadata", details);
	json_object_set_new(record, "rebuild", rebuild);
	json_object_set_new(
	    record, "summary",
	    json_string(summary(transport->driver,
	                        workspace_realization_text_of(source, "localPath", "/"), remote)));
	return json_incref(record);
}

/*
 * The two kinds of realization
 */

static json_t *
realize_built_in(const CalledLease *lease, const Transport *transport, const json_t *workspace)
{
	json_t *record = realization_record(lease, transport, workspace);
	json_t *result = json_guard(json_object_new());
	json_t *cwd = NULL;

	json_object_set_new(result, "metadata", json_pack("{s:o}", "workspaceRealization", record));
	if (strcmp(transport->driver, "local") == 0)
	{
		cwd = workspace_realization_text_member(workspace, "localPath");
		if (cwd == NULL)
			cwd = workspace_realization_text_member(workspace, "remotePath");
		if (cwd == NULL)
			cwd = json_string("/");
	}
	else
	{
		cwd = json_object_get(json_object_get(record, "remote"), "path");
		if (!json_is_string(cwd))
			cwd = json_object_get(json_object_get(record, "local"), "path");
		json_incref(cwd);
	}
	json_object_set_new(result, "cwd", cwd);
	return result;
}

static json_t *
realize_by_plugin(const ApiCall *call, const CalledLease *lease, json_t *workspace)
{
	json_t *params = called_lease_params(call, lease, "workspace realization");
	json_t *error;
	json_t *result;

	json_object_set_new(params, "lease", called_lease_json(lease, params));
	json_object_set(params, "workspace", workspace);
	result =
	    provider_call("environmentRealizeWorkspace", params, provider_patience(params), &error);
	if (error != NULL)
		driver_host_raise(error);
	if (!json_is_object(result) || !json_is_string(json_object_get(result, "cwd")))
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		                errmsg("the driver answered without a cwd")));
	return result;
}

/* NULL: a plugin knows. */
static const Transport *
built_in_transport(const CalledLease *lease)
{
	if (strcmp(lease->driver, "sandbox") == 0 && !called_lease_is_fake(lease) &&
	    !called_lease_is_bubblewrap(lease))
		return NULL;
	for (int i = 0; i < (int) lengthof(transports); i++)
		if (strcmp(transports[i].driver, lease->driver) == 0)
			return &transports[i];
	return NULL;
}

/*
 * envrt_realize_workspace(lease_id, workspace)
 */
Datum
envrt_realize_workspace(PG_FUNCTION_ARGS)
{
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	json_t *workspace = read_workspace(jsonb_argument(fcinfo, 1, "workspace"));
	const Transport *transport;
	CalledLease lease;
	MemoryContext context = CurrentMemoryContext;
	ApiCall call;
	json_t *realized;
	Jsonb *result;

	api_enter(&call, "envrt_realize_workspace()");
	called_lease_load(&call, lease_id, &lease);
	transport = built_in_transport(&lease);
	if (transport != NULL)
		realized = realize_built_in(&lease, transport, workspace);
	else
		realized = realize_by_plugin(&call, &lease, workspace);
	MemoryContextSwitchTo(context);
	result = jsonb_from_json(realized);
	api_leave(&call);
	PG_RETURN_JSONB_P(result);
}
