/*
 * config_values.c
 *		Values of a config: read, checked, and coerced as the rules of driver_config.c say.
 *
 * Each reader adds what is wrong to the issues and returns a placeholder then, so that
 * the rules after it run and a person sees all faults at once.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "shared/driver_config.h"
#include "shared/config_values.h"

#define MAX_VERSION 2147483647
#define MAX_NAME 255

/* Cuts at a whole UTF-8 character when the text does not fit. */
void
config_copy_utf8(char *buffer, size_t size, const char *text)
{
	size_t length = strlen(text);

	if (size == 0)
		return;
	if (length >= size)
	{
		length = size - 1;
		while (length > 0 && ((unsigned char) text[length] & 0xC0) == 0x80)
			length--;
	}
	memcpy(buffer, text, length);
	buffer[length] = '\0';
}

void
config_add_issue(ConfigIssues *issues, const char *path, const char *format, ...)
{
	ConfigIssue *issue;
	/* Keys of any length may come in; what is cut here is cut once more below. */
	char message[1024];
	va_list args;

	if (issues->count >= CONFIG_MAX_ISSUES)
		return;
	issue = &issues->issue[issues->count++];
	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	config_copy_utf8(issue->path, sizeof(issue->path), path);
	config_copy_utf8(issue->message, sizeof(issue->message), message);
}

/* As the schema library names the types. */
static const char *
type_name(const json_t *value)
{
	switch (json_typeof(value))
	{
		case JSON_OBJECT:
			return "object";
		case JSON_ARRAY:
			return "array";
		case JSON_STRING:
			return "string";
		case JSON_INTEGER:
		case JSON_REAL:
			return "number";
		case JSON_TRUE:
		case JSON_FALSE:
			return "boolean";
		default:
			return "null";
	}
}

void
config_add_type_issue(ConfigIssues *issues, const char *path, const char *expected,
                      const json_t *value)
{
	config_add_issue(issues, path, "Expected %s, received %s", expected, type_name(value));
}

/* The length of the white space character of JavaScript that text starts with, or 0. */
static size_t
js_space(const char *text, size_t length)
{
	static const char *const spaces[] = {
	    "\t",     "\n",     "\v",     "\f",     "\r",     " ",      "\u00a0", "\u1680", "\u2000",
	    "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009",
	    "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff",
	};

	for (size_t i = 0; i < sizeof(spaces) / sizeof(spaces[0]); i++)
	{
		size_t size = strlen(spaces[i]);

		if (size <= length && memcmp(text, spaces[i], size) == 0)
			return size;
	}
	return 0;
}

void
config_js_trim(const char **text, size_t *length)
{
	size_t size;

	while ((size = js_space(*text, *length)) > 0)
	{
		*text += size;
		*length -= size;
	}
	for (;;)
	{
		/* A character has at most three bytes here; look at each start. */
		for (size = 1; size <= 3 && size <= *length; size++)
		{
			if (js_space(*text + *length - size, size) == size)
				break;
		}
		if (size > 3 || size > *length)
			return;
		*length -= size;
	}
}

/* JavaScript's Number() of a string: a decimal or 0x, 0o, 0b literal, or NAN. */
static double
js_string_to_number(const char *text, size_t length)
{
	char copy[64];
	const char *p;
	bool digits = false;

	config_js_trim(&text, &length);
	if (length == 0)
		return 0;
	/* No number that passes a rule of ours needs more. */
	if (length >= sizeof(copy) || memchr(text, '\0', length) != NULL)
		return NAN;
	memcpy(copy, text, length);
	copy[length] = '\0';

	if (copy[0] == '0' && copy[1] != '\0' && strchr("xXoObB", copy[1]) != NULL)
	{
		int base = copy[1] == 'x' || copy[1] == 'X' ? 16 : copy[1] == 'o' || copy[1] == 'O' ? 8 : 2;
		double number = 0;

		for (p = copy + 2; *p != '\0'; p++)
		{
			const char *all = "0123456789abcdef";
			const char *digit = strchr(all, *p >= 'A' && *p <= 'Z' ? *p - 'A' + 'a' : *p);

			if (digit == NULL || digit - all >= base)
				return NAN;
			number = number * base + (double) (digit - all);
		}
		return p == copy + 2 ? NAN : number;
	}

	p = copy;
	if (*p == '+' || *p == '-')
		p++;
	if (strcmp(p, "Infinity") == 0)
		return *copy == '-' ? -INFINITY : INFINITY;
	for (; *p >= '0' && *p <= '9'; p++)
		digits = true;
	if (*p == '.')
	{
		for (p++; *p >= '0' && *p <= '9'; p++)
			digits = true;
	}
	if (!digits)
		return NAN;
	if (*p == 'e' || *p == 'E')
	{
		p++;
		if (*p == '+' || *p == '-')
			p++;
		if (*p < '0' || *p > '9')
			return NAN;
		while (*p >= '0' && *p <= '9')
			p++;
	}
	if (*p != '\0')
		return NAN;
	return strtod(copy, NULL);
}

