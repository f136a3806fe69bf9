/*
 * tar.c
 *		An archive that every tar reads.
 *
 * The format is GNU tar's with its entries for long names: they hold names as the bytes that they
 * are, and busybox and the BSDs know them too.  For who reads them, there is a header of pax
 * before an entry that needs one: with the time, when it is not a number of seconds from 1970 on,
 * and for a file with holes, as pax 1.0 of GNU's has them: a list of the pieces before their
 * content.
 *
 * A library writes such archives too, but gives fractions of times before 1970 a wrong sign, and
 * pax names that GNU tar warns about.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files/report.h"
#include "files/tar.h"

#define BLOCK 512
#define RECORD 10240
#define NAME_SIZE 100
#define OUTPUT 65536

/* What eleven octal digits hold. */
#define OCTAL_LIMIT ((uint64_t) 1 << 33)

typedef struct Header
{
	char name[NAME_SIZE];
	char mode[8];
	char user[8];
	char group[8];
	char size[12];
	char modified[12];
	char sum[8];
	char type;
	char link[NAME_SIZE];
	char magic[8];
	char names[64];
	char device[16];
	char rest[167];
} Header;

_Static_assert(sizeof(Header) == BLOCK, "a header is a block");

typedef struct Text
{
	char *data;
	size_t length;
	size_t size;
} Text;

static bool pax;
static bool keeping;
static Text kept;
static char output[OUTPUT];
static size_t output_length;
static uint64_t written;        /* since the archive's begin */
static uint64_t written_before; /* of the archive that waits while another one is kept */

void
tar_set_pax(bool is_pax)
{
	pax = is_pax;
}

bool
tar_is_pax(void)
{
	return pax;
}

/*
 * Output
 */

static void
write_all(const char *bytes, size_t length)
{
	while (length > 0)
	{
		ssize_t count = write(STDOUT_FILENO, bytes, length);

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno == EPIPE)
			fail_second("the other end takes no more");
		if (count < 0)
			fail(errno, "could not write the archive: %s", strerror(errno));
		bytes += count;
		length -= (size_t) count;
	}
}

static void
flush(void)
{
	write_all(output, output_length);
	output_length = 0;
}

static void
append(Text *text, const void *bytes, size_t length)
{
	if (text->length + length > text->size)
	{
		size_t size = (text->length + length) * 2 + BLOCK;
		char *grown = realloc(text->data, size);

		if (grown == NULL)
			fail_state("53400", "out of memory");
		text->data = grown;
		text->size = size;
	}
	memcpy(text->data + text->length, bytes, length);
	text->length += length;
}

static void
put(const void *bytes, size_t length)
{
	if (length == 0)
		return;
	written += length;
	if (keeping)
	{
		append(&kept, bytes, length);
		return;
	}
	if (output_length + length > OUTPUT)
		flush();
	if (length >= OUTPUT)
		write_all(bytes, length);
	else
	{
		memcpy(output + output_length, bytes, length);
		output_length += length;
	}
}

static void
pad(size_t unit)
{
	static const char zeros[RECORD];

	if (written % unit > 0)
		put(zeros, unit - written % unit);
}

/*
 * Headers
 */

/* A number with a NUL, or where it has no room (or is negative) as GNU tar has it, in binary. */
static void
set_number(char *field, size_t size, int64_t number)
{
	if (number >= 0 && (uint64_t) number < OCTAL_LIMIT)
	{
		snprintf(field, size, "%0*llo", (int) size - 1, (long long) number);
		return;
	}
	for (size_t i = size; i-- > 0; number >>= 8)
		field[i] = (char) (number & 0xff);
	field[0] = (char) (number < 0 ? 0xff : 0x80);
}

/* posix: tells GNU tar what kind of sparse file it is. */
static void
put_header(const char *path, char type, mode_t mode, int64_t modified, uint64_t size,
           const char *link, bool posix)
{
	Header header = {.type = type, .magic = "ustar  "};
	const unsigned char *byte = (const unsigned char *) &header;
	unsigned sum = 0;

	if (posix)
		memcpy(header.magic, "ustar\00000", sizeof header.magic);
	memcpy(header.name, path, strnlen(path, NAME_SIZE));
	memcpy(header.link, link, strnlen(link, NAME_SIZE));
	set_number(header.mode, sizeof header.mode, mode & 07777);
	set_number(header.user, sizeof header.user, 0);
	set_number(header.group, sizeof header.group, 0);
	set_number(header.size, sizeof header.size, (int64_t) size);
	set_number(header.modified, sizeof header.modified, modified);
	memset(header.sum, ' ', sizeof header.sum);
	for (size_t i = 0; i < sizeof header; i++)
		sum += byte[i];
	snprintf(header.sum, sizeof header.sum, "%06o", sum);
	header.sum[7] = ' ';
	put(&header, sizeof header);
}

