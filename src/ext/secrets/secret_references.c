/*
 * secret_references.c
 *		Secrets in a provider's config.
 *
 * A member of a sandbox or plugin config may be a reference to a company's
 * secret, {"type": "secret_ref", "secretId", "version"}.  Its value takes its
 * place on the way to the provider and nowhere else.
 *
 * A string that is the id of a secret is a reference too, in the plugins' own
 * way: it goes to the plugin as it is, which asks the driver host for the
 * value.  So the values go with the call, beside the config.  Such a string
 * with the id of another company's secret is taken for what it is to this
 * company, an id of nothing: an error would say that there is such a secret.  The
 * driver host gives a worker what came with the very call alone.
 *
 * Masking (below) finds a value as it is, no part and no other shape of it.  So whoever can
 * have a command read a value can read it, and needs a right for that, EXECUTE on
 * envrt.use_secrets_in_env(): for a reference in a command's env, and for one in an
 * environment's config where a provider may hand it on to commands.  It is asked where the
 * reference is made, by whichever way: a function, or SQL of one's own (a trigger).  Whoever
 * uses the environment later is not asked: that it has the secret was somebody's decision.
 *
 * Whatever is done to a provider lease later is done with the version that its
 * reference names, "latest" being the newest at each call: the one it was made
 * with may have been revoked.  But it must be cleaned up also when its secrets
 * have been deleted, or the newest is a mistake: so the ledger keeps the values
 * it was made with, encrypted and bound to its row's key (secret_values.c), for when
 * nothing newer is to be had or is of use.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "base/compat.h"
#include "secrets/secret_references.h"
#include "base/json.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "secrets/secret_fields.h"
#include "secrets/secrets.h"
#include "secrets/secret_values.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(envrt_use_secrets_in_env);
PG_FUNCTION_INFO_V1(envrt_on_environment_config);

/* Whether it has the form of an id: 36 characters, hex digits and four hyphens. */
static bool
is_uuid_text(const char *text)
{
	for (int i = 0; i < 36; i++)
		if (i == 8 || i == 13 || i == 18 || i == 23 ? text[i] != '-'
		                                            : !isxdigit((unsigned char) text[i]))
			return false;
	return text[36] == '\0';
}

bool
config_is_secret_id(const pg_uuid_t *company_id, const json_t *value)
{
	static Statement find = {
	    "SELECT 1 FROM @company_secrets@ WHERE id = $1"
	    " AND company_id = $2",
	    2,
	    {UUIDOID, UUIDOID},
	};
	Datum values[2];

	if (!json_is_string(value) || !is_uuid_text(json_string_value(value)))
		return false;
	values[0] = DirectFunctionCall1(uuid_in, CStringGetDatum(json_string_value(value)));
	values[1] = UUIDPGetDatum(company_id);
	return statement_execute(&find, values, NULL) > 0;
}

json_t *
config_reference_of_id(const json_t *id)
{
	return json_guard(json_pack("{s:s, s:s, s:s}", "type", "secret_ref", "secretId",
	                            json_string_value(id), "version", "latest"));
}

char *
config_reference_name(const json_t *reference)
{
	const json_t *version = json_object_get(reference, "version");
	const char *given = json_string_value(json_object_get(reference, "secretId"));
	/* As a worker asks for it, however it was written. */
	char *id = uuid_text(DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(given))));

	return json_is_integer(version) ? psprintf("%s:%lld", id, json_integer_value(version))
	                                : psprintf("%s:latest", id);
}

/* The value of a reference, looked up if there is a company; NULL: not known. */
static json_t *
value_of(const json_t *reference, const pg_uuid_t *company_id, json_t *values)
{
	char *name = config_reference_name(reference);

	if (company_id != NULL && json_object_get(values, name) == NULL)
		json_object_set(values, name, secret_resolve(company_id, reference));
	return json_object_get(values, name);
}

/* What is to stand in the member's place, or NULL: it stays. */
static json_t *replacement(json_t *member, const pg_uuid_t *company_id, json_t *values);

