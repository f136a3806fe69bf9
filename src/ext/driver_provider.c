/*
 * driver_provider.c
 *		The extension's side of sandboxes and of environments that a plugin makes.
 *
 * What a provider makes, a provider lease, outlives the call and the
 * transaction that asked for it.  So an acquire goes through the ledger
 * (ledger.c) in these steps, of which each may be the last:
 *
 *	1.	This (sub)transaction gets its id, and a note that makes its end known.
 *	2.	The scheduler writes a row for it, or hands over one that is idle.
 *	3.	The provider makes or resumes.
 *	4.	The scheduler writes down what the provider said it is.
 *	5.	The lease is inserted (leases.c).
 *
 * Nothing is undone here when a step fails: the row is there, and what
 * becomes of it is decided when the transaction has ended.  Only where the
 * provider itself says that it made nothing, the row goes at once.
 *
 * What rows, calls and answers look like is in provider_lease.c.
 *
 * Lease policies, by a sandbox config's leasePolicy or else reuseLease (those of
 * environments of the driver plugin are ephemeral):
 *
 *	ephemeral						made for the lease, and gone with it
 *	reuse_by_environment			one for the environment and its config: after the
 *									lease it is idle, and the next lease resumes it
 *	reuse_by_execution_workspace	the same for each execution workspace; a lease
 *									without one is ephemeral
 *	retain_on_failure				ephemeral, but a lease that fails becomes
 *									retained and keeps it, until it is released,
 *									destroyed, or expires
 *
 * A reusable one that another lease holds is waited for as long as
 * envrt.reuse_wait_timeout says.
 */
#include "postgres.h"

#include "access/xact.h"
#include "driver_call.h"
#include "drivers.h"
#include "fault_points.h"
#include "json.h"
#include "ledger_hints.h"
#include "ledger_request.h"
#include "plugins.h"
#include "provider_lease.h"
#include "settings.h"
#include "shared_state.h"
#include "tables.h"

/* How often one that can't be resumed is replaced before the acquire gives up. */
#define MAX_TRIES 3

/* A request to the ledger about one row that must be there. */
static void
tell_ledger(LedgerVerb verb, const json_t *row)
{
	LedgerReply reply;

	ledger_ask(verb, jsonb_from_json(row), 0, &reply);
	if (reply.outcome != LEDGER_DONE)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("the provider lease was cleaned up while it was acquired"),
		                errdetail("lease_acquire_failed"), errhint("Try again.")));
}

/* Whether an error says for sure that nothing was made. */
static bool
nothing_was_made(const json_t *error)
{
	const char *outcome =
	    json_string_value(json_object_get(json_object_get(error, "data"), "outcome"));

	return outcome != NULL && strcmp(outcome, "absent") == 0;
}

/* Whether a resume's answer is about what was to be resumed. */
bool
provider_resumed(const json_t *row, const json_t *result)
{
	const json_t *id = json_object_get(row, "provider_lease_id");

	return json_is_null(id) || json_equal(id, json_object_get(result, "providerLeaseId"));
}

/* Have what was idle resumed; NULL, and it is discarded, when the provider can't. */
static json_t *
resume(const AcquireRequest *request)
{
	json_t *row = provider_row(request->key, true);
	json_t *params;
	json_t *error;
	json_t *result;

	if (row == NULL)
		return NULL;
	params = provider_call_params(row);
	plugins_restrict(params);
	result =
	    provider_call("environmentResumeLease", params, 2 * (int64) envrt_provider_timeout, &error);
	if (error != NULL || !provider_resumed(row, result))
	{
		json_t *failed = provider_row_name(request);

		json_object_set_new(failed, "last_error",
		                    error != NULL
		                        ? json_incref(json_object_get(error, "message"))
		                        : json_string("the provider resumed another provider lease"));
		tell_ledger(LEDGER_RESUME_FAILED, failed);
		return NULL;
	}
	return result;
}

static json_t *
make(const AcquireRequest *request, json_t *params)
{
	json_t *error;
	json_t *result = provider_call("environmentAcquireLease", params,
	                               2 * (int64) envrt_provider_timeout, &error);

	if (error != NULL)
	{
		if (nothing_was_made(error))
			tell_ledger(LEDGER_NOTHING_MADE, provider_row_name(request));
		driver_host_raise(error);
	}
	return result;
}

static void
report_busy(const AcquireRequest *request)
{
	ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
	                errmsg("The reusable provider lease of environment \"%s\" is held by another "
	                       "active lease.",
	                       request->environment->name),
	                errdetail("lease_acquire_failed"),
	                errhint("Try again when that lease has been released, have acquires wait by "
	                        "setting envrt.reuse_wait_timeout, or use an environment without "
	                        "reuseLease.")));
}

static void
provider_acquire(const AcquireRequest *request, AcquiredLease *lease)
{
	json_t *params;
	json_t *row;
	bool reuses;
	AcquireRequest asked = *request;
	FullTransactionId owner;
	json_t *result = NULL;
	bool resumed = false;

	forbid_in_scheduler();
	row = provider_create_row(request, &params);
	reuses = provider_policy_reuses(json_string_value(json_object_get(row, "lease_policy")));
	driver_host_connect();
	owner = GetCurrentFullTransactionId();
	json_object_set_new(row, "owner",
	                    json_string(psprintf(UINT64_FORMAT, U64FromFullTransactionId(owner))));
	hint_forbid_prepare();
	hint_lease(request->lease_id);
	FAULT_POINT("acquire-before-ledger");
	for (int i = 0; result == NULL; i++)
	{
		LedgerReply reply;

		if (i == MAX_TRIES)
			ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
			                errmsg("nothing of environment \"%s\" could be resumed",
			                       request->environment->name),
			                errdetail("lease_acquire_failed")));
		ledger_ask(reuses ? LEDGER_REUSE : LEDGER_CREATE, provider_row_content(request, row),
		           envrt_reuse_wait_timeout, &reply);
		if (reply.outcome == LEDGER_BUSY)
			report_busy(request);
		FAULT_POINT("acquire-after-ledger");
		resumed = reply.outcome == LEDGER_CLAIMED;
		asked.key = resumed ? &reply.lease_id : request->key;
		result = resumed ? resume(&asked) : make(&asked, params);
		if (result != NULL)
		{
			FAULT_POINT("acquire-after-call");
			provider_acquired(&asked, result, resumed, lease);
			tell_ledger(LEDGER_LEARN, provider_learnt(&asked, result, lease));
		}
	}
}

const Driver provider_driver = {
    .name = "sandbox",
    .calls_outside = true,
    .makes_provider_leases = true,
    .acquire = provider_acquire,
    .probe = provider_probe,
};

const Driver plugin_driver = {
    .name = "plugin",
    .calls_outside = true,
    .makes_provider_leases = true,
    .acquire = provider_acquire,
    .probe = plugin_probe,
};
