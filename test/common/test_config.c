/*
 * test_config.c
 *		The config rules, one line a rule: what goes in, what comes out or what is said.
 */
#include <stdlib.h>

#include "shared/driver_config.h"
#include "tap.h"

#define BASE "\"host\":\"h\",\"username\":\"u\",\"remoteWorkspacePath\":\"/w\""
#define STORED                                                                                     \
	"{\"host\":\"h\",\"port\":22,\"username\":\"u\",\"remoteWorkspacePath\":\"/w\","               \
	"\"privateKey\":null,\"privateKeySecretRef\":null,\"knownHosts\":null,"                        \
	"\"strictHostKeyChecking\":true}"
#define UUID "12345678-90ab-cdef-1234-567890ABCDEF"
#define TAIL(port)                                                                                 \
	"{\"host\":\"h\",\"port\":" port ",\"username\":\"u\",\"remoteWorkspacePath\":\"/w\","         \
	"\"privateKey\":null,\"privateKeySecretRef\":null,\"knownHosts\":null,"                        \
	"\"strictHostKeyChecking\":true}"
#define KEYRULE                                                                                    \
	"key must start with a lowercase alphanumeric and contain only lowercase letters, digits, "    \
	"dots, hyphens, or underscores"

/* expected starts with '{' for a result; else it is the texts of all issues, joined by " | ". */
typedef struct Case
{
	const char *driver;
	const char *config;
	const char *expected;
} Case;

