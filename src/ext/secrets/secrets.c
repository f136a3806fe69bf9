/*
 * secrets.c
 *		Company secrets: encrypted before they first reach a table.
 *
 * XChaCha20-Poly1305 with a random nonce; company, secret and version are
 * associated data, so a row that is copied to another company, secret or
 * version does not decrypt.  Beside it a keyed hash, never a plain digest.
 *
 * A sealed value (crypto_box_seal over {companyId, name, version, value})
 * passes through SQL, its logs and statistics unread; what it was sealed for
 * is inside the box, so a logged one is of no use for anything else.
 *
 * Plaintext lives in buffers that are zeroed: JSON objects (the JSON library
 * zeroes what it frees) and buffers cleared here, also when an error ends
 * the function.  A value that came as an SQL argument is out of our hands;
 * that is what sealing is for.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/json.h"
#include "secrets/secrets.h"
#include "base/statement_log.h"
#include "utils/timestamp.h"
#include "secrets/secret_values.h"

PG_FUNCTION_INFO_V1(envrt_sealing_key);
PG_FUNCTION_INFO_V1(envrt_create_sealed_secret);
PG_FUNCTION_INFO_V1(envrt_rotate_sealed_secret);
PG_FUNCTION_INFO_V1(envrt_delete_secret);
PG_FUNCTION_INFO_V1(envrt_on_environment_delete);

static char *
base64(const unsigned char *bytes, size_t length)
{
	size_t size = sodium_base64_encoded_len(length, sodium_base64_VARIANT_ORIGINAL);

	return sodium_bin2base64(palloc(size), size, bytes, length, sodium_base64_VARIANT_ORIGINAL);
}

static void
check_name_and_length(const char *name, size_t length)
{
	if (name[strspn(name, " \t\r\n")] == '\0')
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("name must not be empty")));
	if (strlen(name) > 255)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("name must not be longer than 255 bytes")));
	if (length == 0)
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("value must not be empty")));
	if (length > SECRET_MAX_BYTES)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("value must not be longer than %d bytes", SECRET_MAX_BYTES)));
}

/* Encrypt a value and store it as that version of the secret. */
static void
store_version(const SecretKeys *keys, const pg_uuid_t *company_id, const pg_uuid_t *secret_id,
              int version, const char *value, size_t length)
{
	static Statement insert = {
	    "INSERT INTO @company_secret_versions@ (secret_id, version, material, value_sha256, "
	    "created_at)"
	    " VALUES ($1, $2, $3, $4, $5)",
	    5,
	    {UUIDOID, INT4OID, JSONBOID, TEXTOID, TIMESTAMPTZOID},
	};
	AssociatedData data;
	unsigned char nonce[NONCE_BYTES];
	unsigned char *ciphertext = palloc(length + TAG_BYTES);
	unsigned char hash[crypto_auth_hmacsha256_BYTES];
	char hash_text[2 * sizeof(hash) + 1];
	crypto_auth_hmacsha256_state state;
	JsonbObject material;
	Datum values[5];

	secret_values_associated_data(&data, company_id, secret_id, version);
	randombytes_buf(nonce, sizeof(nonce));
	crypto_aead_xchacha20poly1305_ietf_encrypt(ciphertext, NULL, (const unsigned char *) value,
	                                           length, (const unsigned char *) &data, sizeof(data),
	                                           NULL, nonce, keys->encryption);
	/* The hash is bound to the secret: equal values of two secrets don't show. */
	crypto_auth_hmacsha256_init(&state, keys->hash, sizeof(keys->hash));
	crypto_auth_hmacsha256_update(&state, secret_id->data, UUID_LEN);
	crypto_auth_hmacsha256_update(&state, (const unsigned char *) value, length);
	crypto_auth_hmacsha256_final(&state, hash);
	sodium_bin2hex(hash_text, sizeof(hash_text), hash, sizeof(hash));

	jsonb_object_begin(&material);
	jsonb_object_string(&material, "scheme", SCHEME);
	jsonb_object_string(&material, "nonce", base64(nonce, sizeof(nonce)));
	jsonb_object_string(&material, "ciphertext", base64(ciphertext, length + TAG_BYTES));

	values[0] = UUIDPGetDatum(secret_id);
	values[1] = Int32GetDatum(version);
	values[2] = JsonbPGetDatum(jsonb_object_end(&material));
	values[3] = CStringGetTextDatum(hash_text);
	values[4] = TimestampTzGetDatum(GetCurrentTimestamp());
	statement_write(TABLE_COMPANY_SECRET_VERSIONS, &insert, values, NULL);
}

