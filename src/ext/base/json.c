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
