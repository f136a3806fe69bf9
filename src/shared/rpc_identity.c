/*
 * rpc_identity.c
 *		Whose a line is that can't be used as a message.
 *
 * A line that is too long to keep, or that no parser takes, still says in most
 * cases which call it is about.  The scanner follows the quotes and brackets of
 * JSON and nothing else, so it can be wrong about a line that is no JSON; it is
 * asked only when it is certain that the line can't be used, and all that
 * depends on its word is which call fails.
 *
 * Where a key comes twice, two readers could disagree, so a second id makes it
 * nobody's.  What follows the outermost object is not looked at.
 */
#include <string.h>

#include "shared/rpc_identity.h"

static bool
key_is(const RpcScanner *scanner, const char *key)
{
	return scanner->key_length == strlen(key) && memcmp(scanner->key, key, strlen(key)) == 0;
}

static bool
rpc_identity_is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* A member of the outermost object is complete. */
static void
end_member(RpcScanner *scanner)
{
	static const char version[] = "\"2.0\"";
	size_t length = scanner->value_length;

	if (!scanner->in_value)
		return;
	scanner->in_value = false;
	while (length > 0 && rpc_identity_is_space(scanner->value[length - 1]))
		length--;
	if (key_is(scanner, "method"))
		scanner->has_method = true;
	else if (key_is(scanner, "jsonrpc"))
		scanner->has_version = !scanner->value_is_nested && length == sizeof version - 1 &&
		                       memcmp(scanner->value, version, length) == 0;
	else if (key_is(scanner, "id"))
	{
		scanner->ids++;
		scanner->id_length = 0;
		if (scanner->value_is_nested || length >= sizeof scanner->id)
			return;
		memcpy(scanner->id, scanner->value, length);
		scanner->id_length = length;
	}
}

static void
keep(char *to, size_t *used, size_t size, char c)
{
	/* What is too long keeps its full size, and so is none of those that are looked for. */
	if (*used < size)
		to[(*used)++] = c;
}

static void
scan_text(RpcScanner *scanner, char c)
{
	if (scanner->escaped)
		scanner->escaped = false;
	else if (c == '\\')
		scanner->escaped = true;
	else if (c == '"')
	{
		scanner->in_text = scanner->in_key = false;
		return;
	}
	if (scanner->in_key)
		keep(scanner->key, &scanner->key_length, sizeof scanner->key, c);
}

static void
scan_byte(RpcScanner *scanner, char c)
{
	bool outermost = scanner->depth == 1;

	if (!scanner->begun)
	{
		if (rpc_identity_is_space(c))
			return;
		scanner->begun = true;
		scanner->is_object = c == '{';
		scanner->over = !scanner->is_object;
		scanner->depth = 1;
		return;
	}
	if (outermost && scanner->in_value && scanner->keeps && c != ',' && c != '}' &&
	    !(scanner->value_length == 0 && rpc_identity_is_space(c)))
		keep(scanner->value, &scanner->value_length, sizeof scanner->value, c);
	switch (c)
	{
		case '"':
			scanner->in_text = true;
			if (outermost && !scanner->in_value)
			{
				scanner->in_key = true;
				scanner->key_length = 0;
			}
			break;
		case ':':
			if (outermost && !scanner->in_value)
			{
				scanner->in_value = true;
				scanner->keeps = key_is(scanner, "id") || key_is(scanner, "jsonrpc");
				scanner->value_is_nested = false;
				scanner->value_length = 0;
			}
			break;
		case ',':
			if (outermost)
				end_member(scanner);
			break;
		case '{':
		case '[':
			scanner->value_is_nested = true;
			scanner->depth++;
			break;
		case '}':
		case ']':
			if (outermost)
				end_member(scanner);
			if (--scanner->depth == 0)
				scanner->over = true;
			break;
		default:
			break;
	}
}

void
rpc_scan(RpcScanner *scanner, const char *bytes, size_t length)
{
	const char *end = bytes + length;

	scanner->length += length;
	for (const char *next = bytes; next < end && !scanner->over; next++)
	{
		bool kept = scanner->depth == 1 && scanner->in_value && scanner->keeps;

		if (!scanner->in_text)
		{
			scan_byte(scanner, *next);
			continue;
		}
		/* Most of what is long is one text. */
		if (!kept && !scanner->in_key && !scanner->escaped)
		{
			while (next < end && *next != '"' && *next != '\\')
				next++;
			if (next == end)
				break;
		}
		if (kept)
			keep(scanner->value, &scanner->value_length, sizeof scanner->value, *next);
		scan_text(scanner, *next);
	}
}

void
rpc_scan_end(const RpcScanner *scanner, RpcIdentity *identity)
{
	RpcScanner last = *scanner;

	memset(identity, 0, sizeof *identity);
	/* Of one that is cut off the last member may be what is looked for. */
	if (!last.over && !last.in_text && last.depth == 1)
		end_member(&last);
	identity->length = last.length;
	identity->is_message = last.is_object && last.has_version;
	identity->has_method = last.has_method;
	if (last.ids != 1 || last.id_length == 0)
		return;
	identity->id = json_loadb(last.id, last.id_length, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
	if (!json_is_integer(identity->id) && !json_is_string(identity->id))
	{
		json_decref(identity->id);
		identity->id = NULL;
	}
}

void
rpc_identify(const char *line, size_t length, RpcIdentity *identity)
{
	RpcScanner scanner = {0};

	rpc_scan(&scanner, line, length);
	rpc_scan_end(&scanner, identity);
}

void
rpc_identity_clear(RpcIdentity *identity)
{
	json_decref(identity->id);
	memset(identity, 0, sizeof *identity);
}