static pg_uuid_t *
create_with_keys(const SecretKeys *keys, const pg_uuid_t *company_id, const char *name,
                 const char *value, size_t length, const char *description)
{
	static Statement insert = {
	    "INSERT INTO @company_secrets@ (id, company_id, name, provider, latest_version, "
	    "description, created_at, updated_at)"
	    " VALUES ($1, $2, $3, 'local_encrypted', 1, $4, $5, $5)"
	    " ON CONFLICT (company_id, name) DO NOTHING RETURNING id",
	    5,
	    {UUIDOID, UUIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID},
	};
	pg_uuid_t *secret_id = uuid_generate();
	Datum values[5];

	check_name_and_length(name, length);
	values[0] = UUIDPGetDatum(secret_id);
	values[1] = UUIDPGetDatum(company_id);
	values[2] = CStringGetTextDatum(name);
	values[3] = description != NULL ? CStringGetTextDatum(description) : (Datum) 0;
	values[4] = TimestampTzGetDatum(GetCurrentTimestamp());
	if (statement_write(TABLE_COMPANY_SECRETS, &insert, values,
	                    description != NULL ? NULL : "   n ") == 0)
		ereport(ERROR,
		        (errcode(ERRCODE_UNIQUE_VIOLATION), errmsg("Secret already exists: %s", name),
		         errhint("Choose another name, or store a new version with envrt_rotate_secret.")));
	store_version(keys, company_id, secret_id, 1, value, length);
	return secret_id;
}

pg_uuid_t *
secret_create(const pg_uuid_t *company_id, const char *name, const char *value, size_t length,
              const char *description)
{
	SecretKeys keys;
	pg_uuid_t *volatile secret_id = NULL;

	secret_keys_load(&keys);
	PG_TRY();
	{
		secret_id = create_with_keys(&keys, company_id, name, value, length, description);
	}
	PG_FINALLY();
	{
		secret_keys_clear(&keys);
	}
	PG_END_TRY();
	return secret_id;
}

typedef struct SecretRow
{
	pg_uuid_t *company_id;
	char *name;
	int latest_version;
} SecretRow;

/* Lock the secret's row, so that versions are given out one after the other. */
static void
lock_secret(const ApiCall *call, const pg_uuid_t *secret_id, SecretRow *row)
{
	static Statement find = {
	    "SELECT company_id, name, latest_version FROM @company_secrets@"
	    " WHERE id = $1 FOR NO KEY UPDATE",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(secret_id)};
	bool isnull;

	if (!caller_can_see(call, TABLE_COMPANY_SECRETS, secret_id) ||
	    statement_execute(&find, values, NULL) == 0)
		secret_values_report_no_secret(secret_id);
	row->company_id = result_uuid(0, 1);
	row->name = result_text(0, 2);
	row->latest_version = DatumGetInt32(result_typed(0, 3, INT4OID, &isnull));
}

static int
rotate_with_keys(const SecretKeys *keys, const pg_uuid_t *secret_id, const SecretRow *row,
                 const char *value, size_t length)
{
	static Statement update = {
	    "UPDATE @company_secrets@ SET latest_version = $2, updated_at = $3 WHERE id = $1",
	    3,
	    {UUIDOID, INT4OID, TIMESTAMPTZOID},
	};
	int version = row->latest_version + 1;
	Datum values[3] = {UUIDPGetDatum(secret_id), Int32GetDatum(version)};

	check_name_and_length(row->name, length);
	store_version(keys, row->company_id, secret_id, version, value, length);
	values[2] = TimestampTzGetDatum(GetCurrentTimestamp());
	statement_write(TABLE_COMPANY_SECRETS, &update, values, NULL);
	return version;
}

