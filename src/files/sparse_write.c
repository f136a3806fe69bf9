/*
 * sparse_write.c
 *		Writes into a file, and leaves holes where nothing is.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "files/report.h"
#include "files/sparse_write.h"

#define HOLE 4096

static bool
is_zero(const char *bytes, size_t length)
{
	return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

static void
write_at(int fd, const char *bytes, size_t length, la_int64_t offset, const char *path)
{
	while (length > 0)
	{
		ssize_t count = pwrite(fd, bytes, length, offset);

		if (count < 0 && errno != EINTR)
			fail(errno, "could not write \"%s\": %s", path, strerror(errno));
		if (count == 0)
			fail(ENOSPC, "could not write \"%s\": %s", path, strerror(ENOSPC));
		if (count > 0)
		{
			bytes += count;
			length -= (size_t) count;
			offset += count;
		}
	}
}

/* Where nothing is, nothing is written: the file has holes there.  Whether the last byte was. */
bool
sparse_write(int fd, const char *bytes, size_t length, la_int64_t offset, const char *path)
{
	size_t start = 0;
	size_t end = 0;

	while (end < length)
	{
		size_t piece = length - end < HOLE ? length - end : HOLE;

		if (is_zero(bytes + end, piece))
		{
			write_at(fd, bytes + start, end - start, offset + (la_int64_t) start, path);
			start = end + piece;
		}
		end += piece;
	}
	write_at(fd, bytes + start, end - start, offset + (la_int64_t) start, path);
	return start < length;
}
