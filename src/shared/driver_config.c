/*
 * driver_config.c
 *		The config rules of each driver: validation and the canonical stored shape.
 *
 * The rules, their texts, the order of the checks and the coercions are those
 * of the seed application, which wrote them with a schema library of
 * TypeScript; whoever moves a config from there finds the same answers.  So
 * numbers are coerced as JavaScript's Number() does ("2222", "", null and true
 * are numbers), strings are trimmed of what JavaScript calls white space, an
 * object of the wrong kind counts as an empty one, and unknown keys are
 * reported after everything else.
 *
 * Every rule is run, so that a person sees all that is wrong at once: each
 * reader takes the object, a key and the issues, adds to the issues, and
 * returns a value that does for going on.  The result is thrown away at the
 * end when there was an issue.
 *
 * Beyond the seed: names of hosts and users must not hold white space or
 * control characters (they go into provider lease ids, logs and views), and
 * no field of the built-in drivers may hold U+0000, which PostgreSQL can't
 * store and C would cut at.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "shared/driver_config.h"

#define MAX_TIMEOUT_MS 86400000
#define MAX_VERSION 2147483647

#define KEY_RULE                                                                                   \
	"key must start with a lowercase alphanumeric and contain only lowercase letters, digits, "    \
	"dots, hyphens, or underscores"

/* Cuts at a whole UTF-8 character when the text does not fit. */
static void
copy_utf8(char *buffer, size_t size, const char *text)
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

static void add_issue(ConfigIssues *issues, const char *path, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void
add_issue(ConfigIssues *issues, const char *path, const char *format, ...)
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
	copy_utf8(issue->path, sizeof(issue->path), path);
	copy_utf8(issue->message, sizeof(issue->message), message);
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

static void
add_type_issue(ConfigIssues *issues, const char *path, const char *expected, const json_t *value)
{
	add_issue(issues, path, "Expected %s, received %s", expected, type_name(value));
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

static void
js_trim(const char **text, size_t *length)
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

	js_trim(&text, &length);
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
		add_issue(issues, path, "Expected integer, received float");
	if (number < min)
		add_issue(issues, path, "Number must be greater than or equal to %.0f", min);
	if (number > max)
		add_issue(issues, path, "Number must be less than or equal to %.0f", max);
}

/* A coerced integer, or NULL when the key is absent or there was an issue. */
static json_t *
read_integer(json_t *config, const char *key, double min, double max, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, key);
	int before = issues->count;
	double number;

	if (value == NULL)
		return NULL;
	number = js_number(value);
	if (isnan(number))
	{
		add_issue(issues, key, "Expected number, received nan");
		return NULL;
	}
	check_integer(number, min, max, key, issues);
	return issues->count == before ? json_integer((json_int_t) number) : NULL;
}

/* A boolean; the default when the key is absent. */
static json_t *
read_boolean(json_t *config, const char *key, bool otherwise, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, key);

	if (value == NULL)
		return json_boolean(otherwise);
	if (!json_is_boolean(value))
	{
		add_type_issue(issues, key, "boolean", value);
		return NULL;
	}
	return json_incref(value);
}

/*
 * A string's bytes.  False when the value is none (an issue) or holds U+0000
 * (likewise).
 */
