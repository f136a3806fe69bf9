/*
 * execute_output.c
 *		What a command writes, and the answer of environmentExecute.
 *
 * A driver's execution owns one of these and hands it every byte.  The first
 * bytes of each stream are kept, up to maxOutput, for the answer; what comes later
 * is counted and dropped, so that the command never waits.
 *
 * Streamed, they go to the client in pieces, of which each is sent when it is full,
 * when the other stream has something, or after a moment; a character that has come
 * in part waits for its rest.  A client that does not read makes the command wait
 * instead.
 *
 * As text, what is no UTF-8 becomes U+FFFD, a byte at a time, and so does NUL, which
 * not every reader of JSON can hold.  JSON makes six bytes of a control character,
 * and the answer has to fit into a line: a stream that gets too long by that is
 * cut where it would, and called truncated.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "execute_output.h"
#include "memory.h"
#include "protocol.h"
#include "timer.h"

/* A stream in the answer, as JSON; two of these and the rest make a line. */
#define MAX_JSON ((size_t) ENVRT_MAX_LINE / 2 - 65536)

/* A piece of streamed output, and how long it waits for more. */
#define MAX_PIECE 65536
#define PIECE_MS 20

typedef struct Stream
{
	Bytes kept;
	json_int_t bytes; /* all that came */
	bool truncated;
	/* Streamed: the beginning of a character whose rest has not come, while the piece is another's.
	 */
	char cut[4];
	size_t cut_length;
} Stream;

struct ExecuteOutput
{
	Call *call; /* NULL: gone */
	void (*room)(void *data);
	void *data;
	size_t max_output;
	bool base64;
	uint64_t started;
	Stream streams[2];

	bool stream;
	Bytes piece;
	bool piece_is_stderr;
	Timer *piece_timer;
	bool behind; /* the client does not read */
};

static json_t *
base64_json(const char *bytes, size_t length)
{
	size_t size = sodium_base64_encoded_len(length, sodium_base64_VARIANT_ORIGINAL);
	char *text = xcalloc(1, size);
	json_t *value;

	if (length > 0)
		sodium_bin2base64(text, size, (const unsigned char *) bytes, length,
		                  sodium_base64_VARIANT_ORIGINAL);
	value = json_string_nocheck(text);
	free(text);
	return value;
}

/* Whether what is left is the beginning of a character, cut off. */
static bool
is_cut(const unsigned char *bytes, size_t length)
{
	size_t wanted = bytes[0] > 0xf4    ? 0
	                : bytes[0] >= 0xf0 ? 4
	                : bytes[0] >= 0xe0 ? 3
	                : bytes[0] >= 0xc2 ? 2
	                                   : 0;

	if (length >= wanted)
		return false;
	for (size_t i = 1; i < length; i++)
		if ((bytes[i] & 0xc0) != 0x80)
			return false;
	return true;
}

/* How many bytes at the end of the piece are the beginning of a character. */
static size_t
cut_off(const Bytes *piece)
{
	for (size_t count = 1; count <= 3 && count <= piece->length; count++)
	{
		const unsigned char *last = (unsigned char *) piece->data + piece->length - count;

		if ((*last & 0xc0) != 0x80)
			return is_cut(last, count) ? count : 0;
	}
	return 0;
}

static void
send_piece(ExecuteOutput *output, size_t held_back)
{
	size_t length = output->piece.length - held_back;
	json_t *params;

	timer_stop(&output->piece_timer);
	if (length == 0 || output->call == NULL)
		return;
	params = json_object();
	json_object_set_new(params, "stream",
	                    json_string(output->piece_is_stderr ? "stderr" : "stdout"));
	json_object_set_new(params, "dataBase64", base64_json(output->piece.data, length));
	if (held_back > 0)
		memmove(output->piece.data, output->piece.data + length, held_back);
	output->piece.length = held_back;
	if (!call_notify(output->call, "envrt/output", params))
		output->behind = true;
}

/* The piece becomes that of a stream; what the other one has begun is put aside. */
static void
turn_to(ExecuteOutput *output, bool is_stderr)
{
	Stream *stream = &output->streams[is_stderr];
	Stream *other = &output->streams[!is_stderr];

	if (output->piece_is_stderr == is_stderr)
		return;
	other->cut_length = cut_off(&output->piece);
	send_piece(output, other->cut_length);
	if (other->cut_length > 0)
		memcpy(other->cut, output->piece.data + output->piece.length - other->cut_length,
		       other->cut_length);
	output->piece.length = 0;
	output->piece_is_stderr = is_stderr;
	bytes_append(&output->piece, stream->cut, stream->cut_length);
	stream->cut_length = 0;
}

void
execute_output_flush(ExecuteOutput *output)
{
	send_piece(output, 0);
	if (output->streams[!output->piece_is_stderr].cut_length > 0)
	{
		turn_to(output, !output->piece_is_stderr);
		send_piece(output, 0);
	}
}

static void
piece_waited(void *data)
{
	ExecuteOutput *output = data;

	send_piece(output, cut_off(&output->piece));
}

