/*
 * secret_references.h
 *		Secrets in a provider's config; see secret_references.c.
 */
#ifndef ENVRT_SECRET_REFERENCES_H
#define ENVRT_SECRET_REFERENCES_H

#include "postgres.h"

#include "shared/json_library.h"
#include "rights/tables.h"
#include "utils/uuid.h"

/*
 * A copy (guarded) of the config with the values of the company's secrets in
 * place of their references.  *values (guarded) is what was found: the
 * values by what names their references.
 */
extern json_t *config_resolve_secrets(json_t *config, const pg_uuid_t *company_id, json_t **values);

/*
 * What config_fill_secrets needs to do the same when the secrets are gone; NULL without any.
 * With a company, what is named by "latest" is the newest that can be had now.
 */
extern bytea *config_seal_secrets(const pg_uuid_t *key, const json_t *values);
extern json_t *config_fill_secrets(json_t *config, const pg_uuid_t *key,
                                   const pg_uuid_t *company_id, bytea *sealed, json_t **values);

/*
 * The values by the ids of their secrets (a new reference, or NULL when out of
 * memory).  What no id stands for, another version of a secret or a raw one,
 * keeps its name: it is only for the driver host, to be masked.
 */
extern json_t *config_secrets_by_id(const json_t *values);

/*
 * Whether a string is the id of a secret of the company: a reference in its own
 * way.  That of another company is a string like any other, as an id of nothing is.
 */
extern bool config_is_secret_id(const pg_uuid_t *company_id, const json_t *value);

/* Such a string as the other kind of reference (guarded). */
extern json_t *config_reference_of_id(const json_t *id);

/* What names a reference among the values. */
extern char *config_reference_name(const json_t *reference);

/*
 * Stores a value of an environment's config as a secret of the company; the
 * reference to it (guarded).  `field` is its dotted path.
 */
extern json_t *config_store_secret(const pg_uuid_t *company_id, const char *driver,
                                   const char *environment_name, const char *field,
                                   const json_t *value);

/*
 * Takes these values out of whatever a provider says: they were for it alone.
 * `values` as the two above give them (guarded), NULL: none.
 */
extern void config_mask_secrets(json_t *answer, const json_t *values);

/* Whether a string has one of them in it that is too long to be there by accident. */
extern bool config_holds_secret(const json_t *string, const json_t *values);

/* Each reference in a config that a caller gives must be to a secret that he can see. */
extern void config_check_secrets(const ApiCall *call, const pg_uuid_t *company_id,
                                 const json_t *config);

/* ERROR 42501 unless the caller may use secrets where commands can read them. */
extern void config_require_env_right(const ApiCall *call);

/*
 * config_check_exposed
 *		The same where a config has a reference whose value a command may come to
 *		read: any but those in fields that the plugin's schema (NULL: none) marks
 *		as secrets, which are for the provider; below "env" it is those as well.
 *
 * `before` (NULL: none) is what the config was: a reference that is at the same place there
 * has been asked about then.  Returns whether there is any to ask about.
 */
extern bool config_check_exposed(const ApiCall *call, const pg_uuid_t *company_id, json_t *config,
                                 const json_t *before, json_t *schema);

#endif
