/*
 * test_jsonrpc.c
 *		The line reader, the message classes, and that memory is zeroed.
 */
#include <malloc.h>
#include <stdlib.h>

#include "shared/jsonrpc.h"
#include "shared/protocol.h"
#include "tap.h"

/*
 * The linker lets every malloc() and free() of our objects come here: to fail
 * on demand, and to look at what is freed.
 */
extern void *__real_malloc(size_t size);
extern void __real_free(void *block);
extern void *__wrap_malloc(size_t size);
extern void __wrap_free(void *block);

static long fail_after = -1;
static bool watch_frees = false;
static long freed_with_secret = 0;
static long freed_blocks = 0;

#define SECRET "sEcReT"

void *
__wrap_malloc(size_t size)
{
	if (fail_after >= 0 && fail_after-- == 0)
	{
		fail_after = 0;
		return NULL;
	}
	return __real_malloc(size);
}

void
__wrap_free(void *block)
{
	if (watch_frees && block != NULL)
	{
		freed_blocks++;
		if (memmem(block, malloc_usable_size(block), SECRET, strlen(SECRET)) != NULL)
			freed_with_secret++;
	}
	__real_free(block);
}

typedef struct Read
{
	char lines[4096]; /* each with its length in front, joined by " | " */
	RpcReadStatus status;
} Read;

static void
read_all(RpcReader *reader, Read *got)
{
	const char *line;
	size_t length;

	while ((got->status = rpc_reader_next(reader, &line, &length)) == RPC_READ_LINE)
	{
		size_t used = strlen(got->lines);

		snprintf(got->lines + used, sizeof(got->lines) - used, "%s%.*s", used > 0 ? "|" : "",
		         (int) length, line);
	}
}

static void
test_reader(void)
{
	static const char input[] = "{\"a\":1}\n\r\n\n \t\r\nsecond\r\nthird\r\r\n  x\nrest";
	static const char expected[] = "{\"a\":1}|second|third\r|  x";

	/* In every size of pieces the same lines come out. */
	for (size_t piece = 1; piece <= sizeof(input); piece++)
	{
		RpcReader *reader = rpc_reader_new(100);
		Read got = {"", RPC_READ_MORE};
		bool taken = true;

		for (size_t i = 0; i < sizeof(input) - 1; i += piece)
		{
			size_t left = sizeof(input) - 1 - i;

			taken &=
			    rpc_reader_feed(reader, input + i, left < piece ? left : piece) == RPC_READ_MORE;
			read_all(reader, &got);
		}
		if (strcmp(got.lines, expected) != 0 || got.status != RPC_READ_MORE || !taken)
			is(got.lines, expected, "lines");
		rpc_reader_free(reader);
	}
	ok(tap_failed == 0, "the same lines in pieces of every size");
}

static RpcReadStatus
status_of(size_t max_line, const char *input, const char *expected_lines)
{
	RpcReader *reader = rpc_reader_new(max_line);
	Read got = {"", RPC_READ_MORE};
	RpcReadStatus status;

	rpc_reader_feed(reader, input, strlen(input));
	read_all(reader, &got);
	status = got.status;
	if (strcmp(got.lines, expected_lines) != 0)
		is(got.lines, expected_lines, "lines");
	/* What is lost stays lost. */
	if (status != RPC_READ_MORE && (rpc_reader_feed(reader, "\n", 1) != status ||
	                                (read_all(reader, &got), got.status != status)))
		ok(false, "a lost stream stays lost");
	rpc_reader_free(reader);
	return status;
}