static bool
string_bytes(json_t *value, const char *key, const char **text, size_t *length,
             ConfigIssues *issues)
{
	if (!json_is_string(value))
	{
		add_type_issue(issues, key, "string", value);
		return false;
	}
	*text = json_string_value(value);
	*length = json_string_length(value);
	if (memchr(*text, '\0', *length) != NULL)
	{
		add_issue(issues, key, "Invalid character: a NUL character is not allowed");
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
static json_t *
read_required_string(json_t *config, const char *key, const char *empty_text, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, key);
	const char *text;
	size_t length;

	if (value == NULL)
	{
		add_issue(issues, key, "%s", empty_text);
		return NULL;
	}
	if (!string_bytes(value, key, &text, &length, issues))
		return NULL;
	js_trim(&text, &length);
	if (length == 0)
		add_issue(issues, key, "%s", empty_text);
	return json_stringn(text, length);
}

/* As long as a host name can be. */
#define MAX_NAME 255
/* With host and username it is a lease's id at its provider, which is in an index. */
#define MAX_WORKSPACE_PATH 1400

/* A host's or user's name; the latter may have blanks within, as a directory's users have. */
static json_t *
read_name(json_t *config, const char *key, const char *what, ConfigIssues *issues)
{
	bool is_user = strcmp(key, "username") == 0;
	char empty_text[80];
	json_t *name;

	snprintf(empty_text, sizeof(empty_text), "SSH environments require a %s.", what);
	name = read_required_string(config, key, empty_text, issues);
	if (name != NULL &&
	    has_space_or_control(json_string_value(name), json_string_length(name), is_user))
		add_issue(issues, key, "SSH %s must not contain %s or control characters.", what,
		          is_user ? "white space other than blanks" : "white space");
	if (name != NULL && json_string_length(name) > MAX_NAME)
		add_issue(issues, key, "SSH %s must not be longer than %d bytes.", what, MAX_NAME);
	return name;
}

/* Adds one issue that names all keys of the object that are not in the list. */
static void
check_unknown_keys(json_t *object, const char *const *known, const char *path, ConfigIssues *issues)
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
		add_issue(issues, path, "Unrecognized key(s) in object: %s", names);
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
		add_issue(issues, path, "Invalid input");
		return NULL;
	}
	number = json_number_value(value);
	if (!is_whole(number))
		add_issue(issues, path, "Expected integer, received float");
	if (number <= 0)
		add_issue(issues, path, "Number must be greater than 0");
	/* The seed has no upper limit; its column is an integer, as ours. */
	if (number > MAX_VERSION)
		add_issue(issues, path, "Number must be less than or equal to %d", MAX_VERSION);
	return issues->count == before ? json_integer((json_int_t) number) : NULL;
}

static json_t *
read_secret_reference(json_t *config, ConfigIssues *issues)
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
		add_type_issue(issues, key, "object", reference);
		return NULL;
	}

	type = json_object_get(reference, "type");
	if (!json_is_string(type) || json_string_length(type) != 10 ||
	    strcmp(json_string_value(type), "secret_ref") != 0)
		add_issue(issues, "privateKeySecretRef.type",
		          "Invalid literal value, expected \"secret_ref\"");

	secret_id = json_object_get(reference, "secretId");
	if (secret_id == NULL)
		add_issue(issues, "privateKeySecretRef.secretId", "Required");
	else if (!json_is_string(secret_id))
		add_type_issue(issues, "privateKeySecretRef.secretId", "string", secret_id);
	else if (!is_uuid(json_string_value(secret_id), json_string_length(secret_id)))
		add_issue(issues, "privateKeySecretRef.secretId", "Invalid uuid");

	version = read_version(reference, issues);
	check_unknown_keys(reference, known, key, issues);
	/* NULL here means an issue above, or no memory: nothing to build then. */
	return json_pack("{s:s, s:O, s:o}", "type", "secret_ref", "secretId", secret_id, "version",
	                 version);
}

/* Trimmed; blank and absent are null. */
static json_t *
read_known_hosts(json_t *config, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, "knownHosts");
	const char *text;
	size_t length;

	if (value == NULL || json_is_null(value))
		return json_null();
	if (!string_bytes(value, "knownHosts", &text, &length, issues))
		return NULL;
	js_trim(&text, &length);
	return length == 0 ? json_null() : json_stringn(text, length);
}

/* Sets a key that was read; an unread one has an issue, or there was no memory. */
static bool
store(json_t *result, const char *key, json_t *value)
{
	return json_object_set_new(result, key, value) == 0;
}