static void
report_not_for(const char *field)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
	                errmsg("the sealed value is for another %s", field),
	                errhint("Seal {companyId, name, version, value} for the very secret that is "
	                        "stored: version 1 for a new one, the next version for a rotation.")));
}

/* Open a sealed value; its guarded JSON object holds the value. */
static const json_t *
unseal(const SecretKeys *keys, bytea *sealed, const pg_uuid_t *company_id, const char *name,
       int version)
{
	const unsigned char *box = (const unsigned char *) VARDATA_ANY(sealed);
	size_t box_length = VARSIZE_ANY_EXHDR(sealed);
	size_t length;
	json_t *content = NULL;
	json_error_t error;
	const json_t *value;
	const char *company;

	if (box_length > crypto_box_SEALBYTES && box_length <= 4 * SECRET_MAX_BYTES)
	{
		unsigned char *plain;

		length = box_length - crypto_box_SEALBYTES;
		plain = palloc(length);
		if (crypto_box_seal_open(plain, box, box_length, keys->sealing_public,
		                         keys->sealing_secret) == 0)
		{
			content = json_loadb((const char *) plain, length, JSON_REJECT_DUPLICATES, &error);
			sodium_memzero(plain, length);
			/* It quotes what it could not read. */
			sodium_memzero(&error, sizeof(error));
			if (content == NULL)
				ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				                errmsg("the sealed value does not hold a JSON object")));
			json_guard(content);
		}
	}
	if (content == NULL)
		ereport(
		    ERROR,
		    (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		     errmsg("the sealed value was not sealed to this server's key"),
		     errhint("Seal it with crypto_box_seal to the key that envrt_sealing_key() returns.")));

	company = json_string_value(json_object_get(content, "companyId"));
	if (company == NULL || pg_strcasecmp(company, uuid_text(company_id)) != 0)
		report_not_for("company");
	if (json_string_value(json_object_get(content, "name")) == NULL ||
	    strcmp(json_string_value(json_object_get(content, "name")), text_to_utf8(name)) != 0)
		report_not_for("name");
	if (json_integer_value(json_object_get(content, "version")) != version)
		report_not_for("version");
	value = json_object_get(content, "value");
	if (!json_is_string(value))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("the sealed value has no string \"value\"")));
	return value;
}

/*
 * envrt_create_secret(company_id, name, value, description)
 */
DEFINE_UNLOGGED_FUNCTION(envrt_create_secret)
{
	pg_uuid_t *company_id = uuid_argument(fcinfo, 0, "company_id");
	char *name = text_argument(fcinfo, 1, "name");
	char *value = text_to_utf8(text_argument(fcinfo, 2, "value"));
	char *description = optional_text_argument(fcinfo, 3);
	pg_uuid_t *result = palloc(sizeof(pg_uuid_t));
	ApiCall call;

	api_enter(&call, "envrt_create_secret()");
	company_require(&call, company_id);
	*result = *secret_create(company_id, name, value, strlen(value), description);
	api_leave(&call);
	sodium_memzero(value, strlen(value));
	PG_RETURN_UUID_P(result);
}

/*
 * envrt_rotate_secret(secret_id, value)
 */
DEFINE_UNLOGGED_FUNCTION(envrt_rotate_secret)
{
	pg_uuid_t *secret_id = uuid_argument(fcinfo, 0, "secret_id");
	char *value = text_to_utf8(text_argument(fcinfo, 1, "value"));
	SecretKeys keys;
	SecretRow row;
	volatile int version = 0;
	ApiCall call;

	api_enter(&call, "envrt_rotate_secret()");
	lock_secret(&call, secret_id, &row);
	secret_keys_load(&keys);
	PG_TRY();
	{
		version = rotate_with_keys(&keys, secret_id, &row, value, strlen(value));
	}
	PG_FINALLY();
	{
		secret_keys_clear(&keys);
	}
	PG_END_TRY();
	api_leave(&call);
	sodium_memzero(value, strlen(value));
	PG_RETURN_INT32(version);
}

/*
 * envrt_sealing_key()
 */
