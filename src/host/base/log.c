/*
 * log.c
 *		Lines for the server log: "LEVEL: text" on descriptor 2.
 *
 * Descriptor 2 is a pipe that the launcher reads.  The host must never wait
 * for it: a line is written only when poll() says that the pipe takes one, and
 * is at most PIPE_BUF bytes long, so that the write can't block; else it is
 * dropped.  (O_NONBLOCK is no way to that: the flag belongs to whoever shares
 * the descriptor as well.)  Control characters are escaped, so that no text
 * from outside can forge a line.
 */
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

/* POSIX's smallest PIPE_BUF would be 512; what Linux has is more than a line needs. */
#define LINE_SIZE 2048
_Static_assert(LINE_SIZE <= PIPE_BUF, "a log line must be written in one piece");

void
log_message(LogLevel level, const char *format, ...)
{
	static const char *const names[] = {"DEBUG", "LOG", "WARNING"};
	struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
	char text[LINE_SIZE / 2];
	char line[LINE_SIZE];
	va_list arguments;
	size_t length;
	ssize_t written;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);

	length = (size_t) snprintf(line, sizeof line, "%s: ", names[level]);
	for (const char *c = text; *c != '\0' && length < sizeof line - 6; c++)
	{
		if ((unsigned char) *c < 0x20 || *c == 0x7f)
			length += (size_t) snprintf(line + length, sizeof line - length, "\\x%02x",
			                            (unsigned char) *c);
		else
			line[length++] = *c;
	}
	line[length++] = '\n';

	if (poll(&out, 1, 0) != 1 || (out.revents & POLLOUT) == 0)
		return;
	written = write(STDERR_FILENO, line, length);
	(void) written;
}
