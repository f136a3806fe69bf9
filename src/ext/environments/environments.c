/*
 * environments.c
 *		Environments: create, the one local environment, normalize and probe.
 *
 * A config is stored in its canonical shape only.  A raw ssh privateKey is
 * taken out before anything is validated or stored, becomes a company secret
 * in the same transaction, and its reference takes its place: the config
 * never holds key text, and a rollback leaves no secret behind.  A config for
 * a plugin is for the plugin to validate (plugin_config.c).
 */
#include "postgres.h"

#include "base/arguments.h"
#include "catalog/pg_type.h"
#include "common/string.h"
#include "shared/driver_config.h"
#include "shared/private_key.h"
#include "secrets/secret_references.h"
#include "environments/drivers.h"
#include "environments/environments.h"
#include "funcapi.h"
#include "base/json.h"
#include "environments/plugin_config.h"
#include "secrets/secret_values.h"
#include "base/statement_log.h"
#include "environments/canonical_config.h"
#include "rights/tables.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(envrt_ensure_local_environment);
PG_FUNCTION_INFO_V1(envrt_probe);

Environment *
environment_load(const ApiCall *call, const pg_uuid_t *id)
{
	static Statement find = {
	    "SELECT id, company_id, name, driver, status, config FROM @environments@"
	    " WHERE id = $1",
	    1,
	    {UUIDOID},
	};
	Datum values[1] = {UUIDPGetDatum(id)};
	Environment *environment;
	bool isnull;

	if (!caller_can_see(call, TABLE_ENVIRONMENTS, id) ||
	    statement_execute(&find, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Environment \"%s\" not found.", uuid_text(id)),
		                errdetail("environment_not_found"), hint_visible_rows(TABLE_ENVIRONMENTS)));
	environment = palloc0(sizeof(Environment));
	environment->id = result_uuid(0, 1);
	environment->company_id = result_uuid(0, 2);
	environment->name = result_text(0, 3);
	environment->driver = result_text(0, 4);
	environment->status = result_text(0, 5);
	environment->config = DatumGetJsonbPCopy(result_typed(0, 6, JSONBOID, &isnull));
	return environment;
}

void
environment_require_active(const Environment *environment)
{
	if (strcmp(environment->status, "active") != 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("Environment \"%s\" is not active.", environment->name),
		                errdetail("environment_inactive"),
		                errhint("Set its status to active, or use another environment.")));
}

/*
 * Lock the environment against deletion until the transaction ends, and see
 * that it is still what a driver has just been asked about.
 */
void
environment_check_again(const Environment *environment, bool wait)
{
#define LOOK_AND_LOCK                                                                              \
	"SELECT status, driver, config, company_id FROM @environments@"                                \
	" WHERE id = $1 FOR KEY SHARE"
	static Statement look_and_lock = {LOOK_AND_LOCK, 1, {UUIDOID}};
	static Statement look_and_try_lock = {LOOK_AND_LOCK " NOWAIT", 1, {UUIDOID}};
	Datum values[1] = {UUIDPGetDatum(environment->id)};
	Environment now = *environment;
	bool isnull;

	if (statement_execute(wait ? &look_and_lock : &look_and_try_lock, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
		                errmsg("Environment \"%s\" not found.", uuid_text(environment->id)),
		                errdetail("environment_not_found"),
		                errhint("It was deleted meanwhile: use another environment.")));
	now.status = result_text(0, 1);
	environment_require_active(&now);
	if (strcmp(result_text(0, 2), environment->driver) != 0 ||
	    memcmp(result_uuid(0, 4), environment->company_id, UUID_LEN) != 0 ||
	    compareJsonbContainers(&DatumGetJsonbP(result_typed(0, 3, JSONBOID, &isnull))->root,
	                           &environment->config->root) != 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("Environment \"%s\" has been changed meanwhile.", environment->name),
		                errdetail("lease_acquire_failed"), errhint("Try again.")));
}

/*
 * Take a non-blank privateKey out of an ssh config.
 *
 * Returns the trimmed key (guarded, so zeroed with its context), or NULL.  A
 * key of another JSON type stays for config_normalize to refuse.
 */
