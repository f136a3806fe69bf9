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
 * envrt.reuse_wait_timeout says.  One that is on its way back, or out, and the
 * end of what has the same name at the provider, are always waited for.
 *
 * What is idle may hold a week's work.  So a resume that fails is tried again,
 * for as long as envrt.reuse_retry says, and then the acquire fails and what
 * was idle is so again.  Only when the provider says that it has it no more
 * another one is made, and the lease says in whose place (replacedLease).
 */
#include "postgres.h"

#include "access/xact.h"
#include "hostlink/blocking_calls.h"
#include "environments/drivers.h"
#include "environments/provider_probe.h"
#include "base/fault_points.h"
#include "base/json.h"
#include "ledger/scheduler_wake.h"
#include "ledger/requests.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "environments/plugin_rows.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/latch.h"
#include "rights/tables.h"
#include "base/timer.h"
#include "utils/timestamp.h"

pg_noreturn static void
report_cleaned_up(void)
{
	ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
	                errmsg("the provider lease was cleaned up while it was acquired"),
	                errdetail("lease_acquire_failed"), errhint("Try again.")));
}

/* A request to the ledger about one row that must be there. */
static void
driver_provider_tell_ledger(LedgerVerb verb, const json_t *row)
{
	LedgerReply reply;

	ledger_ask(verb, jsonb_from_json(row), 0, &reply);
	if (reply.outcome != LEDGER_DONE)
		report_cleaned_up();
}

/* Whether an error says for sure that nothing was made. */
static bool
driver_provider_nothing_was_made(const json_t *error)
{
	const char *outcome =
	    json_string_value(json_object_get(json_object_get(error, "data"), "outcome"));

	return outcome != NULL && strcmp(outcome, "absent") == 0;
}

static void
sleep_for(long ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
	                 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Have what was idle resumed; NULL when its provider has it no more. */
static json_t *
resume(AcquireRequest *request)
{
	TimestampTz begun = timer_now();

	for (long pause = PROVIDER_RESUME_PAUSE_MS;;
	     pause = Min(2 * pause, PROVIDER_RESUME_MAX_PAUSE_MS))
	{
		json_t *idle = provider_row(request->key, true);
		const char *id = json_string_value(json_object_get(idle, "provider_lease_id"));
		const char *reason;
		json_t *params;
		json_t *error;
		json_t *result;
		AcquireRequest other = *request;
		json_t *stray;
		TimestampTz until;

		if (idle == NULL)
			report_cleaned_up();
		params = provider_call_params(idle);
		plugins_restrict(params);
		result = provider_call("environmentResumeLease", params, provider_patience(params), &error);
		switch (provider_judge_resume(id, result, error, &reason))
		{
			case RESUME_DONE:
				return result;
			case RESUME_GONE:
				driver_provider_tell_ledger(LEDGER_GONE, provider_row_name(request));
				/* Not a NOTICE: to callers that read all that they are told, it is no news. */
				ereport(LOG, (errmsg("the sandbox of environment \"%s\" is gone and is replaced",
				                     request->environment->name),
				              errdetail_internal("%s", text_from_utf8(reason))));
				request->replaced = provider_replaced(id, reason);
				return NULL;
			case RESUME_OTHER:
				other.key = uuid_generate();
				stray = provider_stray_row(&other, result, &params);
				if (stray != NULL)
					driver_provider_tell_ledger(LEDGER_STRAY, stray);
				provider_report_not_resumed(request->environment->name, reason, NULL);
			case RESUME_FAILED:
				until = TimestampTzPlusMilliseconds(begun, envrt_reuse_retry);
				if (TimestampTzPlusMilliseconds(timer_now(), pause) > until)
					provider_report_not_resumed(request->environment->name, reason, error);
				sleep_for(pause);
		}
	}
}

static json_t *
make(const AcquireRequest *request, json_t *params)
{
	json_t *error;
	json_t *result =
	    provider_call("environmentAcquireLease", params, provider_patience(params), &error);

	if (error != NULL)
	{
		if (driver_provider_nothing_was_made(error))
			driver_provider_tell_ledger(LEDGER_NOTHING_MADE, provider_row_name(request));
		driver_host_raise(error);
	}
	return result;
}

static void
report_busy(const AcquireRequest *request, const LedgerReply *reply)
{
	if (hint_given(&reply->lease_id))
		ereport(ERROR,
		        (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
		         errmsg("The reusable provider lease of environment \"%s\" is held by a lease "
		                "of this very transaction.",
		                request->environment->name),
		         errdetail("lease_acquire_failed"),
		         errhint("Commit after that lease has been released, or use an environment "
		                 "without reuseLease.")));
	ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
	                errmsg("The reusable provider lease of environment \"%s\" is held by another "
	                       "active lease.",
	                       request->environment->name),
	                errdetail("lease_acquire_failed"),
	                errhint("Try again when that lease has been released, have acquires wait by "
	                        "setting envrt.reuse_wait_timeout, or use an environment without "
	                        "reuseLease.")));
}

