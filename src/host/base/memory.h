/*
 * memory.h
 *		Allocation that can't fail, and text made safe to show.
 */
#ifndef ENVRT_HOST_MEMORY_H
#define ENVRT_HOST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

extern void *xcalloc(size_t count, size_t size);
extern void *xrealloc(void *block, size_t size);
extern char *xstrdup(const char *text);
extern char *xstrndup(const char *text, size_t length);
extern char *xformat(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Zeroes a string and frees it; NULL is fine. */
extern void secret_free(char *text);

/* A growing run of bytes, always followed by a NUL that is not counted. */
typedef struct Bytes
{
	char *data;
	size_t length;
	size_t allocated;
} Bytes;

extern void bytes_append(Bytes *bytes, const void *data, size_t length);
extern void bytes_append_text(Bytes *bytes, const char *text);
extern void bytes_free(Bytes *bytes);

/*
 * The length of the valid UTF-8 sequence at the start of data, and its code
 * point; 0 when there is none.
 */
extern size_t utf8_sequence(const unsigned char *data, size_t length, unsigned *code_point);

/*
 * What a remote side wrote, made safe for a message: valid UTF-8 (anything
 * else becomes U+FFFD), no control characters, no white space at its ends, at
 * most max bytes.  Line breaks are kept when lines is true, else become spaces.
 */
extern char *clean_text(const char *data, size_t length, size_t max, bool lines);

#endif
