/*
 * jsonrpc.c
 *		Newline-delimited JSON-RPC 2.0: the line splitter and message classes.
 *
 * The reader holds one buffer: the bytes before `start` are consumed, the
 * bytes before `scanned` are known to hold no newline, so that a line that
 * arrives in many pieces is searched once.  A line that was handed out stays
 * in place until the next call, which zeroes it: messages carry private keys,
 * and a buffer is reused for hours.  For the same reason the buffer never
 * goes through realloc(), which would leave a copy behind, and one that grew
 * for a large message is given back as soon as it is empty.
 *
 * Everything that is malformed ends a connection of the host's clients, and
 * costs a plugin's worker the call that it is about, so the parser is strict
 * where two readers of one line could disagree (duplicate keys, a message that
 * is a request and a response at once) and lenient only where JSON-RPC
 * libraries are known to differ (a null beside the other of result and error,
 * "params": null).  U+0000 inside of a string is legal JSON and the output of
 * a command may hold it: it passes, and whoever needs C strings checks.
 *
 * No text of a message reaches an error text: what can't be parsed may be a
 * secret.
 */
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shared/jsonrpc.h"
#include "shared/protocol.h"

/* What an idle reader keeps. */
#define READER_KEEP 65536
#define READER_LARGE (1024 * 1024)

/* What is kept of a line that is skipped. */
#define SKIPPED_KEEP 1024

/* What a value costs besides its text. */
#define VALUE_COST ((size_t) 16)

struct RpcReader
{
	char *buffer;
	size_t capacity;
	size_t start;       /* first byte not yet consumed */
	size_t scanned;     /* no newline before this one */
	size_t end;         /* one after the last byte */
	size_t handed;      /* end of the line the caller holds; 0 when none */
	size_t max_line;    /* its newline included */
	RpcReadStatus lost; /* RPC_READ_MORE while all is well */
	bool skips;         /* lines that are too long */
	bool skipping;
	RpcScanner scanner; /* of the line that is skipped, or may have to be */
	size_t identified;  /* so much of the line has been through the scanner */
	char skipped[SKIPPED_KEEP];
	size_t skipped_length;
};

static void
zeroing_free(void *block)
{
	if (block == NULL)
		return;
	explicit_bzero(block, malloc_usable_size(block));
	free(block);
}

void
rpc_protect_memory(void)
{
	json_set_alloc_funcs(malloc, zeroing_free);
}

static void
free_zeroed(char *block, size_t size)
{
	if (block == NULL)
		return;
	explicit_bzero(block, size);
	free(block);
}

RpcReader *
rpc_reader_new(size_t max_line)
{
	RpcReader *reader = calloc(1, sizeof(RpcReader));

	if (reader == NULL)
		return NULL;
	reader->max_line = max_line;
	reader->lost = RPC_READ_MORE;
	return reader;
}

void
rpc_reader_free(RpcReader *reader)
{
	if (reader == NULL)
		return;
	/* Nothing was ever written behind the end, or it is zero again. */
	free_zeroed(reader->buffer, reader->end);
	free_zeroed((char *) reader, sizeof *reader);
}

void
rpc_reader_skip_long(RpcReader *reader)
{
	reader->skips = true;
}

void
rpc_reader_skipped(const RpcReader *reader, RpcIdentity *identity)
{
	rpc_scan_end(&reader->scanner, identity);
}

/* Zeroes the line that the caller had, and drops a large buffer that is empty. */
static void
reader_forget_handed(RpcReader *reader)
{
	if (reader->handed == 0)
		return;
	explicit_bzero(reader->buffer + reader->start, reader->handed - reader->start);
	reader->start = reader->handed;
	reader->handed = 0;
	if (reader->start == reader->end)
	{
		reader->start = reader->scanned = reader->end = 0;
		if (reader->capacity > READER_KEEP)
		{
			/* All of it is zero by now: every consumed byte was. */
			free(reader->buffer);
			reader->buffer = NULL;
			reader->capacity = 0;
		}
	}
}

/* Room for `length` more bytes behind `end`. */
static bool
reader_make_room(RpcReader *reader, size_t length)
{
	size_t held = reader->end - reader->start;
	size_t wanted;
	char *buffer;

	if (length <= reader->capacity - reader->end)
		return true;
	if (length > SIZE_MAX / 2 - held)
		return false;

	wanted = held + length;
	if (wanted <= reader->capacity && reader->start >= reader->capacity / 2)
	{
		/* Cheap: at least as much was consumed as has to be moved. */
		memmove(reader->buffer, reader->buffer + reader->start, held);
		explicit_bzero(reader->buffer + held, reader->end - held);
	}
	else
	{
		size_t capacity = reader->capacity < 4096 ? 4096 : reader->capacity;

		/* What is large goes to its full size at once: only what is used of it costs anything. */
		while (capacity < wanted && capacity < READER_LARGE)
			capacity *= 2;
		if (capacity < wanted)
			capacity = wanted > reader->max_line ? wanted : reader->max_line + READER_KEEP;
		buffer = malloc(capacity);
		if (buffer == NULL)
			return false;
		if (held > 0)
			memcpy(buffer, reader->buffer + reader->start, held);
		free_zeroed(reader->buffer, reader->end);
		reader->buffer = buffer;
		reader->capacity = capacity;
	}
	reader->scanned -= reader->start;
	reader->end = held;
	reader->start = 0;
	return true;
}

