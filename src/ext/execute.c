/*
 * execute.c
 *		Commands in a lease: envrt_execute and envrt_execute_raw.
 *
 * A command runs where its lease is, through the driver that the lease says,
 * and the caller waits for it: like any call it is cancelled with the
 * statement.  A command that fails is a row, a driver that fails is an error.
 *
 * Values of env may be references to the company's secrets.  They are
 * resolved here, go to the driver host in the call, and from there to the
 * command by way of a descriptor or stdin: never in a process's arguments.
 * Who can run `env` can read them, so using them is a right of its own,
 * EXECUTE on envrt.use_secrets_in_env().
 *
 * What is bytes travels as base64; as text, what is no text is replaced.
 */
#include "postgres.h"

#include "arguments.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "config_secrets.h"
#include "driver_call.h"
#include "drivers.h"
#include "environments.h"
#include "funcapi.h"
#include "json.h"
#include "lease_call.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "provider_lease.h"
#include "secrets.h"
#include "settings.h"
#include "tables.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include <sodium.h>

PG_FUNCTION_INFO_V1(envrt_execute);
PG_FUNCTION_INFO_V1(envrt_execute_raw);
PG_FUNCTION_INFO_V1(envrt_use_secrets_in_env);

/* Between SIGTERM and SIGKILL. */
#define GRACE_MS 2000
/* All of a call has to fit into a line. */
#define MAX_INPUT_BYTES (8 * 1024 * 1024)

/*
 * envrt.use_secrets_in_env()
 *		EXECUTE on it is what counts.
 */
Datum
envrt_use_secrets_in_env(PG_FUNCTION_ARGS)
{
	PG_RETURN_VOID();
}

static void
require_secrets_right(const ApiCall *call)
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

/* The env with secrets in place (guarded). */
static json_t *
resolve_env(const ApiCall *call, const pg_uuid_t *company_id, Jsonb *given)
{
	json_t *env;
	const char *name;
	json_t *value;
	void *next;

	if (!JB_ROOT_IS_OBJECT(given))
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("env must be a JSON object")));
	env = json_from_jsonb(given);
	json_object_foreach_safe(env, next, name, value)
	{
		if (json_is_string(value))
			continue;
		if (!config_is_secret_reference(value))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			                errmsg("env.%s: Expected a string or a secret reference",
			                       text_from_utf8(name)),
			                errhint("A secret is {\"type\": \"secret_ref\", \"secretId\": ..., "
			                        "\"version\": \"latest\"}.")));
		require_secrets_right(call);
		secret_check_reference(call, company_id, value);
		json_object_set(env, name, secret_resolve(company_id, value));
	}
	return env;
}

static json_t *
text_json(text *value)
{
	return json_string(text_to_utf8(text_to_cstring(value)));
}

static json_t *
read_args(FunctionCallInfo fcinfo, int n)
{
	json_t *args = json_guard(json_array());
	Datum *elements;
	bool *nulls;
	int count;

	require_argument(n, "args");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(n), TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls,
	                  &count);
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
			        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("args must not hold nulls")));
		json_array_append_new(args, text_json(DatumGetTextPP(elements[i])));
	}
	return args;
}

static json_t *
base64_json(bytea *value)
{
	size_t length = VARSIZE_ANY_EXHDR(value);
	size_t size = sodium_base64_encoded_len(length, sodium_base64_VARIANT_ORIGINAL);
	char *text = palloc(size);

	sodium_bin2base64(text, size, (const unsigned char *) VARDATA_ANY(value), length,
	                  sodium_base64_VARIANT_ORIGINAL);
	return json_string_nocheck(text);
}

static int64
read_timeout(FunctionCallInfo fcinfo, int n)
{
	Interval *timeout;
	double ms;

	if (PG_ARGISNULL(n))
		return 0;
	timeout = PG_GETARG_INTERVAL_P(n);
	ms = (timeout->month * 31.0 + timeout->day) * 86400000.0 + timeout->time / 1000.0;
	if (ms < 1 || ms > 86400000.0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("timeout must be between one millisecond and one day")));
	return (int64) ms;
}