static bool
normalize_ssh(json_t *config, json_t *result, ConfigIssues *issues)
{
	static const char *const known[] = {"host",       "port",
	                                    "username",   "remoteWorkspacePath",
	                                    "privateKey", "privateKeySecretRef",
	                                    "knownHosts", "strictHostKeyChecking",
	                                    NULL};
	json_t *port;
	json_t *path;
	json_t *key;
	bool complete;

	complete = store(result, "host", read_name(config, "host", "host", issues));

	port = read_integer(config, "port", 1, 65535, issues);
	if (port == NULL && json_object_get(config, "port") == NULL)
		port = json_integer(22);
	complete &= store(result, "port", port);

	complete &= store(result, "username", read_name(config, "username", "username", issues));

	path = read_required_string(config, "remoteWorkspacePath",
	                            "SSH environments require a remote workspace path.", issues);
	if (path != NULL && json_string_value(path)[0] != '/')
		add_issue(issues, "remoteWorkspacePath", "SSH remote workspace path must be absolute.");
	if (path != NULL && json_string_length(path) > MAX_WORKSPACE_PATH)
		add_issue(issues, "remoteWorkspacePath",
		          "SSH remote workspace path must not be longer than %d bytes.",
		          MAX_WORKSPACE_PATH);
	complete &= store(result, "remoteWorkspacePath", path);

	key = json_object_get(config, "privateKey");
	if (key != NULL && !json_is_null(key))
		add_type_issue(issues, "privateKey", "null", key);
	complete &= store(result, "privateKey", json_null());

	complete &= store(result, "privateKeySecretRef", read_secret_reference(config, issues));
	complete &= store(result, "knownHosts", read_known_hosts(config, issues));
	complete &= store(result, "strictHostKeyChecking",
	                  read_boolean(config, "strictHostKeyChecking", true, issues));
	check_unknown_keys(config, known, "", issues);
	return complete;
}

static bool
normalize_fake(json_t *config, json_t *result, ConfigIssues *issues)
{
	static const char *const known[] = {"provider", "image", "reuseLease", NULL};
	json_t *provider = json_object_get(config, "provider");
	json_t *image;
	bool complete;

	/* A blank one means the same as none; anything but a string is a mistake. */
	if (provider != NULL && !json_is_string(provider))
		add_issue(issues, "provider", "Invalid literal value, expected \"fake\"");
	complete = store(result, "provider", json_string("fake"));

	if (json_object_get(config, "image") == NULL)
		image = json_string("ubuntu:24.04");
	else
		image = read_required_string(config, "image", "Fake sandbox environments require an image.",
		                             issues);
	complete &= store(result, "image", image);
	complete &= store(result, "reuseLease", read_boolean(config, "reuseLease", false, issues));
	check_unknown_keys(config, known, "", issues);
	return complete;
}

/* ^[a-z0-9][a-z0-9._-]*$ */
static bool
is_key(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		char c = text[i];

		if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
			continue;
		if (i > 0 && (c == '.' || c == '_' || c == '-'))
			continue;
		return false;
	}
	return length > 0;
}

/* How long what the provider makes is kept; without it, reuseLease says. */
static void
check_lease_policy(const json_t *config, ConfigIssues *issues)
{
	static const char *const policies[] = {"ephemeral", "reuse_by_environment",
	                                       "reuse_by_execution_workspace", "retain_on_failure"};
	const json_t *value = json_object_get(config, "leasePolicy");

	if (value == NULL)
		return;
	for (size_t i = 0; json_is_string(value) && i < sizeof policies / sizeof policies[0]; i++)
		if (strcmp(json_string_value(value), policies[i]) == 0)
			return;
	add_issue(issues, "leasePolicy",
	          "Expected ephemeral, reuse_by_environment, reuse_by_execution_workspace or "
	          "retain_on_failure");
}

/* The provider brings its own rules for the keys that are not named here. */
static bool
normalize_plugin_sandbox(json_t *config, const char *provider, size_t length, json_t *result,
                         ConfigIssues *issues)
{
	const char *key;
	json_t *value;
	bool complete;

	if (!is_key(provider, length))
		add_issue(issues, "provider", "Sandbox provider " KEY_RULE);
	complete = store(result, "provider", json_stringn(provider, length));
	if (json_object_get(config, "timeoutMs") != NULL)
		complete &= store(result, "timeoutMs",
		                  read_integer(config, "timeoutMs", 1, MAX_TIMEOUT_MS, issues));
	complete &= store(result, "reuseLease", read_boolean(config, "reuseLease", false, issues));
	check_lease_policy(config, issues);
	json_object_foreach(config, key, value)
	{
		if (strcmp(key, "provider") != 0 && strcmp(key, "timeoutMs") != 0 &&
		    strcmp(key, "reuseLease") != 0)
			complete &= store(result, key, json_deep_copy(value));
	}
	return complete;
}

