/*
 * execute_output.c
 *		What a command writes, and the answer of environmentExecute.
 *
 * A driver's execution owns one of these and hands it every byte.  Of each stream
 * maxOutput bytes are kept for the answer: the first half, where a command says what it
 * does, and the last, where it says why it failed.  What lies between is counted and
 * dropped, so that the command never waits; the answer's metadata says how much it was,
 * and where.
 *
 * Streamed, they go to the client in pieces, of which each is sent when it is full,
 * when the other stream has something, or after a moment; a character that has come
 * in part waits for its rest.  A client that does not read makes the command wait
 * instead.
 *
 * As text, what is no UTF-8 becomes U+FFFD, a byte at a time, and so does NUL, which
 * not every reader of JSON can hold.  JSON makes six bytes of a control character,
 * and the answer has to fit into a line: of a stream that gets too long by that, more is
 * dropped from the middle.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "calls/execute_output.h"
#include "base/memory.h"
#include "shared/protocol.h"
#include "base/timer.h"

/* A stream in the answer, as JSON; two of these and the rest make a line. */
#define MAX_JSON ((size_t) ENVRT_MAX_LINE / 2 - 65536)

/* A piece of streamed output, and how long it waits for more. */
#define MAX_PIECE 65536
#define PIECE_MS 20

