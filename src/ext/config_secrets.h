/*
 * config_secrets.h
 *		Secrets in a provider's config; see config_secrets.c.
 */
#ifndef ENVRT_CONFIG_SECRETS_H
#define ENVRT_CONFIG_SECRETS_H

#include "postgres.h"

#include "json_library.h"
#include "utils/uuid.h"

/*
 * A copy (guarded) of the config with the values of the company's secrets in
 * place of their references.  *sealed is what config_fill_secrets needs to do
 * the same when the secrets are gone; NULL without any.
 */
extern json_t *config_resolve_secrets(json_t *config, const pg_uuid_t *company_id,
                                      const pg_uuid_t *key, bytea **sealed);

extern bool config_is_secret_reference(const json_t *value);

extern json_t *config_fill_secrets(json_t *config, const pg_uuid_t *key, bytea *sealed);

#endif
