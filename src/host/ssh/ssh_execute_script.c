/*
 * ssh_execute_script.c
 *		How a command is started on a remote host, and how it tells that it runs.
 *
 * The user's login shell, whatever it is, gets "exec sh -c '<fixed text>' sh <marker>" and hands
 * over at once.  That sh says "<marker> ready 1" on stdout and "<marker> ready 2" on stderr, and
 * only then is it given a script: one line of its input, which it reads and runs.  So nothing
 * secret is in anybody's arguments, the length of a command line counts for nothing, and a login
 * profile that reads from its input, or sends the shell's words elsewhere, gets nothing and has
 * nothing started: what it keeps from being ready is an error that nothing has come of.
 *
 * The script says "<marker> read" on stderr, enters the directory (c), gives the command its
 * lifeline (l), which has the user's own variables and not the command's, exports those, says on
 * both streams that all that follows is the command's own (o), and becomes the command (x).  What
 * follows the line is the command's own input, to the byte, since a shell reads a line from a pipe
 * byte by byte.  (Hence the fixed text does what it can.) Scripts of ours (ssh_acquire_script.c)
 * go the same way, and are run by that sh itself.
 *
 * A line that is not all printable ASCII does not go through the shell's `read`,
 * which would have to be trusted with every byte.  The line has dd read it then, as
 * exactly, and `eval` sees it as it is in single quotes.
 *
 * The command takes the place of the shell, and with it its pid: what the server
 * tells of its end is the command's own exit, status or signal.  The server
 * makes each session a process group; if it does not, setsid does, where there is one.
 *
 * The marker line on stderr is "<marker> start <-pgid or pid>", and " held" with a lifeline;
 * "<marker> cwd" means that the directory can't be entered.
 *
 * Every command of a user has a lifeline: should the host die or the connection
 * break, nobody would be there to end it.  The channel's input stays open, and a process
 * beside the command waits for its end: when it comes while the command still runs,
 * the process group gets SIGTERM and, after the grace period, SIGKILL.  That process is in
 * the group, so that the group's number can't become another's, ignores what the group may get,
 * and is nobody's child, so that the command finds no child that it has not made.  The
 * command's own input is what was sent for it, up to its length: a file that has lost its name
 * before there is anything in it.  Where there is no place for one the line says no
 * " held", and the command reads the channel itself.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ssh/ssh_execute_script.h"

/* Of what login shells print, so much is kept for an error's text. */
#define HEAD_MAX 65536
#define HEAD_KEEP 16384
/* Seconds by which our clock and another one may differ about an age. */
#define AGE_DOUBT 3
/* Of the number of a process. */
#define MAX_DIGITS 18

/*
 * Read alike by every login shell: no single quotes, line breaks, backslashes and exclamation
 * marks.  The environment may bring options (SHELLOPTS) and functions for a sh that is bash.
 */
static const char fixed_text[] =
    "set +aefuvxC; unset -f unset cd command echo eval exec exit export kill read set trap "
    "dd head rm sleep umask 2>/dev/null; "
    "unset envrt_l envrt_e envrt_g envrt_h envrt_f envrt_d; envrt_m=$1; "
    "if kill -0 -$$ 2>/dev/null; then envrt_g=-; "
    "elif command -v setsid >/dev/null; then envrt_e=$(command -v setsid); envrt_g=-; fi; "
    "s() { echo \"$envrt_m read\" >&2; }; "
    "c() { CDPATH= cd -- \"$1\" || { echo \"$envrt_m cwd\" >&2; exit 1; }; }; "
    "o() { echo \"$envrt_m out\" && echo \"$envrt_m start $envrt_g$$$envrt_h\" >&2 || exit; }; "
    "x() { o; exec ${envrt_e:+\"$envrt_e\"} \"$@\"; }; "
    "echo \"$envrt_m ready 2\" >&2; echo \"$envrt_m ready 1\"; "
    "IFS= read -r envrt_l && eval \"$envrt_l\"";

