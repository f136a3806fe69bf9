/*
 * ssh_execute_script.h
 *		How a command is started on a remote host, and how it tells that it runs.
 */
#ifndef ENVRT_HOST_SSH_EXECUTE_SCRIPT_H
#define ENVRT_HOST_SSH_EXECUTE_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "calls/execute_request.h"
#include "base/memory.h"
#include "ssh/ssh_acquire_script.h"

/* The command line for the login shell, the same for whatever is started; to be freed. */
extern char *ssh_execute_command_line(const char *marker);

/*
 * What the shell reads once it has said that it is ready: the script and then the command's own
 * input; secret.  The end of all must not follow while the command has its lifeline
 * (ExecuteStart.held).  Without one the command reads all that follows.
 */
extern void ssh_execute_input(const ExecuteRequest *request, bool lifeline, Bytes *input);

/* The same for a script of ours, and its arguments; without a lifeline and with no other input. */
extern void ssh_execute_script_input(const char *script, const char *const *args, size_t arg_count,
                                     Bytes *input);

/*
 * The first words of a script of ours: what the remote user's environment sets must not change
 * what the script and its programs do.  (A user's own command keeps all of that.)
 */
#define SSH_CLEAN_ENVIRONMENT                                                                      \
	"unset TAR_OPTIONS TAPE GREP_OPTIONS GREP_COLOR GREP_COLORS POSIXLY_CORRECT POSIX_ME_HARDER "  \
	"CDPATH ENV BASH_ENV BASH_COMPAT GLOBIGNORE EXECIGNORE FUNCNEST IFS PS4 GZIP BZIP2 BZIP "      \
	"XZ_OPT XZ_DEFAULTS ZSTD_CLEVEL ZSTD_NBTHREADS BLOCKSIZE BLOCK_SIZE LS_COLORS LS_BLOCK_SIZE "  \
	"QUOTING_STYLE TIME_STYLE SIMPLE_BACKUP_SUFFIX VERSION_CONTROL COPYFILE_DISABLE "              \
	"COPY_EXTENDED_ATTRIBUTES_DISABLE LANGUAGE LANG LC_CTYPE LC_COLLATE LC_MESSAGES LC_NUMERIC "   \
	"LC_TIME LC_MONETARY CURL_HOME; "                                                              \
	"LC_ALL=C; export LC_ALL; "

typedef enum
{
	START_WAITING, /* the shell is not ready, or has not told that it has read the script */
	START_READ,    /* it has, and runs it */
	START_NO_CWD,
	START_DONE
} StartState;

/* What came of it so far: the beginning of both streams. */
typedef struct ExecuteStart
{
	char marker[SSH_SCRIPT_MARKER_SIZE];
	StartState state; /* what stderr said */
	bool ready[2];    /* the shell has said so on stdout, on stderr */
	bool given;       /* it was given the script */
	bool stdout_done; /* stdout is the command's from here on */
	long pid;         /* START_DONE */
	bool group;       /* it leads a process group */
	bool held;        /* it has its lifeline */
	uint64_t since;   /* when the server had started the shell, in terms of now_ms() */
	size_t said;      /* bytes that were written before */
	Bytes heads[2];   /* these, of which the beginning may be cut off */
	size_t line[2];   /* where in these the line begins that is not complete */
} ExecuteStart;

/* Takes bytes of a stream; the last *length of them, from the result on, are the command's. */
extern const char *ssh_execute_start_take(ExecuteStart *start, bool is_stderr, const char *bytes,
                                          size_t *length);

/* The shell has said on both streams that it is ready, so that what it will say is known to arrive.
 */
extern bool ssh_execute_start_is_ready(const ExecuteStart *start);

/*
 * What the remote side said before the command began: all of one stream, made safe to show and
 * without any part of what it was sent (request; NULL: nothing that is secret).  To be freed.
 */
extern char *ssh_execute_start_words(const ExecuteStart *start, bool is_stderr,
                                     const ExecuteRequest *request);

/* What a user can do about a shell that started nothing; words: what it said. */
extern void ssh_execute_shell_hint(HostError *error, const char *username, const char *words);
extern void ssh_execute_start_clear(ExecuteStart *start);

/* As new, but for the marker, which a script may name. */
extern void ssh_execute_start_reset(ExecuteStart *start);

/* The command line that signals what was started; to be freed. */
extern char *ssh_execute_kill_line(const ExecuteStart *start, const char *signal);

/*
 * The same for another connection: TERM, and then KILL, if it is still the same process:
 * of that age, or, since the connection takes its time, older by some seconds.
 */
extern char *ssh_execute_end_line(const ExecuteStart *start, uint64_t age_seconds,
                                  uint64_t slack_seconds, uint64_t grace_seconds);

#endif