static const Case cases[] = {
    /* ssh: shape, defaults, trimming */
    {"ssh", "{" BASE "}", STORED},
    {"ssh", STORED, STORED},
    {"ssh",
     "{\"knownHosts\":\" a b\\n\",\"strictHostKeyChecking\":false,\"remoteWorkspacePath\":\" /w "
     "x\\t\",\"username\":\"\\u00a0u v\\ufeff\",\"port\":\"2222\",\"host\":\"\\n h \"}",
     "{\"host\":\"h\",\"port\":2222,\"username\":\"u v\",\"remoteWorkspacePath\":\"/w x\","
     "\"privateKey\":null,\"privateKeySecretRef\":null,\"knownHosts\":\"a b\","
     "\"strictHostKeyChecking\":false}"},
    {"ssh", "{" BASE ",\"knownHosts\":\"\"}", STORED},
    {"ssh", "{" BASE ",\"knownHosts\":\" \\n\"}", STORED},
    {"ssh", "{" BASE ",\"knownHosts\":7}", "knownHosts: Expected string, received number"},
    {"ssh", "{" BASE ",\"knownHosts\":\"a\\u0000b\"}",
     "knownHosts: Invalid character: a NUL character is not allowed"},

    /* ssh: required fields, in the order of the checks */
    {"ssh", "{}",
     "SSH environments require a host. | SSH environments require a username. | SSH environments "
     "require a remote workspace path."},
    {"ssh", "[]",
     "SSH environments require a host. | SSH environments require a username. | SSH environments "
     "require a remote workspace path."},
    {"ssh", "{\"host\":\" \",\"port\":0,\"username\":\"\",\"remoteWorkspacePath\":\"\\t\"}",
     "SSH environments require a host. | port: Number must be greater than or equal to 1 | SSH "
     "environments require a username. | SSH environments require a remote workspace path. | SSH "
     "remote workspace path must be absolute."},
    {"ssh", "{\"host\":5,\"username\":null,\"remoteWorkspacePath\":[]}",
     "host: Expected string, received number | username: Expected string, received null | "
     "remoteWorkspacePath: Expected string, received array"},
    {"ssh", "{\"host\":\"h\",\"username\":\"u\",\"remoteWorkspacePath\":\"w\"}",
     "SSH remote workspace path must be absolute."},
    {"ssh", "{\"host\":\"h\",\"username\":\"u\",\"remoteWorkspacePath\":\"/w\\u0000\"}",
     "remoteWorkspacePath: Invalid character: a NUL character is not allowed"},

    /* ssh: names */
    {"ssh", "{\"host\":\"a b\",\"username\":\"u\",\"remoteWorkspacePath\":\"/w\"}",
     "SSH host must not contain white space or control characters."},
    {"ssh", "{\"host\":\"a\\u3000b\",\"username\":\"u\",\"remoteWorkspacePath\":\"/w\"}",
     "SSH host must not contain white space or control characters."},
    {"ssh", "{\"host\":\"a\\u0085b\",\"username\":\"u\",\"remoteWorkspacePath\":\"/w\"}",
     "SSH host must not contain white space or control characters."},
    {"ssh", "{\"host\":\"h\",\"username\":\"u\\u00a0v\",\"remoteWorkspacePath\":\"/w\"}",
     "SSH username must not contain white space other than blanks or control characters."},
    {"ssh", "{\"host\":\"h\",\"username\":\"u\\nv\",\"remoteWorkspacePath\":\"/w\"}",
     "SSH username must not contain white space other than blanks or control characters."},
    {"ssh", "{\"host\":\"h\",\"username\":\"u\\u007f\",\"remoteWorkspacePath\":\"/w\"}",
     "SSH username must not contain white space other than blanks or control characters."},
    {"ssh", "{\"host\":\"h\\u0000i\",\"username\":\"u\",\"remoteWorkspacePath\":\"/w\"}",
     "host: Invalid character: a NUL character is not allowed"},

    /* ssh: the port, coerced as JavaScript's Number() does */
    {"ssh", "{" BASE ",\"port\":2222}", TAIL("2222")},
    {"ssh", "{" BASE ",\"port\":2222.0}", TAIL("2222")},
    {"ssh", "{" BASE ",\"port\":\" 2222\\n\"}", TAIL("2222")},
    {"ssh", "{" BASE ",\"port\":\"0x16\"}", TAIL("22")},
    {"ssh", "{" BASE ",\"port\":\"0b11\"}", TAIL("3")},
    {"ssh", "{" BASE ",\"port\":\"0o17\"}", TAIL("15")},
    {"ssh", "{" BASE ",\"port\":\"1e3\"}", TAIL("1000")},
    {"ssh", "{" BASE ",\"port\":\"+22.\"}", TAIL("22")},
    {"ssh", "{" BASE ",\"port\":\".5e1\"}", TAIL("5")},
    {"ssh", "{" BASE ",\"port\":\"2E+1\"}", TAIL("20")},
    {"ssh", "{" BASE ",\"port\":\"0x1F\"}", TAIL("31")},
    {"ssh", "{" BASE ",\"port\":\"0b12\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":[[22]]}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":1e300}", "port: Number must be less than or equal to 65535"},
    {"ssh", "{" BASE ",\"port\":true}", TAIL("1")},
    {"ssh", "{" BASE ",\"port\":[\"22\"]}", TAIL("22")},
    {"ssh", "{" BASE ",\"port\":1}", TAIL("1")},
    {"ssh", "{" BASE ",\"port\":65535}", TAIL("65535")},
    {"ssh", "{" BASE ",\"port\":null}", "port: Number must be greater than or equal to 1"},
    {"ssh", "{" BASE ",\"port\":\"\"}", "port: Number must be greater than or equal to 1"},
    {"ssh", "{" BASE ",\"port\":false}", "port: Number must be greater than or equal to 1"},
    {"ssh", "{" BASE ",\"port\":[]}", "port: Number must be greater than or equal to 1"},
    {"ssh", "{" BASE ",\"port\":-22}", "port: Number must be greater than or equal to 1"},
    {"ssh", "{" BASE ",\"port\":65536}", "port: Number must be less than or equal to 65535"},
    {"ssh", "{" BASE ",\"port\":70000}", "port: Number must be less than or equal to 65535"},
    {"ssh", "{" BASE ",\"port\":9223372036854775807}",
     "port: Number must be less than or equal to 65535"},
    {"ssh", "{" BASE ",\"port\":22.5}", "port: Expected integer, received float"},
    {"ssh", "{" BASE ",\"port\":0.5}",
     "port: Expected integer, received float | port: Number must be greater than or equal to 1"},
    {"ssh", "{" BASE ",\"port\":\"Infinity\"}",
     "port: Expected integer, received float | port: Number must be less than or equal to 65535"},
    {"ssh", "{" BASE ",\"port\":\"abc\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":\"22x\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":\"nan\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":\"inf\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":\"0x\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":\"-0x16\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":\"1e\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":\"2\\u00002\"}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":{}}", "port: Expected number, received nan"},
    {"ssh", "{" BASE ",\"port\":[22,23]}", "port: Expected number, received nan"},

    /* ssh: keys and references */
    {"ssh", "{" BASE ",\"privateKey\":\"SECRET\"}", "privateKey: Expected null, received string"},
    {"ssh",
     "{" BASE ",\"privateKeySecretRef\":{\"secretId\":\"" UUID "\",\"type\":\"secret_ref\"}}",
     "{\"host\":\"h\",\"port\":22,\"username\":\"u\",\"remoteWorkspacePath\":\"/w\","
     "\"privateKey\":null,\"privateKeySecretRef\":{\"type\":\"secret_ref\",\"secretId\":\"" UUID
     "\",\"version\":\"latest\"},\"knownHosts\":null,\"strictHostKeyChecking\":true}"},
    {"ssh",
     "{" BASE ",\"privateKeySecretRef\":{\"secretId\":\"" UUID
     "\",\"type\":\"secret_ref\",\"version\":3.0}}",
     "{\"host\":\"h\",\"port\":22,\"username\":\"u\",\"remoteWorkspacePath\":\"/w\","
     "\"privateKey\":null,\"privateKeySecretRef\":{\"type\":\"secret_ref\",\"secretId\":\"" UUID
     "\",\"version\":3},\"knownHosts\":null,\"strictHostKeyChecking\":true}"},
    {"ssh", "{" BASE ",\"privateKeySecretRef\":\"x\"}",
     "privateKeySecretRef: Expected object, received string"},
    {"ssh", "{" BASE ",\"privateKeySecretRef\":[]}",
     "privateKeySecretRef: Expected object, received array"},
    {"ssh", "{" BASE ",\"privateKeySecretRef\":{}}",
     "privateKeySecretRef.type: Invalid literal value, expected \"secret_ref\" | "
     "privateKeySecretRef.secretId: Required"},
    {"ssh",
     "{" BASE ",\"privateKeySecretRef\":{\"type\":\"secret\",\"secretId\":\"x\",\"version\":0,"
     "\"a\":1,\"b\":2}}",
     "privateKeySecretRef.type: Invalid literal value, expected \"secret_ref\" | "
     "privateKeySecretRef.secretId: Invalid uuid | privateKeySecretRef.version: Number must be "
     "greater than 0 | privateKeySecretRef: Unrecognized key(s) in object: 'a', 'b'"},
    {"ssh",
     "{" BASE ",\"privateKeySecretRef\":{\"type\":\"secret_ref\",\"secretId\":3,\"version\":"
     "\"newest\"}}",
     "privateKeySecretRef.secretId: Expected string, received number | "
     "privateKeySecretRef.version: Invalid input"},
    {"ssh",
     "{" BASE ",\"privateKeySecretRef\":{\"type\":\"secret_ref\",\"secretId\":\"" UUID
     "\",\"version\":1.5}}",
     "privateKeySecretRef.version: Expected integer, received float"},
    {"ssh",
     "{" BASE ",\"privateKeySecretRef\":{\"type\":\"secret_ref\",\"secretId\":\"" UUID
     "\",\"version\":2147483648}}",
     "privateKeySecretRef.version: Number must be less than or equal to 2147483647"},
    {"ssh",
     "{" BASE ",\"privateKeySecretRef\":{\"type\":\"secret_ref\",\"secretId\":"
     "\"12345678-90ab-cdef-1234_567890abcdef\",\"version\":\"latest\"}}",
     "privateKeySecretRef.secretId: Invalid uuid"},
    {"ssh",
     "{" BASE ",\"privateKeySecretRef\":{\"type\":\"secret_ref\",\"secretId\":"
     "\"1234567g-90ab-cdef-1234-567890abcdef\"}}",
     "privateKeySecretRef.secretId: Invalid uuid"},
    {"ssh", "{" BASE ",\"knownHosts\":{}}", "knownHosts: Expected string, received object"},
    {"ssh", "{" BASE ",\"knownHosts\":true}", "knownHosts: Expected string, received boolean"},
    {"ssh", "{" BASE ",\"strictHostKeyChecking\":\"false\"}",
     "strictHostKeyChecking: Expected boolean, received string"},
    {"ssh", "{" BASE ",\"strictHostKeyChecking\":null}",
     "strictHostKeyChecking: Expected boolean, received null"},
    {"ssh", "{" BASE ",\"foo\":1}", "Unrecognized key(s) in object: 'foo'"},
    {"ssh", "{\"b\":1," BASE ",\"a\":{},\"port\":\"x\"}",
     "port: Expected number, received nan | Unrecognized key(s) in object: 'b', 'a'"},

    /* the fake sandbox */
    {"sandbox", "{}", "{\"provider\":\"fake\",\"image\":\"ubuntu:24.04\",\"reuseLease\":false}"},
    {"sandbox", "null", "{\"provider\":\"fake\",\"image\":\"ubuntu:24.04\",\"reuseLease\":false}"},
    {"sandbox", "{\"provider\":\"fake\",\"image\":\"  ubuntu:24.04  \"}",
     "{\"provider\":\"fake\",\"image\":\"ubuntu:24.04\",\"reuseLease\":false}"},
    {"sandbox", "{\"provider\":\" \",\"reuseLease\":true,\"image\":\"debian:12\"}",
     "{\"provider\":\"fake\",\"image\":\"debian:12\",\"reuseLease\":true}"},
    {"sandbox", "{\"provider\":\"fake\",\"image\":\" \"}",
     "Fake sandbox environments require an image."},
    {"sandbox", "{\"provider\":\"fake\",\"image\":null}", "image: Expected string, received null"},
    {"sandbox", "{\"provider\":5,\"reuseLease\":1,\"timeoutMs\":5}",
     "provider: Invalid literal value, expected \"fake\" | reuseLease: Expected boolean, received "
     "number | Unrecognized key(s) in object: 'timeoutMs'"},

    /* a sandbox that a plugin provides */
    {"sandbox",
     "{\"customFlag\":{\"a\":[1]},\"image\":\" x \",\"timeoutMs\":\"120000\",\"provider\":\" p \"}",
     "{\"provider\":\"p\",\"timeoutMs\":120000,\"reuseLease\":false,\"customFlag\":{\"a\":[1]},"
     "\"image\":\" x \"}"},
    {"sandbox", "{\"provider\":\"p.0_-\",\"reuseLease\":true}",
     "{\"provider\":\"p.0_-\",\"reuseLease\":true}"},
    {"sandbox", "{\"provider\":\"p\",\"timeoutMs\":86400000}",
     "{\"provider\":\"p\",\"timeoutMs\":86400000,\"reuseLease\":false}"},
    {"sandbox", "{\"provider\":\"p\",\"timeoutMs\":86400001}",
     "timeoutMs: Number must be less than or equal to 86400000"},
    {"sandbox", "{\"provider\":\"p\",\"timeoutMs\":null}",
     "timeoutMs: Number must be greater than or equal to 1"},
    {"sandbox", "{\"provider\":\"P\"}", "Sandbox provider " KEYRULE},
    {"sandbox", "{\"provider\":\"-p\"}", "Sandbox provider " KEYRULE},
    {"sandbox", "{\"provider\":\"p q\",\"reuseLease\":\"x\"}",
     "Sandbox provider " KEYRULE " | reuseLease: Expected boolean, received string"},

    /* plugin */
    {"plugin", "{\"driverKey\":\"d\",\"pluginKey\":\"k\",\"driverConfig\":{\"a\":1}}",
     "{\"pluginKey\":\"k\",\"driverKey\":\"d\",\"driverConfig\":{\"a\":1}}"},
    {"plugin", "{\"driverKey\":\"d\",\"pluginKey\":\"K Z\"}",
     "{\"pluginKey\":\"K Z\",\"driverKey\":\"d\",\"driverConfig\":{}}"},
    {"plugin", "{}", "pluginKey: Required | driverKey: Required"},
    {"plugin", "{\"pluginKey\":\"\",\"driverKey\":\"\"}",
     "pluginKey: String must contain at least 1 character(s) | driverKey: String must contain at "
     "least 1 character(s) | Environment driver " KEYRULE},
    {"plugin", "{\"pluginKey\":\"k\",\"driverKey\":\"D\",\"driverConfig\":[],\"x\":1}",
     "Environment driver " KEYRULE " | driverConfig: Expected object, received array | "
     "Unrecognized key(s) in object: 'x'"},

    /* local and unknown */
    {"local", "{\"a\":{\"b\":1}}", "{\"a\":{\"b\":1}}"},
    {"local", "[1]", "{}"},
    {"local", "\"x\"", "{}"},
    {"warp", "{}", "Unsupported environment driver \"warp\"."},
};

