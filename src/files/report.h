/*
 * report.h
 *		What the program says on stderr, line by line: see files_protocol.h.
 */
#ifndef ENVRT_FILES_REPORT_H
#define ENVRT_FILES_REPORT_H

#include <stdint.h>

/* Counted: regular files and links that are complete, and bytes of their content. */
extern void report_file(void);
extern void report_bytes(uint64_t count);

extern void report_done(void);

/* What who has called is to know besides. */
extern void report_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Exits.  problem: an errno, which gives the state; 0: the state is 38000. */
extern void fail(int problem, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));
extern void fail_state(const char *sqlstate, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));
extern void fail_second(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* What is to be done before exiting. */
extern void report_before_exit(void (*function)(void));

#endif
