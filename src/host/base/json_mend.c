/*
 * json_mend.c
 *		JSON as workers write it, made JSON that jansson reads.
 *
 * A plugin passes on what a command wrote, and what its provider says.  Where
 * that is cut in the middle of a character JavaScript writes half of a surrogate
 * pair, Python writes NaN for a number that is none, and neither is wrong in its
 * own eyes.  Such a line is one tenant's answer: it must not cost more than a
 * character.  Other libraries were looked at: json-c makes another number of
 * an integer that is too large, cJSON a double of every integer and an error of
 * half a pair, and neither can tell the two of a key apart.  So what jansson
 * refuses is mended, once it has been refused, and read again.
 */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_mend.h"

#define REPLACEMENT "\xef\xbf\xbd"
#define LARGEST "1.7976931348623157e308"

/* The value of four hexadecimal digits after \u; -1: there are none. */
static long
escaped_unit(const char *text, const char *end)
{
	long value = 0;

	if (end - text < 6 || text[0] != '\\' || text[1] != 'u')
		return -1;
	for (int i = 2; i < 6; i++)
	{
		char c = text[i];
		int digit = c >= '0' && c <= '9'   ? c - '0'
		            : c >= 'a' && c <= 'f' ? c - 'a' + 10
		            : c >= 'A' && c <= 'F' ? c - 'A' + 10
		                                   : -1;

		if (digit < 0)
			return -1;
		value = value << 4 | digit;
	}
	return value;
}

/* An escape; returns what comes after it. */
static const char *
mend_escape(Bytes *mended, const char *text, const char *end)
{
	long unit = escaped_unit(text, end);
	long next;

	if (unit < 0xd800 || unit > 0xdfff)
	{
		size_t length = end - text < 2 ? 1 : 2;

		bytes_append(mended, text, length);
		return text + length;
	}
	next = unit < 0xdc00 ? escaped_unit(text + 6, end) : -1;
	if (next >= 0xdc00 && next <= 0xdfff)
	{
		bytes_append(mended, text, 12);
		return text + 12;
	}
	bytes_append_text(mended, REPLACEMENT);
	return text + 6;
}

/* A string, from its quote on; returns what comes after it. */
static const char *
mend_string(Bytes *mended, const char *text, const char *end)
{
	bytes_append(mended, text++, 1);
	while (text < end)
	{
		const char *plain = text;
		unsigned code_point;
		size_t length;

		while (text < end && *text >= 0x20 && *text < 0x7f && *text != '"' && *text != '\\')
			text++;
		bytes_append(mended, plain, (size_t) (text - plain));
		if (text == end)
			break;
		if (*text == '"')
		{
			bytes_append(mended, text, 1);
			return text + 1;
		}
		if (*text == '\\')
		{
			text = mend_escape(mended, text, end);
			continue;
		}
		length = utf8_sequence((const unsigned char *) text, (size_t) (end - text), &code_point);
		if (length == 0)
			bytes_append_text(mended, REPLACEMENT);
		else if (code_point < 0x20)
		{
			char escape[7] = "\\u0000";

			escape[4] = "01"[code_point >> 4];
			escape[5] = "0123456789abcdef"[code_point & 15];
			bytes_append(mended, escape, 6);
		}
		else
			bytes_append(mended, text, length);
		text += length > 0 ? length : 1;
	}
	return text;
}

static bool
is_of_number(char c)
{
	return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
}

/* A number; returns what comes after it. */
static const char *
mend_number(Bytes *mended, const char *text, const char *end)
{
	const char *after = text;
	bool is_integer = true;
	size_t length;
	char *copy;

	for (; after < end && is_of_number(*after); after++)
		is_integer = is_integer && *after != '.' && *after != 'e' && *after != 'E';
	length = (size_t) (after - text);
	/* These fit always. */
	if (length < 19 && is_integer)
	{
		bytes_append(mended, text, length);
		return after;
	}
	copy = xstrndup(text, length);
	if (isinf(strtod(copy, NULL)))
		bytes_append_text(mended, text[0] == '-' ? "-" LARGEST : LARGEST);
	else
	{
		bytes_append(mended, text, length);
		errno = 0;
		if (is_integer && (strtoll(copy, NULL, 10), errno == ERANGE))
			bytes_append_text(mended, ".0");
	}
	free(copy);
	return after;
}

static bool
is_of_value(char c)
{
	return is_of_number(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* What comes after the word, if it is here and stands alone. */
static const char *
after_word(const char *begin, const char *text, const char *end, const char *word)
{
	size_t length = strlen(word);

	if ((size_t) (end - text) < length || memcmp(text, word, length) != 0 ||
	    (text > begin && is_of_value(text[-1])) ||
	    (text + length < end && is_of_value(text[length])))
		return NULL;
	return text + length;
}

void
json_mend(Bytes *mended, const char *text, size_t length)
{
	static const struct
	{
		const char *word;
		const char *instead;
	} words[] = {{"NaN", "null"}, {"Infinity", LARGEST}, {"-Infinity", "-" LARGEST}};
	const char *begin = text;
	const char *end = text + length;

	/* At once, since a block that grew would leave a copy behind; what is not used costs nothing.
	 */
	mended->allocated = mended->length + 6 * length + 1;
	mended->data = xrealloc(mended->data, mended->allocated);
	while (text < end)
	{
		const char *after = NULL;

		if (*text == '"')
		{
			text = mend_string(mended, text, end);
			continue;
		}
		for (size_t i = 0; i < sizeof words / sizeof words[0] && after == NULL; i++)
		{
			after = after_word(begin, text, end, words[i].word);
			if (after != NULL)
				bytes_append_text(mended, words[i].instead);
		}
		if (after == NULL && (*text == '-' || (*text >= '0' && *text <= '9')))
			after = mend_number(mended, text, end);
		if (after == NULL)
			bytes_append(mended, text, 1), after = text + 1;
		text = after;
	}
}