/* A folder's name: one path component, and none that is hidden or means another. */
static bool
is_image_name(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		char c = text[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
		      (i > 0 && (c == '.' || c == '_' || c == '-'))))
			return false;
	}
	return length > 0 && length <= 128;
}

static bool
is_environment_name(const char *name)
{
	if (!((*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || *name == '_'))
		return false;
	for (; *name != '\0'; name++)
		if (!((*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || *name == '_' ||
		      (*name >= '0' && *name <= '9')))
			return false;
	return true;
}

/* Variables for every command; values are text or references to secrets. */
static json_t *
read_variables(json_t *config, ConfigIssues *issues)
{
	json_t *variables = json_object_get(config, "env");
	const char *name;
	json_t *value;
	int before = issues->count;

	if (variables == NULL)
		return NULL;
	if (!json_is_object(variables))
	{
		add_type_issue(issues, "env", "object", variables);
		return NULL;
	}
	json_object_foreach(variables, name, value)
	{
		const char *text;
		size_t length;

		if (!is_environment_name(name))
			add_issue(issues, "env", "Invalid environment variable key: %.100s", name);
		else if (!json_is_object(value))
			(void) string_bytes(value, "env", &text, &length, issues);
	}
	return issues->count == before ? json_deep_copy(variables) : NULL;
}

/* The sandboxes that envrt makes by itself. */
static bool
normalize_bubblewrap(json_t *config, json_t *result, ConfigIssues *issues)
{
	static const char *const known[] = {"provider",   "image",        "network",     "memoryMb",
	                                    "cpuSeconds", "maxProcesses", "maxFileMb",   "workspaceMb",
	                                    "timeoutMs",  "reuseLease",   "leasePolicy", "env",
	                                    NULL};
	static const struct
	{
		const char *key;
		double min;
		double max;
	} numbers[] = {{"memoryMb", 16, 1048576},   {"cpuSeconds", 1, 86400},
	               {"maxProcesses", 1, 32768},  {"maxFileMb", 1, 1048576},
	               {"workspaceMb", 1, 1048576}, {"timeoutMs", 1, MAX_TIMEOUT_MS}};
	json_t *image = json_object_get(config, "image");
	json_t *network;
	const char *text;
	size_t length;
	bool complete = store(result, "provider", json_string("bubblewrap"));

	if (image != NULL && !json_is_null(image))
	{
		if (string_bytes(image, "image", &text, &length, issues) && !is_image_name(text, length))
			add_issue(issues, "image",
			          "image must be the name of a folder among the images: letters, digits, dots, "
			          "hyphens and underscores");
		complete &= store(result, "image", json_incref(image));
	}
	network = read_boolean(config, "network", false, issues);
	if (json_is_true(network))
		add_issue(issues, "network",
		          "Sandboxes have no network: with the host's, a command could log in as the "
		          "server");
	complete &= store(result, "network", network);
	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
		if (json_object_get(config, numbers[i].key) != NULL)
			complete &=
			    store(result, numbers[i].key,
			          read_integer(config, numbers[i].key, numbers[i].min, numbers[i].max, issues));
	complete &= store(result, "reuseLease", read_boolean(config, "reuseLease", false, issues));
	check_lease_policy(config, issues);
	if (json_object_get(config, "leasePolicy") != NULL)
		complete &=
		    store(result, "leasePolicy", json_incref(json_object_get(config, "leasePolicy")));
	if (json_object_get(config, "env") != NULL)
		complete &= store(result, "env", read_variables(config, issues));
	check_unknown_keys(config, known, "", issues);
	return complete;
}

static bool
normalize_sandbox(json_t *config, json_t *result, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, "provider");
	const char *provider = "";
	size_t length = 0;

	if (json_is_string(value))
	{
		provider = json_string_value(value);
		length = json_string_length(value);
		js_trim(&provider, &length);
	}
	if (length == 0 || (length == 4 && memcmp(provider, "fake", 4) == 0))
		return normalize_fake(config, result, issues);
	if (length == 10 && memcmp(provider, "bubblewrap", 10) == 0)
		return normalize_bubblewrap(config, result, issues);
	return normalize_plugin_sandbox(config, provider, length, result, issues);
}

/* A string of at least one character, not trimmed. */
static json_t *
read_plugin_key(json_t *config, const char *key, ConfigIssues *issues)
{
	json_t *value = json_object_get(config, key);
	const char *text;
	size_t length;

	if (value == NULL)
	{
		add_issue(issues, key, "Required");
		return NULL;
	}
	if (!string_bytes(value, key, &text, &length, issues))
		return NULL;
	if (length == 0)
		add_issue(issues, key, "String must contain at least 1 character(s)");
	return json_incref(value);
}

static bool
normalize_plugin(json_t *config, json_t *result, ConfigIssues *issues)
{
	static const char *const known[] = {"pluginKey", "driverKey", "driverConfig", NULL};
	json_t *driver_key;
	json_t *driver_config;
	bool complete;

	complete = store(result, "pluginKey", read_plugin_key(config, "pluginKey", issues));
	driver_key = read_plugin_key(config, "driverKey", issues);
	if (driver_key != NULL &&
	    !is_key(json_string_value(driver_key), json_string_length(driver_key)))
		add_issue(issues, "driverKey", "Environment driver " KEY_RULE);
	complete &= store(result, "driverKey", driver_key);

	driver_config = json_object_get(config, "driverConfig");
	if (driver_config == NULL)
		complete &= store(result, "driverConfig", json_object_new());
	else if (json_is_object(driver_config))
		complete &= store(result, "driverConfig", json_deep_copy(driver_config));
	else
		add_type_issue(issues, "driverConfig", "object", driver_config);
	check_unknown_keys(config, known, "", issues);
	return complete;
}

json_t *
config_normalize(const char *driver, json_t *config, ConfigIssues *issues)
{
	json_t *result;
	json_t *object;
	bool complete;

	memset(issues, 0, sizeof(*issues));
	if (strcmp(driver, "local") == 0)
		return json_is_object(config) ? json_deep_copy(config) : json_object_new();

	result = json_object_new();
	/* The seed reads anything but an object as an empty one. */
	object = json_is_object(config) ? json_incref(config) : json_object_new();
	if (result == NULL || object == NULL)
		complete = false;
	else if (strcmp(driver, "ssh") == 0)
		complete = normalize_ssh(object, result, issues);
	else if (strcmp(driver, "sandbox") == 0)
		complete = normalize_sandbox(object, result, issues);
	else if (strcmp(driver, "plugin") == 0)
		complete = normalize_plugin(object, result, issues);
	else
	{
		add_issue(issues, "driver", "Unsupported environment driver \"%s\".", driver);
		complete = false;
	}
	json_decref(object);

	if (complete && issues->count == 0)
		return result;
	json_decref(result);
	return NULL;
}

void
config_issue_text(const ConfigIssue *issue, char *buffer, size_t size)
{
	/* How the schema library's own texts start; they don't say which field. */
	static const char *const generic[] = {"Number must be ", "String must ", "Expected ",
	                                      "Invalid ",        "Required",     "Unrecognized key"};
	/* Both are limited by their own fields, and are UTF-8. */
	char text[sizeof(issue->path) + sizeof(issue->message) + 2];

	snprintf(text, sizeof(text), "%s", issue->message);
	for (size_t i = 0; i < sizeof(generic) / sizeof(generic[0]) && issue->path[0] != '\0'; i++)
	{
		if (strncmp(issue->message, generic[i], strlen(generic[i])) == 0)
			snprintf(text, sizeof(text), "%s: %s", issue->path, issue->message);
	}
	copy_utf8(buffer, size, text);
}