Datum
envrt_sealing_key(PG_FUNCTION_ARGS)
{
	SecretKeys keys;
	bytea *key = palloc(VARHDRSZ + crypto_box_PUBLICKEYBYTES);
	ApiCall call;

	api_enter(&call, "envrt_sealing_key()");
	secret_keys_load(&keys);
	SET_VARSIZE(key, VARHDRSZ + crypto_box_PUBLICKEYBYTES);
	memcpy(VARDATA(key), keys.sealing_public, crypto_box_PUBLICKEYBYTES);
	secret_keys_clear(&keys);
	api_leave(&call);
	PG_RETURN_BYTEA_P(key);
}

/*
 * envrt_create_sealed_secret(company_id, name, sealed, description)
 */
Datum
envrt_create_sealed_secret(PG_FUNCTION_ARGS)
{
	pg_uuid_t *company_id = uuid_argument(fcinfo, 0, "company_id");
	char *name = text_argument(fcinfo, 1, "name");
	char *description = optional_text_argument(fcinfo, 3);
	pg_uuid_t *result = palloc(sizeof(pg_uuid_t));
	bytea *sealed;
	SecretKeys keys;
	ApiCall call;

	require_argument(2, "sealed");
	sealed = PG_GETARG_BYTEA_PP(2);
	api_enter(&call, "envrt_create_sealed_secret()");
	company_require(&call, company_id);
	secret_keys_load(&keys);
	PG_TRY();
	{
		const json_t *value = unseal(&keys, sealed, company_id, name, 1);

		*result = *create_with_keys(&keys, company_id, name, json_string_value(value),
		                            json_string_length(value), description);
	}
	PG_FINALLY();
	{
		secret_keys_clear(&keys);
	}
	PG_END_TRY();
	api_leave(&call);
	PG_RETURN_UUID_P(result);
}

/*
 * envrt_rotate_sealed_secret(secret_id, sealed)
 */
Datum
envrt_rotate_sealed_secret(PG_FUNCTION_ARGS)
{
	pg_uuid_t *secret_id = uuid_argument(fcinfo, 0, "secret_id");
	bytea *sealed;
	SecretKeys keys;
	SecretRow row;
	volatile int version = 0;
	ApiCall call;

	require_argument(1, "sealed");
	sealed = PG_GETARG_BYTEA_PP(1);
	api_enter(&call, "envrt_rotate_sealed_secret()");
	lock_secret(&call, secret_id, &row);
	secret_keys_load(&keys);
	PG_TRY();
	{
		const json_t *value =
		    unseal(&keys, sealed, row.company_id, row.name, row.latest_version + 1);

		version = rotate_with_keys(&keys, secret_id, &row, json_string_value(value),
		                           json_string_length(value));
	}
	PG_FINALLY();
	{
		secret_keys_clear(&keys);
	}
	PG_END_TRY();
	api_leave(&call);
	PG_RETURN_INT32(version);
}

static void
report_referenced(const char *name, const char *by, const char *what)
{
	ereport(ERROR, (errcode(ERRCODE_OBJECT_IN_USE), errmsg("Secret \"%s\" is in use.", name),
	                errdetail("It is referred to by %s \"%s\".", by, what),
	                errhint("Take the reference away first, or let the execution end.")));
}

/* ERROR when something refers to it that would miss it.  Cleanups have what they need. */
static void
refuse_referenced(const pg_uuid_t *secret_id, const SecretRow *row)
{
	static Statement find_environment = {
	    "SELECT name FROM @environments@ WHERE company_id = $1"
	    " AND strpos(lower(config::text), $2)"
	    " > 0 LIMIT 1",
	    2,
	    {UUIDOID, TEXTOID},
	};
	static Statement find_execution = {
	    "SELECT id::text FROM envrt.executions WHERE company_id = $1 AND state = ANY "
	    "(ARRAY['queued', 'running'])"
	    " AND strpos(lower(env::text), $2)"
	    " > 0 LIMIT 1",
	    2,
	    {UUIDOID, TEXTOID},
	};
	Datum values[2] = {UUIDPGetDatum(row->company_id), CStringGetTextDatum(uuid_text(secret_id))};
	ApiCall ledger;

	if (statement_execute_latest(&find_environment, values, NULL) > 0)
		report_referenced(row->name, "environment", result_text(0, 1));
	ledger_enter(&ledger);
	if (statement_execute_latest(&find_execution, values, NULL) > 0)
		report_referenced(row->name, "execution", result_text(0, 1));
	api_leave(&ledger);
}