typedef struct Stream
{
	Bytes first;
	Bytes last;       /* what came after the first bytes; a ring once it is full */
	size_t oldest;    /* where the ring begins */
	json_int_t bytes; /* all that came */
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

/* How many bytes at the end are the beginning of a character. */
static size_t
cut_off(const char *bytes, size_t length)
{
	for (size_t count = 1; count <= 3 && count <= length; count++)
	{
		const unsigned char *last = (const unsigned char *) bytes + length - count;

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
	other->cut_length = cut_off(output->piece.data, output->piece.length);
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

	send_piece(output, cut_off(output->piece.data, output->piece.length));
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
			send_piece(output, cut_off(output->piece.data, output->piece.length));
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
	for (int i = 0; i < 2; i++)
	{
		bytes_free(&output->streams[i].first);
		bytes_free(&output->streams[i].last);
	}
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

static void
execute_output_keep(Stream *stream, size_t max_output, const char *bytes, size_t length)
{
	size_t most_last = max_output / 2;
	size_t room = max_output - most_last - stream->first.length;
	size_t count = length < room ? length : room;

	bytes_append(&stream->first, bytes, count);
	bytes += count;
	length -= count;
	/* Of what would be overwritten at once nothing is copied. */
	if (length > most_last)
	{
		bytes += length - most_last;
		length = most_last;
	}
	room = most_last - stream->last.length;
	count = length < room ? length : room;
	bytes_append(&stream->last, bytes, count);
	bytes += count;
	length -= count;
	while (length > 0)
	{
		room = most_last - stream->oldest;
		count = length < room ? length : room;
		memcpy(stream->last.data + stream->oldest, bytes, count);
		stream->oldest = (stream->oldest + count) % most_last;
		bytes += count;
		length -= count;
	}
}

bool
execute_output_write(ExecuteOutput *output, bool is_stderr, const char *bytes, size_t length)
{
	Stream *stream = &output->streams[is_stderr];

	if (output->call == NULL)
		return true;
	stream->bytes += (json_int_t) length;
	if (output->stream)
	{
		stream_bytes(output, is_stderr, bytes, length);
		return !output->behind;
	}
	execute_output_keep(stream, output->max_output, bytes, length);
	return true;
}

bool
execute_output_has_room(const ExecuteOutput *output)
{
	return !output->behind;
}

/* What of a stream is in the answer: all of it, or what came first and what came last. */
typedef struct Excerpt
{
	const char *first;
	size_t first_length;
	const char *last; /* with something missing before it */
	size_t last_length;
	json_int_t missing;    /* bytes */
	json_int_t missing_at; /* after so many characters of a text, or bytes */
} Excerpt;

/* The kept bytes in their order: `joined` owns them. */
static Excerpt
stream_excerpt(const Stream *stream, Bytes *joined)
{
	Excerpt excerpt = {.first_length = stream->first.length};

	bytes_append(joined, stream->first.data, stream->first.length);
	if (stream->last.length > 0)
	{
		bytes_append(joined, stream->last.data + stream->oldest,
		             stream->last.length - stream->oldest);
		bytes_append(joined, stream->last.data, stream->oldest);
	}
	bytes_append(joined, "", 0);
	excerpt.missing = stream->bytes - (json_int_t) joined->length;
	if (excerpt.missing == 0)
		excerpt.first_length = joined->length;
	excerpt.first = joined->data;
	excerpt.last = joined->data + excerpt.first_length;
	excerpt.last_length = joined->length - excerpt.first_length;
	excerpt.missing_at = (json_int_t) excerpt.first_length;
	return excerpt;
}

/* The next character of what is to be text, and what it costs in JSON.  *valid: it is one. */
static inline size_t
next_character(const char *bytes, size_t length, bool *valid, size_t *json_length)
{
	unsigned char byte = (unsigned char) *bytes;
	unsigned code_point = 0;
	size_t count;

	/* Most are: there may be megabytes, and everybody waits meanwhile. */
	if (byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\')
	{
		*valid = true;
		*json_length = 1;
		return 1;
	}
	count = utf8_sequence((const unsigned char *) bytes, length, &code_point);
	*valid = count > 0 && code_point != 0;
	if (!*valid)
		*json_length = 3;
	else if (code_point < 0x20 || code_point == 0x7f)
		*json_length = 6;
	else if (code_point == '"' || code_point == '\\')
		*json_length = 2;
	else
		*json_length = count;
	return count > 0 ? count : 1;
}

static size_t
json_cost(const char *bytes, size_t length)
{
	size_t cost = 0;

	while (length > 0)
	{
		bool valid;
		size_t json_length;
		size_t count = next_character(bytes, length, &valid, &json_length);

		cost += json_length;
		bytes += count;
		length -= count;
	}
	return cost;
}

/* How many bytes can be taken from the beginning, of whole characters, at a cost of `most`. */
static size_t
prefix_within(const char *bytes, size_t length, size_t most)
{
	size_t taken = 0;

	while (taken < length)
	{
		bool valid;
		size_t json_length;
		size_t count = next_character(bytes + taken, length - taken, &valid, &json_length);

		if (json_length > most)
			break;
		most -= json_length;
		taken += count;
	}
	return taken;
}

/* How many bytes have to be left out at the beginning for the rest to cost `most` at the most. */
static size_t
left_out_within(const char *bytes, size_t length, size_t most)
{
	size_t cost = json_cost(bytes, length);
	size_t left_out = 0;

	while (cost > most)
	{
		bool valid;
		size_t json_length;

		left_out += next_character(bytes + left_out, length - left_out, &valid, &json_length);
		cost -= json_length;
	}
	return left_out;
}

/* Makes the two parts end and begin with whole characters, and fit into a line. */
static void
fit_text(Excerpt *excerpt)
{
	size_t length = excerpt->first_length;
	size_t kept;
	size_t left_out = 0;

	if (excerpt->missing == 0 && json_cost(excerpt->first, length) <= MAX_JSON)
		return;
	if (excerpt->missing == 0)
	{
		/* What does not fit is all in one part so far. */
		excerpt->last = excerpt->first;
		excerpt->last_length = length;
		kept = prefix_within(excerpt->first, length, MAX_JSON / 2);
		left_out = left_out_within(excerpt->last, length, MAX_JSON / 2);
		excerpt->missing = (json_int_t) (left_out - kept);
	}
	else
	{
		kept =
		    prefix_within(excerpt->first, length - cut_off(excerpt->first, length), MAX_JSON / 2);
		while (left_out < 3 && left_out < excerpt->last_length &&
		       ((unsigned char) excerpt->last[left_out] & 0xc0) == 0x80)
			left_out++;
		left_out += left_out_within(excerpt->last + left_out, excerpt->last_length - left_out,
		                            MAX_JSON / 2);
		excerpt->missing += (json_int_t) (length - kept + left_out);
	}
	excerpt->first_length = kept;
	excerpt->last += left_out;
	excerpt->last_length -= left_out;
}

/* Returns the number of characters. */
static json_int_t
append_as_text(Bytes *text, const char *bytes, size_t length)
{
	json_int_t characters = 0;

	while (length > 0)
	{
		bool valid;
		size_t json_length;
		size_t count = next_character(bytes, length, &valid, &json_length);

		if (valid)
			bytes_append(text, bytes, count);
		else
			bytes_append(text, "\xef\xbf\xbd", 3);
		characters++;
		bytes += count;
		length -= count;
	}
	return characters;
}

static json_t *
excerpt_text(Excerpt *excerpt)
{
	Bytes text = {0};
	json_t *value;

	bytes_append(&text, "", 0);
	fit_text(excerpt);
	excerpt->missing_at = append_as_text(&text, excerpt->first, excerpt->first_length);
	append_as_text(&text, excerpt->last, excerpt->last_length);
	value = json_stringn(text.data, text.length);
	bytes_free(&text);
	return value;
}

static void
set_integer(json_t *object, const char *stream, const char *what, json_int_t value)
{
	char key[40];

	snprintf(key, sizeof key, "%s%s", stream, what);
	json_object_set_new(object, key, json_integer(value));
}

static void
add_stream(const ExecuteOutput *output, const Stream *stream, const char *name, json_t *result,
           json_t *metadata)
{
	char key[40];
	Bytes joined = {0};
	Excerpt excerpt;

	set_integer(metadata, name, "Bytes", stream->bytes);
	if (output->stream)
		return;
	excerpt = stream_excerpt(stream, &joined);
	if (output->base64)
	{
		snprintf(key, sizeof key, "%sBase64", name);
		json_object_set_new(result, key, base64_json(joined.data, joined.length));
	}
	else
		json_object_set_new(result, name, excerpt_text(&excerpt));
	if (excerpt.missing > 0)
	{
		snprintf(key, sizeof key, "%sTruncated", name);
		json_object_set_new(metadata, key, json_true());
		set_integer(metadata, name, "MissingAt", excerpt.missing_at);
		set_integer(metadata, name, "MissingBytes", excerpt.missing);
	}
	bytes_free(&joined);
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

	/* Those that have no name of their own are counted from the first that programs may use. */
	if (abbreviation != NULL)
		snprintf(name, sizeof name, "SIG%s", abbreviation);
	else if (number == SIGRTMIN)
		snprintf(name, sizeof name, "SIGRTMIN");
	else if (number > SIGRTMIN && number <= SIGRTMAX)
		snprintf(name, sizeof name, "SIGRTMIN+%d", number - SIGRTMIN);
	else
		snprintf(name, sizeof name, "SIG%d", number);
	return name;
}
