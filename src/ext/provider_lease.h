/*
 * provider_lease.h
 *		Provider leases as calls and as rows of the ledger; see provider_lease.c.
 */
#ifndef ENVRT_PROVIDER_LEASE_H
#define ENVRT_PROVIDER_LEASE_H

#include "postgres.h"

#include "drivers.h"
#include "json_library.h"

/* What the environment's leases have as provider. */
extern const char *provider_of(const Environment *environment);

/* Whether what a lease of this policy has is kept for the next. */
extern bool provider_policy_reuses(const char *policy);

/* What every call about an environment has (guarded); keys in UTF-8, plugin_key may be NULL. */
extern json_t *provider_environment_params(const Environment *environment, const char *driver_key,
                                           const char *plugin_key, json_t *config);

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

/* Whether a resume's answer is about the row's provider lease. */
extern bool provider_resumed(const json_t *row, const json_t *result);

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

/* Params of a call about the row's provider lease (guarded). */
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
