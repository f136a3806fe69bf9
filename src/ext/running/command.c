/*
 * command.c
 *		Commands in a lease, as the driver host is asked for them.
 *
 * A command runs where its lease is, through the driver that the lease says.
 * Whoever waits for it himself (execute.c) and whoever has the scheduler run
 * it (executions.c) asks for the same: the lease must be active, its driver
 * must run commands, and the driver host is told all that it needs in one
 * call.
 *
 * Values of env may be references to the company's secrets.  They are
 * resolved here, as late as can be, go to the driver host in the call, and
 * from there to the command by way of a descriptor or stdin: never in a
 * process's arguments.  Who can run `env` can read them, so using them is a
 * right of its own (secret_references.c).
 *
 * What is bytes travels as base64.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "hostlink/call_size.h"
#include "catalog/pg_type.h"
#include "running/command.h"
#include "base/compat.h"
#include "secrets/secret_references.h"
#include "base/json.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "shared/protocol.h"
#include "environments/provider_lease.h"
#include "secrets/secret_values.h"
#include "base/settings.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include <sodium.h>

/* What a plugin may take beyond a command's time limit, to end the command and to answer. */
#define PLUGIN_MARGIN_MS 30000

static void
require_env(Jsonb *env)
{
	if (!JB_ROOT_IS_OBJECT(env))
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("env must be a JSON object")));
}

static void
require_env_value(const char *name, const json_t *value)
{
	if (!json_is_string(value) && !secret_is_reference(value))
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		         errmsg("env.%s: Expected a string or a secret reference", text_from_utf8(name)),
		         errhint("A secret is {\"type\": \"secret_ref\", \"secretId\": ..., "
		                 "\"version\": \"latest\"}.")));
}

/*
 * The env with secrets in place (guarded).  *secrets (guarded): these, by names
 * that no worker can ask for.  They are to be masked in what it logs.
 */
static json_t *
resolve_env(const pg_uuid_t *company_id, Jsonb *given, json_t **secrets)
{
	json_t *env = json_from_jsonb(given);
	const char *name;
	json_t *value;
	void *next;

	*secrets = json_guard(json_object_new());
	json_object_foreach_safe(env, next, name, value)
	{
		json_t *secret;

		if (json_is_string(value))
			continue;
		secret = secret_resolve(company_id, value);
		json_object_set(*secrets, psprintf("env:%s", name), secret);
		json_object_set(env, name, secret);
	}
	return env;
}

static json_t *
text_json(text *value)
{
	return json_string(text_to_utf8(text_to_cstring(value)));
}

static json_t *
args_json(ArrayType *array)
{
	json_t *args = json_guard(json_array());
	Datum *elements;
	bool *nulls;
	int count;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
		json_array_append_new(args, text_json(DatumGetTextPP(elements[i])));
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

/* The params of a call about the lease (guarded). */
static json_t *
lease_params(const ApiCall *call, const CalledLease *lease)
{
	if (called_lease_is_fake(lease))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
		                errmsg("Sandbox driver does not support direct command execution for "
		                       "built-in providers."),
		                errhint("The fake sandbox is a name only: use an environment of provider "
		                        "bubblewrap, of a plugin, or of driver ssh.")));
	return called_lease_params(call, lease, "command execution");
}

/* Before anything is made of them: their number costs more than their bytes. */
static void
require_few(int count, int most, const char *what)
{
	if (count > most)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
		                errmsg("%s must not have more than %d elements", what, most),
		                errhint("Pass a list by stdin, or push a file into the workspace.")));
}

static void
require_small(size_t bytes)
{
	if (bytes > ENVRT_MAX_WORD_BYTES)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
		                errmsg("command, args and env together must not be longer than %d bytes",
		                       ENVRT_MAX_WORD_BYTES),
		                errhint("Pass data by stdin, or push a file into the workspace.")));
}

void
command_from_arguments(FunctionCallInfo fcinfo, bool raw, Command *command)
{
	memset(command, 0, sizeof(Command));
	require_argument(1, "command");
	require_argument(2, "args");
	command->command = PG_GETARG_TEXT_PP(1);
	if (VARSIZE_ANY_EXHDR(command->command) == 0)
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("command must not be empty")));
	command->args = PG_GETARG_ARRAYTYPE_P(2);
	require_few(ArrayGetNItems(ARR_NDIM(command->args), ARR_DIMS(command->args)),
	            ENVRT_MAX_ARGUMENTS, "args");
	if (array_contains_nulls(command->args))
		ereport(ERROR,
		        (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("args must not hold nulls")));
	if (!PG_ARGISNULL(3))
		command->cwd = PG_GETARG_TEXT_PP(3);
	command->env = jsonb_argument(fcinfo, 4, "env");
	require_env(command->env);
	require_few(JB_ROOT_COUNT(command->env), ENVRT_MAX_VARIABLES, "env");
	require_small(VARSIZE_ANY(command->command) + VARSIZE_ANY(command->args) +
	              VARSIZE_ANY(command->env));
	if (!PG_ARGISNULL(5))
	{
		struct varlena *input = PG_GETARG_VARLENA_PP(5);

		if (VARSIZE_ANY_EXHDR(input) > CALL_MAX_STDIN)
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			                errmsg("stdin must not be longer than %d bytes", CALL_MAX_STDIN),
			                errhint("Push a file into the workspace instead.")));
		if (raw)
			command->stdin_bytes = input;
		else
			command->stdin_text = input;
	}
	command->timeout_ms = read_timeout(fcinfo, 6);
}