/* What came out, as a string that the caller frees. */
static char *
outcome(const char *driver, json_t *config)
{
	ConfigIssues issues;
	json_t *result = config_normalize(driver, config, &issues);
	char *text;

	if (result != NULL)
	{
		text = json_dumps(result, JSON_COMPACT);
		json_decref(result);
		return text;
	}
	text = calloc(1, 8192);
	for (int i = 0; i < issues.count; i++)
	{
		size_t used = strlen(text);

		if (i > 0)
			used += (size_t) snprintf(text + used, 8192 - used, " | ");
		config_issue_text(&issues.issue[i], text + used, 8192 - used);
	}
	return text;
}

static void
test_cases(void)
{
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		const Case *c = &cases[i];
		json_t *config = json_loads(c->config, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
		char *before = config ? json_dumps(config, JSON_ENCODE_ANY) : NULL;
		char *after;
		char *got;
		char name[400];

		snprintf(name, sizeof(name), "%s %s", c->driver, c->config);
		if (config == NULL)
		{
			ok(false, "not JSON: %s", name);
			continue;
		}
		got = outcome(c->driver, config);
		is(got, c->expected, name);
		after = json_dumps(config, JSON_ENCODE_ANY);
		if (strcmp(before, after) != 0)
			is(after, before, "the input is left as it was");
		free(before);
		free(after);
		free(got);
		json_decref(config);
	}
}