/* An entry whose content is about the next one. */
static void
put_about(char type, const char *content, size_t length)
{
	put_header(type == 'x' ? "./pax" : "././@LongLink", type, 0644, 0, length, "", false);
	put(content, length);
	pad(BLOCK);
}

static void
put_long(char type, const char *name)
{
	if (strlen(name) > NAME_SIZE)
		put_about(type, name, strlen(name) + 1);
}

/* A record says how long it is, that number included. */
static void __attribute__((format(printf, 3, 4)))
append_record(Text *records, const char *key, const char *format, ...)
{
	char *value;
	char number[24];
	size_t length;
	size_t digits = 1;
	va_list arguments;

	va_start(arguments, format);
	if (vasprintf(&value, format, arguments) < 0)
		fail_state("53400", "out of memory");
	va_end(arguments);
	length = strlen(key) + strlen(value) + 3;
	while ((size_t) snprintf(number, sizeof number, "%zu", length + digits) > digits)
		digits++;
	append(records, number, digits);
	append(records, " ", 1);
	append(records, key, strlen(key));
	append(records, "=", 1);
	append(records, value, strlen(value));
	append(records, "\n", 1);
	free(value);
}

static void
append_time(Text *records, const struct timespec *time)
{
	long long seconds = time->tv_sec;
	long nanoseconds = time->tv_nsec;
	bool negative = seconds < 0;

	if (negative && nanoseconds > 0)
	{
		seconds++;
		nanoseconds = 1000000000 - nanoseconds;
	}
	append_record(records, "mtime", "%s%lld.%09ld", negative ? "-" : "",
	              negative ? -seconds : seconds, nanoseconds);
}

static void
make_map(const TarEntry *entry, Text *map, uint64_t *size)
{
	static const char zeros[BLOCK];
	char number[64];

	*size = 0;
	append(map, number, (size_t) snprintf(number, sizeof number, "%zu\n", entry->piece_count));
	for (size_t i = 0; i < entry->piece_count; i++)
	{
		append(map, number,
		       (size_t) snprintf(number, sizeof number, "%llu\n%llu\n",
		                         (unsigned long long) entry->pieces[i].offset,
		                         (unsigned long long) entry->pieces[i].length));
		*size += entry->pieces[i].length;
	}
	if (map->length % BLOCK > 0)
		append(map, zeros, BLOCK - map->length % BLOCK);
	*size += map->length;
}

void
tar_put(const TarEntry *entry)
{
	Text records = {0};
	Text map = {0};
	uint64_t size = S_ISREG(entry->mode) ? entry->size : 0;
	const char *link = entry->link != NULL ? entry->link : "";

	if (pax && (entry->modified.tv_nsec != 0 || entry->modified.tv_sec < 0))
		append_time(&records, &entry->modified);
	if (entry->piece_count > 0)
	{
		make_map(entry, &map, &size);
		append_record(&records, "GNU.sparse.major", "1");
		append_record(&records, "GNU.sparse.minor", "0");
		append_record(&records, "GNU.sparse.name", "%s", entry->path);
		append_record(&records, "GNU.sparse.realsize", "%llu", (unsigned long long) entry->size);
	}
	if (records.length > 0)
		put_about('x', records.data, records.length);
	put_long('L', entry->path);
	put_long('K', link);
	put_header(entry->path,
	           S_ISDIR(entry->mode)   ? '5'
	           : S_ISLNK(entry->mode) ? '2'
	                                  : '0',
	           entry->mode, entry->modified.tv_sec, size, link, entry->piece_count > 0);
	if (map.length > 0)
		put(map.data, map.length);
	free(records.data);
	free(map.data);
}

void
tar_put_content(const void *bytes, size_t length)
{
	put(bytes, length);
}

void
tar_end_content(void)
{
	pad(BLOCK);
}

static void
put_end(void)
{
	static const char zeros[2 * BLOCK];

	put(zeros, sizeof zeros);
	pad(RECORD);
}

void
tar_end(void)
{
	put_end();
	flush();
}

void
tar_keep(void)
{
	keeping = true;
	written_before = written;
	written = 0;
}

char *
tar_take(size_t *length)
{
	char *data;

	put_end();
	data = kept.data;
	*length = kept.length;
	kept = (Text){0};
	keeping = false;
	written = written_before;
	return data;
}
