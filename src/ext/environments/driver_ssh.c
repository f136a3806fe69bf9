/*
 * driver_ssh.c
 *		The extension's side of the ssh driver.
 *
 * Reads the config, fetches the private key from its secret, and lets the
 * driver host prepare the remote workspace and find the control plane's API
 * from there.  That makes nothing which outlives the call (a directory that
 * may have been there before), so there is nothing to undo or clean up: a
 * lease on an SSH host ends with its row.
 */
#include "postgres.h"

#include "shared/target.h"
#include "hostlink/blocking_calls.h"
#include "environments/drivers.h"
#include "base/json.h"
#include "secrets/secret_values.h"
#include "base/settings.h"
#include "environments/canonical_config.h"
#include "rights/tables.h"
#include "utils/builtins.h"

/*
 * The API origins to try, without duplicates: the setting's, then those of
 * the environment variable that the control plane's own server reads.
 */
static json_t *
api_candidates(void)
{
	json_t *candidates = json_guard(json_array());
	const char *variable = getenv("PAPERCLIP_RUNTIME_API_CANDIDATES_JSON");
	json_t *parsed = variable != NULL ? json_loads(variable, 0, NULL) : NULL;
	List *urls = settings_list(envrt_runtime_api_candidates);
	List *origins = NIL;
	ListCell *cell;
	size_t i;
	json_t *entry;

	if (parsed != NULL)
	{
		json_guard(parsed);
		json_array_foreach(parsed, i, entry) if (json_is_string(entry)) urls =
		    lappend(urls, pstrdup(json_string_value(entry)));
	}
	foreach (cell, urls)
	{
		char origin[512];
		ListCell *seen;
		bool duplicate = false;

		if (!api_origin(lfirst(cell), origin, sizeof(origin)))
			continue;
		foreach (seen, origins)
			duplicate = duplicate || strcmp(lfirst(seen), origin) == 0;
		if (duplicate)
			continue;
		origins = lappend(origins, pstrdup(origin));
		json_array_append_new(candidates, json_string(origin));
	}
	return candidates;
}

/* The config with the private key filled in, and what every call has. */
static json_t *
call_params(const Environment *environment)
{
	json_t *config = config_canonical("ssh", environment->config);
	json_t *reference = json_object_get(config, "privateKeySecretRef");
	json_t *params;

	if (environment->unsaved_private_key != NULL)
		json_object_set_new(config, "privateKey", json_string(environment->unsaved_private_key));
	else if (json_is_object(reference))
		json_object_set(config, "privateKey", secret_resolve(environment->company_id, reference));
	else
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("ssh environment \"%s\" has no private key", environment->name),
		                errhint("Create the environment with a privateKey or a privateKeySecretRef "
		                        "in its config.")));
	params = json_guard(json_pack("{s:s, s:s, s:O, s:o}", "driverKey", "ssh", "companyId",
	                              uuid_text(environment->company_id), "config", config, "limits",
	                              host_call_limits()));
	if (environment->id != NULL)
		json_object_set_new(params, "environmentId", json_string(uuid_text(environment->id)));
	return params;
}

static json_t *
ssh_acquire_params(const AcquireRequest *request, int64 *timeout_ms)
{
	json_t *params = call_params(request->environment);
	json_t *candidates = api_candidates();

	json_object_set(params, "apiCandidates", candidates);
	json_object_set_new(params, "runId", json_string(uuid_text(request->run_id)));
	json_object_set_new(params, "leaseId", json_string(uuid_text(request->lease_id)));
	if (request->workspace_mode != NULL)
		json_object_set_new(params, "workspaceMode",
		                    json_string(text_to_utf8(request->workspace_mode)));
	*timeout_ms = (int64) envrt_ssh_connect_timeout + envrt_ssh_command_timeout +
	              (int64) json_array_size(candidates) * envrt_api_probe_timeout;
	return params;
}

static void
ssh_acquire_result(const AcquireRequest *request, json_t *result, AcquiredLease *lease)
{
	const char *provider_lease_id = json_string_value(json_object_get(result, "providerLeaseId"));
	json_t *metadata = json_object_get(result, "metadata");

	if (provider_lease_id == NULL || !json_is_object(metadata))
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		                errmsg("the driver host answered without a lease")));
	json_object_set_new(metadata, "driver", json_string("ssh"));
	json_object_set_new(metadata, "executionWorkspaceMode",
	                    request->workspace_mode != NULL
	                        ? json_string(text_to_utf8(request->workspace_mode))
	                        : json_null());
	lease->provider = "ssh";
	lease->provider_lease_id = text_from_utf8(provider_lease_id);
	lease->lease_policy = "ephemeral";
	lease->metadata = jsonb_from_json(metadata);
}

static void
ssh_acquire(const AcquireRequest *request, AcquiredLease *lease)
{
	int64 timeout_ms;
	json_t *params = ssh_acquire_params(request, &timeout_ms);

	ssh_acquire_result(request, driver_host_call("environmentAcquireLease", params, timeout_ms),
	                   lease);
}

/* A probe that could not even begin is a row as well. */
static void
failed_probe(const json_t *config, const char *error, ProbeResult *probe)
{
	json_t *details = json_guard(json_object_new());
	static const char *const keys[] = {"host", "port", "username", "remoteWorkspacePath"};

	for (int i = 0; i < (int) lengthof(keys); i++)
		json_object_set(details, keys[i], json_object_get(config, keys[i]));
	json_object_set_new(details, "error", json_string(error));
	json_object_set_new(details, "code", json_integer(255));
	probe->ok = false;
	probe->summary =
	    psprintf("SSH probe failed for %s@%s.",
	             text_from_utf8(json_string_value(json_object_get(config, "username"))),
	             text_from_utf8(json_string_value(json_object_get(config, "host"))));
	probe->details = jsonb_from_json(details);
}

static void
ssh_probe(const Environment *environment, ProbeResult *probe)
{
	json_t *config = config_canonical("ssh", environment->config);
	json_t *result;
	json_t *error;
	json_t *details;
	const char *summary;

	if (environment->unsaved_private_key == NULL &&
	    !json_is_object(json_object_get(config, "privateKeySecretRef")))
	{
		failed_probe(config, "The config has no private key.", probe);
		return;
	}
	result = driver_host_try("environmentProbe", call_params(environment),
	                         (int64) envrt_ssh_connect_timeout + envrt_ssh_command_timeout, &error);
	if (error != NULL)
	{
		const char *message = json_string_value(json_object_get(error, "message"));

		failed_probe(config, message != NULL ? message : "SSH probe failed.", probe);
		return;
	}
	details = json_object_get(result, "details");
	summary = json_string_value(json_object_get(result, "summary"));
	if (!json_is_object(details) || summary == NULL)
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		                errmsg("the driver host answered without a probe result")));
	probe->ok = json_is_true(json_object_get(result, "ok"));
	probe->summary = text_from_utf8(summary);
	probe->details = jsonb_from_json(details);
}

const Driver ssh_driver = {
    .name = "ssh",
    .calls_outside = true,
    .acquire = ssh_acquire,
    .call_params = call_params,
    .acquire_params = ssh_acquire_params,
    .acquire_result = ssh_acquire_result,
    .probe = ssh_probe,
};
