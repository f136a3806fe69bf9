/*
 * report.c
 *		What the program says on stderr, line by line: see files_protocol.h.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shared/files_protocol.h"
#include "files/report.h"

#define PROGRESS_MS 100

static uint64_t files;
static uint64_t bytes;
static void (*before_exit)(void);

static void
write_line(const char *line, size_t length)
{
	while (length > 0)
	{
		ssize_t count = write(STDERR_FILENO, line, length);

		if (count < 0 && errno != EINTR)
			return;
		if (count > 0)
		{
			line += count;
			length -= (size_t) count;
		}
	}
}

static void
write_counts(char kind)
{
	char line[64];
	int length = snprintf(line, sizeof line, "%c %llu %llu\n", kind, (unsigned long long) files,
	                      (unsigned long long) bytes);

	write_line(line, (size_t) length);
}

static void
report_progress(void)
{
	static int64_t last;
	struct timespec now;
	int64_t ms;

	clock_gettime(CLOCK_MONOTONIC, &now);
	ms = (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
	if (ms - last < PROGRESS_MS)
		return;
	last = ms;
	write_counts(FILES_PROGRESS);
}

void
report_file(void)
{
	files++;
	report_progress();
}

void
report_bytes(uint64_t count)
{
	bytes += count;
	report_progress();
}

void
report_done(void)
{
	write_counts(FILES_DONE);
}

void
report_before_exit(void (*function)(void))
{
	before_exit = function;
}

/* A line that is being made. */
static char failure[FILES_MAX_LINE];

/* File names may hold anything; a report is one line. */
static void
write_made(void)
{
	size_t length = strlen(failure);

	for (size_t i = 0; i < length; i++)
		if (failure[i] == '\n' || failure[i] == '\r')
			failure[i] = '?';
	failure[length++] = '\n';
	write_line(failure, length);
}

void
report_note(const char *format, ...)
{
	va_list arguments;
	int length = snprintf(failure, sizeof failure, "%c ", FILES_NOTE);

	va_start(arguments, format);
	vsnprintf(failure + length, sizeof failure - 1 - (size_t) length, format, arguments);
	va_end(arguments);
	write_made();
}

static void __attribute__((format(printf, 3, 0)))
note_failure(char kind, const char *sqlstate, const char *format, va_list arguments)
{
	int length = snprintf(failure, sizeof failure, "%c %s ", kind, sqlstate);

	vsnprintf(failure + length, sizeof failure - 1 - (size_t) length, format, arguments);
}

static void __attribute__((noreturn)) fail_now(void)
{
	if (before_exit != NULL)
		before_exit();
	/* How many are complete. */
	if (files > 0)
		write_counts(FILES_PROGRESS);
	write_made();
	exit(1);
}

static const char *
state_of(int problem)
{
	switch (problem)
	{
		case EACCES:
		case EPERM:
			return "42501";
		case ENOENT:
		case ENOTDIR:
			return "58P01";
		case ENOSPC:
		case EDQUOT:
			return "53100";
		case ENAMETOOLONG:
		case EFBIG:
			return "53400";
		case 0:
			return "38000";
		default:
			return "58030";
	}
}

void
fail(int problem, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	note_failure(FILES_ERROR, state_of(problem), format, arguments);
	va_end(arguments);
	fail_now();
}

void
fail_state(const char *sqlstate, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	note_failure(FILES_ERROR, sqlstate, format, arguments);
	va_end(arguments);
	fail_now();
}

void
fail_second(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	note_failure(FILES_SECOND, "08006", format, arguments);
	va_end(arguments);
	fail_now();
}