static json_t *
take_private_key(json_t *config)
{
	json_t *member = json_object_get(config, "privateKey");
	const char *text;
	size_t length;
	json_t *trimmed;

	if (!json_is_string(member))
		return NULL;
	text = json_string_value(member);
	length = json_string_length(member);
	while (length > 0 && isspace((unsigned char) *text))
		text++, length--;
	while (length > 0 && isspace((unsigned char) text[length - 1]))
		length--;
	trimmed = json_guard(json_stringn_nocheck(text, length));
	json_object_set_new(config, "privateKey", json_null());
	if (length == 0)
		return NULL;
	return trimmed;
}

/* ERROR 22023 when envrt could not use the key; the text never has a part of it. */
static void
check_private_key(const json_t *key)
{
	const char *problem = private_key_problem(json_string_value(key), json_string_length(key));

	if (problem != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("privateKey: %s", problem),
		                errhint("Use an unencrypted Ed25519, ECDSA or RSA private key in OpenSSH "
		                        "or PEM form, as ssh-keygen -t ed25519 -N '' makes it.")));
}

static bool
is_blank(const char *text)
{
	return text[strspn(text, " \t\r\n")] == '\0';
}

/* An ssh config with its key in a secret. */
static Jsonb *
ssh_config_to_store(const ApiCall *call, const pg_uuid_t *company_id, const char *name,
                    Jsonb *given)
{
	json_t *config = json_from_jsonb(given);
	const json_t *private_key = take_private_key(config);
	json_t *canonical;

	if (private_key != NULL)
		json_object_set_new(config, "privateKeySecretRef", json_null());
	canonical = config_canonical_json("ssh", config);
	secret_check_reference(call, company_id, json_object_get(canonical, "privateKeySecretRef"));
	if (private_key != NULL)
	{
		check_private_key(private_key);
		json_object_set(canonical, "privateKeySecretRef",
		                config_store_secret(company_id, "ssh", name, "privateKey", private_key));
	}
	return config_stored("ssh", given, canonical);
}

/* A config as it is stored: canonical, without secrets, and one that its plugin accepts. */
static Jsonb *
config_to_store(const ApiCall *call, const pg_uuid_t *company_id, const char *name,
                const char *driver, Jsonb *given)
{
	PluginConfig config = {
	    .call = call, .company_id = company_id, .driver = driver, .environment_name = name};

	if (strcmp(driver, "ssh") == 0 && JB_ROOT_IS_OBJECT(given))
		return ssh_config_to_store(call, company_id, name, given);
	config.canonical = config_canonical(driver, given);
	config_check_secrets(call, company_id, config.canonical);
	if (strcmp(driver, "sandbox") == 0 &&
	    strcmp(json_string_value(json_object_get(config.canonical, "provider")), "fake") == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("Built-in fake sandbox environments are reserved for internal "
		                       "probes and cannot be saved."),
		                errhint("Name another provider in the config, such as "
		                        "{\"provider\": \"bubblewrap\"}.")));
	if (plugin_config_concerns(driver, config.canonical))
		plugin_config_validate(&config, true);
	else
		(void) config_check_exposed(call, company_id, config.canonical, NULL, NULL);
	if (config.config != NULL)
		return jsonb_from_json(config.config);
	return config_stored(driver, given, config.canonical);
}

/*
 * envrt_create_environment(company_id, name, driver, config, description, metadata)
 */
