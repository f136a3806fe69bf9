/*
 * host_error.h
 *		What a call that fails tells its caller.
 */
#ifndef ENVRT_HOST_ERROR_H
#define ENVRT_HOST_ERROR_H

#include <jansson.h>

typedef struct HostError
{
	int code; /* of the plugin protocol */
	char sqlstate[6];
	char *message;
	char *detail; /* or NULL */
	char *hint;   /* or NULL */
	/* What is known of the thing that was to be made or ended: a constant, or NULL. */
	const char *outcome;
} HostError;

/* There is none, or: nobody here knows. */
#define OUTCOME_ABSENT "absent"
#define OUTCOME_UNKNOWN "unknown"

/* The code is RPC_WORKER_ERROR unless the caller sets another. */
extern HostError *error_new(const char *sqlstate, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
extern void error_detail(HostError *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
extern void error_hint(HostError *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
extern HostError *error_copy(const HostError *error);
extern void error_free(HostError *error);

/*
 * The SQLSTATE of what a program wrote about its failure: 53100 where there was no space, or no
 * more was allowed; else the other one.
 */
extern const char *sqlstate_of_words(const char *words, const char *otherwise);

/* The JSON-RPC message; steals id. */
extern json_t *error_response(json_t *id, const HostError *error);

#endif