static void
test_reader_limits(void)
{
	RpcReader *reader;
	const char *line;
	size_t length;
	char *big;
	bool whole;

	ok(status_of(5, "1234\n", "1234") == RPC_READ_MORE, "a line of the limit passes");
	ok(status_of(5, "12345\n", "") == RPC_READ_TOO_LONG, "one byte more does not");
	ok(status_of(5, "1234", "") == RPC_READ_MORE, "a start that may still become one passes");
	ok(status_of(5, "12345", "") == RPC_READ_TOO_LONG, "one that can't does not");
	ok(status_of(5, "12\n34\n567890\n12\n", "12|34") == RPC_READ_TOO_LONG,
	   "good lines before a bad one are read, none after it");
	ok(status_of(5, "    \n   \n\n\n\n\n\n", "") == RPC_READ_MORE, "blank lines do not add up");

	/* 1 MB in small pieces, then a short line: the large buffer is given back. */
	reader = rpc_reader_new(ENVRT_MAX_LINE);
	big = malloc(1 << 20);
	memset(big, 'x', 1 << 20);
	for (int i = 0; i < 1 << 20; i += 1 << 10)
	{
		rpc_reader_feed(reader, big + i, 1 << 10);
		if (rpc_reader_next(reader, &line, &length) != RPC_READ_MORE)
			ok(false, "no line yet");
	}
	rpc_reader_feed(reader, "\n", 1);
	whole = rpc_reader_next(reader, &line, &length) == RPC_READ_LINE && length == 1 << 20 &&
	        memcmp(line, big, length) == 0;
	ok(whole, "a line of 1 MB in pieces");
	free(big);

	freed_blocks = 0;
	watch_frees = true;
	if (rpc_reader_next(reader, &line, &length) != RPC_READ_MORE)
		ok(false, "nothing is left");
	watch_frees = false;
	ok(freed_blocks == 1, "the large buffer is given back when it is empty");
	rpc_reader_free(reader);
	rpc_reader_free(NULL);
}

static char *
dumped(const json_t *value)
{
	return value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : strdup("none");
}

/* Lines and, in brackets, what was skipped: its beginning, and whose it was. */
static void
read_skipping(size_t max_line, size_t piece, const char *input, char *got, size_t size)
{
	RpcReader *reader = rpc_reader_new(max_line);
	size_t total = strlen(input);

	got[0] = '\0';
	rpc_reader_skip_long(reader);
	for (size_t i = 0; i < total; i += piece)
	{
		RpcReadStatus status;
		const char *line;
		size_t length;

		rpc_reader_feed(reader, input + i, total - i < piece ? total - i : piece);
		while ((status = rpc_reader_next(reader, &line, &length)) != RPC_READ_MORE)
		{
			size_t used = strlen(got);
			RpcIdentity identity;

			if (status == RPC_READ_LINE)
			{
				snprintf(got + used, size - used, "%.*s|", (int) length, line);
				continue;
			}
			rpc_reader_skipped(reader, &identity);
			snprintf(got + used, size - used, "[%.*s %d%d %lld %zu]|",
			         (int) (length < 4 ? length : 4), line, identity.is_message,
			         identity.has_method, (long long) json_integer_value(identity.id),
			         identity.length);
			rpc_identity_clear(&identity);
		}
	}
	rpc_reader_free(reader);
}

static void
test_reader_skips(void)
{
	static const char input[] =
	    "one\n{\"jsonrpc\":\"2.0\",\"result\":\"aaaaaaaaaaaaaaa\\\"}\",\"id\":7}\ntwo\n"
	    "xxxxxxxxxxxxxxxxxxxxxxxxxx\n\n{\"method\":1,\"id\":8,\"jsonrpc\":\"2.0\"}\nthree\n";
	static const char expected[] = "one|[{\"js 10 7 54]|two|[xxxx 00 0 26]|[{\"me 11 8 35]|three|";
	bool same = true;
	char got[1024];

	for (size_t piece = 1; piece <= sizeof input; piece++)
	{
		read_skipping(20, piece, input, got, sizeof got);
		if (strcmp(got, expected) != 0)
			same = is(got, expected, "lines and what was skipped");
	}
	ok(same,
	   "lines that are too long are skipped, in pieces of every size, and say whose they are");
}

