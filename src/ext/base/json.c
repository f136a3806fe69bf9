/*
 * json.c
 *		Between jsonb and the JSON library.
 *
 * Configs and the driver host's answers are handled as jansson objects, since
 * the code that checks them is shared with the driver host.  jansson
 * allocates by malloc, which knows nothing of ereport: every object is tied
 * to a memory context by json_guard right where it is made, and goes with it.
 * rpc_protect_memory (called at load) has jansson zero what it frees.
 *
 * jansson speaks UTF-8 only; text is converted at this border.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "shared/config.h"
#include "environments/drivers.h"
#include "base/json.h"
#include "shared/jsonrpc.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

static void
json_release(void *json)
{
	json_decref(json);
}

/* Ties the object to CurrentMemoryContext; NULL means out of memory. */
json_t *
json_guard(json_t *json)
{
	MemoryContextCallback *callback;

	if (json == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	callback = MemoryContextAllocExtended(CurrentMemoryContext, sizeof(MemoryContextCallback),
	                                      MCXT_ALLOC_NO_OOM);
	if (callback == NULL)
	{
		json_decref(json);
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	callback->func = json_release;
	callback->arg = json;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	return json;
}

char *
text_to_utf8(const char *text)
{
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

/*
 * What comes from outside may hold characters that the database's encoding
 * has not: each becomes a question mark, since a message that can't be shown
 * must not hide the error that it is about.
 */
char *
text_from_utf8(const char *text)
{
	int encoding = GetDatabaseEncoding();
	int length = strlen(text);
	Oid conversion;
	StringInfoData converted;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return pstrdup(text);
	conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(conversion))
		return pg_any_to_server(text, length, PG_UTF8);
	initStringInfo(&converted);
	while (length > 0)
	{
		int size = length * MAX_CONVERSION_GROWTH + 1;
		char *part = palloc(size);
		int used = pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding,
		                                         (unsigned char *) unconstify(char *, text), length,
		                                         (unsigned char *) part, size, true);

		appendStringInfoString(&converted, part);
		pfree(part);
		text += used;
		length -= used;
		if (length > 0)
		{
			int skip = Min(pg_encoding_mblen(PG_UTF8, text), length);

			appendStringInfoChar(&converted, '?');
			text += skip;
			length -= skip;
		}
	}
	return converted.data;
}

json_t *
json_from_jsonb(Jsonb *jsonb)
{
	char *text = text_to_utf8(JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb)));
	json_error_t error;
	json_t *json = json_loads(text, JSON_DECODE_ANY, &error);

	/* Integers beyond 64 bits: in keys that we know, a real of that size is wrong as well. */
	if (json == NULL && json_error_code(&error) == json_error_numeric_overflow)
		json = json_loads(text, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, &error);
	if (json == NULL)
	{
		if (json_error_code(&error) == json_error_out_of_memory)
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
		/* jsonb holds numbers and depths that other JSON software does not. */
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("config is not usable: %s", text_from_utf8(error.text))));
	}
	return json_guard(json);
}

/* jsonb has no U+0000, so something else of the same length takes its place. */
static void
replace_nul(char *text)
{
	const char *other = GetDatabaseEncoding() == PG_UTF8 ? "ufffd" : "u003f";

	for (char *p = text; (p = strchr(p, '\\')) != NULL; p += 2)
		if (strncmp(p + 1, "u0000", 5) == 0)
			memcpy(p + 1, other, 5);
}

Jsonb *
jsonb_from_json(const json_t *json)
{
	size_t length;
	char *line = rpc_dump_line(json, &length);
	char *text;

	if (line == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	text = MemoryContextAllocExtended(CurrentMemoryContext, length + 1, MCXT_ALLOC_NO_OOM);
	if (text != NULL)
	{
		memcpy(text, line, length);
		text[length] = '\0';
	}
	rpc_line_free(line, length);
	if (text == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	replace_nul(text);
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text_from_utf8(text))));
}

char *
jsonb_string_member(Jsonb *jsonb, const char *key)
{
	JsonbValue value;

	if (!JB_ROOT_IS_OBJECT(jsonb) ||
	    getKeyJsonValueFromContainer(&jsonb->root, key, strlen(key), &value) == NULL ||
	    value.type != jbvString)
		return NULL;
	return pnstrdup(value.val.string.val, value.val.string.len);
}

void
jsonb_object_begin(JsonbObject *object)
{
	object->state = NULL;
	pushJsonbValue(&object->state, WJB_BEGIN_OBJECT, NULL);
}

static void
push_key(JsonbObject *object, const char *key)
{
	JsonbValue value = {.type = jbvString};

	value.val.string.val = unconstify(char *, key);
	value.val.string.len = strlen(key);
	pushJsonbValue(&object->state, WJB_KEY, &value);
}

/* A NULL value makes a JSON null. */
void
jsonb_object_string(JsonbObject *object, const char *key, const char *string)
{
	JsonbValue value = {.type = jbvNull};

	if (string != NULL)
	{
		value.type = jbvString;
		value.val.string.val = unconstify(char *, string);
		value.val.string.len = strlen(string);
	}
	push_key(object, key);
	pushJsonbValue(&object->state, WJB_VALUE, &value);
}

