/*
 * secret_values.c
 *		Values of secrets: sealed, opened, and found by a reference.
 *
 * The keys and the scheme are those of secrets.c.  A value is never copied into
 * memory that is not zeroed when its context ends.
 */
#include "postgres.h"

#include "base/json.h"
#include "shared/jsonrpc.h"
#include "secrets/secret_values.h"

void
secret_values_associated_data(AssociatedData *data, const pg_uuid_t *company_id,
                              const pg_uuid_t *secret_id, int version)
{
	memset(data, 0, sizeof(AssociatedData));
	strlcpy(data->label, "envrt.secret.v1", sizeof(data->label));
	data->company_id = *company_id;
	data->secret_id = *secret_id;
	data->version = pg_hton32(version);
}

void
secret_values_report_no_secret(const pg_uuid_t *secret_id)
{
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("Secret not found"),
	                errdetail("There is no secret with id \"%s\".", uuid_text(secret_id)),
	                hint_visible_rows(TABLE_COMPANY_SECRETS)));
}

pg_uuid_t *
secret_values_referenced_secret(const json_t *reference)
{
	const char *id = json_string_value(json_object_get(reference, "secretId"));

	return DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(id)));
}

/* Decode one base64 member of a version's material. */
static unsigned char *
material_bytes(const json_t *material, const char *key, size_t *length)
{
	const char *text = json_string_value(json_object_get(material, key));
	unsigned char *bytes;

	if (text == NULL)
		return NULL;
	bytes = palloc(strlen(text) + 1);
	if (sodium_base642bin(bytes, strlen(text) + 1, text, strlen(text), NULL, length, NULL,
	                      sodium_base64_VARIANT_ORIGINAL) != 0)
		return NULL;
	return bytes;
}

static bool
is_of_scheme(const json_t *material)
{
	const char *scheme = json_string_value(json_object_get(material, "scheme"));

	return scheme != NULL && strcmp(scheme, SCHEME) == 0;
}

/* NULL when it does not decrypt. */
static json_t *
try_decrypt(const SecretKeys *keys, const pg_uuid_t *company_id, const pg_uuid_t *secret_id,
            int version, const json_t *material)
{
	size_t nonce_length = 0;
	size_t length = 0;
	unsigned char *nonce = material_bytes(material, "nonce", &nonce_length);
	unsigned char *ciphertext = material_bytes(material, "ciphertext", &length);
	unsigned char *plain;
	AssociatedData data;
	json_t *value = NULL;

	if (nonce == NULL || nonce_length != NONCE_BYTES || ciphertext == NULL || length < TAG_BYTES)
		length = 0;
	plain = palloc(length + 1);
	secret_values_associated_data(&data, company_id, secret_id, version);
	if (length > 0 && crypto_aead_xchacha20poly1305_ietf_decrypt(
	                      plain, NULL, NULL, ciphertext, length, (const unsigned char *) &data,
	                      sizeof(data), nonce, keys->encryption) == 0)
		value = json_stringn((const char *) plain, length - TAG_BYTES);
	sodium_memzero(plain, length + 1);
	return value != NULL ? json_guard(value) : NULL;
}

static json_t *
decrypt(const SecretKeys *keys, const pg_uuid_t *company_id, const pg_uuid_t *secret_id,
        int version, const json_t *material)
{
	json_t *value;

	if (!is_of_scheme(material))
		ereport(
		    ERROR,
		    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		     errmsg("secret \"%s\" version %d was not encrypted by envrt", uuid_text(secret_id),
		            version),
		     errhint("Store it again with envrt_rotate_secret or envrt_rotate_sealed_secret.")));
	value = try_decrypt(keys, company_id, secret_id, version, material);
	if (value == NULL)
		ereport(
		    ERROR,
		    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		     errmsg("secret \"%s\" version %d does not decrypt", uuid_text(secret_id), version),
		     errdetail("Its row was damaged, or copied from another company, secret or version."),
		     errhint("Store it again with envrt_rotate_secret or envrt_rotate_sealed_secret.")));
	return value;
}