/* Everything that the driver host is told (guarded); *timeout_ms is what it may take. */
static json_t *
command_params(FunctionCallInfo fcinfo, const ApiCall *call, bool raw, int64 *timeout_ms)
{
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	CalledLease lease;
	json_t *params;
	json_t *config_timeout;
	int64 timeout = read_timeout(fcinfo, 6);

	require_argument(1, "command");
	called_lease_load(call, lease_id, &lease);
	if (called_lease_is_fake(&lease))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
		                errmsg("Sandbox driver does not support direct command execution for "
		                       "built-in providers.")));
	params = called_lease_params(call, &lease, "command execution");
	json_object_set_new(params, "lease", called_lease_json(&lease));
	json_object_set_new(params, "command", text_json(PG_GETARG_TEXT_PP(1)));
	json_object_set(params, "args", read_args(fcinfo, 2));
	if (!PG_ARGISNULL(3))
		json_object_set_new(params, "cwd", text_json(PG_GETARG_TEXT_PP(3)));
	json_object_set(params, "env",
	                resolve_env(call, lease.company_id, jsonb_argument(fcinfo, 4, "env")));
	if (!PG_ARGISNULL(5))
	{
		if (VARSIZE_ANY_EXHDR(PG_GETARG_VARLENA_PP(5)) > MAX_INPUT_BYTES)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			                errmsg("stdin must not be longer than %d bytes", MAX_INPUT_BYTES),
			                errhint("Push a file into the workspace instead.")));
		if (raw)
			json_object_set_new(params, "stdinBase64", base64_json(PG_GETARG_BYTEA_PP(5)));
		else
			json_object_set_new(params, "stdin", text_json(PG_GETARG_TEXT_PP(5)));
	}
	config_timeout = json_object_get(json_object_get(params, "config"), "timeoutMs");
	if (timeout == 0 && json_is_integer(config_timeout))
		timeout = json_integer_value(config_timeout);
	if (timeout > 0)
		json_object_set_new(params, "timeoutMs", json_integer(timeout));
	else
		timeout = envrt_execute_timeout;
	if (raw)
		json_object_set_new(params, "encoding", json_string("base64"));
	json_object_set_new(params, "limits",
	                    json_pack("{s:I, s:i, s:i, s:i}", "callMs", (json_int_t) timeout,
	                              "connectMs", envrt_ssh_connect_timeout, "graceMs", GRACE_MS,
	                              "maxOutput", envrt_max_output * 1024));
	*timeout_ms = timeout + envrt_ssh_connect_timeout + 2 * GRACE_MS;
	return params;
}

/* A stream of the result as text or bytes. */
static Datum
stream_datum(const json_t *result, const char *name, bool raw)
{
	const json_t *value;
	const char *text;
	bytea *bytes;
	size_t length = 0;

	if (!raw)
	{
		value = json_object_get(result, name);
		return CStringGetTextDatum(json_is_string(value) ? text_from_utf8(json_string_value(value))
		                                                 : "");
	}
	value = json_object_get(result, psprintf("%sBase64", name));
	if (!json_is_string(value))
	{
		/* A plugin knows text only. */
		value = json_object_get(result, name);
		length = json_string_length(value);
		bytes = palloc(VARHDRSZ + length + 1);
		if (length > 0)
			memcpy(VARDATA(bytes), json_string_value(value), length);
	}
	else
	{
		text = json_string_value(value);
		bytes = palloc(VARHDRSZ + strlen(text) + 1);
		if (sodium_base642bin((unsigned char *) VARDATA(bytes), strlen(text) + 1, text,
		                      strlen(text), NULL, &length, NULL,
		                      sodium_base64_VARIANT_ORIGINAL) != 0)
			ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
			                errmsg("the driver host answered with bytes that are none")));
	}
	SET_VARSIZE(bytes, VARHDRSZ + length);
	return PointerGetDatum(bytes);
}

static Datum
result_row_of(FunctionCallInfo fcinfo, const json_t *result, bool raw)
{
	TupleDesc desc;
	Datum values[6] = {0};
	bool nulls[6] = {false};
	const json_t *exit_code = json_object_get(result, "exitCode");
	const json_t *signal = json_object_get(result, "signal");
	json_t *metadata = json_object_get(result, "metadata");

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (!json_is_object(result))
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		                errmsg("the driver answered without a result")));
	BlessTupleDesc(desc);
	nulls[0] = !json_is_integer(exit_code);
	values[0] = Int32GetDatum((int32) json_integer_value(exit_code));
	nulls[1] = !json_is_string(signal);
	if (!nulls[1])
		values[1] = CStringGetTextDatum(text_from_utf8(json_string_value(signal)));
	values[2] = BoolGetDatum(json_is_true(json_object_get(result, "timedOut")));
	values[3] = stream_datum(result, "stdout", raw);
	values[4] = stream_datum(result, "stderr", raw);
	nulls[5] = !json_is_object(metadata);
	if (!nulls[5])
		values[5] = JsonbPGetDatum(jsonb_from_json(metadata));
	return HeapTupleHeaderGetDatum(SPI_returntuple(heap_form_tuple(desc, values, nulls), desc));
}

static Datum
execute(FunctionCallInfo fcinfo, const char *function, bool raw)
{
	ApiCall call;
	int64 timeout_ms;
	json_t *params;
	json_t *answer;
	json_t *error;
	Datum result;

	api_enter(&call, function);
	params = command_params(fcinfo, &call, raw, &timeout_ms);
	answer = provider_call("environmentExecute", params, timeout_ms, &error);
	if (error != NULL)
		driver_host_raise(error);
	result = result_row_of(fcinfo, answer, raw);
	api_leave(&call);
	return result;
}

/*
 * envrt_execute(lease_id, command, args, cwd, env, stdin, timeout)
 */
Datum
envrt_execute(PG_FUNCTION_ARGS)
{
	return execute(fcinfo, "envrt_execute()", false);
}

/*
 * envrt_execute_raw(lease_id, command, args, cwd, env, stdin, timeout)
 */
Datum
envrt_execute_raw(PG_FUNCTION_ARGS)
{
	return execute(fcinfo, "envrt_execute_raw()", true);
}
