/*
 * call_size.h
 *		How much a call to the driver host may carry.
 */
#ifndef ENVRT_CALL_SIZE_H
#define ENVRT_CALL_SIZE_H

#include "postgres.h"

#include "base/compat.h"
#include "shared/json_library.h"

#define CALL_TOO_LARGE_MESSAGE "what is to be told to the driver is too large"
#define CALL_TOO_LARGE_HINT "Push files into the workspace, or write less into config and metadata."

#define CALL_MAX_STDIN (8 * 1024 * 1024)

/*
 * call_size_problem
 *		What a call with these params has too much of, as a detail; NULL: nothing.
 *		The line is the whole request, as it is sent.
 */
extern const char *call_size_problem(const json_t *params, const char *line, size_t length);

/* ERROR 54000 when a call with these params would be too large. */
extern void call_size_check(const json_t *params);

/* The error of one that is. */
pg_noreturn extern void call_size_report(const char *problem);

/* Whether a provider's metadata is small enough for the calls that its lease will need. */
extern bool call_size_takes_metadata(const json_t *metadata);

#endif
