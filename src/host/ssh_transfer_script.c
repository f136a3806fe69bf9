/*
 * ssh_transfer_script.c
 *		The workspace's end of a transfer on a remote host: a shell script around tar.
 *
 * All that is needed there is a POSIX shell with find and mv, and a tar: GNU's, busybox's or
 * one of the BSDs'.  It starts in the workspace and goes down to the path's last directory step by
 * step, through no link; from there on names are relative.
 *
 * A pull of a directory first lists what is there, where there is a find that can, and reads what
 * the server wants of it (known.c in src/files).  Else, and of a file, the list is its end alone, a
 * record that is empty.  Then comes the output of `tar -c`; where the tar can, each name of a file
 * is a file of its own, so that none is lacking when another one is not taken.  A find that
 * fails may not have seen all, so its list counts for nothing, and tar says what is wrong.
 *
 * A push first lists what the target has, for the server's end.  Then it has tar make everything
 * below a directory of its own beside the target, and moves it from there when all has come: the
 * archive's last entry, the seal, says so.  mv replaces file by file, so each is the old or the
 * new one; what the target has no directory for is moved as a whole.  Without the seal,
 * whatever the reason (an error, a signal, a connection that ends), the directory goes and the
 * target is as it was.  Permissions are the archive's, but that busybox leaves directories
 * writable for their owner.  Links in the target are replaced, not followed.  The files of branches
 * that have come packed are removed, as by git_refs.c in src/files.
 *
 * It says what is wrong on stderr as "envrt: <sqlstate> <text>", and a dot on stdout now and then
 * while it moves, so that it is known to be alive.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "files_protocol.h"
#include "ssh_transfer_script.h"

/* $1 the directories on the way, $2 the last name (may be empty), $3 "make" or empty. */
static const char common_text[] =
    "die() { IFS=\" \"; echo \"envrt: $*\" >&2; exit 1; }; "
    "into() { "
    "if [ -L \"./$1\" ] || { [ -e \"./$1\" ] && [ ! -d \"./$1\" ]; }; then "
    "die 22023 \"\\\"$1\\\" leads through something that is no directory\"; fi; "
    "if [ ! -d \"./$1\" ]; then "
    "[ \"$3\" ] || die 58P01 \"\\\"$1\\\" is not there\"; "
    "mkdir \"./$1\" || exit; fi; "
    "cd -P \"./$1\" || exit; }; "
    "w=$1; l=$2; k=$3; set -f; i=$IFS; IFS=/; "
    "for c in $w; do into \"$c\" \"\" \"$k\"; done; "
    "IFS=$i; set +f; umask 022; ";

/* $4: what starts so is temporary. */
static const char pull_text[] =
    "if [ \"$l\" ]; then "
    "[ ! -L \"./$l\" ] || die 22023 \"\\\"$l\\\" is a link\"; "
    "if [ -d \"./$l\" ]; then cd -P \"./$l\" || exit; l=; "
    "elif [ ! -e \"./$l\" ]; then die 58P01 \"\\\"$l\\\" is not there\"; "
    "elif [ ! -f \"./$l\" ]; then die 22023 \"\\\"$l\\\" is neither a file nor a directory\"; fi; "
    "fi; "
    "if [ \"$l\" ]; then printf \"\\0\"; exec tar -cf - \"./$l\"; fi; "
    "h=; if tar -cf /dev/null --hard-dereference /dev/null >/dev/null 2>&1; then "
    "h=--hard-dereference; fi; "
    "if find . -prune -printf x >/dev/null 2>&1 && "
    "printf \".\\0\" | tar -cf /dev/null --null --no-recursion -T - >/dev/null 2>&1; then "
    "f=y; find . -name \"$4*\" -prune -o \\( -type f -o -type d -o -type l \\) "
    "-printf \"%y %s %T@ %m %C@ %p\\0\" 2>/dev/null || f=; "
    "printf \"\\0\"; k=; read -r k; "
    "if [ \"$f$k\" = ysome ]; then exec tar -cf - $h --null --no-recursion -T -; fi; "
    "else printf \"\\0\"; fi; "
    "if tar -cf /dev/null --exclude=x /dev/null >/dev/null 2>&1; then "
    "exec tar -cf - $h --exclude=\"$4*\" .; fi; "
    "exec tar -cf - .";

/* $4 the temporary directory, $5 a file's name, $6 "directory" when it is to go into one, $7 the
 * seal. */