/* l GRACE-SECONDS INPUT-BYTES */
static const char lifeline_text[] =
    "l() { "
    "exec 3<&0 </dev/null; "
    "if [ $2 -gt 0 ]; then "
    "envrt_f=; "
    "for envrt_d in /dev/shm \"${TMPDIR:-/tmp}\"; do "
    "(umask 077; set -C; : >\"$envrt_d/$envrt_m\") 2>/dev/null && "
    "{ envrt_f=$envrt_d/$envrt_m; break; }; "
    "done; "
    "[ \"$envrt_f\" ] || { exec <&3 3<&-; return; }; "
    "exec 4>\"$envrt_f\" <\"$envrt_f\"; rm -f \"$envrt_f\"; "
    "if head -c 0 </dev/null >/dev/null 2>&1; then head -c $2 <&3 >&4; "
    "else dd ibs=1 obs=65536 count=$2 <&3 >&4 2>/dev/null; fi || exit; "
    "exec 4>&-; "
    "fi; "
    "( ( trap \"\" HUP INT QUIT TERM PIPE ALRM USR1 USR2; cd /; "
    "while read -r envrt_l; do :; done; "
    "kill -0 $$ || exit; "
    "kill -TERM $envrt_g$$; sleep $1; kill -KILL $envrt_g$$"
    " ) <&3 3<&- >/dev/null 2>&1 & ); "
    "exec 3<&-; envrt_h=\" held\"; "
    "}; ";

char *
ssh_execute_command_line(const char *marker)
{
	return xformat("exec sh -c '%s' sh %s", fixed_text, marker);
}

static void
append_secret(Bytes *bytes, const char *text, size_t length)
{
	/* Grown by hand, since realloc() would leave copies behind. */
	if (bytes->length + length + 1 > bytes->allocated)
	{
		Bytes grown = {0};

		grown.allocated = (bytes->length + length + 1) * 2 + 1024;
		grown.data = xcalloc(1, grown.allocated);
		grown.length = bytes->length;
		if (bytes->length > 0)
			memcpy(grown.data, bytes->data, bytes->length);
		if (bytes->data != NULL)
			explicit_bzero(bytes->data, bytes->allocated);
		free(bytes->data);
		*bytes = grown;
	}
	bytes_append(bytes, text, length);
}

static void
append_text(Bytes *bytes, const char *text)
{
	append_secret(bytes, text, strlen(text));
}

static void
append_quoted(Bytes *bytes, const char *text)
{
	append_text(bytes, "'");
	for (;;)
	{
		size_t plain = strcspn(text, "'");

		append_secret(bytes, text, plain);
		if (text[plain] == '\0')
			break;
		append_text(bytes, "'\\''");
		text += plain + 1;
	}
	append_text(bytes, "'");
}

static void
make_script(const ExecuteRequest *request, bool lifeline, Bytes *script)
{
	char call[64];

	append_text(script, "s;c ");
	append_quoted(script, request->cwd);
	append_text(script, ";");
	if (lifeline)
	{
		append_text(script, lifeline_text);
		snprintf(call, sizeof call, "l %llu %zu; ",
		         (unsigned long long) (request->grace_ms + 999) / 1000, request->input_length);
		append_text(script, call);
	}
	if (request->env_count > 0)
	{
		append_text(script, "export");
		for (size_t i = 0; i < request->env_count; i++)
		{
			append_text(script, " ");
			append_text(script, request->env[i].name);
			append_text(script, "=");
			append_quoted(script, request->env[i].value);
		}
		append_text(script, "||exit;");
	}
	append_text(script, "x ");
	/* As the name of a command a dash is rare, and not every exec knows this. */
	if (request->command[0] == '-')
		append_text(script, "-- ");
	append_quoted(script, request->command);
	for (size_t i = 0; i < request->arg_count; i++)
	{
		append_text(script, " ");
		append_quoted(script, request->args[i]);
	}
}

static bool
is_printable(const Bytes *bytes)
{
	for (size_t i = 0; i < bytes->length; i++)
		if (bytes->data[i] < ' ' || bytes->data[i] > '~')
			return false;
	return true;
}

/* The line that the shell reads, of a script that is wiped and freed. */
static void
append_line(Bytes *input, Bytes *script)
{
	bool printable = is_printable(script);

	if (!printable)
	{
		char line[100];

		snprintf(line, sizeof line, "eval \"$(dd ibs=1 obs=65536 count=%zu 2>/dev/null)\"\n",
		         script->length);
		append_text(input, line);
	}
	append_secret(input, script->data, script->length);
	if (printable)
		append_text(input, "\n");
	explicit_bzero(script->data, script->allocated);
	bytes_free(script);
}

void
ssh_execute_input(const ExecuteRequest *request, bool lifeline, Bytes *input)
{
	Bytes script = {0};

	make_script(request, lifeline, &script);
	append_line(input, &script);
	append_secret(input, request->input ? request->input : "", request->input_length);
}