/* What a line says of whose it is: is_message, has_method, id. */
static const struct
{
	const char *line;
	const char *expected;
} identities[] = {
    {"{\"jsonrpc\":\"2.0\",\"id\":5,\"result\":{", "10 5"},
    {" { \"id\" : 5 , \"jsonrpc\" : \"2.0\" , \"method\" : \"m\" }", "11 5"},
    {"{\"jsonrpc\":\"2.0\",\"id\":\"a,}\\\"b\",\"method\":\"m\"}", "11 \"a,}\\\"b\""},
    {"{\"jsonrpc\":\"2.0\",\"id\":5", "10 5"},
    {"{\"jsonrpc\":\"2.0\",\"id\":5,\"id\":6}", "10 none"},
    {"{\"jsonrpc\":\"2.0\",\"id\":5.5}", "10 none"},
    {"{\"jsonrpc\":\"2.0\",\"id\":null}", "10 none"},
    {"{\"jsonrpc\":\"2.0\",\"id\":[5]}", "10 none"},
    {"{\"jsonrpc\":\"2.0\",\"id\":{\"id\":5}}", "10 none"},
    {"{\"jsonrpc\":\"2.0\",\"result\":{\"id\":5,\"method\":1},\"id\":6}", "10 6"},
    {"{\"jsonrpc\":\"2.0\",\"result\":[\"],\\\"id\\\":9\"],\"id\":6}", "10 6"},
    {"{\"jsonrpc\":\"2.0\",\"result\":1}{\"id\":5}", "10 none"},
    {"{\"jsonrpc\":\"1.0\",\"id\":5}", "00 5"},
    {"{\"jsonrpc\":2.0,\"id\":5}", "00 5"},
    {"{\"level\":30,\"id\":5}", "00 5"},
    {"[{\"jsonrpc\":\"2.0\",\"id\":5}]", "00 none"},
    {"{", "00 none"},
    {"}", "00 none"},
    {"{\"id\":", "00 none"},
    {"{]]]}}}\"id\":5", "00 none"},
    {"", "00 none"},
};

static void
test_identities(void)
{
	char line[1024];
	RpcIdentity identity;

	for (size_t i = 0; i < sizeof identities / sizeof identities[0]; i++)
	{
		char got[300];
		char *id;

		rpc_identify(identities[i].line, strlen(identities[i].line), &identity);
		id = dumped(identity.id);
		snprintf(got, sizeof got, "%d%d %s", identity.is_message, identity.has_method, id);
		is(got, identities[i].expected, identities[i].line);
		free(id);
		rpc_identity_clear(&identity);
	}
	snprintf(line, sizeof line, "{\"jsonrpc\":\"2.0\",\"id\":\"%0300d\"}", 1);
	rpc_identify(line, strlen(line), &identity);
	ok(identity.is_message && identity.id == NULL, "an id that is too long is none");
	rpc_identity_clear(&identity);
}

/* When most of the buffer is consumed, what is left moves to its start instead of growing. */
static void
test_reader_compacts(void)
{
	RpcReader *reader = rpc_reader_new(1 << 20);
	const char *line;
	size_t length;
	char bytes[4001];

	memset(bytes, 'a', sizeof(bytes));
	bytes[3000] = '\n';
	rpc_reader_feed(reader, bytes, sizeof(bytes));
	rpc_reader_next(reader, &line, &length);
	rpc_reader_next(reader, &line, &length);
	freed_blocks = 0;
	watch_frees = true;
	rpc_reader_feed(reader,
	                "bbbbbbbbbb"
	                "bbbbbbbbbb"
	                "bbbbbbbbbb"
	                "bbbbbbbbbb"
	                "bbbbbbbbbb"
	                "bbbbbbbbbb"
	                "bbbbbbbbbb"
	                "bbbbbbbbbb"
	                "bbbbbbbbbb"
	                "bbbbbbbbb\n",
	                100);
	watch_frees = false;
	ok(freed_blocks == 0 && rpc_reader_next(reader, &line, &length) == RPC_READ_LINE &&
	       length == 1099 && line[0] == 'a' && line[999] == 'a' && line[1000] == 'b' &&
	       line[1098] == 'b',
	   "a line that is moved is whole");
	rpc_reader_free(reader);
}