json_t *
secret_newest(const pg_uuid_t *company_id, const pg_uuid_t *secret_id)
{
	static Statement find = {
	    "SELECT 1 FROM @company_secrets@ WHERE id = $1"
	    " AND company_id = $2",
	    2,
	    {UUIDOID, UUIDOID},
	};
	static Statement find_version = {
	    "SELECT version, material FROM @company_secret_versions@"
	    " WHERE secret_id = $1 AND revoked_at IS NULL"
	    " ORDER BY version DESC LIMIT 1",
	    1,
	    {UUIDOID},
	};
	Datum values[2] = {UUIDPGetDatum(secret_id), UUIDPGetDatum(company_id)};
	int found;
	int version;
	bool isnull;
	json_t *material;
	json_t *volatile value = NULL;
	SecretKeys keys;

	if (!statement_try_read(TABLE_COMPANY_SECRETS, &find, values, NULL, &found) || found == 0 ||
	    !statement_try_read(TABLE_COMPANY_SECRET_VERSIONS, &find_version, values, NULL, &found) ||
	    found == 0)
		return NULL;
	version = DatumGetInt32(result_typed(0, 1, INT4OID, &isnull));
	material = json_from_jsonb(DatumGetJsonbP(result_typed(0, 2, JSONBOID, &isnull)));
	if (!is_of_scheme(material))
		return NULL;
	secret_keys_load(&keys);
	PG_TRY();
	{
		value = try_decrypt(&keys, company_id, secret_id, version, material);
	}
	PG_FINALLY();
	{
		secret_keys_clear(&keys);
	}
	PG_END_TRY();
	return value;
}

void
secret_check_reference(const ApiCall *call, const pg_uuid_t *company_id, const json_t *reference)
{
	/* Locked, so that it is not deleted before what refers to it is there. */
	static Statement find = {
	    "SELECT company_id FROM @company_secrets@ WHERE id = $1 FOR KEY SHARE",
	    1,
	    {UUIDOID},
	};
	pg_uuid_t *secret_id;
	Datum values[1];

	if (!json_is_object(reference))
		return;
	secret_id = secret_values_referenced_secret(reference);
	values[0] = UUIDPGetDatum(secret_id);
	if (!caller_can_see(call, TABLE_COMPANY_SECRETS, secret_id) ||
	    statement_execute(&find, values, NULL) == 0)
		secret_values_report_no_secret(secret_id);
	if (memcmp(result_uuid(0, 1), company_id, UUID_LEN) != 0)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		                errmsg("Secret must belong to same company"),
		                errhint("Store the secret for this company, and refer to that one.")));
}

json_t *
secret_resolve(const pg_uuid_t *company_id, const json_t *reference)
{
	static Statement find = {
	    "SELECT company_id, latest_version FROM @company_secrets@ WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	static Statement find_version = {
	    "SELECT material, revoked_at IS NOT NULL FROM @company_secret_versions@"
	    " WHERE secret_id = $1 AND version = $2",
	    2,
	    {UUIDOID, INT4OID},
	};
	const json_t *version_json = json_object_get(reference, "version");
	pg_uuid_t *secret_id = secret_values_referenced_secret(reference);
	Datum values[2] = {UUIDPGetDatum(secret_id)};
	int version;
	bool isnull;
	json_t *material;
	json_t *volatile value = NULL;
	SecretKeys keys;

	/* Nobody has looked at it as the caller: one of another company does not exist. */
	if (statement_execute(&find, values, NULL) == 0 ||
	    memcmp(result_uuid(0, 1), company_id, UUID_LEN) != 0)
		secret_values_report_no_secret(secret_id);
	version = json_is_integer(version_json)
	              ? (int) Min(json_integer_value(version_json), PG_INT32_MAX)
	              : DatumGetInt32(result_typed(0, 2, INT4OID, &isnull));
	values[1] = Int32GetDatum(version);
	if (statement_execute(&find_version, values, NULL) == 0)
		ereport(ERROR,
		        (errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("Secret version not found"),
		         errdetail("Secret \"%s\" has no version %d.", uuid_text(secret_id), version),
		         errhint("Refer to version \"latest\", or to one that exists.")));
	if (DatumGetBool(result_datum(0, 2, &isnull)))
		ereport(
		    ERROR,
		    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		     errmsg("secret \"%s\" version %d is revoked", uuid_text(secret_id), version),
		     errhint(
		         "Refer to version \"latest\" after envrt_rotate_secret() has stored a new one.")));
	material = json_from_jsonb(DatumGetJsonbP(result_typed(0, 1, JSONBOID, &isnull)));
	secret_keys_load(&keys);
	PG_TRY();
	{
		value = decrypt(&keys, company_id, secret_id, version, material);
	}
	PG_FINALLY();
	{
		secret_keys_clear(&keys);
	}
	PG_END_TRY();
	return value;
}

