/*
 * secrets.h
 *		Company secrets; see secrets.c.
 */
#ifndef ENVRT_SECRETS_H
#define ENVRT_SECRETS_H

#include "postgres.h"

#include "shared/json_library.h"

#include "rights/tables.h"

/* value: UTF-8. */
extern pg_uuid_t *secret_create(const pg_uuid_t *company_id, const char *name, const char *value,
                                size_t length, const char *description);

/*
 * The value that a {"type": "secret_ref", "secretId", "version"} names, as a
 * guarded JSON string: zeroed when its memory context ends.
 */
extern json_t *secret_resolve(const pg_uuid_t *company_id, const json_t *reference);

/*
 * The newest value of a secret that is not revoked (guarded), without waiting
 * for a lock; NULL: none, not the company's, or locked or damaged.
 */
extern json_t *secret_newest(const pg_uuid_t *company_id, const pg_uuid_t *secret_id);

/*
 * Secrets' values for the ledger: encrypted under the master key, and bound to
 * the row that they are for.  Opened they are guarded.
 */
extern bytea *secrets_seal(const pg_uuid_t *key, const json_t *values);
extern json_t *secrets_open(const pg_uuid_t *key, bytea *sealed);

/*
 * ERROR unless the caller can see the secret that it refers to, and it is of
 * the company: for references that a caller gives.
 */
extern void secret_check_reference(const ApiCall *call, const pg_uuid_t *company_id,
                                   const json_t *reference);

extern bool secret_is_reference(const json_t *value);

#endif