/* JavaScript's Number() of any JSON value. */
static double
js_number(const json_t *value)
{
	switch (json_typeof(value))
	{
		case JSON_INTEGER:
		case JSON_REAL:
			return json_number_value(value);
		case JSON_STRING:
			return js_string_to_number(json_string_value(value), json_string_length(value));
		case JSON_TRUE:
			return 1;
		case JSON_FALSE:
		case JSON_NULL:
			return 0;
		case JSON_ARRAY:
			/* By way of the array's text: its only element, or nothing. */
			if (json_array_size(value) == 0)
				return 0;
			if (json_array_size(value) == 1)
			{
				const json_t *only = json_array_get(value, 0);

				if (json_is_boolean(only) || json_is_array(only))
					return NAN;
				return js_number(only);
			}
			return NAN;
		default:
			return NAN;
	}
}

/* Doubles from 2^53 on have no fraction. */
static bool
is_whole(double number)
{
	if (!isfinite(number))
		return false;
	return fabs(number) >= 9007199254740992.0 || (double) (long long) number == number;
}

/* The checks of a whole number within limits, each of which may add an issue. */
static void
check_integer(double number, double min, double max, const char *path, ConfigIssues *issues)
{
	if (!is_whole(number))
		config_add_issue(issues, path, "Expected integer, received float");
	if (number < min)
		config_add_issue(issues, path, "Number must be greater than or equal to %.0f", min);
	if (number > max)
		config_add_issue(issues, path, "Number must be less than or equal to %.0f", max);
}

/* A coerced integer, or NULL when the key is absent or there was an issue. */
json_t *
config_read_integer(json_t *config, const char *key, double min, double max, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, key);
	int before = issues->count;
	double number;

	if (value == NULL)
		return NULL;
	number = js_number(value);
	if (isnan(number))
	{
		config_add_issue(issues, key, "Expected number, received nan");
		return NULL;
	}
	check_integer(number, min, max, key, issues);
	return issues->count == before ? json_integer((json_int_t) number) : NULL;
}

/* A boolean; the default when the key is absent. */
json_t *
config_read_boolean(json_t *config, const char *key, bool otherwise, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, key);

	if (value == NULL)
		return json_boolean(otherwise);
	if (!json_is_boolean(value))
	{
		config_add_type_issue(issues, key, "boolean", value);
		return NULL;
	}
	return json_incref(value);
}

/*
 * A string's bytes.  False when the value is none (an issue) or holds U+0000
 * (likewise).
 */
bool
config_string_bytes(json_t *value, const char *key, const char **text, size_t *length,
                    ConfigIssues *issues)
{
	if (!json_is_string(value))
	{
		config_add_type_issue(issues, key, "string", value);
		return false;
	}
	*text = json_string_value(value);
	*length = json_string_length(value);
	if (memchr(*text, '\0', *length) != NULL)
	{
		config_add_issue(issues, key, "Invalid character: a NUL character is not allowed");
		return false;
	}
	return true;
}

/* Control characters of ASCII and of Latin-1, and all white space. */
static bool
has_space_or_control(const char *text, size_t length, bool blanks_are_fine)
{
	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) text[i];

		if (c == ' ' && blanks_are_fine)
			continue;
		if (c < ' ' || c == 127 || js_space(text + i, length - i) > 0)
			return true;
		if (c == 0xC2 && i + 1 < length && (unsigned char) text[i + 1] < 0xA0)
			return true;
	}
	return false;
}

/* A trimmed string that must be there and must not be empty; NULL when it is not. */
json_t *
config_read_required_string(json_t *config, const char *key, const char *empty_text,
                            ConfigIssues *issues)
{
	json_t *value = json_object_get(config, key);
	const char *text;
	size_t length;

	if (value == NULL)
	{
		config_add_issue(issues, key, "%s", empty_text);
		return NULL;
	}
	if (!config_string_bytes(value, key, &text, &length, issues))
		return NULL;
	config_js_trim(&text, &length);
	if (length == 0)
		config_add_issue(issues, key, "%s", empty_text);
	return json_stringn(text, length);
}

/* A host's or user's name; the latter may have blanks within, as a directory's users have. */
json_t *
config_read_name(json_t *config, const char *key, const char *what, ConfigIssues *issues)
{
	bool is_user = strcmp(key, "username") == 0;
	char empty_text[80];
	json_t *name;

	snprintf(empty_text, sizeof(empty_text), "SSH environments require a %s.", what);
	name = config_read_required_string(config, key, empty_text, issues);
	if (name != NULL &&
	    has_space_or_control(json_string_value(name), json_string_length(name), is_user))
		config_add_issue(issues, key, "SSH %s must not contain %s or control characters.", what,
		                 is_user ? "white space other than blanks" : "white space");
	if (name != NULL && json_string_length(name) > MAX_NAME)
		config_add_issue(issues, key, "SSH %s must not be longer than %d bytes.", what, MAX_NAME);
	return name;
}

