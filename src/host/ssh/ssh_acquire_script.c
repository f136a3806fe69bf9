/*
 * ssh_acquire_script.c
 *		The one remote command of an acquire or a probe, and its answer.
 *
 * The script is started as any command is (ssh_execute_script.c), so that what a probe says is true
 * for commands.  Its answer stands between lines that begin with a marker, random for each call:
 *
 *		<marker> cwd
 *		/the/path
 *		<marker> api 1		(or none, nocurl, skip)
 *		<marker> end
 *
 * or "<marker> fail <status>" and the end when there is no path.  A path may
 * hold line breaks: it is all that stands between the two lines.
 *
 * Asking candidates can take long, and a call may be cancelled meanwhile.  Few
 * servers pass on the signal that a client sends, but all of them close the
 * command's input with its channel.  So the input is kept open, and a watcher
 * in the background ends everything at its end: the process group, if the
 * script leads one, which it does where the server has given the session one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "ssh/ssh_execute_script.h"
#include "ssh/ssh_acquire_script.h"

/*
 * The arguments are the path, the time for a probe, and the
 * candidates.  A path that is there already costs no mkdir.
 */
static const char script[] =
    "p=$1; t=$2; shift 2; m=$envrt_m; "
    "cd -- \"$p\" 2>/dev/null || { mkdir -p -- \"$p\" && cd -- \"$p\"; } || "
    "{ s=$?; echo \"$m fail $s\"; echo \"$m end\"; exit $s; }; "
    "echo \"$m cwd\"; pwd; "
    "if [ $# -eq 0 ]; then echo \"$m api skip\"; "
    "elif command -v curl >/dev/null 2>&1; then "
    "exec 3<&0; "
    "{ read -r x; kill -9 -$$ || kill -9 $$; } <&3 >/dev/null 2>&1 & "
    "w=$!; exec 3<&-; r=none; i=0; "
    "for u do "
    "if curl -fsS -m \"$t\" \"$u/api/health\" </dev/null >/dev/null; then r=$i; break; fi; "
    "i=$((i+1)); "
    "done; "
    "kill $w; "
    "echo \"$m api $r\"; "
    "else echo \"$m api nocurl\"; fi; "
    "echo \"$m end\"";

void
ssh_script_marker(char marker[SSH_SCRIPT_MARKER_SIZE])
{
	unsigned char bytes[16];

	randombytes_buf(bytes, sizeof bytes);
	memcpy(marker, "envrt-", 6);
	sodium_bin2hex(marker + 6, SSH_SCRIPT_MARKER_SIZE - 6, bytes, sizeof bytes);
}

void
ssh_script_input(const char *path, double probe_seconds, const char *const *candidates,
                 size_t candidate_count, Bytes *input)
{
	const char **args = xcalloc(candidate_count + 2, sizeof *args);
	char seconds[32];

	snprintf(seconds, sizeof seconds, "%g", probe_seconds);
	args[0] = path;
	args[1] = seconds;
	for (size_t i = 0; i < candidate_count; i++)
		args[i + 2] = candidates[i];
	ssh_execute_script_input(script, args, candidate_count + 2, input);
	free(args);
}

/*
 * The first line in text, before end, that is the marker and then the word;
 * NULL when there is none.  *rest is what follows the word, without the space.
 */
static const char *
find_line(const char *text, const char *end, const char *marker, const char *word,
          const char **rest)
{
	size_t marker_length = strlen(marker);
	size_t word_length = strlen(word);

	while (text < end)
	{
		const char *found = memmem(text, (size_t) (end - text), marker, marker_length);
		const char *after;

		if (found == NULL)
			return NULL;
		after = found + marker_length;
		text = after;
		if ((size_t) (end - after) <= word_length + 1 || after[0] != ' ' ||
		    memcmp(after + 1, word, word_length) != 0)
			continue;
		after += 1 + word_length;
		if (*after != ' ' && *after != '\n')
			continue;
		*rest = *after == ' ' ? after + 1 : after;
		return found;
	}
	return NULL;
}

bool
ssh_script_is_complete(const char *marker, const Bytes *output)
{
	const char *rest;

	return output->length > 0 &&
	       find_line(output->data, output->data + output->length, marker, "end", &rest) != NULL;
}

static void
parse_api(const char *text, size_t candidate_count, ScriptAnswer *answer)
{
	char *end;
	unsigned long which;

	answer->outcome = SCRIPT_NO_API;
	if (strncmp(text, "skip\n", 5) == 0)
		answer->outcome = candidate_count == 0 ? SCRIPT_PATH : SCRIPT_NO_API;
	else if (strncmp(text, "nocurl\n", 7) == 0)
		answer->outcome = SCRIPT_NO_CURL;
	else if (*text >= '0' && *text <= '9')
	{
		which = strtoul(text, &end, 10);
		if (*end == '\n' && which < candidate_count)
		{
			answer->outcome = SCRIPT_API;
			answer->api = which;
		}
	}
}

void
ssh_script_parse(const char *marker, const Bytes *output, size_t candidate_count,
                 ScriptAnswer *answer)
{
	const char *start = output->data;
	const char *end = start + output->length;
	const char *cwd;
	const char *api;
	const char *rest;

	memset(answer, 0, sizeof *answer);
	if (output->length == 0 || find_line(start, end, marker, "end", &rest) == NULL)
		return;
	if (find_line(start, end, marker, "fail", &rest) != NULL)
	{
		answer->outcome = SCRIPT_NO_PATH;
		answer->status = (int) strtol(rest, NULL, 10);
		return;
	}
	if (find_line(start, end, marker, "cwd", &cwd) == NULL || *cwd != '\n')
		return;
	cwd++;
	api = find_line(cwd, end, marker, "api", &rest);
	/* pwd ends its line; nothing at all is no path. */
	if (api == NULL || api - cwd < 2 || api[-1] != '\n' || memchr(cwd, '\0', (size_t) (api - cwd)))
		return;
	answer->cwd = xstrndup(cwd, (size_t) (api - cwd) - 1);
	parse_api(rest, candidate_count, answer);
}

void
ssh_script_answer_clear(ScriptAnswer *answer)
{
	free(answer->cwd);
	answer->cwd = NULL;
}