static void
replace_in(json_t *value, const pg_uuid_t *company_id, json_t *values)
{
	const char *key;
	size_t index;
	json_t *member;
	json_t *other;
	void *next;

	if (json_is_array(value))
	{
		json_array_foreach(value, index, member)
		{
			if ((other = replacement(member, company_id, values)) != NULL)
				json_array_set(value, index, other);
		}
	}
	else if (json_is_object(value))
	{
		json_object_foreach_safe(value, next, key, member)
		{
			if ((other = replacement(member, company_id, values)) != NULL)
				json_object_set(value, key, other);
		}
	}
}

static json_t *
replacement(json_t *member, const pg_uuid_t *company_id, json_t *values)
{
	if (secret_is_reference(member))
		return value_of(member, company_id, values);
	if (company_id != NULL && config_is_secret_id(company_id, member))
		(void) value_of(config_reference_of_id(member), company_id, values);
	else
		replace_in(member, company_id, values);
	return NULL;
}

json_t *
config_resolve_secrets(json_t *config, const pg_uuid_t *company_id, json_t **values)
{
	json_t *filled = json_guard(json_deep_copy(config));

	*values = json_guard(json_object_new());
	replace_in(filled, company_id, *values);
	return filled;
}

bytea *
config_seal_secrets(const pg_uuid_t *key, const json_t *values)
{
	return json_object_size(values) > 0 ? secrets_seal(key, values) : NULL;
}

/* Put the newest in the place of those that were the newest once, as far as they can be had. */
static void
renew_latest(const pg_uuid_t *company_id, json_t *values)
{
	const char *name;
	json_t *value;
	void *next;

	json_object_foreach_safe(values, next, name, value)
	{
		size_t length = strcspn(name, ":");
		char id[37];
		json_t *newest;

		strlcpy(id, name, Min(length + 1, sizeof(id)));
		if (strcmp(name + length, ":latest") != 0 || !is_uuid_text(id))
			continue;
		newest = secret_newest(company_id,
		                       DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(id))));
		if (newest != NULL)
			json_object_set(values, name, newest);
	}
}

json_t *
config_fill_secrets(json_t *config, const pg_uuid_t *key, const pg_uuid_t *company_id,
                    bytea *sealed, json_t **values)
{
	json_t *filled = json_guard(json_deep_copy(config));

	*values = secrets_open(key, sealed);
	if (company_id != NULL)
		renew_latest(company_id, *values);
	replace_in(filled, NULL, *values);
	return filled;
}

/* Not an ERROR in here: called where there is no transaction. */
json_t *
config_secrets_by_id(const json_t *values)
{
	json_t *by_id = json_object_new();
	const char *name;
	json_t *value;

	/* The newest is what a worker means by an id. */
	for (int latest = 1; latest >= 0; latest--)
	{
		json_object_foreach(unconstify(json_t *, values), name, value)
		{
			size_t length = strcspn(name, ":");
			char id[37];

			if ((strcmp(name + length, ":latest") == 0) != latest)
				continue;
			strlcpy(id, name, Min(length + 1, sizeof(id)));
			if (is_uuid_text(id) && json_object_get(by_id, id) == NULL)
				json_object_set(by_id, id, value);
			else
				json_object_set(by_id, name, value);
		}
	}
	return by_id;
}

/* "My  Host!" becomes my-host; at most 48 characters. */
static char *
slug(const char *text, const char *otherwise)
{
	char *slug = palloc(49);
	int length = 0;

	for (const char *p = text; *p != '\0' && length < 48; p++)
	{
		char c = pg_ascii_tolower((unsigned char) *p);

		if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
			slug[length++] = c;
		else if (length > 0 && slug[length - 1] != '-')
			slug[length++] = '-';
	}
	while (length > 0 && slug[length - 1] == '-')
		length--;
	slug[length] = '\0';
	return length > 0 ? slug : pstrdup(otherwise);
}

