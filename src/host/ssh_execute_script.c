/*
 * ssh_execute_script.c
 *		How a command is started on a remote host, and how it tells that it runs.
 *
 * The user's login shell, whatever it is, gets "exec sh -c '<fixed text>' sh <marker>"
 * and hands over at once.  That sh reads one line from its input and runs it: it
 * enters the directory (c), exports the variables, says the marker on both streams
 * (before it, they are the login shell's), and becomes the command (x).  So nothing
 * secret is in anybody's arguments, the length of a command line counts for nothing,
 * and what follows the line is the command's own input, to the byte, since a shell
 * reads a line from a pipe byte by byte.  (Hence the fixed text does what it can.)
 *
 * That sh costs a good part of the time that a short command takes.  Where the first command
 * on a connection finds that the login shell is a sh itself, later ones give it the
 * fixed text without, and may find it waiting for their line (ssh_shell.c); but not those that make
 * the shell fork, which a large one does slowly.  Such a shell says "<marker> ready" on stdout
 * before it reads: its profile might have made of it one whose words do not arrive, and when that
 * had ended, nobody would know whether it had run the command.
 *
 * A line that is not all printable ASCII does not go through the shell's `read`,
 * which would have to be trusted with every byte.  The line has dd read it then, as
 * exactly, and `eval` sees it as it is in single quotes.
 *
 * The command takes the place of the shell, and with it its pid: what the server
 * tells of its end is the command's own exit, status or signal.  The server
 * makes each session a process group; if it does not, setsid does, where there is one.
 *
 * The marker line on stderr is "<marker> start <-pgid or pid>", and words about the start;
 * "<marker> cwd" means that the directory can't be entered.
 *
 * A command that runs for long can have a lifeline (l): should the host die or the connection
 * break, nobody would be there to end it.  The channel's input stays open then, and a process
 * beside the command waits for its end: when it comes while the command still runs,
 * the process group gets SIGTERM and, after the grace period, SIGKILL.  That process is in
 * the group, so that the group's number can't become another's, ignores what the group may get,
 * and is nobody's child, so that the command finds no child that it has not made.  The
 * command's own input is what was sent for it, up to its length: a file that has lost its name
 * before there is anything in it.  Where there is no place for one the line says no
 * " held", and all is as it is without a lifeline.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ssh_execute_script.h"

/* Of what login shells print, so much is kept for an error's text. */
#define HEAD_MAX 65536
#define HEAD_KEEP 16384
/* Seconds by which our clock and another one may differ about an age. */
#define AGE_DOUBT 3
/* Of the number of a process. */
#define MAX_DIGITS 18

/*
 * Like the one of ssh_script.c it is read alike by every login shell: no single
 * quotes, line breaks, backslashes and exclamation marks.
 */
static const char define_text[] =
    "envrt_e=; envrt_g=; envrt_h=; "
    "if kill -0 -$$ 2>/dev/null; then envrt_g=-; "
    "elif command -v setsid >/dev/null; then envrt_e=$(command -v setsid); envrt_g=-; fi; "
    "c() { CDPATH= cd -- \"$1\" || { echo \"$envrt_m cwd\" >&2; exit 1; }; }; "
    "x() { echo \"$envrt_m\" && echo \"$envrt_m start $envrt_g$$$envrt_h$envrt_p\" >&2 || exit; "
    "exec ${envrt_e:+\"$envrt_e\"} \"$@\"; }; ";

static const char read_text[] = "IFS= read -r envrt_l && eval \"$envrt_l\"";

/* l GRACE-SECONDS INPUT-BYTES, for a line of printable ASCII that `read -r` reads. */
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

/* A forced command is given to who knows whom, whatever $SHELL is. */
static const char learn_text[] =
    "envrt_m=$1; envrt_p=; case \"${SSH_ORIGINAL_COMMAND-}${SHELL-}\" in "
    "/bin/sh|/bin/dash|/bin/bash|/usr/bin/sh|/usr/bin/dash|/usr/bin/bash) envrt_p=\" plain\"; "
    "esac; ";

/*
 * What the user's profile may have made of the shell.  This is read before aliases are
 * gone, so it has none of their names without a backslash; what is in eval is read after it.
 */
static const char forget_text[] =
    "\\unalias -a 2>/dev/null; \\set +aefuvxC; "
    "\\unset -f unset cd command echo eval exec exit export kill read "
    "trap dd head rm sleep 2>/dev/null; ";