static void
test_reader_zeroes(void)
{
	RpcReader *reader = rpc_reader_new(1 << 20);
	const char *line;
	size_t length;
	const char *first;

	freed_with_secret = freed_blocks = 0;
	watch_frees = true;
	rpc_reader_feed(reader, SECRET "\n" SECRET SECRET "\n", 3 * strlen(SECRET) + 2);
	rpc_reader_next(reader, &first, &length);
	ok(memcmp(first, SECRET, strlen(SECRET)) == 0, "a line is valid");
	rpc_reader_next(reader, &line, &length);
	ok(memmem(first, strlen(SECRET), "\0\0\0\0\0\0", strlen(SECRET)) == first,
	   "until the next call, which zeroes it");
	/* Growing and compacting must not leave a copy behind. */
	for (int i = 0; i < 20000; i++)
	{
		rpc_reader_feed(reader, SECRET, strlen(SECRET));
		if (i % 100 == 99)
		{
			rpc_reader_feed(reader, i % 9900 == 9899 ? "\n" : " ", 1);
			rpc_reader_next(reader, &line, &length);
		}
	}
	rpc_reader_free(reader);
	watch_frees = false;
	ok(freed_blocks > 3, "the reader's buffer grew and was freed");
	ok(freed_with_secret == 0, "and no freed block held a secret");
}

/* Of a parsed message: its kind and members, or why it is invalid. */
static const struct
{
	const char *line;
	const char *expected;
} messages[] = {
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":{}}", "request 1 m {}"},
    {"{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"m\",\"params\":[1]}", "request \"a\" m [1]"},
    {"{\"jsonrpc\":\"2.0\",\"id\":-1,\"method\":\"m\"}", "request -1 m none"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":null}", "request 1 m none"},
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"params\":{\"a\":\"\\u0000\"}}",
     "notification m {\"a\":\"\\u0000\"}"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null}", "response 1 result null"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"a\":1},\"error\":null}",
     "response 1 result {\"a\":1}"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null,\"error\":{\"code\":-1,\"message\":\"m\"}}",
     "response 1 error {\"code\":-1,\"message\":\"m\"}"},
    {"{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32700,\"message\":\"m\"}}",
     "response null error {\"code\":-32700,\"message\":\"m\"}"},
    {"", "the message ends too early"},
    {"{", "the message ends too early"},
    {"{\"a\":1}x", "the message is not valid JSON"},
    {"nonsense " SECRET, "the message is not valid JSON"},
    {"{\"a\":\"" SECRET "\xff\"}", "the message is not valid UTF-8"},
    {"{\"a\":1,\"a\":2}", "the message has an object with the same key twice"},
    {"{\"a\":123456789012345678901}", "the message has a number that is out of range"},
    {"[]", "the message is not an object"},
    {"{}", "the message does not say \"jsonrpc\": \"2.0\""},
    {"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"m\"}",
     "the message does not say \"jsonrpc\": \"2.0\""},
    {"{\"jsonrpc\":2.0,\"id\":1,\"method\":\"m\"}",
     "the message does not say \"jsonrpc\": \"2.0\""},
    {"{\"jsonrpc\":\"2.0\",\"id\":1}", "the message has no method, result or error"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":5}", "the method is not a string"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\"}", "the method is not a string"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\\u0000n\"}", "the method is not a string"},
    {"{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"m\"}",
     "the request's id is neither an integer nor a string"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1.5,\"method\":\"m\"}",
     "the request's id is neither an integer nor a string"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":\"p\"}",
     "the params are neither an object nor an array"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"result\":1}",
     "the message has a method and a result or error"},
    {"{\"jsonrpc\":\"2.0\",\"result\":1}", "the response has no id"},
    {"{\"jsonrpc\":\"2.0\",\"id\":null,\"result\":1}",
     "the response's id is neither an integer nor a string"},
    {"{\"jsonrpc\":\"2.0\",\"id\":{},\"error\":{\"code\":1,\"message\":\"m\"}}",
     "the response's id is neither an integer, a string nor null"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":1,\"error\":{\"code\":1,\"message\":\"m\"}}",
     "the response has a result and an error"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":null}",
     "the response's error is null and there is no result"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":\"e\"}",
     "the response's error is not an object with a code and a message"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":\"1\",\"message\":\"m\"}}",
     "the response's error is not an object with a code and a message"},
    {"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":1}}",
     "the response's error is not an object with a code and a message"},
};