/* privateKey becomes private-Key. */
static char *
split_words(const char *name)
{
	StringInfoData words;

	initStringInfo(&words);
	for (const char *p = name; *p != '\0'; p++)
	{
		if (p > name && isupper((unsigned char) *p) && islower((unsigned char) p[-1]))
			appendStringInfoChar(&words, '-');
		appendStringInfoChar(&words, *p);
	}
	return words.data;
}

json_t *
config_store_secret(const pg_uuid_t *company_id, const char *driver, const char *environment_name,
                    const char *field, const json_t *value)
{
	char *field_slug = slug(split_words(field), "secret");
	uint32 suffix;
	pg_uuid_t *secret_id;

	if (!pg_strong_random(&suffix, sizeof(suffix)))
		ereport(ERROR,
		        (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
	secret_id = secret_create(company_id,
	                          psprintf("environment-%s-%s-%s-%08x", driver,
	                                   slug(environment_name, "environment"), field_slug, suffix),
	                          json_string_value(value), json_string_length(value),
	                          psprintf("Secret for %s %s.", environment_name, field_slug));
	return json_guard(json_pack("{s:s, s:s, s:s}", "type", "secret_ref", "secretId",
	                            uuid_text(secret_id), "version", "latest"));
}

void
config_check_secrets(const ApiCall *call, const pg_uuid_t *company_id, const json_t *config)
{
	const char *key;
	size_t index;
	json_t *member;

	if (secret_is_reference(config))
	{
		secret_check_reference(call, company_id, config);
		return;
	}
	if (config_is_secret_id(company_id, config))
		secret_check_reference(call, company_id, config_reference_of_id(config));
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

/*
 * envrt.use_secrets_in_env()
 *		EXECUTE on it is what counts.
 */
Datum
envrt_use_secrets_in_env(PG_FUNCTION_ARGS)
{
	PG_RETURN_VOID();
}

void
config_require_env_right(const ApiCall *call)
{
	Oid function = LookupFuncName(list_make2(makeString("envrt"), makeString("use_secrets_in_env")),
	                              0, NULL, false);

	if (compat_function_aclcheck(function, call->caller) != ACLCHECK_OK)
		ereport(ERROR,
		        (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		         errmsg("permission denied to use secrets in env"),
		         errdetail("Who can run a command with a secret in its env can read the secret."),
		         errhint("GRANT EXECUTE ON FUNCTION envrt.use_secrets_in_env() to the role.")));
}

/*
 * Takes the place of each reference in a copy of a config with a string of its own, into `open`
 * too; of those below "env" there is only a count.
 */
typedef struct Exposed
{
	const pg_uuid_t *company_id;
	json_t *open;
	int below_env;
} Exposed;

static json_t *
mark_references(Exposed *exposed, json_t *value, const json_t *before, bool below_env)
{
	const char *key;
	size_t index;
	json_t *member;
	json_t *mark;
	void *next;

	if (secret_is_reference(value) || config_is_secret_id(exposed->company_id, value))
	{
		if (before != NULL && json_equal(unconstify(json_t *, before), value))
			return NULL;
		if (below_env)
		{
			exposed->below_env++;
			return NULL;
		}
		mark = json_string("");
		json_array_append_new(exposed->open, mark);
		return mark;
	}
	if (json_is_array(value))
	{
		json_array_foreach(value, index, member)
		{
			mark = mark_references(exposed, member, json_array_get(before, index), below_env);
			if (mark != NULL)
				json_array_set(value, index, mark);
		}
	}
	else if (json_is_object(value))
	{
		json_object_foreach_safe(value, next, key, member)
		{
			mark = mark_references(exposed, member, json_object_get(before, key),
			                       below_env || strcmp(key, "env") == 0);
			if (mark != NULL)
				json_object_set(value, key, mark);
		}
	}
	return NULL;
}

/* Of secret fields: what is in one is for the provider.  It is known by what it is, not by a path.
 */
static json_t *
take_mark(void *data, const char *path, const json_t *string)
{
	Exposed *exposed = data;

	for (size_t i = 0; i < json_array_size(exposed->open); i++)
		if (json_array_get(exposed->open, i) == string)
		{
			json_array_remove(exposed->open, i);
			break;
		}
	return NULL;
}

bool
config_check_exposed(const ApiCall *call, const pg_uuid_t *company_id, json_t *config,
                     const json_t *before, json_t *schema)
{
	json_t *copy = json_guard(json_deep_copy(config));
	Exposed exposed = {.company_id = company_id, .open = json_guard(json_array())};

	(void) mark_references(&exposed, copy, before, false);
	if (schema != NULL)
		secret_fields_visit(schema, copy, take_mark, &exposed);
	if (exposed.below_env == 0 && json_array_size(exposed.open) == 0)
		return false;
	config_require_env_right(call);
	return true;
}

/* A column of the row that a trigger was fired for. */
static Datum
row_column(const TriggerData *trigger, HeapTuple row, const char *name, Oid type, bool *isnull)
{
	TupleDesc desc = RelationGetDescr(trigger->tg_relation);
	int column = SPI_fnumber(desc, name);

	if (column <= 0 || SPI_gettypeid(desc, column) != type)
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
		                errmsg("table \"%s\" has no column \"%s\" of type %s",
		                       RelationGetRelationName(trigger->tg_relation), name,
		                       format_type_be(type))));
	return SPI_getbinval(row, desc, column, isnull);
}

/* What of the row before counts as asked for already: nothing, when it is for another provider now.
 */
static json_t *
config_before(const TriggerData *trigger, json_t *config, const char *driver)
{
	static const char *const providers[] = {"provider", "pluginKey", "driverKey"};
	HeapTuple row = trigger->tg_trigtuple;
	bool isnull;
	bool same_company = datumIsEqual(
	    row_column(trigger, row, "company_id", UUIDOID, &isnull),
	    row_column(trigger, trigger->tg_newtuple, "company_id", UUIDOID, &isnull), false, UUID_LEN);
	Datum before = row_column(trigger, row, "config", JSONBOID, &isnull);
	json_t *json;

	if (isnull || !same_company ||
	    strcmp(TextDatumGetCString(row_column(trigger, row, "driver", TEXTOID, &isnull)), driver) !=
	        0)
		return NULL;
	json = json_from_jsonb(DatumGetJsonbP(before));
	for (int i = 0; i < (int) lengthof(providers); i++)
	{
		json_t *of_now = json_object_get(config, providers[i]);

		if (of_now != NULL && !json_equal(of_now, json_object_get(json, providers[i])))
			return NULL;
	}
	return json;
}

/*
 * envrt.on_environment_config()
 *		Asks whoever writes an environment with SQL of his own what the functions ask.
 *
 * What the functions write they write as the table's owner, who may do as he likes: he could drop
 * the trigger.  A plugin's schema is not known here, so it is any reference that counts, but for
 * an ssh environment's key, which no command gets to see.
 */
Datum
envrt_on_environment_config(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool updated;
	bool isnull;
	HeapTuple row;
	Datum given;
	char *driver;
	pg_uuid_t *company_id;
	json_t *config;
	json_t *before = NULL;
	ApiCall call;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
	    !TRIGGER_FIRED_AFTER(trigger->tg_event) || TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
		                errmsg("on_environment_config() is a row trigger after INSERT or UPDATE")));
	if (has_privs_of_role(GetUserId(), trigger->tg_relation->rd_rel->relowner))
		return PointerGetDatum(NULL);
	updated = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event);
	row = updated ? trigger->tg_newtuple : trigger->tg_trigtuple;
	given = row_column(trigger, row, "config", JSONBOID, &isnull);
	if (isnull)
		return PointerGetDatum(NULL);
	/* In the SPI connection's memory, with the rights that a look at secrets needs. */
	owner_enter(&call);
	config = json_from_jsonb(DatumGetJsonbP(given));
	driver = TextDatumGetCString(row_column(trigger, row, "driver", TEXTOID, &isnull));
	company_id = DatumGetUUIDP(row_column(trigger, row, "company_id", UUIDOID, &isnull));
	if (updated)
		before = config_before(trigger, config, driver);
	if (strcmp(driver, "ssh") == 0)
		json_object_del(config, "privateKeySecretRef");
	if (config_check_exposed(&call, company_id, config, before, NULL))
		config_check_secrets(&call, company_id, config);
	api_leave(&call);
	return PointerGetDatum(NULL);
}