/*
 * RPC_READ_MORE when the bytes were taken.  A line that is too long is
 * reported by rpc_reader_next(), after the good lines before it.
 */
RpcReadStatus
rpc_reader_feed(RpcReader *reader, const char *bytes, size_t length)
{
	if (reader->lost != RPC_READ_MORE)
		return reader->lost;
	reader_forget_handed(reader);
	if (length == 0)
		return RPC_READ_MORE;
	if (!reader_make_room(reader, length))
	{
		reader->lost = RPC_READ_NO_MEMORY;
		return reader->lost;
	}
	memcpy(reader->buffer + reader->end, bytes, length);
	reader->end += length;
	return RPC_READ_MORE;
}

static bool
jsonrpc_is_blank(const char *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		if (bytes[i] != ' ' && bytes[i] != '\t' && bytes[i] != '\r')
			return false;
	}
	return true;
}

static void
begin_to_skip(RpcReader *reader)
{
	size_t there = reader->end - reader->start;

	reader->skipping = true;
	if (reader->identified == 0)
		memset(&reader->scanner, 0, sizeof reader->scanner);
	/* It is longer than the limit, but the limit may be smaller than what is kept. */
	reader->skipped_length = there < SKIPPED_KEEP ? there : SKIPPED_KEEP;
	if (reader->skipped_length > reader->max_line)
		reader->skipped_length = reader->max_line;
	memcpy(reader->skipped, reader->buffer + reader->start, reader->skipped_length);
}

/* A long line is scanned as it comes, since it may become too long: all at once would take long. */
static void
scan_on(RpcReader *reader)
{
	size_t there = reader->end - reader->start;

	if (there < READER_LARGE)
		return;
	if (reader->identified == 0)
		memset(&reader->scanner, 0, sizeof reader->scanner);
	rpc_scan(&reader->scanner, reader->buffer + reader->start + reader->identified,
	         there - reader->identified);
	reader->identified = there;
}

/* Goes on to the end of the line, or of what is there. */
static RpcReadStatus
skip(RpcReader *reader)
{
	const char *bytes = reader->buffer + reader->start;
	size_t there = reader->end - reader->start;
	const char *newline = there > 0 ? memchr(bytes, '\n', there) : NULL;
	size_t length = newline ? (size_t) (newline - bytes) : there;

	if (there == 0)
		return RPC_READ_MORE;
	rpc_scan(&reader->scanner, bytes + reader->identified, length - reader->identified);
	reader->identified = 0;
	reader->handed = reader->scanned = reader->start + length + (newline ? 1 : 0);
	if (newline == NULL)
	{
		reader_forget_handed(reader);
		return RPC_READ_MORE;
	}
	reader->skipping = false;
	return RPC_READ_SKIPPED;
}

RpcReadStatus
rpc_reader_next(RpcReader *reader, const char **line, size_t *length)
{
	*line = NULL;
	*length = 0;
	if (reader->lost != RPC_READ_MORE)
		return reader->lost;

	for (;;)
	{
		char *newline;
		size_t line_length;

		reader_forget_handed(reader);
		if (reader->skipping)
		{
			RpcReadStatus status = skip(reader);

			if (status == RPC_READ_SKIPPED)
			{
				*line = reader->skipped;
				*length = reader->skipped_length;
			}
			return status;
		}
		newline = NULL;
		if (reader->end > reader->scanned)
			newline = memchr(reader->buffer + reader->scanned, '\n', reader->end - reader->scanned);

		/* Without a newline one more byte must come, so what is here must be shorter. */
		line_length =
		    (newline ? (size_t) (newline - reader->buffer) + 1 : reader->end + 1) - reader->start;
		if (line_length > reader->max_line && reader->skips)
		{
			begin_to_skip(reader);
			continue;
		}
		if (line_length > reader->max_line)
		{
			reader->lost = RPC_READ_TOO_LONG;
			return reader->lost;
		}
		if (newline == NULL)
		{
			reader->scanned = reader->end;
			if (reader->skips)
				scan_on(reader);
			return RPC_READ_MORE;
		}

		reader->identified = 0;
		reader->handed = reader->scanned = reader->start + line_length;
		line_length--;
		if (line_length > 0 && newline[-1] == '\r')
			line_length--;
		if (jsonrpc_is_blank(reader->buffer + reader->start, line_length))
			continue;

		*line = reader->buffer + reader->start;
		*length = line_length;
		return RPC_READ_LINE;
	}
}

