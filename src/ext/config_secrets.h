/*
 * config_secrets.h
 *		Secrets in a provider's config; see config_secrets.c.
 */
#ifndef ENVRT_CONFIG_SECRETS_H
#define ENVRT_CONFIG_SECRETS_H

#include "postgres.h"

#include "json_library.h"
#include "tables.h"
#include "utils/uuid.h"

/*
 * A copy (guarded) of the config with the values of the company's secrets in
 * place of their references.  *sealed is what config_fill_secrets needs to do
 * the same when the secrets are gone; NULL without any.
 */
extern json_t *config_resolve_secrets(json_t *config, const pg_uuid_t *company_id,
                                      const pg_uuid_t *key, bytea **sealed, json_t **values);

extern bool config_is_secret_reference(const json_t *value);

extern json_t *config_fill_secrets(json_t *config, const pg_uuid_t *key, bytea *sealed,
                                   json_t **values);

/*
 * Takes these values out of whatever a provider says: they were for it alone.
 * `values` as the two above give them (guarded), NULL: none.
 */
extern void config_mask_secrets(json_t *answer, const json_t *values);

/* Each reference in a config that a caller gives must be to a secret that he can see. */
extern void config_check_secrets(const ApiCall *call, const pg_uuid_t *company_id,
                                 const json_t *config);

#endif