char *
ssh_execute_command_line(const char *marker)
{
	return xformat("exec sh -c '%s%s%s' sh %s", learn_text, define_text, read_text, marker);
}

char *
ssh_execute_plain_line(const char *marker)
{
	return xformat("%senvrt_m=%s; envrt_p=; \\eval '%secho \"$envrt_m ready\" && %s'", forget_text,
	               marker, define_text, read_text);
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
make_script(const ExecuteRequest *request, Bytes *script)
{
	append_text(script, "c ");
	append_quoted(script, request->cwd);
	append_text(script, ";");
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
	if (request->lifeline)
	{
		char call[64];

		append_text(script, lifeline_text);
		snprintf(call, sizeof call, "l %llu %zu; ",
		         (unsigned long long) (request->grace_ms + 999) / 1000, request->input_length);
		append_text(script, call);
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

bool
ssh_execute_input(const ExecuteRequest *request, Bytes *input)
{
	Bytes script = {0};
	bool printable;

	make_script(request, &script);
	printable = is_printable(&script);
	if (!printable)
	{
		char line[100];

		snprintf(line, sizeof line, "eval \"$(dd ibs=1 obs=65536 count=%zu 2>/dev/null)\"\n",
		         script.length);
		append_text(input, line);
	}
	append_secret(input, script.data, script.length);
	if (printable)
		append_text(input, "\n");
	append_secret(input, request->input ? request->input : "", request->input_length);
	explicit_bzero(script.data, script.allocated);
	bytes_free(&script);
	return printable && !request->lifeline;
}

/*
 * The answer
 */

/*
 * The marker's line, once it is complete; *end is its newline.  A login shell that
 * shows what it runs prints the marker too, but not what follows it.
 */
static const char *
find_marker(const ExecuteStart *start, const Bytes *head, const char *follows, const char **end)
{
	const char *last = head->data + head->length;
	const char *found = head->data;
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

static const char *
find_on_stderr(ExecuteStart *start, const Bytes *head, const char **end)
{
	static const char follows[] = " start ";
	const char *found = find_marker(start, head, " cwd\n", end);
	long number;

	if (found != NULL)
	{
		start->state = START_NO_CWD;
		return found;
	}
	found = find_marker(start, head, follows, end);
	if (found == NULL)
		return NULL;
	number = read_number(found + strlen(start->marker) + sizeof follows - 1);
	if (number == 0)
		return NULL;
	start->state = START_DONE;
	start->group = number < 0;
	start->pid = number < 0 ? -number : number;
	start->held = memmem(found, (size_t) (*end - found), " held", 5) != NULL;
	start->plain = memmem(found, (size_t) (*end - found), " plain", 6) != NULL;
	return found;
}

static void
cut_head(Bytes *head)
{
	if (head->length <= HEAD_MAX)
		return;
	memmove(head->data, head->data + head->length - HEAD_KEEP, HEAD_KEEP);
	head->length = HEAD_KEEP;
	head->data[HEAD_KEEP] = '\0';
}

const char *
ssh_execute_start_take(ExecuteStart *start, bool is_stderr, const char *bytes, size_t *length)
{
	Bytes *head = &start->heads[is_stderr];
	size_t before = head->length;
	const char *found;
	const char *end;
	size_t used;

	if (is_stderr ? start->state != START_WAITING : start->stdout_done)
		return bytes;
	bytes_append(head, bytes, *length);
	if (is_stderr)
		found = find_on_stderr(start, head, &end);
	else
	{
		if (find_marker(start, head, " ready\n", &end) != NULL)
			start->ready = true;
		found = find_marker(start, head, "\n", &end);
	}
	if (found == NULL)
	{
		cut_head(head);
		bytes += *length;
		*length = 0;
		return bytes;
	}
	if (!is_stderr)
		start->stdout_done = true;
	used = (size_t) (end + 1 - head->data) - before;
	head->length = (size_t) (found - head->data);
	head->data[head->length] = '\0';
	*length -= used;
	return bytes + used;
}

void
ssh_execute_start_clear(ExecuteStart *start)
{
	bytes_free(&start->heads[0]);
	bytes_free(&start->heads[1]);
}

/*
 * The end
 */

char *
ssh_execute_kill_line(const ExecuteStart *start, const char *signal)
{
	return xformat("exec sh -c 'kill -%s %s%ld'", signal, start->group ? "-" : "", start->pid);
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
