/*
 * provider_lease.h
 *		Provider leases as calls and as rows of the ledger; see provider_lease.c.
 */
#ifndef ENVRT_PROVIDER_LEASE_H
#define ENVRT_PROVIDER_LEASE_H

#include "postgres.h"

#include "base/compat.h"
#include "environments/drivers.h"
#include "shared/json_library.h"

/* What the environment's leases have as provider. */
extern const char *provider_of(const Environment *environment);

/* Whether what a lease of this policy has is kept for the next. */
extern bool provider_policy_reuses(const char *policy);

/* What every call about an environment has (guarded); keys in UTF-8, plugin_key may be NULL. */
extern json_t *provider_environment_params(const Environment *environment, const char *driver_key,
                                           const char *plugin_key, json_t *config);

/* Sets limits.callMs: what the driver host lets the provider take, by the config of these params.
 */
extern void provider_set_limit(json_t *params);

/* How long such a call may take with what it may have to wait for, in milliseconds. */
extern int64 provider_patience(const json_t *params);

/* In the scheduler: whether provider_create_row can be called; if not, soon. */
extern bool provider_is_known(const Environment *environment);

/*
 * The ledger's row for an acquire, without its owner, and the params of the
 * call (both guarded).  ERROR when the plugin is not to be used here.
 */
extern json_t *provider_create_row(const AcquireRequest *request, json_t **params);

/* The row as a request to the ledger. */
extern Jsonb *provider_row_content(const AcquireRequest *request, const json_t *row);

/* What names a row and the lease that asks (guarded). */
extern json_t *provider_row_name(const AcquireRequest *request);

/* What a resume's answer says. */
typedef enum ResumeVerdict
{
	RESUME_DONE,
	RESUME_GONE,   /* the provider has it no more: another one is to be made */
	RESUME_OTHER,  /* it made or resumed something else */
	RESUME_FAILED, /* the error says nothing about it */
} ResumeVerdict;

/* Between two tries, at first and at last. */
#define PROVIDER_RESUME_PAUSE_MS 250
#define PROVIDER_RESUME_MAX_PAUSE_MS 5000

/* *reason: in UTF-8, unless it is done.  result or error is set. */
extern ResumeVerdict provider_judge_resume(const char *provider_lease_id, const json_t *result,
                                           const json_t *error, const char **reason);

/* ERROR: it could not be resumed, and is kept.  error: NULL when there was none. */
pg_noreturn extern void provider_report_not_resumed(const char *environment_name,
                                                    const char *reason, const json_t *error);

/*
 * A row for what a resume's answer names instead (guarded), which is to be
 * destroyed; request->key is new.  NULL when it can't be named.
 */
extern json_t *provider_stray_row(const AcquireRequest *request, const json_t *result,
                                  json_t **params);

/* The same where the ledger has a row of what was to be resumed. */
extern json_t *provider_stray_of(const json_t *row, const json_t *result);

/* What is said in the lease's metadata of one that it takes the place of (guarded). */
extern json_t *provider_replaced(const char *provider_lease_id, const char *reason);

/* Whether an id can come back from the tables as it is. */
extern bool provider_id_is_storable(const json_t *id);

/* The lease that the answer makes, or ERROR 38000. */
extern void provider_acquired(const AcquireRequest *request, json_t *result, bool resumed,
                              AcquiredLease *lease);

/*
 * What the ledger is to learn from the provider's answer and from the lease
 * that provider_acquired made of it (guarded); request->key is the row's.
 */
extern json_t *provider_learnt(const AcquireRequest *request, const json_t *result,
                               const AcquiredLease *lease);

/* A row of the ledger as it is now, by its key or by the lease that has it; NULL: none. */
extern json_t *provider_row(const pg_uuid_t *lease_id, bool by_key);

/*
 * Params of a call about the row's provider lease (guarded), with the newest
 * of the secrets that its config names by "latest".
 */
extern json_t *provider_call_params(const json_t *row);

/*
 * Such params carry the values of the config's secrets beside the config,
 * which are to be masked in what comes back: provider_call sees to that; who
 * sends by himself takes them (a new reference, or NULL).
 */
#define PARAMS_SECRETS "envrtSecrets"
extern json_t *provider_take_secrets(json_t *params);
extern void provider_mask_answer(json_t *result, json_t *error, const json_t *values);
extern json_t *provider_call(const char *method, json_t *params, int64 timeout_ms, json_t **error);

#endif