char *
rpc_reader_detach(RpcReader *reader, size_t *size)
{
	size_t held = reader->end - reader->handed;
	char *taken = reader->buffer;
	char *rest = NULL;

	if (held > 0 && (rest = malloc(held)) == NULL)
		return NULL;
	if (held > 0)
		memcpy(rest, reader->buffer + reader->handed, held);
	/* What lies behind is zero, or zeroed with the line. */
	*size = reader->end;
	reader->buffer = rest;
	reader->capacity = reader->end = held;
	reader->start = reader->scanned = reader->handed = 0;
	return taken;
}

const char *
rpc_line_problem(const char *line, size_t length)
{
	const char *end = line + length;
	size_t values = 1;
	size_t depth = 0;

	for (const char *next = line; next < end; next++)
	{
		switch (*next)
		{
			case '"':
				for (next++; next < end && *next != '"'; next++)
					if (*next == '\\')
						next++;
				break;
			case '[':
			case '{':
				/* Its first member has no comma before it. */
				values++;
				if (++depth > ENVRT_MAX_DEPTH)
					return "the message is nested too deeply";
				break;
			case ']':
			case '}':
				if (depth > 0)
					depth--;
				break;
			case ',':
				values++;
				break;
			default:
				break;
		}
		if (values > ENVRT_MAX_VALUES)
			return "the message has too many values";
	}
	return NULL;
}

/* Jansson's own texts quote the input, so only its codes are used. */
static const char *
parse_error_text(enum json_error_code code)
{
	switch (code)
	{
		case json_error_out_of_memory:
			return "out of memory while reading a message";
		case json_error_invalid_utf8:
			return "the message is not valid UTF-8";
		case json_error_duplicate_key:
			return "the message has an object with the same key twice";
		case json_error_stack_overflow:
			return "the message is nested too deeply";
		case json_error_numeric_overflow:
			return "the message has a number that is out of range";
		case json_error_premature_end_of_input:
			return "the message ends too early";
		default:
			return "the message is not valid JSON";
	}
}

static bool
is_id(const json_t *value)
{
	return json_is_integer(value) || json_is_string(value);
}

static bool
is_plain_string(const json_t *value)
{
	return json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value);
}

/* Fills in the message and returns NULL, or returns what is wrong. */
static const char *
classify(RpcMessage *message)
{
	json_t *root = message->root;
	json_t *version;
	json_t *id;
	json_t *method;
	json_t *params;
	json_t *result;
	json_t *error;

	if (!json_is_object(root))
		return "the message is not an object";

	version = json_object_get(root, "jsonrpc");
	if (!json_is_string(version) || strcmp(json_string_value(version), "2.0") != 0)
		return "the message does not say \"jsonrpc\": \"2.0\"";

	id = json_object_get(root, "id");
	method = json_object_get(root, "method");
	params = json_object_get(root, "params");
	result = json_object_get(root, "result");
	error = json_object_get(root, "error");

	if (method != NULL)
	{
		if (!is_plain_string(method) || json_string_length(method) == 0)
			return "the method is not a string";
		if (result != NULL || error != NULL)
			return "the message has a method and a result or error";
		if (id != NULL && !is_id(id))
			return "the request's id is neither an integer nor a string";
		if (params != NULL && !json_is_null(params))
		{
			if (!json_is_object(params) && !json_is_array(params))
				return "the params are neither an object nor an array";
			message->params = params;
		}
		message->id = id;
		message->method = json_string_value(method);
		message->kind = id != NULL ? RPC_REQUEST : RPC_NOTIFICATION;
		return NULL;
	}

	if (result == NULL && error == NULL)
		return "the message has no method, result or error";
	if (id == NULL)
		return "the response has no id";

	/* Some libraries write both keys, the one that does not apply as null. */
	if (error != NULL && !json_is_null(error))
	{
		if (result != NULL && !json_is_null(result))
			return "the response has a result and an error";
		if (!json_is_object(error) || !json_is_integer(json_object_get(error, "code")) ||
		    !json_is_string(json_object_get(error, "message")))
			return "the response's error is not an object with a code and a message";
		/* Null is right for a request whose id could not be read. */
		if (!is_id(id) && !json_is_null(id))
			return "the response's id is neither an integer, a string nor null";
		message->error = error;
	}
	else
	{
		if (result == NULL)
			return "the response's error is null and there is no result";
		if (!is_id(id))
			return "the response's id is neither an integer nor a string";
		message->result = result;
	}
	message->id = id;
	message->kind = RPC_RESPONSE;
	return NULL;
}