static void
test_limits(void)
{
	ConfigIssues issues;
	json_t *config = json_object();
	char key[16];
	char *long_name = malloc(4000);
	char text[64];
	json_t *result;
	bool utf8 = true;

	/* A name of three-byte characters is cut between two of them. */
	for (int i = 0; i < 3999; i++)
		long_name[i] = "\xe2\x82\xac"[i % 3];
	long_name[3999] = '\0';
	for (int offset = 0; offset < 3; offset++)
	{
		char *shifted = malloc(4100);
		json_t *string;

		snprintf(shifted, 4100, "%.*s%s", offset, "ab", long_name);
		json_object_clear(config);
		json_object_set_new(config, shifted, json_true());
		result = config_normalize("sandbox", config, &issues);
		string = json_string(issues.issue[0].message);
		utf8 &= result == NULL && issues.count == 1 && string != NULL &&
		        strlen(issues.issue[0].message) > 240;
		json_decref(string);
		config_issue_text(&issues.issue[0], text, sizeof(text));
		string = json_string(text);
		utf8 &= string != NULL && strlen(text) > 58;
		json_decref(string);
		result = config_normalize(shifted, config, &issues);
		string = json_string(issues.issue[0].message);
		utf8 &= result == NULL && string != NULL;
		json_decref(string);
		free(shifted);
	}
	ok(utf8, "a long key or driver is cut at a whole character");

	json_object_clear(config);
	for (int i = 0; i < 1000; i++)
	{
		snprintf(key, sizeof(key), "key%d", i);
		json_object_set_new(config, key, json_true());
	}
	result = config_normalize("ssh", config, &issues);
	ok(result == NULL && issues.count == 4, "a thousand unknown keys are one issue");
	ok(strncmp(issues.issue[3].message, "Unrecognized key(s) in object: 'key0', 'key1'", 45) == 0,
	   "which names the first of them");

	json_decref(config);
	free(long_name);
}