/* Adds one issue that names all keys of the object that are not in the list. */
void
config_check_unknown_keys(json_t *object, const char *const *known, const char *path,
                          ConfigIssues *issues)
{
	char names[1024] = "";
	size_t used = 0;
	const char *key;
	json_t *value;

	json_object_foreach(object, key, value)
	{
		const char *const *k = known;

		while (*k != NULL && strcmp(*k, key) != 0)
			k++;
		if (*k != NULL)
			continue;
		if (used < sizeof(names))
		{
			int wanted =
			    snprintf(names + used, sizeof(names) - used, "%s'%s'", used > 0 ? ", " : "", key);

			if (wanted > 0)
				used += (size_t) wanted;
		}
	}
	if (used > 0)
		config_add_issue(issues, path, "Unrecognized key(s) in object: %s", names);
}

static bool
is_uuid(const char *text, size_t length)
{
	if (length != 36)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		if (i == 8 || i == 13 || i == 18 || i == 23)
		{
			if (text[i] != '-')
				return false;
		}
		else if (!((text[i] >= '0' && text[i] <= '9') ||
		           ((text[i] | 0x20) >= 'a' && (text[i] | 0x20) <= 'f')))
			return false;
	}
	return true;
}

/* "latest" or a positive integer; a string other than "latest" fits neither. */
static json_t *
read_version(json_t *reference, ConfigIssues *issues)
{
	static const char path[] = "privateKeySecretRef.version";
	json_t *value = json_object_get(reference, "version");
	int before = issues->count;
	double number;

	if (value == NULL)
		return json_string("latest");
	if (json_is_string(value) && json_string_length(value) == 6 &&
	    strcmp(json_string_value(value), "latest") == 0)
		return json_incref(value);
	if (!json_is_number(value))
	{
		config_add_issue(issues, path, "Invalid input");
		return NULL;
	}
	number = json_number_value(value);
	if (!is_whole(number))
		config_add_issue(issues, path, "Expected integer, received float");
	if (number <= 0)
		config_add_issue(issues, path, "Number must be greater than 0");
	/* The seed has no upper limit; its column is an integer, as ours. */
	if (number > MAX_VERSION)
		config_add_issue(issues, path, "Number must be less than or equal to %d", MAX_VERSION);
	return issues->count == before ? json_integer((json_int_t) number) : NULL;
}

json_t *
config_read_secret_reference(json_t *config, ConfigIssues *issues)
{
	static const char key[] = "privateKeySecretRef";
	static const char *const known[] = {"type", "secretId", "version", NULL};
	json_t *reference = json_object_get(config, key);
	json_t *type;
	json_t *secret_id;
	json_t *version;

	if (reference == NULL || json_is_null(reference))
		return json_null();
	if (!json_is_object(reference))
	{
		config_add_type_issue(issues, key, "object", reference);
		return NULL;
	}

	type = json_object_get(reference, "type");
	if (!json_is_string(type) || json_string_length(type) != 10 ||
	    strcmp(json_string_value(type), "secret_ref") != 0)
		config_add_issue(issues, "privateKeySecretRef.type",
		                 "Invalid literal value, expected \"secret_ref\"");

	secret_id = json_object_get(reference, "secretId");
	if (secret_id == NULL)
		config_add_issue(issues, "privateKeySecretRef.secretId", "Required");
	else if (!json_is_string(secret_id))
		config_add_type_issue(issues, "privateKeySecretRef.secretId", "string", secret_id);
	else if (!is_uuid(json_string_value(secret_id), json_string_length(secret_id)))
		config_add_issue(issues, "privateKeySecretRef.secretId", "Invalid uuid");

	version = read_version(reference, issues);
	config_check_unknown_keys(reference, known, key, issues);
	/* NULL here means an issue above, or no memory: nothing to build then. */
	return json_pack("{s:s, s:O, s:o}", "type", "secret_ref", "secretId", secret_id, "version",
	                 version);
}

/* Trimmed; blank and absent are null. */
json_t *
config_read_known_hosts(json_t *config, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, "knownHosts");
	const char *text;
	size_t length;

	if (value == NULL || json_is_null(value))
		return json_null();
	if (!config_string_bytes(value, "knownHosts", &text, &length, issues))
		return NULL;
	config_js_trim(&text, &length);
	return length == 0 ? json_null() : json_stringn(text, length);
}