static void
describe(const RpcMessage *message, char *text, size_t size)
{
	char *id = dumped(message->id);
	char *params = dumped(message->params);
	char *outcome = dumped(message->error ? message->error : message->result);

	switch (message->kind)
	{
		case RPC_REQUEST:
			snprintf(text, size, "request %s %s %s", id, message->method, params);
			break;
		case RPC_NOTIFICATION:
			snprintf(text, size, "notification %s %s", message->method, params);
			break;
		case RPC_RESPONSE:
			snprintf(text, size, "response %s %s %s", id, message->error ? "error" : "result",
			         outcome);
			break;
		case RPC_INVALID:
			snprintf(text, size, "%s", message->error_text);
			break;
	}
	free(id);
	free(params);
	free(outcome);
}

static void
test_messages(void)
{
	char *deep = malloc(200001);
	RpcMessage message;
	char text[300];

	for (size_t i = 0; i < sizeof(messages) / sizeof(messages[0]); i++)
	{
		rpc_parse(messages[i].line, strlen(messages[i].line), &message);
		describe(&message, text, sizeof(text));
		is(text, messages[i].expected, messages[i].expected);
		rpc_message_clear(&message);
	}
	ok(message.kind == RPC_INVALID && message.root == NULL, "a cleared message is invalid");

	memset(deep, '[', 200000);
	rpc_parse(deep, 200000, &message);
	is(message.error_text, "the message is nested too deeply", "a flood of brackets");
	rpc_message_clear(&message);
	free(deep);
}

static void
test_builders(void)
{
	size_t length;
	char *line;
	RpcMessage message;
	char text[300];

	line = rpc_dump_line(NULL, &length);
	ok(line == NULL && length == 0, "no message is no line");
	rpc_line_free(line, length);

	json_t *request = rpc_request(7, "m", json_pack("{s:s}", "a", "x\ny"));
	line = rpc_dump_line(request, &length);
	ok(line[length - 1] == '\n' && memchr(line, '\n', length) == line + length - 1,
	   "a line has one newline, at its end");
	rpc_parse(line, length - 1, &message);
	describe(&message, text, sizeof(text));
	is(text, "request 7 m {\"a\":\"x\\ny\"}", "a request comes back");
	rpc_message_clear(&message);
	rpc_line_free(line, length);
	json_decref(request);

	json_t *response = rpc_response(json_string("i"), json_null());
	line = rpc_dump_line(response, &length);
	rpc_parse(line, length - 1, &message);
	describe(&message, text, sizeof(text));
	is(text, "response \"i\" result null", "a response comes back");
	rpc_message_clear(&message);
	rpc_line_free(line, length);
	json_decref(response);

	json_t *error = rpc_error(json_null(), RPC_PARSE_ERROR, "bad", json_pack("{s:i}", "a", 1));
	line = rpc_dump_line(error, &length);
	rpc_parse(line, length - 1, &message);
	describe(&message, text, sizeof(text));
	is(text, "response null error {\"code\":-32700,\"message\":\"bad\",\"data\":{\"a\":1}}",
	   "an error with data comes back");
	rpc_message_clear(&message);
	rpc_line_free(line, length);
	json_decref(error);

	error = rpc_error(json_integer(1), 5, "bad", NULL);
	ok(error != NULL && json_object_get(json_object_get(error, "error"), "data") == NULL,
	   "an error without data");
	json_decref(error);
	ok(rpc_request(1, "m", NULL) == NULL && rpc_response(NULL, json_true()) == NULL &&
	       rpc_response(json_integer(1), NULL) == NULL &&
	       rpc_error(NULL, 1, "m", json_object()) == NULL,
	   "what could not be built makes no message");
}