/*
 * envrt_delete_secret(secret_id)
 *		Who refers to a secret locks its row (secret_check_reference).
 */
Datum
envrt_delete_secret(PG_FUNCTION_ARGS)
{
	static Statement lock = {
	    "SELECT 1 FROM @company_secrets@ WHERE id = $1 FOR UPDATE",
	    1,
	    {UUIDOID},
	};
	static Statement delete_versions = {
	    "DELETE FROM @company_secret_versions@ WHERE secret_id = $1",
	    1,
	    {UUIDOID},
	};
	static Statement delete = {"DELETE FROM @company_secrets@ WHERE id = $1", 1, {UUIDOID}};
	pg_uuid_t *secret_id = uuid_argument(fcinfo, 0, "secret_id");
	Datum values[1] = {UUIDPGetDatum(secret_id)};
	SecretRow row;
	ApiCall call;

	api_enter(&call, "envrt_delete_secret()");
	lock_secret(&call, secret_id, &row);
	statement_execute(&lock, values, NULL);
	refuse_referenced(secret_id, &row);
	statement_write(TABLE_COMPANY_SECRET_VERSIONS, &delete_versions, values, NULL);
	statement_write(TABLE_COMPANY_SECRETS, &delete, values, NULL);
	api_leave(&call);
	PG_RETURN_VOID();
}

/* Delete the secrets that a deleted environment's config refers to, if they were made for it. */
static void
delete_made_secrets(const pg_uuid_t *company_id, const json_t *config)
{
	static Statement delete = {
	    "DELETE FROM @company_secrets@ WHERE id = $1"
	    " AND company_id = $2"
	    " AND name ~ '^environment-[a-z]+-.*-[0-9a-f]{8}$'"
	    " AND description ~~ 'Secret for %'"
	    " AND NOT EXISTS (SELECT 1 FROM @environments@ e WHERE e.company_id = $2 AND strpos(lower("
	    "e.config::text), $3) > 0)",
	    3,
	    {UUIDOID, UUIDOID, TEXTOID},
	};
	const char *key;
	size_t index;
	json_t *member;

	if (secret_is_reference(config))
	{
		pg_uuid_t *secret_id = secret_values_referenced_secret(config);
		Datum values[3] = {UUIDPGetDatum(secret_id), UUIDPGetDatum(company_id),
		                   CStringGetTextDatum(uuid_text(secret_id))};

		statement_write(TABLE_COMPANY_SECRETS, &delete, values, NULL);
	}
	else if (json_is_array(config))
	{
		json_array_foreach(config, index, member)
		{
			delete_made_secrets(company_id, member);
		}
	}
	else if (json_is_object(config))
	{
		json_object_foreach(unconstify(json_t *, config), key, member)
		{
			delete_made_secrets(company_id, member);
		}
	}
}

/*
 * envrt.on_environment_delete()
 *		Secrets that an environment's config was given raw are known to nobody else.
 */
Datum
envrt_on_environment_delete(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc desc;
	int company_column;
	int config_column;
	bool isnull[2];
	Datum company_id;
	Datum config;
	ApiCall owner;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
		                errmsg("on_environment_delete() is a trigger")));
	desc = RelationGetDescr(trigger->tg_relation);
	company_column = SPI_fnumber(desc, "company_id");
	config_column = SPI_fnumber(desc, "config");
	if (company_column <= 0 || config_column <= 0 ||
	    SPI_gettypeid(desc, company_column) != UUIDOID ||
	    SPI_gettypeid(desc, config_column) != JSONBOID)
		return PointerGetDatum(NULL);
	company_id = SPI_getbinval(trigger->tg_trigtuple, desc, company_column, &isnull[0]);
	config = SPI_getbinval(trigger->tg_trigtuple, desc, config_column, &isnull[1]);
	if (isnull[0] || isnull[1])
		return PointerGetDatum(NULL);
	owner_enter(&owner);
	delete_made_secrets(DatumGetUUIDP(company_id), json_from_jsonb(DatumGetJsonbP(config)));
	api_leave(&owner);
	return PointerGetDatum(NULL);
}
