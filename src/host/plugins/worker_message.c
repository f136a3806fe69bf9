/*
 * worker_message.c
 *		What a line of a worker says, as a message.
 *
 * A line is read in a thread when it is long, so nothing here knows a worker.
 */
#include <string.h>

#include "base/json_mend.h"
#include "plugins/worker_message.h"

/* In a line that it writes. */
#define MAX_VALUES 250000

/*
 * Whether to read it would take far more memory and time than its length is
 * worth: each value of two bytes takes two hundred.
 */
static bool
has_too_many_values(const char *line, size_t length)
{
	const char *end = line + length;
	size_t values = 0;

	if (length < MAX_VALUES)
		return false;
	for (const char *c = line; c < end; c++)
	{
		values += *c == ',' || *c == '[' || *c == '{';
		if (*c != '"')
			continue;
		/* To the end of the text. */
		for (c++; (c = memchr(c, '"', (size_t) (end - c))) != NULL; c++)
		{
			const char *escape = c;

			while (escape[-1] == '\\')
				escape--;
			if ((c - escape) % 2 == 0)
				break;
		}
		if (c == NULL)
			break;
	}
	return values > MAX_VALUES;
}

/* What was parsed, or, where that fails, what it is once it has been mended. */
static void
parse(const char *text, size_t length, RpcMessage *message)
{
	Bytes mended = {0};

	rpc_parse(text, length, message);
	if (message->kind != RPC_INVALID || message->root != NULL || text[0] != '{')
		return;
	json_mend(&mended, text, length);
	rpc_message_clear(message);
	rpc_parse(mended.data, mended.length, message);
	explicit_bzero(mended.data, mended.length);
	bytes_free(&mended);
}

void
worker_message_read_line(MessageLine *line)
{
	while (line->length > 0 && (*line->text == ' ' || *line->text == '\t'))
		line->text++, line->length--;
	if (has_too_many_values(line->text, line->length))
		line->problem = "the message has too many values";
	else
	{
		parse(line->text, line->length, &line->message);
		if (line->message.kind == RPC_INVALID)
			line->problem = line->message.error_text;
	}
	if (line->problem != NULL)
		rpc_identify(line->text, line->length, &line->identity);
}