/* What is waited for in any case has not come in time. */
pg_noreturn static void
report_turning(const AcquireRequest *request, LedgerOutcome outcome)
{
	ereport(ERROR,
	        (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
	         outcome == LEDGER_RETURNING
	             ? errmsg("The reusable provider lease of environment \"%s\" is still being "
	                      "released for its last lease.",
	                      request->environment->name)
	             : errmsg("What the provider of environment \"%s\" has given the same id is still "
	                      "being destroyed.",
	                      request->environment->name),
	         errdetail("lease_acquire_failed"),
	         errhint("Try again later. envrt.stat_cleanup says how that goes.")));
}

/*
 * Have the ledger write a row, or claim one.  An earlier one that takes long to
 * be destroyed is not waited for any longer, unless it has the same name.
 */
static void
driver_provider_reserve(const AcquireRequest *request, const json_t *row, LedgerReply *reply)
{
	bool reuses = provider_policy_reuses(json_string_value(json_object_get(row, "lease_policy")));
	LedgerVerb verb = reuses ? LEDGER_REUSE : LEDGER_CREATE;

	ledger_ask(verb, provider_row_content(request, row), envrt_reuse_wait_timeout, reply);
	if (reply->outcome == LEDGER_ENDING && verb == LEDGER_REUSE &&
	    json_object_get(row, "provider_lease_id") == NULL)
		ledger_ask(LEDGER_REUSE_BESIDE, provider_row_content(request, row),
		           envrt_reuse_wait_timeout, reply);
	if (reply->outcome == LEDGER_BUSY)
		report_busy(request, reply);
	if (reply->outcome == LEDGER_RETURNING || reply->outcome == LEDGER_ENDING)
		report_turning(request, reply->outcome);
}

static void
provider_acquire(const AcquireRequest *request, AcquiredLease *lease)
{
	AcquireRequest asked = *request;
	FullTransactionId owner;
	TimestampTz begun = timer_now();
	json_t *awaited = NULL; /* the id of what has to be gone first */

	forbid_in_scheduler();
	for (;;)
	{
		json_t *params;
		json_t *row = provider_create_row(&asked, &params);
		LedgerReply reply;
		AcquireRequest of;
		json_t *result;
		json_t *learnt;
		bool resumed;

		driver_host_connect();
		owner = GetCurrentFullTransactionId();
		json_object_set_new(row, "owner",
		                    json_string(psprintf(UINT64_FORMAT, U64FromFullTransactionId(owner))));
		if (awaited != NULL)
			json_object_set(row, "provider_lease_id", awaited);
		hint_forbid_prepare();
		hint_lease(request->lease_id);
		FAULT_POINT("acquire-before-ledger");
		driver_provider_reserve(&asked, row, &reply);
		FAULT_POINT("acquire-after-ledger");
		resumed = reply.outcome == LEDGER_CLAIMED;
		of = asked;
		if (resumed)
			of.key = &reply.lease_id;
		result = resumed ? resume(&of) : make(&of, params);
		asked.replaced = of.replaced;
		if (result == NULL)
			continue;
		FAULT_POINT("acquire-after-call");
		provider_acquired(&of, result, resumed, lease);
		learnt = provider_learnt(&of, result, lease);
		ledger_ask(LEDGER_LEARN, jsonb_from_json(learnt), 0, &reply);
		if (reply.outcome == LEDGER_DONE)
			return;
		if (reply.outcome != LEDGER_ENDING)
			report_cleaned_up();
		if (TimestampDifferenceExceeds(begun, timer_now(), (int) ledger_turn_ms()))
			report_turning(request, LEDGER_ENDING);
		awaited = json_object_get(learnt, "provider_lease_id");
		asked.key = uuid_generate();
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