void
command_check_env(const ApiCall *call, const CalledLease *lease, const Command *command)
{
	json_t *env = json_from_jsonb(command->env);
	const char *name;
	json_t *value;

	json_object_foreach(env, name, value)
	{
		require_env_value(name, value);
		if (json_is_string(value))
			continue;
		config_require_env_right(call);
		secret_check_reference(call, lease->company_id, value);
	}
}

/* Plugins know text only. */
static json_t *
bytes_as_text_json(bytea *value)
{
	const char *bytes = VARDATA_ANY(value);
	size_t length = VARSIZE_ANY_EXHDR(value);

	if (!pg_verify_mbstr(PG_UTF8, bytes, length, true))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("stdin must be UTF-8 without zero bytes for a plugin")));
	return json_stringn(bytes, length);
}

json_t *
command_params(const ApiCall *call, const CalledLease *lease, const Command *command,
               int64 otherwise_ms, int64 *timeout_ms)
{
	json_t *params = lease_params(call, lease);
	json_t *config_timeout = json_object_get(json_object_get(params, "config"), "timeoutMs");
	int64 timeout = command->timeout_ms;
	int64 call_ms;
	bool of_plugin = called_lease_is_of_plugin(lease);
	json_t *lease_json = called_lease_json(lease, params);
	json_t *remote_cwd = json_object_get(json_object_get(lease_json, "metadata"), "remoteCwd");
	json_t *secrets;

	json_object_set_new(params, "lease", lease_json);
	json_object_set_new(params, "command", text_json(command->command));
	json_object_set(params, "args", args_json(command->args));
	if (command->cwd != NULL)
		json_object_set_new(params, "cwd", text_json(command->cwd));
	/* The driver host's own know where a lease is; a plugin is told, as by the application. */
	else if (of_plugin && json_is_string(remote_cwd))
		json_object_set(params, "cwd", remote_cwd);
	json_object_set(params, "env", resolve_env(lease->company_id, command->env, &secrets));
	if (of_plugin && json_object_size(secrets) > 0)
		json_object_set(params, "secrets", secrets);
	if (command->stdin_bytes != NULL && of_plugin)
		json_object_set_new(params, "stdin", bytes_as_text_json(command->stdin_bytes));
	else if (command->stdin_bytes != NULL)
		json_object_set_new(params, "stdinBase64", base64_json(command->stdin_bytes));
	if (command->stdin_text != NULL)
		json_object_set_new(params, "stdin", text_json(command->stdin_text));
	if (timeout == 0 && json_is_integer(config_timeout))
		timeout = json_integer_value(config_timeout);
	if (timeout > 0)
		json_object_set_new(params, "timeoutMs", json_integer(timeout));
	else
		timeout = otherwise_ms;
	/* A plugin has the time of the command, which the host adds, and what it takes to end it. */
	call_ms = timeout;
	if (of_plugin)
	{
		timeout += PLUGIN_MARGIN_MS;
		call_ms = json_object_get(params, "timeoutMs") != NULL ? PLUGIN_MARGIN_MS : timeout;
	}
	json_object_set_new(params, "limits",
	                    json_pack("{s:I, s:i, s:i, s:i, s:i}", "callMs", (json_int_t) call_ms,
	                              "connectMs", envrt_ssh_connect_timeout, "graceMs",
	                              COMMAND_GRACE_MS, "drainMs", envrt_output_grace, "maxOutput",
	                              envrt_max_output * 1024));
	*timeout_ms = timeout + envrt_ssh_connect_timeout + 2 * COMMAND_GRACE_MS + envrt_output_grace;
	return params;
}

text *
text_of_bytes(const char *bytes, size_t length, bool *replaced)
{
	static const char replacement[] = "\xef\xbf\xbd";
	const unsigned char *next = (const unsigned char *) bytes;
	StringInfoData utf8;
	char *converted;

	*replaced = false;
	initStringInfo(&utf8);
	while (length > 0)
	{
		size_t count = pg_utf_mblen(next);

		if (*next == '\0' || count > length || !pg_utf8_islegal(next, count))
		{
			*replaced = true;
			appendStringInfoString(&utf8, replacement);
			count = 1;
		}
		else
			appendBinaryStringInfo(&utf8, (const char *) next, count);
		next += count;
		length -= count;
	}
	converted = text_from_utf8(utf8.data);
	if (GetDatabaseEncoding() != PG_UTF8 && strcmp(text_to_utf8(converted), utf8.data) != 0)
		*replaced = true;
	return cstring_to_text(converted);
}
