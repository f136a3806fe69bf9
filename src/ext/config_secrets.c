/*
 * config_secrets.c
 *		Secrets in a provider's config.
 *
 * A member of a sandbox or plugin config may be a reference to a company's
 * secret, {"type": "secret_ref", "secretId", "version"}.  Its value takes its
 * place on the way to the provider and nowhere else.
 *
 * A provider lease must be cleaned up with the secrets it was made with, also
 * when these have been rotated or deleted: so the ledger keeps their values,
 * encrypted and bound to its row's key (secrets.c).
 */
#include "postgres.h"

#include "config_secrets.h"
#include "json.h"
#include "secrets.h"

bool
config_is_secret_reference(const json_t *value)
{
	const char *type = json_string_value(json_object_get(value, "type"));

	return type != NULL && strcmp(type, "secret_ref") == 0 &&
	       json_is_string(json_object_get(value, "secretId"));
}

/* What names the reference among the values. */
static char *
reference_name(const json_t *reference)
{
	const json_t *version = json_object_get(reference, "version");
	const char *id = json_string_value(json_object_get(reference, "secretId"));

	return json_is_integer(version) ? psprintf("%s:%lld", id, json_integer_value(version))
	                                : psprintf("%s:latest", id);
}

/* Put values in place of references; those not yet known are resolved if there is a company. */
static void
replace(json_t *value, const pg_uuid_t *company_id, json_t *values)
{
	const char *key;
	size_t index;
	json_t *member;
	void *next;

	if (json_is_array(value))
	{
		json_array_foreach(value, index, member)
		{
			if (!config_is_secret_reference(member))
				replace(member, company_id, values);
		}
		return;
	}
	if (!json_is_object(value))
		return;
	json_object_foreach_safe(value, next, key, member)
	{
		char *name;

		if (!config_is_secret_reference(member))
		{
			replace(member, company_id, values);
			continue;
		}
		name = reference_name(member);
		if (company_id != NULL && json_object_get(values, name) == NULL)
			json_object_set(values, name, secret_resolve(company_id, member));
		if (json_object_get(values, name) != NULL)
			json_object_set(value, key, json_object_get(values, name));
	}
}

json_t *
config_resolve_secrets(json_t *config, const pg_uuid_t *company_id, const pg_uuid_t *key,
                       bytea **sealed)
{
	json_t *filled = json_guard(json_deep_copy(config));
	json_t *values = json_guard(json_object_new());

	replace(filled, company_id, values);
	*sealed = json_object_size(values) > 0 ? secrets_seal(key, values) : NULL;
	return filled;
}

json_t *
config_fill_secrets(json_t *config, const pg_uuid_t *key, bytea *sealed)
{
	json_t *filled = json_guard(json_deep_copy(config));

	replace(filled, NULL, secrets_open(key, sealed));
	return filled;
}
