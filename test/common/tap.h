/*
 * tap.h
 *		Test Anything Protocol for C tests: what prove reads.
 */
#ifndef ENVRT_TAP_H
#define ENVRT_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int tap_count = 0;
static int tap_failed = 0;

static inline bool __attribute__((format(printf, 2, 3))) ok(bool passed, const char *format, ...)
{
	va_list args;

	printf("%sok %d - ", passed ? "" : "not ", ++tap_count);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	if (!passed)
		tap_failed++;
	return passed;
}

/* NULL is a value of its own. */
static inline bool
is(const char *got, const char *expected, const char *name)
{
	bool same = got == expected || (got && expected && strcmp(got, expected) == 0);

	ok(same, "%s", name ? name : "unnamed");
	if (!same)
		printf("#      got: %s\n# expected: %s\n", got ? got : "NULL",
		       expected ? expected : "NULL");
	return same;
}

/* The plan comes last, so a test that dies early has none and fails. */
static inline int
done_testing(void)
{
	printf("1..%d\n", tap_count);
	return tap_failed > 0 ? 1 : 0;
}

#endif