DEFINE_UNLOGGED_FUNCTION(envrt_create_environment)
{
	static Statement insert = {
	    "INSERT INTO @environments@ (company_id, name, driver, config, description, metadata, "
	    "created_at, updated_at)"
	    " VALUES ($1, $2, $3, $4, $5, $6, $7, $7)"
	    " ON CONFLICT (company_id, driver) WHERE driver = 'local' DO NOTHING"
	    " RETURNING *",
	    7,
	    {UUIDOID, TEXTOID, TEXTOID, JSONBOID, TEXTOID, JSONBOID, TIMESTAMPTZOID},
	};
	pg_uuid_t *company_id = uuid_argument(fcinfo, 0, "company_id");
	char *name = text_argument(fcinfo, 1, "name");
	char *driver = text_argument(fcinfo, 2, "driver");
	Jsonb *given = jsonb_argument(fcinfo, 3, "config");
	Jsonb *stored;
	Datum values[7];
	char nulls[8] = "       ";
	ApiCall call;
	Datum result;

	if (is_blank(name))
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("name must not be empty")));
	require_indexable("name", name);
	if (!PG_ARGISNULL(5) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(5)))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("metadata must be a JSON object")));

	api_enter(&call, "envrt_create_environment()");
	company_require(&call, company_id);
	stored = config_to_store(&call, company_id, name, driver, given);

	values[0] = UUIDPGetDatum(company_id);
	values[1] = CStringGetTextDatum(name);
	values[2] = CStringGetTextDatum(driver);
	values[3] = JsonbPGetDatum(stored);
	values[4] = PG_ARGISNULL(4) ? (Datum) 0 : PG_GETARG_DATUM(4);
	nulls[4] = PG_ARGISNULL(4) ? 'n' : ' ';
	values[5] = PG_ARGISNULL(5) ? (Datum) 0 : PG_GETARG_DATUM(5);
	nulls[5] = PG_ARGISNULL(5) ? 'n' : ' ';
	values[6] = TimestampTzGetDatum(GetCurrentTimestamp());
	if (statement_write(TABLE_ENVIRONMENTS, &insert, values, nulls) == 0)
		ereport(
		    ERROR,
		    (errcode(ERRCODE_UNIQUE_VIOLATION),
		     errmsg("Company \"%s\" has a local environment already.", uuid_text(company_id)),
		     errhint(
		         "There is one local environment a company: use envrt_ensure_local_environment.")));
	result = result_row_datum(fcinfo);
	api_leave(&call);
	PG_RETURN_DATUM(result);
}

/*
 * envrt_ensure_local_environment(company_id)
 *		The unique index lets one of any number of concurrent calls insert.
 */
Datum
envrt_ensure_local_environment(PG_FUNCTION_ARGS)
{
	static Statement find = {
	    "SELECT * FROM @environments@"
	    " WHERE company_id = $1 AND driver = 'local'",
	    1,
	    {UUIDOID},
	};
	static Statement insert = {
	    "INSERT INTO @environments@ (company_id, name, description, driver, status, config, "
	    "metadata, created_at, updated_at)"
	    " VALUES ($1, 'Local', 'Default execution environment for Paperclip runs on this "
	    "machine.', 'local', 'active',"
	    "   '{}', '{\"managedByPaperclip\": true, \"defaultForCompany\": true}', $2, $2)"
	    " ON CONFLICT (company_id, driver) WHERE driver = 'local' DO NOTHING"
	    " RETURNING *",
	    2,
	    {UUIDOID, TIMESTAMPTZOID},
	};
	pg_uuid_t *company_id = uuid_argument(fcinfo, 0, "company_id");
	Datum values[2] = {UUIDPGetDatum(company_id)};
	ApiCall call;
	Datum result;

	api_enter(&call, "envrt_ensure_local_environment()");
	company_require(&call, company_id);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	if (statement_execute(&find, values, NULL) == 0 &&
	    statement_write(TABLE_ENVIRONMENTS, &insert, values, NULL) == 0 &&
	    statement_execute(&find, values, NULL) == 0)
		ereport(ERROR,
		        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		         errmsg("Failed to ensure local environment"),
		         errdetail("It was made and deleted by others meanwhile."), errhint("Try again.")));
	result = result_row_datum(fcinfo);
	api_leave(&call);
	PG_RETURN_DATUM(result);
}

/*
 * envrt_normalize_config(driver, config)
 */
DEFINE_UNLOGGED_FUNCTION(envrt_normalize_config)
{
	char *driver = text_argument(fcinfo, 0, "driver");
	Jsonb *config = jsonb_argument(fcinfo, 1, "config");

	PG_RETURN_JSONB_P(config_stored(driver, config, config_canonical(driver, config)));
}