/* Shorter ones would turn up in any text, and are none; and those by accident. */
#define MIN_MASKED 4
#define MIN_KNOWN 8
#define MASK "***"

/* A value without the white space around it, which is often not said. */
static const char *
trimmed(const json_t *value, size_t *length)
{
	const char *text = json_string_value(value);

	*length = json_string_length(value);
	while (*length > 0 && isspace((unsigned char) *text))
		text++, (*length)--;
	while (*length > 0 && isspace((unsigned char) text[*length - 1]))
		(*length)--;
	return text;
}

/*
 * The text with the values of a length masked, of malloc; false when none is
 * in it.  All are looked for in the text as it came, so each costs one pass,
 * and one that is a part of another hides nothing of it.  *length: of the text,
 * and then of what is returned.
 */
static bool
mask_text(const char *text, size_t *length, const json_t *values, size_t min, char **masked)
{
	char *hidden = NULL; /* a flag for each byte, then what is returned */
	size_t end = 0;
	const char *key;
	json_t *value;

	json_object_foreach(unconstify(json_t *, values), key, value)
	{
		size_t secret_length;
		const char *secret = trimmed(value, &secret_length);
		const char *from = text;
		const char *found;

		if (secret_length < min)
			continue;
		while ((found = memmem(from, text + *length - from, secret, secret_length)) != NULL)
		{
			if (hidden == NULL && (hidden = calloc(*length + 1, 1)) == NULL)
			{
				*masked = NULL;
				return true;
			}
			memset(hidden + (found - text), 1, secret_length);
			from = found + secret_length;
		}
	}
	if (hidden == NULL)
		return false;
	/* In place: what is hidden is longer than its mask. */
	for (size_t i = 0; i < *length;)
	{
		if (!hidden[i])
		{
			hidden[end++] = text[i++];
			continue;
		}
		while (hidden[i])
			i++;
		memcpy(hidden + end, MASK, strlen(MASK));
		end += strlen(MASK);
	}
	hidden[end] = '\0';
	*length = end;
	*masked = hidden;
	return true;
}

