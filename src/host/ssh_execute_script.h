/*
 * ssh_execute_script.h
 *		How a command is started on a remote host, and how it tells that it runs.
 */
#ifndef ENVRT_HOST_SSH_EXECUTE_SCRIPT_H
#define ENVRT_HOST_SSH_EXECUTE_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "execute_request.h"
#include "memory.h"
#include "ssh_script.h"

/* The command line for the login shell; to be freed. */
extern char *ssh_execute_command_line(const char *marker);

/* The same for one that is known to be a sh (ExecuteStart.plain). */
extern char *ssh_execute_plain_line(const char *marker);

/*
 * What it reads: the script and then the command's own input; secret.  With a lifeline (see
 * ssh_execute_script.c) the end of all must not follow, unless the start was not held.
 * Returns whether the shell does it all by itself, without a process besides.
 */
extern bool ssh_execute_input(const ExecuteRequest *request, Bytes *input);

typedef enum
{
	START_WAITING, /* for the marker */
	START_NO_CWD,
	START_DONE
} StartState;

/* What came of it so far: the beginning of both streams. */
typedef struct ExecuteStart
{
	char marker[SSH_SCRIPT_MARKER_SIZE];
	StartState state; /* what stderr said */
	bool stdout_done; /* stdout is the command's from here on */
	long pid;         /* START_DONE */
	bool group;       /* it leads a process group */
	bool held;        /* it has its lifeline */
	uint64_t since;   /* when the server had started the shell, in terms of now_ms() */
	bool plain;       /* the login shell is a sh, and is given what was asked for */
	bool in_plain;    /* ... and so had to start it by itself */
	bool ready;       /* ... and has said, on stdout, that it is about to read the script */
	bool held_back;   /* ... which it is not given before */
	Bytes heads[2];   /* what was written before, of which the beginning may be cut off */
} ExecuteStart;

/* Takes bytes of a stream; the last *length of them, from the result on, are the command's. */
extern const char *ssh_execute_start_take(ExecuteStart *start, bool is_stderr, const char *bytes,
                                          size_t *length);
extern void ssh_execute_start_clear(ExecuteStart *start);

/* The command line that signals what was started; to be freed. */
extern char *ssh_execute_kill_line(const ExecuteStart *start, const char *signal);

/*
 * The same for another connection: TERM, and then KILL, if it is still the same process:
 * of that age, or, since the connection takes its time, older by some seconds.
 */
extern char *ssh_execute_end_line(const ExecuteStart *start, uint64_t age_seconds,
                                  uint64_t slack_seconds, uint64_t grace_seconds);

#endif