static void
stream_bytes(ExecuteOutput *output, bool is_stderr, const char *bytes, size_t length)
{
	turn_to(output, is_stderr);
	while (length > 0)
	{
		size_t room = MAX_PIECE - output->piece.length;
		size_t count = length < room ? length : room;

		bytes_append(&output->piece, bytes, count);
		bytes += count;
		length -= count;
		if (output->piece.length == MAX_PIECE)
			send_piece(output, cut_off(&output->piece));
	}
	if (output->piece.length > 0 && output->piece_timer == NULL)
		timer_start(&output->piece_timer, PIECE_MS, piece_waited, output);
}

static void
client_has_read(void *data)
{
	ExecuteOutput *output = data;

	if (!output->behind)
		return;
	output->behind = false;
	output->room(output->data);
}

ExecuteOutput *
execute_output_new(Call *call, const ExecuteRequest *request, void (*room)(void *data), void *data)
{
	ExecuteOutput *output = xcalloc(1, sizeof *output);

	output->call = call;
	output->room = room;
	output->data = data;
	output->max_output = request->max_output;
	output->base64 = request->base64;
	output->stream = request->stream;
	output->started = now_ms();
	if (output->stream)
		call_on_room(call, client_has_read, output);
	return output;
}

void
execute_output_free(ExecuteOutput *output)
{
	if (output == NULL)
		return;
	bytes_free(&output->streams[0].kept);
	bytes_free(&output->streams[1].kept);
	bytes_free(&output->piece);
	timer_stop(&output->piece_timer);
	free(output);
}

void
execute_output_detach(ExecuteOutput *output)
{
	output->call = NULL;
	output->behind = false;
}

bool
execute_output_write(ExecuteOutput *output, bool is_stderr, const char *bytes, size_t length)
{
	Stream *stream = &output->streams[is_stderr];
	size_t room = output->max_output - stream->kept.length;

	if (output->call == NULL)
		return true;
	stream->bytes += (json_int_t) length;
	if (output->stream)
	{
		stream_bytes(output, is_stderr, bytes, length);
		return !output->behind;
	}
	if (length > room)
	{
		stream->truncated = true;
		length = room;
	}
	bytes_append(&stream->kept, bytes, length);
	return true;
}

bool
execute_output_has_room(const ExecuteOutput *output)
{
	return !output->behind;
}

static json_t *
stream_text(Stream *stream)
{
	const unsigned char *next = (const unsigned char *) stream->kept.data;
	size_t left = stream->kept.length;
	size_t json_length = 0;
	Bytes text = {0};
	json_t *value;

	bytes_append(&text, "", 0);
	while (left > 0)
	{
		unsigned code_point = 0;
		size_t count = utf8_sequence(next, left, &code_point);
		size_t json_count = count;

		if (count == 0 && stream->truncated && is_cut(next, left))
			break;
		if (count == 0 || code_point == 0)
			json_count = 3;
		else if (code_point < 0x20 || code_point == 0x7f)
			json_count = 6;
		else if (code_point == '"' || code_point == '\\')
			json_count = 2;
		if (json_length + json_count > MAX_JSON)
		{
			stream->truncated = true;
			break;
		}
		json_length += json_count;
		if (count == 0 || code_point == 0)
		{
			bytes_append(&text, "\xef\xbf\xbd", 3);
			count = 1;
		}
		else
			bytes_append(&text, next, count);
		next += count;
		left -= count;
	}
	value = json_stringn(text.data, text.length);
	bytes_free(&text);
	return value;
}

static void
add_stream(const ExecuteOutput *output, Stream *stream, const char *name, json_t *result,
           json_t *metadata)
{
	char key[32];

	if (!output->stream && output->base64)
	{
		snprintf(key, sizeof key, "%sBase64", name);
		json_object_set_new(result, key, base64_json(stream->kept.data, stream->kept.length));
	}
	else if (!output->stream)
		json_object_set_new(result, name, stream_text(stream));
	snprintf(key, sizeof key, "%sBytes", name);
	json_object_set_new(metadata, key, json_integer(stream->bytes));
	if (stream->truncated)
	{
		snprintf(key, sizeof key, "%sTruncated", name);
		json_object_set_new(metadata, key, json_true());
	}
}

json_t *
execute_output_result(ExecuteOutput *output, const ExecuteEnd *end)
{
	json_t *result = json_object();
	json_t *metadata = json_object();

	execute_output_flush(output);
	output->call = NULL;
	json_object_set_new(result, "exitCode",
	                    end->exited && !end->timed_out ? json_integer(end->exit_code)
	                                                   : json_null());
	json_object_set_new(result, "signal", end->signal ? json_string(end->signal) : json_null());
	json_object_set_new(result, "timedOut", json_boolean(end->timed_out));
	add_stream(output, &output->streams[0], "stdout", result, metadata);
	add_stream(output, &output->streams[1], "stderr", result, metadata);
	json_object_set_new(metadata, "durationMs",
	                    json_integer((json_int_t) (now_ms() - output->started)));
	json_object_set_new(result, "metadata", metadata);
	return result;
}

const char *
execute_signal_name(int number)
{
	static char name[32];
	const char *abbreviation = sigabbrev_np(number);

	if (abbreviation == NULL)
		return NULL;
	snprintf(name, sizeof name, "SIG%s", abbreviation);
	return name;
}
