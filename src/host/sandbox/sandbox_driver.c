/*
 * sandbox_driver.c
 *		The bubblewrap driver: sandboxes on this machine, made by bwrap.
 *
 * Here params are read and answers made.  What a lease is: sandbox_lease.c; what a
 * command in it is: sandbox_execute.c; a transfer of files: sandbox_transfer.c.
 */
#include <stdlib.h>
#include <string.h>

#include "calls/call_limits.h"
#include "sandbox/sandbox_driver.h"
#include "calls/execute_request.h"
#include "shared/jsonrpc.h"
#include "base/memory.h"
#include "shared/protocol.h"
#include "sandbox/sandbox_config.h"
#include "sandbox/sandbox_execute.h"
#include "sandbox/sandbox_lease_folder.h"
#include "sandbox/sandbox_lease.h"
#include "shared/sandbox_spec.h"
#include "sandbox/sandbox_transfer.h"

#define ID_PREFIX "sandbox://bubblewrap/"

static HostError *
sandbox_driver_invalid(const char *text)
{
	HostError *error = error_new("22023", "%s", text);

	error->code = RPC_INVALID_PARAMS;
	error->outcome = OUTCOME_ABSENT;
	return error;
}

/* The id of the lease's folder: in the provider's name of it, else its own.  NULL and *error. */
static const char *
folder_id(const json_t *params, const json_t *provider_lease_id, HostError **error)
{
	const char *name = json_string_value(provider_lease_id);
	const char *id = json_string_value(json_object_get(params, "leaseId"));

	if (name != NULL)
	{
		id = name + strlen(ID_PREFIX);
		if (strncmp(name, ID_PREFIX, strlen(ID_PREFIX)) == 0 && sandbox_is_id(id))
			return id;
		*error = sandbox_driver_invalid("providerLeaseId is no bubblewrap sandbox's");
		return NULL;
	}
	if (sandbox_is_id(id))
		return id;
	*error = sandbox_driver_invalid("leaseId is no uuid");
	return NULL;
}

/*
 * Leases
 */

static void
sandbox_driver_acquire_lease(Call *call, const json_t *params)
{
	HostError *error = NULL;
	const char *id = folder_id(params, NULL, &error);
	SandboxConfig *config =
	    id ? sandbox_config_new(json_object_get(params, "config"), &error) : NULL;

	if (error != NULL)
		call_fail(call, error);
	else
		sandbox_lease_start(call, SANDBOX_ACQUIRE, id, false, config,
		                    json_string_value(json_object_get(params, "ledger")));
	sandbox_config_free(config);
}

static void
resume_lease(Call *call, const json_t *params)
{
	HostError *error = NULL;
	const char *id = folder_id(params, json_object_get(params, "providerLeaseId"), &error);

	if (error != NULL)
		call_fail(call, error);
	else
		sandbox_lease_start(call, SANDBOX_RESUME, id, false, NULL, NULL);
}

/* An end must not fail for what else the config says. */
static bool
is_kept(const json_t *params)
{
	const json_t *keep = json_object_get(params, "keep");

	if (json_is_boolean(keep))
		return json_is_true(keep);
	return json_is_true(json_object_get(json_object_get(params, "config"), "reuseLease"));
}

static void
end_lease(Call *call, const json_t *params, SandboxLeaseAct act, bool keep)
{
	HostError *error = NULL;
	const char *id = folder_id(params, json_object_get(params, "providerLeaseId"), &error);

	if (error != NULL)
		call_fail(call, error);
	else
		sandbox_lease_start(call, act, id, keep, NULL, NULL);
}

static void
release_lease(Call *call, const json_t *params)
{
	end_lease(call, params, SANDBOX_RELEASE, is_kept(params));
}

static void
destroy_lease(Call *call, const json_t *params)
{
	end_lease(call, params, SANDBOX_DESTROY, false);
}

static void
list_leases(Call *call, const json_t *params)
{
	sandbox_leases_list(call, json_object_get(params, "leaseIds"));
}

/*
 * Commands
 */

static void
answer_execute(Call *call, json_t *result, HostError *error)
{
	if (error != NULL)
		call_fail(call, error);
	else
		call_answer(call, result);
}