void
ssh_execute_script_input(const char *text, const char *const *args, size_t arg_count, Bytes *input)
{
	Bytes script = {0};

	append_text(&script, "s;set --");
	for (size_t i = 0; i < arg_count; i++)
	{
		append_text(&script, " ");
		append_quoted(&script, args[i]);
	}
	append_text(&script, "; " SSH_CLEAN_ENVIRONMENT "o; ");
	append_text(&script, text);
	append_line(input, &script);
}

/*
 * The answer
 */

/*
 * The marker's line, if it is among those that have just become complete; *end is its newline.  A
 * login shell that shows what it runs prints the marker too, but not what follows it.
 */
static const char *
find_marker(const ExecuteStart *start, bool is_stderr, const char *follows, const char **end)
{
	const Bytes *head = &start->heads[is_stderr];
	const char *last = head->data + head->length;
	const char *found = head->data + start->line[is_stderr];
	size_t marker_length = strlen(start->marker);
	size_t length = strlen(follows);

	while ((found = memmem(found, (size_t) (last - found), start->marker, marker_length)) != NULL)
	{
		const char *after = found + marker_length;

		if ((size_t) (last - after) >= length && memcmp(after, follows, length) == 0 &&
		    (*end = memchr(after, '\n', (size_t) (last - after))) != NULL)
			return found;
		found = after;
	}
	return NULL;
}

/*
 * The number that a line goes on with, digits alone; 0: there is none.  What skips blanks, as
 * sscanf() and strtol() do, would skip the line's end, and take what came later for a part of it.
 */
static long
read_number(const char *text)
{
	const char *digits = text + (*text == '-');
	long number = 0;

	for (int i = 0; i < MAX_DIGITS && digits[i] >= '0' && digits[i] <= '9'; i++)
		number = number * 10 + (digits[i] - '0');
	return *text == '-' ? -number : number;
}

/* The line is said and done: it is no part of what the login shell wrote. */
static void
cut_line(Bytes *head, const char *found, const char *end)
{
	size_t at = (size_t) (found - head->data);
	size_t length = (size_t) (end + 1 - found);

	memmove(head->data + at, head->data + at + length, head->length - at - length);
	head->length -= length;
	head->data[head->length] = '\0';
}

static void
take_ready(ExecuteStart *start, bool is_stderr)
{
	const char *end;
	const char *found = NULL;

	if (!start->ready[is_stderr])
		found = find_marker(start, is_stderr, is_stderr ? " ready 2\n" : " ready 1\n", &end);
	if (found == NULL)
		return;
	start->ready[is_stderr] = true;
	cut_line(&start->heads[is_stderr], found, end);
}

static const char *
find_on_stderr(ExecuteStart *start, const char **end)
{
	static const char follows[] = " start ";
	const char *found;
	long number = 0;

	if (start->state == START_WAITING && (found = find_marker(start, true, " read\n", end)) != NULL)
	{
		start->state = START_READ;
		cut_line(&start->heads[1], found, *end);
	}
	found = find_marker(start, true, " cwd\n", end);
	if (found != NULL)
	{
		start->state = START_NO_CWD;
		return found;
	}
	while ((found = find_marker(start, true, follows, end)) != NULL)
	{
		number = read_number(found + strlen(start->marker) + sizeof follows - 1);
		if (number != 0)
			break;
		start->line[1] = (size_t) (found + 1 - start->heads[1].data);
	}
	if (found == NULL)
		return NULL;
	start->state = START_DONE;
	start->group = number < 0;
	start->pid = number < 0 ? -number : number;
	start->held = memmem(found, (size_t) (*end - found), " held", 5) != NULL;
	return found;
}

/* What is complete has been looked at: how long it is costs the lines that follow nothing. */
static void
pass_lines(ExecuteStart *start, bool is_stderr)
{
	const Bytes *head = &start->heads[is_stderr];
	size_t *line = &start->line[is_stderr];
	const char *newline = memrchr(head->data + *line, '\n', head->length - *line);

	if (newline != NULL)
		*line = (size_t) (newline + 1 - head->data);
}

static void
cut_head(ExecuteStart *start, bool is_stderr)
{
	Bytes *head = &start->heads[is_stderr];
	size_t *line = &start->line[is_stderr];
	size_t cut;

	if (head->length <= HEAD_MAX)
		return;
	cut = head->length - HEAD_KEEP;
	*line = *line > cut ? *line - cut : 0;
	memmove(head->data, head->data + cut, HEAD_KEEP);
	head->length = HEAD_KEEP;
	head->data[HEAD_KEEP] = '\0';
}

