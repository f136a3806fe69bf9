/*
 * memory.c
 *		Allocation that can't fail, and text made safe to show.
 *
 * Everything whose size a stranger decides is capped where it is read, so what
 * is allocated here is small.  If even that fails, the process ends at once:
 * it holds nothing that a restart would not make anew, the launcher starts a
 * fresh one, and the calls in flight see a lost connection.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"

static void __attribute__((noreturn)) out_of_memory(void)
{
	log_message(LOG_WARNING, "out of memory");
	_exit(1);
}

void *
xcalloc(size_t count, size_t size)
{
	void *block = calloc(count, size);

	if (block == NULL)
		out_of_memory();
	return block;
}

void *
xrealloc(void *block, size_t size)
{
	block = realloc(block, size);
	if (block == NULL)
		out_of_memory();
	return block;
}

char *
xstrdup(const char *text)
{
	return xstrndup(text, strlen(text));
}

char *
xstrndup(const char *text, size_t length)
{
	char *copy = xcalloc(1, length + 1);

	memcpy(copy, text, length);
	return copy;
}

char *
xformat(const char *format, ...)
{
	va_list arguments;
	char *text = NULL;
	int length;

	va_start(arguments, format);
	length = vasprintf(&text, format, arguments);
	va_end(arguments);
	if (length < 0)
		out_of_memory();
	return text;
}

void
secret_free(char *text)
{
	if (text == NULL)
		return;
	explicit_bzero(text, strlen(text));
	free(text);
}

void
bytes_append(Bytes *bytes, const void *data, size_t length)
{
	size_t needed = bytes->length + length + 1;

	if (needed > bytes->allocated)
	{
		size_t allocated = bytes->allocated ? bytes->allocated : 256;

		while (allocated < needed)
			allocated *= 2;
		bytes->data = xrealloc(bytes->data, allocated);
		bytes->allocated = allocated;
	}
	if (length > 0)
		memcpy(bytes->data + bytes->length, data, length);
	bytes->length += length;
	bytes->data[bytes->length] = '\0';
}

void
bytes_append_text(Bytes *bytes, const char *text)
{
	bytes_append(bytes, text, strlen(text));
}

void
bytes_free(Bytes *bytes)
{
	free(bytes->data);
	memset(bytes, 0, sizeof *bytes);
}

size_t
utf8_sequence(const unsigned char *data, size_t length, unsigned *code_point)
{
	static const unsigned smallest[] = {0, 0, 0x80, 0x800, 0x10000};
	unsigned value;
	size_t count;

	if (data[0] < 0x80)
	{
		*code_point = data[0];
		return 1;
	}
	if ((data[0] & 0xe0) == 0xc0)
		count = 2, value = data[0] & 0x1f;
	else if ((data[0] & 0xf0) == 0xe0)
		count = 3, value = data[0] & 0x0f;
	else if ((data[0] & 0xf8) == 0xf0)
		count = 4, value = data[0] & 0x07;
	else
		return 0;
	if (count > length)
		return 0;
	for (size_t i = 1; i < count; i++)
	{
		if ((data[i] & 0xc0) != 0x80)
			return 0;
		value = value << 6 | (data[i] & 0x3f);
	}
	if (value < smallest[count] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
		return 0;
	*code_point = value;
	return count;
}

char *
clean_text(const char *data, size_t length, size_t max, bool lines)
{
	const unsigned char *next = (const unsigned char *) data;
	Bytes clean = {0};

	bytes_append(&clean, "", 0);
	while (length > 0)
	{
		unsigned code_point = 0;
		size_t count = utf8_sequence(next, length, &code_point);
		const char *piece = (const char *) next;
		size_t piece_length = count;

		if (count == 0)
		{
			piece = "\xef\xbf\xbd";
			piece_length = 3;
			count = 1;
		}
		else if (code_point == '\n' || code_point == '\t')
		{
			if (!lines)
				piece = " ";
		}
		else if (code_point < 0x20 || (code_point >= 0x7f && code_point < 0xa0))
			piece_length = 0;

		/* White space at the start says nothing. */
		if (clean.length == 0 && piece_length == 1 && strchr(" \n\t", piece[0]) != NULL)
			piece_length = 0;
		if (clean.length + piece_length > max)
			break;
		bytes_append(&clean, piece, piece_length);
		next += count;
		length -= count;
	}
	while (clean.length > 0 && strchr(" \n\t", clean.data[clean.length - 1]) != NULL)
		clean.data[--clean.length] = '\0';
	return clean.data;
}
