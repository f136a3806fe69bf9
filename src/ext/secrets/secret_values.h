/*
 * secret_values.h
 *		Values of secrets: sealed, opened, and found by a reference; see secret_values.c.
 */
#ifndef ENVRT_SECRET_VALUES_H
#define ENVRT_SECRET_VALUES_H

#include "postgres.h"

#include "rights/tables.h"
#include "secrets/master_key.h"
#include "shared/json_library.h"

#define SCHEME "envrt_xchacha20poly1305_v1"
#define SECRET_MAX_BYTES (64 * 1024)
#define NONCE_BYTES crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
#define TAG_BYTES crypto_aead_xchacha20poly1305_ietf_ABYTES

typedef struct AssociatedData
{
	char label[16];
	pg_uuid_t company_id;
	pg_uuid_t secret_id;
	uint32 version; /* network byte order */
} AssociatedData;

extern void secret_values_associated_data(AssociatedData *data, const pg_uuid_t *company_id,
                                          const pg_uuid_t *secret_id, int version);
extern void secret_values_report_no_secret(const pg_uuid_t *secret_id);
extern pg_uuid_t *secret_values_referenced_secret(const json_t *reference);

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
