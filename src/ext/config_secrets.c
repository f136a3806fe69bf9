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
                       bytea **sealed, json_t **values)
{
	json_t *filled = json_guard(json_deep_copy(config));

	*values = json_guard(json_object_new());
	replace(filled, company_id, *values);
	*sealed = json_object_size(*values) > 0 ? secrets_seal(key, *values) : NULL;
	return filled;
}

json_t *
config_fill_secrets(json_t *config, const pg_uuid_t *key, bytea *sealed, json_t **values)
{
	json_t *filled = json_guard(json_deep_copy(config));

	*values = secrets_open(key, sealed);
	replace(filled, NULL, *values);
	return filled;
}

void
config_check_secrets(const ApiCall *call, const pg_uuid_t *company_id, const json_t *config)
{
	const char *key;
	size_t index;
	json_t *member;

	if (config_is_secret_reference(config))
	{
		secret_check_reference(call, company_id, config);
		return;
	}
	if (json_is_array(config))
	{
		json_array_foreach(config, index, member)
		{
			config_check_secrets(call, company_id, member);
		}
	}
	else if (json_is_object(config))
	{
		json_object_foreach(unconstify(json_t *, config), key, member)
		{
			config_check_secrets(call, company_id, member);
		}
	}
}

/* Shorter ones would turn up in any text, and are none. */
#define MIN_MASKED 4
#define MASK "***"

/* Not an ERROR in here: called where there is no transaction. */
static void
mask_string(json_t *string, const char *secret)
{
	size_t length = strlen(secret);
	const char *found;

	while (length >= MIN_MASKED && (found = strstr(json_string_value(string), secret)) != NULL)
	{
		const char *text = json_string_value(string);
		size_t before = found - text;
		json_t *masked = json_sprintf("%.*s" MASK "%s", (int) before, text, found + length);

		/* Rather nothing than the secret. */
		if (json_string_set(string, masked != NULL ? json_string_value(masked) : "") != 0)
		{
			json_decref(masked);
			return;
		}
		json_decref(masked);
	}
}

void
config_mask_secrets(json_t *answer, const json_t *values)
{
	const char *key;
	size_t index;
	json_t *member;

	if (json_object_size(values) == 0)
		return;
	if (json_is_string(answer))
	{
		json_object_foreach(unconstify(json_t *, values), key, member)
		{
			mask_string(answer, json_string_value(member));
		}
	}
	else if (json_is_array(answer))
	{
		json_array_foreach(answer, index, member)
		{
			config_mask_secrets(member, values);
		}
	}
	else if (json_is_object(answer))
	{
		json_object_foreach(answer, key, member)
		{
			config_mask_secrets(member, values);
		}
	}
}