static void
execute(Call *call, const json_t *params)
{
	const json_t *lease = json_object_get(params, "lease");
	HostError *error = NULL;
	const char *id = folder_id(params, json_object_get(lease, "providerLeaseId"), &error);
	SandboxConfig *config =
	    id ? sandbox_config_new(json_object_get(params, "config"), &error) : NULL;
	ExecuteRequest *request =
	    config ? execute_request_new(params, SANDBOX_WORKSPACE, &error) : NULL;

	if (request != NULL)
	{
		sandbox_execute(call, id, config, request, answer_execute);
		return;
	}
	sandbox_config_free(config);
	call_fail(call, error);
}

/*
 * Files
 */

static void
transfer(Call *call, const json_t *params, bool push)
{
	const json_t *lease = json_object_get(params, "lease");
	HostError *error = NULL;
	const char *id = folder_id(params, json_object_get(lease, "providerLeaseId"), &error);
	SandboxConfig *config =
	    id ? sandbox_config_new(json_object_get(params, "config"), &error) : NULL;
	TransferRequest *request =
	    config ? transfer_request_new(params, push, SANDBOX_WORKSPACE, &error) : NULL;

	if (request != NULL)
	{
		sandbox_transfer(call, params, id, config, request);
		return;
	}
	sandbox_config_free(config);
	call_fail(call, error);
}

static void
sandbox_driver_push_files(Call *call, const json_t *params)
{
	transfer(call, params, true);
}

static void
sandbox_driver_pull_files(Call *call, const json_t *params)
{
	transfer(call, params, false);
}

/*
 * Config
 */

static void
answer_probe(Call *call, json_t *result, HostError *error)
{
	json_t *details = json_pack("{s:s}", "provider", "bubblewrap");
	const json_t *exit_code = json_object_get(result, "exitCode");
	bool ok = json_is_integer(exit_code) && json_integer_value(exit_code) == 0;
	const char *said = json_string_value(json_object_get(result, "stderr"));
	char *summary;

	if (error != NULL)
	{
		summary = xformat("Bubblewrap probe failed: %s", error->message);
		json_object_set_new(details, "error", json_string(error->message));
		json_object_set_new(details, "sqlstate", json_string(error->sqlstate));
		if (error->detail != NULL)
			json_object_set_new(details, "detail", json_string(error->detail));
		if (error->hint != NULL)
			json_object_set_new(details, "hint", json_string(error->hint));
		error_free(error);
	}
	else if (!ok)
	{
		summary = xstrdup("Bubblewrap probe failed: a sandbox could not run true.");
		json_object_set_new(details, "error", json_string(said ? said : ""));
	}
	else
	{
		summary = xstrdup("Made a bubblewrap sandbox and ran a command in it.");
		json_object_set(details, "durationMs",
		                json_object_get(json_object_get(result, "metadata"), "durationMs"));
	}
	json_decref(result);
	call_answer(call, json_pack("{s:b, s:o, s:o}", "ok", ok, "summary", json_string(summary),
	                            "details", details));
	free(summary);
}

static void
sandbox_driver_probe(Call *call, const json_t *params)
{
	HostError *error = NULL;
	SandboxConfig *config = sandbox_config_new(json_object_get(params, "config"), &error);
	json_t *command;
	ExecuteRequest *request;

	if (config == NULL)
	{
		call_fail(call, error);
		return;
	}
	command = json_pack("{s:s, s:{s:I}}", "command", "true", "limits", "callMs",
	                    (json_int_t) call_limits(params).call_ms);
	request = execute_request_new(command, "/", &error);
	json_decref(command);
	sandbox_execute(call, NULL, config, request, answer_probe);
}

static void
validate_config(Call *call, const json_t *params)
{
	json_t *stored;
	json_t *issues = sandbox_config_issues(json_object_get(params, "config"), &stored);
	json_t *result = json_object();

	json_object_set_new(result, "ok", json_boolean(stored != NULL));
	if (stored != NULL)
		json_object_set_new(result, "normalizedConfig", stored);
	json_object_set_new(result, "errors", issues);
	call_answer(call, result);
}

static const DriverMethod methods[] = {{"environmentValidateConfig", validate_config},
                                       {"environmentProbe", sandbox_driver_probe},
                                       {"environmentAcquireLease", sandbox_driver_acquire_lease},
                                       {"environmentResumeLease", resume_lease},
                                       {"environmentReleaseLease", release_lease},
                                       {"environmentDestroyLease", destroy_lease},
                                       {"environmentListLeases", list_leases},
                                       {"environmentExecute", execute},
                                       {"environmentPushFiles", sandbox_driver_push_files},
                                       {"environmentPullFiles", sandbox_driver_pull_files},
                                       {NULL, NULL}};

const HostDriver bubblewrap_host_driver = {"bubblewrap", methods};