static const char push_text[] =
    "s=./$4; n=$5; d=$6; m=$7; "
    "clean() { trap \"\" HUP INT TERM; "
    "rm -rf \"$s\" 2>/dev/null || "
    "{ find \"$s\" -type d -exec chmod u+rwx {} +; rm -rf \"$s\"; }; }; "
    "trap \"\" PIPE; trap \"exit 1\" HUP INT TERM; trap clean EXIT; "
    "merge() ( "
    "echo .; "
    "find \"$1/.\" ! -name . -prune ! -type d -exec "
    "sh -c \"d=\\$1; shift; exec mv -f \\\"\\$@\\\" \\\"\\$d/\\\"\" sh \"$2\" {} + || exit; "
    "S=$1; D=$2; set --; "
    "for e in \"$S\"/* \"$S\"/.[!.]* \"$S\"/..?*; do "
    "[ -d \"$e\" ] || continue; "
    "b=${e##*/}; "
    "if [ -L \"$D/$b\" ] || { [ -e \"$D/$b\" ] && [ ! -d \"$D/$b\" ]; }; then "
    "rm -f \"$D/$b\" || exit; fi; "
    "if [ -d \"$D/$b\" ]; then chmod u+rwx \"$e\"; merge \"$e\" \"$D/$b\" || exit; "
    "elif [ ! -w \"$e\" ]; then "
    "chmod u+w \"$e\" && mv -f \"$e\" \"$D/\" && chmod u-w \"$D/$b\" || exit; "
    "else set -- \"$@\" \"$e\"; "
    "if [ $# -ge 100 ]; then echo .; mv -f \"$@\" \"$D/\" || exit; set --; fi; fi; "
    "done; "
    "if [ $# -gt 0 ]; then mv -f \"$@\" \"$D/\" || exit; fi ); "
    "packed() { "
    "find \"$s/.\" -path \"*/.git/*\" -name packed-refs -type f | while IFS= read -r p; do "
    "q=${p%packed-refs}; "
    "while read -r h r; do case $r in *..*) ;; "
    "refs/*) [ -e \"$q$r\" ] || echo \"${q#\"$s/.\"}$r\";; esac; done <\"$p\"; "
    "done; }; "
    "t=./$l; [ \"$l\" ] || t=.; "
    "if [ -d \"$t\" ] && [ ! -L \"$t\" ] && find . -prune -printf x >/dev/null 2>&1; then "
    "(cd -P \"$t\" && find . -type f -printf \"f %s %T@ %m %C@ %p\\0\" 2>/dev/null); fi; "
    "printf \"\\0\"; "
    "(umask 077; mkdir \"$s\") || exit; "
    "(umask 0; exec tar -xpof - -C \"$s\") || exit; "
    "if [ -f \"$s/$m" FILES_SEAL_DIRECTORY "\" ]; then "
    "rm -f \"$s/$m" FILES_SEAL_DIRECTORY "\"; "
    "t=.; if [ \"$l\" ]; then "
    "if [ -L \"./$l\" ] || { [ -e \"./$l\" ] && [ ! -d \"./$l\" ]; }; then "
    "die 22023 \"\\\"$l\\\" is no directory\"; fi; "
    "[ -d \"./$l\" ] || mkdir \"./$l\" || exit; t=./$l; fi; "
    "g=$(packed); "
    "merge \"$s\" \"$t\" || exit; "
    "IFS=\"\n\"; set -f; for p in $g; do rm -f \"$t/$p\" || exit; done; "
    "elif [ -f \"$s/$m" FILES_SEAL_FILE "\" ]; then "
    "rm -f \"$s/$m" FILES_SEAL_FILE "\"; "
    "t=.; "
    "if [ \"$l\" ] && { [ \"$d\" ] || [ -d \"./$l\" ]; }; then "
    "[ ! -L \"./$l\" ] || die 22023 \"\\\"$l\\\" is a link\"; "
    "[ -d \"./$l\" ] || mkdir \"./$l\" || exit; t=./$l; l=; fi; "
    "if [ \"$l\" ] && [ \"$l\" != \"$n\" ]; then mv -f \"$s/$n\" \"$s/$l\" || exit; n=$l; fi; "
    "[ ! -d \"$t/$n\" ] || [ -L \"$t/$n\" ] || die 55000 \"\\\"$n\\\" is a directory already\"; "
    "mv -f \"$s/$n\" \"$t/\" || exit; "
    "else die 08006 the archive is not complete; fi";