static Datum
probe_datum(FunctionCallInfo fcinfo, const char *driver, const ProbeResult *probe)
{
	TupleDesc desc;
	Datum values[4];
	bool nulls[4] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	BlessTupleDesc(desc);
	values[0] = BoolGetDatum(probe->ok);
	values[1] = CStringGetTextDatum(driver);
	values[2] = CStringGetTextDatum(probe->summary);
	values[3] = JsonbPGetDatum(probe->details);
	return HeapTupleHeaderGetDatum(SPI_returntuple(heap_form_tuple(desc, values, nulls), desc));
}

/* The driver's probe, of a config that may have been stored by anybody. */
static void
probe(const Environment *environment, ProbeResult *result)
{
	JsonbObject details;
	char *problem;

	problem = config_problem(environment->driver, environment->config);
	if (problem != NULL)
	{
		jsonb_object_begin(&details);
		jsonb_object_string(&details, "error", problem);
		result->ok = false;
		result->summary =
		    psprintf("The config of environment \"%s\" is not valid.", environment->name);
		result->details = jsonb_object_end(&details);
		return;
	}
	driver_find(environment->driver, environment->config)->probe(environment, result);
}

/*
 * envrt_probe(environment_id)
 */
Datum
envrt_probe(PG_FUNCTION_ARGS)
{
	pg_uuid_t *id = uuid_argument(fcinfo, 0, "environment_id");
	ApiCall call;
	Environment *environment;
	ProbeResult result = {0};
	Datum datum;

	api_enter(&call, "envrt_probe()");
	environment = environment_load(&call, id);
	probe(environment, &result);
	datum = probe_datum(fcinfo, environment->driver, &result);
	api_leave(&call);
	PG_RETURN_DATUM(datum);
}

/* Nothing is stored: the key stays beside the config. */
static void
ssh_config_to_probe(const ApiCall *call, Jsonb *given, Environment *environment)
{
	json_t *config = json_from_jsonb(given);
	const json_t *private_key = take_private_key(config);
	json_t *canonical;

	if (private_key != NULL)
	{
		json_object_set_new(config, "privateKeySecretRef", json_null());
		check_private_key(private_key);
		environment->unsaved_private_key = json_string_value(private_key);
	}
	canonical = config_canonical_json("ssh", config);
	secret_check_reference(call, environment->company_id,
	                       json_object_get(canonical, "privateKeySecretRef"));
	environment->config = config_stored("ssh", given, canonical);
}

/* What its plugin does not accept is an error; what can't be asked is for the probe to say. */
static void
config_to_probe(const ApiCall *call, Jsonb *given, Environment *environment)
{
	PluginConfig config = {
	    .call = call, .company_id = environment->company_id, .driver = environment->driver};

	config.canonical = config_canonical(environment->driver, given);
	config_check_secrets(call, environment->company_id, config.canonical);
	if (plugin_config_concerns(environment->driver, config.canonical))
		plugin_config_validate(&config, false);
	else
		(void) config_check_exposed(call, environment->company_id, config.canonical, NULL, NULL);
	environment->unsaved_secrets = config.hidden;
	environment->config = config.config != NULL
	                          ? jsonb_from_json(config.config)
	                          : config_stored(environment->driver, given, config.canonical);
}

/*
 * envrt_probe_config(company_id, driver, config)
 */
DEFINE_UNLOGGED_FUNCTION(envrt_probe_config)
{
	pg_uuid_t *company_id = uuid_argument(fcinfo, 0, "company_id");
	char *driver = text_argument(fcinfo, 1, "driver");
	Jsonb *config = jsonb_argument(fcinfo, 2, "config");
	Environment environment = {0};
	ApiCall call;
	ProbeResult result = {0};
	Datum datum;

	api_enter(&call, "envrt_probe_config()");
	company_require(&call, company_id);
	environment.company_id = company_id;
	environment.name = "Unsaved environment";
	environment.driver = driver;
	environment.status = "active";
	if (strcmp(driver, "ssh") == 0 && JB_ROOT_IS_OBJECT(config))
		ssh_config_to_probe(&call, config, &environment);
	else
		config_to_probe(&call, config, &environment);
	probe(&environment, &result);
	datum = probe_datum(fcinfo, driver, &result);
	api_leave(&call);
	PG_RETURN_DATUM(datum);
}