/* What binds a ledger row's secrets to it. */
static void
ledger_associated_data(AssociatedData *data, const pg_uuid_t *key)
{
	memset(data, 0, sizeof(AssociatedData));
	strlcpy(data->label, "envrt.ledger.v1", sizeof(data->label));
	data->secret_id = *key;
}

bytea *
secrets_seal(const pg_uuid_t *key, const json_t *values)
{
	size_t length;
	char *text = rpc_dump_line(values, &length);
	bytea *sealed;
	unsigned char *bytes;
	AssociatedData data;
	SecretKeys keys;

	if (text == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	sealed = palloc(VARHDRSZ + NONCE_BYTES + length + TAG_BYTES);
	SET_VARSIZE(sealed, VARHDRSZ + NONCE_BYTES + length + TAG_BYTES);
	bytes = (unsigned char *) VARDATA(sealed);
	ledger_associated_data(&data, key);
	randombytes_buf(bytes, NONCE_BYTES);
	PG_TRY();
	{
		secret_keys_load(&keys);
		crypto_aead_xchacha20poly1305_ietf_encrypt(
		    bytes + NONCE_BYTES, NULL, (const unsigned char *) text, length,
		    (const unsigned char *) &data, sizeof(data), NULL, bytes, keys.encryption);
	}
	PG_FINALLY();
	{
		secret_keys_clear(&keys);
		rpc_line_free(text, length);
	}
	PG_END_TRY();
	return sealed;
}

json_t *
secrets_open(const pg_uuid_t *key, bytea *sealed)
{
	const unsigned char *bytes = (const unsigned char *) VARDATA_ANY(sealed);
	size_t length = VARSIZE_ANY_EXHDR(sealed);
	AssociatedData data;
	SecretKeys keys;
	unsigned char *plain;
	json_t *values = NULL;
	bool opened = false;

	if (length > NONCE_BYTES + TAG_BYTES)
	{
		length -= NONCE_BYTES + TAG_BYTES;
		plain = palloc(length);
		ledger_associated_data(&data, key);
		secret_keys_load(&keys);
		opened = crypto_aead_xchacha20poly1305_ietf_decrypt(
		             plain, NULL, NULL, bytes + NONCE_BYTES, length + TAG_BYTES,
		             (const unsigned char *) &data, sizeof(data), bytes, keys.encryption) == 0;
		secret_keys_clear(&keys);
		if (opened)
			values = json_loadb((const char *) plain, length, 0, NULL);
		sodium_memzero(plain, length);
	}
	if (values == NULL)
		ereport(ERROR,
		        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		         errmsg("the secrets of provider lease \"%s\" do not decrypt", uuid_text(key)),
		         errhint("They were encrypted under another master key.")));
	return json_guard(values);
}

bool
secret_is_reference(const json_t *value)
{
	const char *type = json_string_value(json_object_get(value, "type"));

	return type != NULL && strcmp(type, "secret_ref") == 0 &&
	       json_is_string(json_object_get(value, "secretId"));
}