bool
config_holds_secret(const json_t *string, const json_t *values)
{
	size_t length = json_string_length(string);
	char *masked = NULL;
	bool holds = json_is_string(string) &&
	             mask_text(json_string_value(string), &length, values, MIN_KNOWN, &masked);

	free(masked);
	return holds;
}

/* Not an ERROR in here: called where there is no transaction. */
void
config_mask_secrets(json_t *answer, const json_t *values)
{
	const char *key;
	size_t index;
	json_t *member;
	void *next;
	size_t length;
	char *masked;

	if (json_object_size(values) == 0)
		return;
	if (json_is_string(answer))
	{
		length = json_string_length(answer);
		if (!mask_text(json_string_value(answer), &length, values, MIN_MASKED, &masked))
			return;
		/* Without memory rather nothing than the secret. */
		if (masked != NULL)
			json_string_setn(answer, masked, length);
		else
			json_string_set(answer, "");
		free(masked);
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
		json_object_foreach_safe(answer, next, key, member)
		{
			config_mask_secrets(member, values);
			length = strlen(key);
			if (!mask_text(key, &length, values, MIN_MASKED, &masked))
				continue;
			json_object_set(answer, masked != NULL ? masked : "", member);
			json_object_del(answer, key);
			free(masked);
		}
	}
}
