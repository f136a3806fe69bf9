/*
 * ssh_acquire_script.h
 *		The one remote command of an acquire or a probe, and its answer.
 */
#ifndef ENVRT_HOST_SSH_ACQUIRE_SCRIPT_H
#define ENVRT_HOST_SSH_ACQUIRE_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/memory.h"

#define SSH_SCRIPT_MARKER_SIZE 40

/* A new random marker. */
extern void ssh_script_marker(char marker[SSH_SCRIPT_MARKER_SIZE]);

/* The input of the shell that is started (ssh_execute_script.h). */
extern void ssh_script_input(const char *path, double probe_seconds, const char *const *candidates,
                             size_t candidate_count, Bytes *input);

/* Whether the answer is all there. */
extern bool ssh_script_is_complete(const char *marker, const Bytes *output);

typedef enum
{
	SCRIPT_NO_ANSWER, /* the script never ran, or not to its end */
	SCRIPT_NO_PATH,   /* the path could not be made or entered */
	SCRIPT_PATH,      /* it could; no candidates were given */
	SCRIPT_NO_CURL,   /* ... but there is no curl to try the candidates with */
	SCRIPT_NO_API,    /* ... but no candidate answered */
	SCRIPT_API        /* ... and a candidate answered */
} ScriptOutcome;

typedef struct ScriptAnswer
{
	ScriptOutcome outcome;
	int status; /* SCRIPT_NO_PATH */
	char *cwd;  /* from SCRIPT_PATH on; any bytes but NUL */
	size_t api; /* SCRIPT_API: which candidate */
} ScriptAnswer;

extern void ssh_script_parse(const char *marker, const Bytes *output, size_t candidate_count,
                             ScriptAnswer *answer);
extern void ssh_script_answer_clear(ScriptAnswer *answer);

#endif
