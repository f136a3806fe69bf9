/*
 * execute.c
 *		envrt_execute and envrt_execute_raw: a command in a lease, waited for.
 *
 * Like any call to a driver it is cancelled with the statement.  A command
 * that fails is a row, a driver that fails is an error.  As text, what is no
 * text is replaced.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "running/command.h"
#include "hostlink/blocking_calls.h"
#include "shared/execute_result.h"
#include "funcapi.h"
#include "base/json.h"
#include "leases/active_lease.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "base/statement_log.h"
#include "rights/tables.h"

#include <sodium.h>

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
		bool replaced;

		value = json_object_get(result, name);
		return PointerGetDatum(text_of_bytes(json_is_string(value) ? json_string_value(value) : "",
		                                     json_string_length(value), &replaced));
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
	ExecuteResult read;
	const char *problem = execute_result_read(result, &read);
	json_t *metadata = json_object_get(result, "metadata");

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (problem != NULL)
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
		                errmsg("the driver's answer can't be used: %s", problem)));
	BlessTupleDesc(desc);
	nulls[0] = !read.has_exit_code;
	values[0] = Int32GetDatum(read.exit_code);
	nulls[1] = read.signal == NULL;
	if (!nulls[1])
		values[1] = CStringGetTextDatum(text_from_utf8(read.signal));
	values[2] = BoolGetDatum(read.timed_out);
	values[3] = stream_datum(result, "stdout", raw);
	values[4] = stream_datum(result, "stderr", raw);
	nulls[5] = !json_is_object(metadata);
	if (!nulls[5])
		values[5] = JsonbPGetDatum(jsonb_from_json(metadata));
	return HeapTupleHeaderGetDatum(SPI_returntuple(heap_form_tuple(desc, values, nulls), desc));
}

static Datum
execute_execute(FunctionCallInfo fcinfo, const char *function, bool raw)
{
	ApiCall call;
	CalledLease lease;
	Command command;
	int64 timeout_ms;
	json_t *params;
	json_t *answer;
	json_t *error;
	Datum result;

	api_enter(&call, function);
	command_from_arguments(fcinfo, raw, &command);
	called_lease_load(&call, uuid_argument(fcinfo, 0, "lease_id"), &lease);
	command_check_env(&call, &lease, &command);
	params = command_params(&call, &lease, &command, envrt_execute_timeout, &timeout_ms);
	if (raw)
		json_object_set_new(params, "encoding", json_string("base64"));
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
DEFINE_UNLOGGED_FUNCTION(envrt_execute)
{
	return execute_execute(fcinfo, "envrt_execute()", false);
}

/*
 * envrt_execute_raw(lease_id, command, args, cwd, env, stdin, timeout)
 */
DEFINE_UNLOGGED_FUNCTION(envrt_execute_raw)
{
	return execute_execute(fcinfo, "envrt_execute_raw()", true);
}