void
jsonb_object_bool(JsonbObject *object, const char *key, bool boolean)
{
	JsonbValue value = {.type = jbvBool};

	value.val.boolean = boolean;
	push_key(object, key);
	pushJsonbValue(&object->state, WJB_VALUE, &value);
}

void
jsonb_object_jsonb(JsonbObject *object, const char *key, Jsonb *jsonb)
{
	JsonbValue value = {.type = jbvBinary};

	value.val.binary.data = &jsonb->root;
	value.val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
	push_key(object, key);
	pushJsonbValue(&object->state, WJB_VALUE, &value);
}

Jsonb *
jsonb_object_end(JsonbObject *object)
{
	return JsonbValueToJsonb(pushJsonbValue(&object->state, WJB_END_OBJECT, NULL));
}

static char *
issues_detail(const ConfigIssues *issues)
{
	json_t *list = json_guard(json_array());
	json_t *root;

	for (int i = 0; i < issues->count; i++)
	{
		const ConfigIssue *issue = &issues->issue[i];
		json_t *path = json_array();
		char *copy = pstrdup(issue->path);
		char *rest = NULL;

		for (char *key = strtok_r(copy, ".", &rest); key != NULL; key = strtok_r(NULL, ".", &rest))
			json_array_append_new(path, json_string(key));
		json_array_append_new(list,
		                      json_pack("{s:o, s:s}", "path", path, "message", issue->message));
	}
	root = json_guard(json_pack("{s:O}", "issues", list));
	return JsonbToCString(NULL, &jsonb_from_json(root)->root, 0);
}

json_t *
config_canonical_json(const char *driver, json_t *config)
{
	ConfigIssues *issues = palloc0(sizeof(ConfigIssues));
	json_t *canonical = config_normalize(text_to_utf8(driver), config, issues);
	char text[512];

	if (canonical == NULL && issues->count > 0)
	{
		config_issue_text(&issues->issue[0], text, sizeof(text));
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg_internal("%s", text_from_utf8(text)),
		                errdetail_internal("%s", issues_detail(issues)),
		                strcmp(issues->issue[0].path, "driver") == 0
		                    ? errhint("The drivers are local, ssh, sandbox and plugin.")
		                    : 0));
	}
	return json_guard(canonical);
}

json_t *
config_canonical(const char *driver, Jsonb *config)
{
	/* Any object will do, also one that the JSON library would not read. */
	if (strcmp(driver, "local") == 0)
		return json_guard(json_object_new());
	return config_canonical_json(driver, json_from_jsonb(config));
}

char *
config_problem(const char *driver, Jsonb *config)
{
	ConfigIssues *issues = palloc0(sizeof(ConfigIssues));
	json_t *canonical = config_normalize(text_to_utf8(driver), json_from_jsonb(config), issues);
	char text[512];

	if (canonical == NULL && issues->count > 0)
	{
		config_issue_text(&issues->issue[0], text, sizeof(text));
		return text_from_utf8(text);
	}
	(void) json_guard(canonical);
	return NULL;
}

/* object || {key: value} */
static Jsonb *
with_member(Jsonb *object, const char *key, const JsonbValue *value)
{
	JsonbParseState *state = NULL;
	JsonbValue name = {.type = jbvString};
	JsonbValue copy = *value;

	name.val.string.val = unconstify(char *, key);
	name.val.string.len = strlen(key);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	pushJsonbValue(&state, WJB_KEY, &name);
	pushJsonbValue(&state, WJB_VALUE, &copy);
	return DatumGetJsonbP(DirectFunctionCall2(
	    jsonb_concat, JsonbPGetDatum(object),
	    JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)))));
}

/*
 * jsonb keeps numbers that the JSON library can't (1.10, 30 digits).  Where
 * something passes through unchanged it is stored as it was given, so that
 * nothing is rounded on the way.
 */
Jsonb *
config_stored(const char *driver, Jsonb *given, const json_t *canonical)
{
	static const char *const provider_keys[] = {"provider", "timeoutMs", "reuseLease"};
	JsonbValue value;
	json_t *known;
	const char *provider;

	if (!JB_ROOT_IS_OBJECT(given))
		return jsonb_from_json(canonical);
	if (strcmp(driver, "local") == 0)
		return given;
	if (strcmp(driver, "plugin") == 0 &&
	    getKeyJsonValueFromContainer(&given->root, "driverConfig", strlen("driverConfig"),
	                                 &value) != NULL)
		return with_member(jsonb_from_json(canonical), "driverConfig", &value);
	if (strcmp(driver, "sandbox") != 0)
		return jsonb_from_json(canonical);
	provider = json_string_value(json_object_get(canonical, "provider"));
	if (provider_is_builtin(provider))
		return jsonb_from_json(canonical);
	known = json_guard(json_object_new());
	for (int i = 0; i < (int) lengthof(provider_keys); i++)
	{
		json_t *member = json_object_get(canonical, provider_keys[i]);

		if (member != NULL)
			json_object_set(known, provider_keys[i], member);
	}
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(given),
	                                          JsonbPGetDatum(jsonb_from_json(known))));
}