void
rpc_parse(const char *line, size_t length, RpcMessage *message)
{
	json_error_t error;
	const char *problem;

	memset(message, 0, sizeof(*message));
	message->kind = RPC_INVALID;
	message->root = json_loadb(line, length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
	if (message->root == NULL)
	{
		problem = parse_error_text(json_error_code(&error));
		/* The texts of jansson's errors hold parts of the input. */
		explicit_bzero(&error, sizeof(error));
	}
	else
		problem = classify(message);

	if (problem != NULL)
		snprintf(message->error_text, sizeof(message->error_text), "%s", problem);
}

void
rpc_message_clear(RpcMessage *message)
{
	json_decref(message->root);
	memset(message, 0, sizeof(*message));
	message->kind = RPC_INVALID;
}

/* Sets a key to a stolen value, which may be NULL: then there was no memory for it. */
static bool
set_new(json_t *object, const char *key, json_t *value)
{
	/* json_object_set_new() frees the value when it fails. */
	return json_object_set_new(object, key, value) == 0;
}

json_t *
rpc_request(json_int_t id, const char *method, json_t *params)
{
	json_t *message = json_object_new();
	bool complete;

	complete = set_new(message, "jsonrpc", json_string("2.0"));
	complete &= set_new(message, "id", json_integer(id));
	complete &= set_new(message, "method", json_string(method));
	/* Always there, so that NULL can mean that building it failed. */
	complete &= set_new(message, "params", params);
	if (complete)
		return message;
	json_decref(message);
	return NULL;
}

json_t *
rpc_response(json_t *id, json_t *result)
{
	json_t *message = json_object_new();
	bool complete;

	complete = set_new(message, "jsonrpc", json_string("2.0"));
	complete &= set_new(message, "id", id);
	complete &= set_new(message, "result", result);
	if (complete)
		return message;
	json_decref(message);
	return NULL;
}

/* Unlike the others, data may be NULL: then the error has none. */
json_t *
rpc_error(json_t *id, int code, const char *message, json_t *data)
{
	json_t *error = json_object_new();
	json_t *root = json_object_new();
	bool complete;

	complete = set_new(error, "code", json_integer(code));
	complete &= set_new(error, "message", json_string(message));
	if (data != NULL)
		complete &= set_new(error, "data", data);
	complete &= set_new(root, "jsonrpc", json_string("2.0"));
	complete &= set_new(root, "id", id);
	complete &= set_new(root, "error", error);
	if (complete)
		return root;
	json_decref(root);
	return NULL;
}

typedef struct Dump
{
	char *bytes;
	size_t length;
	size_t capacity;
} Dump;

static int
dump_append(const char *bytes, size_t length, void *arg)
{
	Dump *dump = arg;

	if (length > dump->capacity - dump->length)
	{
		size_t capacity = dump->capacity < 512 ? 512 : dump->capacity;
		char *grown;

		while (capacity - dump->length < length)
		{
			if (capacity > SIZE_MAX / 4)
				return -1;
			capacity *= 2;
		}
		grown = malloc(capacity);
		if (grown == NULL)
			return -1;
		if (dump->length > 0)
			memcpy(grown, dump->bytes, dump->length);
		free_zeroed(dump->bytes, dump->capacity);
		dump->bytes = grown;
		dump->capacity = capacity;
	}
	memcpy(dump->bytes + dump->length, bytes, length);
	dump->length += length;
	return 0;
}

size_t
rpc_size(const json_t *value, size_t limit)
{
	size_t size = VALUE_COST + json_string_length(value);
	const char *key;
	json_t *member;
	size_t i;

	if (json_is_array(value))
	{
		json_array_foreach(value, i, member)
		{
			if (size > limit)
				break;
			size += rpc_size(member, limit - size);
		}
	}
	else if (json_is_object(value))
	{
		json_object_foreach((json_t *) value, key, member)
		{
			if (size > limit)
				break;
			size += strlen(key) + rpc_size(member, limit - size);
		}
	}
	return size;
}

/*
 * rpc_dump_line
 *		NULL when out of memory or when the message is none (NULL, or a string
 *		in it is not UTF-8).
 *
 * A newline inside of a string is escaped by JSON, so the one at the end is
 * the only one.
 */
char *
rpc_dump_line(const json_t *message, size_t *length)
{
	Dump dump = {NULL, 0, 0};

	*length = 0;
	if (message == NULL || json_dump_callback(message, dump_append, &dump, JSON_COMPACT) != 0 ||
	    dump_append("\n", 1, &dump) != 0)
	{
		free_zeroed(dump.bytes, dump.capacity);
		return NULL;
	}
	*length = dump.length;
	return dump.bytes;
}

void
rpc_line_free(char *line, size_t length)
{
	free_zeroed(line, length);
}