/* The directories of a path but for the last, with one slash between them. */
static char *
way_of(const char *path, char **last)
{
	Bytes way = {0};

	*last = NULL;
	bytes_append(&way, "", 0);
	for (const char *name = path + strspn(path, "/"); *name != '\0'; name += strspn(name, "/"))
	{
		size_t length = strcspn(name, "/");

		if (!(length == 1 && name[0] == '.'))
		{
			if (*last != NULL)
			{
				bytes_append_text(&way, way.length > 0 ? "/" : "");
				bytes_append_text(&way, *last);
				free(*last);
			}
			*last = xstrndup(name, length);
		}
		name += length;
	}
	if (*last == NULL)
		*last = xstrdup("");
	return way.data;
}

char *
ssh_transfer_seal(const char *marker)
{
	return xformat("seal-%s", marker);
}

json_t *
ssh_transfer_command(const TransferRequest *request, const char *marker)
{
	size_t length = strlen(request->remote_path);
	bool into = length > 0 && request->remote_path[length - 1] == '/';
	char *last;
	char *way = way_of(request->remote_path, &last);
	char *temporary = xformat(FILES_TEMPORARY "%s", request->push ? marker : "");
	char *seal = ssh_transfer_seal(marker);
	char *script = xformat("%s%s", common_text, request->push ? push_text : pull_text);
	json_t *args = json_array();
	json_t *command = json_object();
	const char *const texts[] = {"-c",      script,        "sh",
	                             way,       last,          request->push ? "make" : "",
	                             temporary, request->name, into ? "directory" : "",
	                             seal};

	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
		json_array_append_new(args, json_string(texts[i]));
	json_object_set_new(command, "command", json_string("sh"));
	json_object_set_new(command, "args", args);
	json_object_set_new(command, "env", json_pack("{s:s}", "LC_ALL", "C"));
	free(way);
	free(last);
	free(temporary);
	free(seal);
	free(script);
	return command;
}

/*
 * What went wrong
 */

/* The script's own words; NULL: it has said nothing. */
static HostError *
own_words(const char *text)
{
	static const char start[] = "envrt: ";
	const char *line = text;

	while (line != NULL)
	{
		if (strncmp(line, start, sizeof start - 1) == 0)
		{
			const char *state = line + sizeof start - 1;
			size_t length = strspn(state, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ");

			if (length == 5 && state[5] == ' ')
			{
				char sqlstate[6];

				memcpy(sqlstate, state, 5);
				sqlstate[5] = '\0';
				return error_new(sqlstate, "%.*s", (int) strcspn(state + 6, "\n"), state + 6);
			}
		}
		line = strchr(line, '\n');
		if (line != NULL)
			line++;
	}
	return NULL;
}

static bool
ends_with(const char *line, size_t length, const char *end)
{
	size_t end_length = strlen(end);

	return length >= end_length && memcmp(line + length - end_length, end, end_length) == 0;
}

/*
 * tar says so when it packs what changes: what it has packed is what there was.  With status 2 it
 * says nothing else: of the names that it was given some are gone.
 */
static bool
is_harmless(const TransferRequest *request, int status, const char *text)
{
	static const char gone[] = ": Cannot stat: No such file or directory";
	static const char last[] = ": Exiting with failure status due to previous errors";
	bool some_gone = false;

	if (request->push)
		return false;
	if (status == 1)
		return (strstr(text, "changed as we read it") != NULL ||
		        strstr(text, "removed before we read it") != NULL) &&
		       strstr(text, "shrank") == NULL && strstr(text, "annot") == NULL;
	if (status != 2)
		return false;
	for (const char *line = text; *line != '\0'; line += strspn(line, "\n"))
	{
		size_t length = strcspn(line, "\n");
		bool is_gone = ends_with(line, length, gone);

		if (!is_gone && !ends_with(line, length, last) &&
		    !ends_with(line, length, "changed as we read it"))
			return false;
		some_gone = some_gone || is_gone;
		line += length;
	}
	return some_gone;
}

HostError *
ssh_transfer_failure(const TransferRequest *request, int status, const Bytes *errors)
{
	const char *text = errors->data ? errors->data : "";
	HostError *error;

	if (status == 0 || is_harmless(request, status, text))
		return NULL;
	error = own_words(text);
	if (error != NULL)
	{
		transfer_error_in_workspace(error, request);
		return error;
	}
	if (status < 0)
		error = error_new("38000", "the remote end of the transfer was ended by a signal");
	else
		error = error_new(strstr(text, "No space left") != NULL ? "53100" : "38000",
		                  "the remote end of the transfer failed with status %d%s%.*s", status,
		                  text[0] ? ": " : "", (int) strcspn(text, "\n"), text);
	error_detail(error, "%s", text);
	return error;
}