static long json_allocations;
static long json_fail_at;

static void *
failing_malloc(size_t size)
{
	return json_allocations++ >= json_fail_at ? NULL : malloc(size);
}

static void
test_out_of_memory(void)
{
	json_t *message = NULL;
	char *line = NULL;
	size_t length = 0;
	RpcReader *reader;
	RpcReadStatus status;
	long failures;

	for (json_fail_at = 0; message == NULL && json_fail_at < 1000; json_fail_at++)
	{
		json_allocations = 0;
		json_set_alloc_funcs(failing_malloc, free);
		message = rpc_error(json_integer(1), 1, "m", json_string("d"));
		json_set_alloc_funcs(malloc, free);
	}
	ok(message != NULL && json_fail_at > 5, "a builder fails at each of %ld allocations",
	   json_fail_at - 1);
	json_decref(message);

	message = rpc_request(1, "m", json_stringn_nocheck("\xff", 1));
	ok(message != NULL && rpc_dump_line(message, &length) == NULL && length == 0,
	   "a message that is not UTF-8 is no line");
	json_decref(message);

	message = rpc_request(1, "m", json_array());
	for (int i = 0; i < 1000; i++)
		json_array_append_new(json_object_get(message, "params"), json_integer(i));
	for (failures = 0; line == NULL && failures < 100; failures++)
	{
		fail_after = failures;
		line = rpc_dump_line(message, &length);
		fail_after = -1;
	}
	ok(line != NULL && failures > 3, "a dump fails at each of %ld allocations", failures - 1);
	rpc_line_free(line, length);
	json_decref(message);

	reader = rpc_reader_new(100);
	fail_after = 0;
	status = rpc_reader_feed(reader, "x", 1);
	fail_after = -1;
	ok(status == RPC_READ_NO_MEMORY && rpc_reader_feed(reader, "\n", 1) == RPC_READ_NO_MEMORY,
	   "a reader without memory is lost");
	rpc_reader_free(reader);
}

static void
test_protected_memory(void)
{
	RpcMessage message;
	static const char line[] =
	    "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":{\"" SECRET "\":\"" SECRET
	    "\",\"l\":[\"" SECRET " " SECRET " " SECRET " " SECRET " " SECRET "\\n\"]}}";
	char *dumped_line;
	size_t length;

	rpc_protect_memory();
	rpc_protect_memory();
	freed_blocks = freed_with_secret = 0;
	watch_frees = true;
	rpc_parse(line, sizeof(line) - 1, &message);
	dumped_line = rpc_dump_line(message.root, &length);
	rpc_line_free(dumped_line, length);
	rpc_message_clear(&message);
	watch_frees = false;
	ok(freed_blocks > 5, "messages free their blocks through us");
	ok(freed_with_secret == 0, "and none of them held a secret");
	/* Jansson's blocks are plain ones to everybody else. */
	json_set_alloc_funcs(malloc, free);
}

int
main(void)
{
	test_reader();
	test_reader_limits();
	test_reader_compacts();
	test_reader_zeroes();
	test_reader_skips();
	test_identities();
	test_messages();
	test_builders();
	test_out_of_memory();
	test_protected_memory();
	return done_testing();
}