const char *
ssh_execute_start_take(ExecuteStart *start, bool is_stderr, const char *bytes, size_t *length)
{
	Bytes *head = &start->heads[is_stderr];
	const char *found = NULL;
	const char *end;
	size_t rest;

	if (is_stderr ? start->state >= START_NO_CWD : start->stdout_done)
		return bytes;
	bytes_append(head, bytes, *length);
	start->said += *length;
	if (memchr(bytes, '\n', *length) != NULL)
	{
		take_ready(start, is_stderr);
		/* Before it was given anything it can't have begun. */
		if (start->given)
			found =
			    is_stderr ? find_on_stderr(start, &end) : find_marker(start, false, " out\n", &end);
		if (found == NULL)
			pass_lines(start, is_stderr);
	}
	if (found == NULL)
	{
		cut_head(start, is_stderr);
		bytes += *length;
		*length = 0;
		return bytes;
	}
	if (!is_stderr)
		start->stdout_done = true;
	rest = (size_t) (head->data + head->length - (end + 1));
	/* What a shell said before its time is its own. */
	if (rest > *length)
		rest = *length;
	head->length = (size_t) (found - head->data);
	head->data[head->length] = '\0';
	bytes += *length - rest;
	*length = rest;
	return bytes;
}

bool
ssh_execute_start_is_ready(const ExecuteStart *start)
{
	return start->ready[0] && start->ready[1];
}

char *
ssh_execute_start_words(const ExecuteStart *start, bool is_stderr, const ExecuteRequest *request)
{
	const Bytes *head = &start->heads[is_stderr];
	char *copy;
	char *words;

	if (head->length == 0)
		return xstrdup("");
	copy = xstrndup(head->data, head->length);
	if (request != NULL)
		execute_request_mask(request, NULL, copy, strlen(copy));
	words = clean_text(copy, strlen(copy), HEAD_MAX, true);
	secret_free(copy);
	return words;
}

void
ssh_execute_shell_hint(HostError *error, const char *username, const char *words)
{
	/* What Windows' cmd.exe and PowerShell say. */
	if (strstr(words, "not recognized as") != NULL)
		error_hint(error,
		           "The login shell of \"%s\" is no POSIX shell. On Windows, set DefaultShell of "
		           "its OpenSSH server to a bash (of WSL or of Git).",
		           username);
	else
		error_hint(error,
		           "The login shell of \"%s\" must be able to run sh, and its profile must neither "
		           "read its input nor redirect it.",
		           username);
}

void
ssh_execute_start_clear(ExecuteStart *start)
{
	/* A shell may have repeated its script. */
	for (int i = 0; i < 2; i++)
	{
		if (start->heads[i].data != NULL)
			explicit_bzero(start->heads[i].data, start->heads[i].allocated);
		bytes_free(&start->heads[i]);
	}
}

void
ssh_execute_start_reset(ExecuteStart *start)
{
	char marker[SSH_SCRIPT_MARKER_SIZE];

	memcpy(marker, start->marker, sizeof marker);
	ssh_execute_start_clear(start);
	*start = (ExecuteStart){0};
	memcpy(start->marker, marker, sizeof marker);
}

/*
 * The end
 */

char *
ssh_execute_kill_line(const ExecuteStart *start, const char *signal)
{
	return xformat("exec sh -c 'unset -f kill; kill -%s %s%ld'", signal, start->group ? "-" : "",
	               start->pid);
}

char *
ssh_execute_end_line(const ExecuteStart *start, uint64_t age_seconds, uint64_t slack_seconds,
                     uint64_t grace_seconds)
{
	/*
	 * Where /proc tells it, the process must be of that age.  (A leader that has ended and
	 * left a group has no age any more: that is not touched then.)
	 */
	return xformat("exec sh -c '"
	               "p=$1; k=$2; a=$3; b=$4; g=$5; "
	               "if IFS=. read -r u x 2>/dev/null </proc/uptime; then "
	               "IFS= read -r s 2>/dev/null </proc/$p/stat || exit 0; "
	               "set -- ${s##*) }; t=$((u-${20}/100)); "
	               "test $t -ge $a && test $t -le $b || exit 0; "
	               "fi; "
	               "kill -TERM $k; "
	               "while test $g -gt 0 && kill -0 $k; do sleep 1; g=$((g-1)); done; "
	               "kill -KILL $k' sh %ld %s%ld %lld %llu %llu",
	               start->pid, start->group ? "-" : "", start->pid,
	               (long long) age_seconds - AGE_DOUBT,
	               (unsigned long long) (age_seconds + slack_seconds + AGE_DOUBT),
	               (unsigned long long) grace_seconds);
}
