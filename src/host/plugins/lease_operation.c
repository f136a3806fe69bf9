/*
 * lease_operation.c
 *		Calls that make and end the lease of a key become operations.
 *
 * lease_queue.c gives each operation its turn; what it does then stands in
 * lease_make.c and lease_end.c.
 */
#include <stdlib.h>
#include <string.h>

#include "base/host_instance.h"
#include "base/memory.h"
#include "calls/call_limits.h"
#include "plugins/lease_end.h"
#include "plugins/lease_make.h"
#include "plugins/lease_operation.h"
#include "plugins/lease_queue.h"
#include "plugins/plugin_manifest.h"
#include "plugins/worker_request.h"
#include "shared/protocol.h"

/* Operations outlive their clients, so their number needs a limit of its own. */
#define MAX_OPERATIONS 10000

static bool
find_kind(const char *method, OperationKind *kind)
{
	for (*kind = 0; *kind < OPERATION_KINDS; (*kind)++)
		if (strcmp(operation_method(*kind), method) == 0)
			return true;
	return false;
}

/* Nothing was asked of anybody: for an acquire that is an outcome. */
static void
lease_operation_refuse(Call *call, OperationKind kind, HostError *error)
{
	if (kind == OPERATION_ACQUIRE)
		error->outcome = OUTCOME_ABSENT;
	call_fail(call, error);
}

static bool
lease_operation_is_key(const json_t *value)
{
	const char *text = json_string_value(value);

	return text != NULL && text[0] != '\0' && strlen(text) == json_string_length(value) &&
	       strlen(text) <= ENVRT_MAX_LEASE_ID;
}

bool
lease_operation_start(Call *call, const char *method, const json_t *params)
{
	const json_t *id = json_object_get(params, "leaseId");
	const char *instance = json_string_value(json_object_get(params, "hostInstance"));
	LeaseOperation *operation;
	OperationKind kind;

	if (id == NULL || json_is_null(id) || !find_kind(method, &kind))
		return false;
	if (!lease_operation_is_key(id))
	{
		HostError *error =
		    error_new("22023", "leaseId is no text of 1 to %d bytes", ENVRT_MAX_LEASE_ID);

		error->code = RPC_INVALID_PARAMS;
		lease_operation_refuse(call, kind, error);
		return true;
	}
	if (operations_count() >= MAX_OPERATIONS)
	{
		lease_operation_refuse(call, kind,
		                       error_new("53400",
		                                 "the driver host is busy with %zu leases, its limit",
		                                 operations_count()));
		return true;
	}
	operation = operation_new(
	    kind, kind == OPERATION_ACQUIRE || kind == OPERATION_RESUME ? &lease_maker : &lease_ender,
	    json_string_value(id));
	operation->call = call;
	operation->plugin = plugin_for(params, &operation->plugin_error);
	if (operation->plugin != NULL)
	{
		plugin_keep(operation->plugin);
		call_set_target(call, plugin_manifest(operation->plugin)->id);
	}
	operation->plugin_named = json_is_string(json_object_get(params, "pluginKey"));
	operation->driver_key = xstrdup(json_string_value(json_object_get(params, "driverKey")));
	operation->params = plugin_params(params);
	operation->secrets = plugin_secrets(params);
	operation->limit_ms = call_limits(params).call_ms;
	operation->same_instance = instance != NULL && strcmp(instance, host_instance()) == 0;
	operation->identify = json_is_true(json_object_get(params, "identify"));
	operation->keep = kind == OPERATION_RELEASE && json_is_true(json_object_get(params, "keep"));
	call_set_state(call, "waiting for its turn");
	operation_enter(operation);
	return true;
}