/* Allocation number `fail_at` fails; every later one, too. */
static long allocations;
static long fail_at;

static void *
failing_malloc(size_t size)
{
	return allocations++ >= fail_at ? NULL : malloc(size);
}

/* Without memory there is no result and no issue that isn't one; the sanitizer sees leaks. */
static void
test_out_of_memory(void)
{
	static const char *const drivers[] = {"ssh", "sandbox", "sandbox", "plugin", "local"};
	static const char *const configs[] = {
	    "{" BASE ",\"port\":\"23\",\"privateKeySecretRef\":{\"type\":\"secret_ref\","
	    "\"secretId\":\"" UUID "\",\"version\":4}}",
	    "{\"provider\":\"p\",\"a\":{\"b\":[1,2]},\"timeoutMs\":4}", "{}",
	    "{\"pluginKey\":\"k\",\"driverKey\":\"d\",\"driverConfig\":{\"a\":[true]}}",
	    "{\"a\":{\"b\":[1,2]}}"};

	for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++)
	{
		json_t *config = json_loads(configs[i], 0, NULL);
		ConfigIssues issues;
		json_t *result = NULL;
		bool clean = true;

		for (fail_at = 0; result == NULL && fail_at < 1000; fail_at++)
		{
			allocations = 0;
			json_set_alloc_funcs(failing_malloc, free);
			result = config_normalize(drivers[i], config, &issues);
			json_set_alloc_funcs(malloc, free);
			clean &= issues.count == 0;
		}
		ok(clean && result != NULL && fail_at > 1,
		   "%s: running out of memory at each of %ld allocations is no issue of the config",
		   drivers[i], fail_at - 1);
		json_decref(result);
		json_decref(config);
	}
}

int
main(void)
{
	test_cases();
	test_limits();
	test_out_of_memory();
	return done_testing();
}
