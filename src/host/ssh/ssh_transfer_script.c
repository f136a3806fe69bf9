/*
 * ssh_transfer_script.c
 *		The workspace's end of a transfer on a remote host: a shell script around tar.
 *
 * All that is needed there is a POSIX shell with find and mv, and a tar: GNU's, busybox's or
 * one of the BSDs'.  It starts in the workspace and goes down to the path's last directory step by
 * step, through no link; from there on names are relative.
 *
 * A pull of a directory first lists what is there, where there is a find that can, and reads what
 * the server wants of it (already_there.c in src/files).  Else, and of a file, the list is its end
 *alone, a record that is empty.  Then comes the output of `tar -c`; where the tar can, each name of
 *a file is a file of its own, so that none is lacking when another one is not taken.  A find that
 * fails may not have seen all, so its list counts for nothing, and tar says what is wrong.
 *
 * A push first says whether its tar reads headers of pax, and lists what the target has, for the
 * server's end, which sends what is not.  Then it has tar make that below a directory of its own
 * beside the target, and moves it from there when all has come: the archive's last entry, the
 * seal, says so. Directories that the target has are gone through, one mv for those of their files
 * that have come; what the target has no directory for is moved as a whole.  mv replaces file by
 * file, so each is the old or the new one.  The archive's directories may be written, and so may
 * those of the target while something is put into them.  In the end all that came with the archive
 * get the permissions and times that they are to have: the seal is an archive of them.  (busybox's
 * tar gives none to a directory that is there.)
 *
 * Without the seal, whatever the reason (an error, a signal, a connection that ends), the
 * directory goes and the target is as it was.  What is in the way is looked for before anything is
 * moved. From then on nothing but SIGKILL ends it, and when a mv fails, the names of what it has
 * not moved are told.  A directory that was left a day ago, by a process that is not there any
 * more, goes with the next push into the same place.  Links in the target are replaced, not
 * followed.  The files of branches that have come packed are removed, as by git_branches.c in
 * src/files.
 *
 * It says what is wrong on stderr as "envrt: <sqlstate> <text>", what the caller is to know
 * besides as "envrt note: <text>", and a dot on stdout now and then while it moves, so that it is
 * known to be alive.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "shared/files_protocol.h"
#include "ssh/ssh_transfer_script.h"

/* Before the names of what a push could not move into place. */
#define LEFT "All is in place but these files:"

/* What who has called is to know besides begins so, on stderr. */
#define NOTE "envrt note: "

/*
 * What tar, find and the shell do is not to depend on what the user's environment has for them: of
 * it they get where programs and their libraries are, and no more.
 */
static const char environment_text[] =
    "exec env -i PATH=\"$PATH\" ${LD_LIBRARY_PATH+\"LD_LIBRARY_PATH=$LD_LIBRARY_PATH\"} LC_ALL=C "
    "sh -c \"$@\"";

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
    "h=\"--hard-dereference --format=pax --pax-option=delete=atime,delete=ctime\"; fi; "
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
/*
 * $4 what temporary directories begin with, $5 a file's name, $6 "directory" when it is to go into
 * one, $7 the seal.
 */
static const char push_text[] =
    "s=./$4$7; S=$s/tree; n=$5; d=$6; m=$7; "
    "sweep() { rm -rf \"$1\" 2>/dev/null || "
    "{ find \"$1\" -type d -exec chmod u+rwx {} +; rm -rf \"$1\"; }; }; "
    "is_dir() { [ -d \"$1\" ] && [ ! -L \"$1\" ]; }; "

    /* $1: a directory of both, from its slash on. */
    "over() { "
    "[ -w \"$T$1\" ] || [ -O \"$T$1\" ] || die 42501 \"\\\"${1#/}\\\" can not be written\"; "
    "for e in \"$S$1\"/* \"$S$1\"/.[!.]* \"$S$1\"/..?*; do "
    "b=${e#\"$S\"}; "
    "is_dir \"$T$b\" || continue; "
    "if is_dir \"$e\"; then over \"$b\"; "
    "elif [ -e \"$e\" ] || [ -L \"$e\" ]; then "
    "die 55000 \"\\\"${b#/}\\\" is a directory already\"; fi; "
    "done; }; "
    "merge() { "
    "echo .; "
    "[ -w \"$T$1\" ] && [ -x \"$T$1\" ] || chmod u+rwx \"$T$1\" || return; "
    "for e in \"$S$1\"/* \"$S$1\"/.[!.]* \"$S$1\"/..?*; do "
    "is_dir \"$e\" || continue; "
    "b=${e#\"$S\"}; "
    "if is_dir \"$T$b\"; then merge \"$b\" || return; "
    "elif [ -e \"$T$b\" ] || [ -L \"$T$b\" ]; then rm -f \"$T$b\" || return; fi; "
    "done; "
    "D=$1; set --; "
    "for e in \"$S$D\"/* \"$S$D\"/.[!.]* \"$S$D\"/..?*; do "
    "if is_dir \"$e\"; then is_dir \"$T${e#\"$S\"}\" && continue; "
    "else [ -e \"$e\" ] || [ -L \"$e\" ] || continue; fi; "
    "set -- \"$@\" \"$e\"; "
    "if [ $# -ge 100 ]; then echo .; mv -f \"$@\" \"$T$D/\" || return; set --; fi; "
    "done; "
    "[ $# -eq 0 ] || mv -f \"$@\" \"$T$D/\"; }; "
    /* A target that may not be written is in no archive. */
    "apply() { w=; [ -w \"$T\" ] || w=u-w; merge \"\" || return; "
    "[ ! \"$w\" ] || chmod $w \"$T\"; }; "
    "packed() { "
    "find \"$S/.\" -path \"*/.git/*\" -name packed-refs -type f | while IFS= read -r p; do "
    "q=${p%packed-refs}; "
    "while read -r h r; do case $r in *..*) ;; "
    "refs/*) [ -e \"$q$r\" ] || echo \"${q#\"$S/.\"}$r\";; esac; done <\"$p\"; "
    "done; }; "
    "left() { "
    "echo \"" LEFT "\" >&2; "
    "(cd \"$S\" && find . ! -type d) >&2; exit 1; }; "

    /* What was killed, in the directory that ours is in. */
    "for x in ./$4*; do "
    "is_dir \"$x\" && [ \"$(find \"$x\" -prune -mtime +0)\" ] || continue; "
    "p=; [ ! -f \"$x/pid\" ] || read -r p <\"$x/pid\"; "
    "[ \"$p\" ] && kill -0 \"$p\" 2>/dev/null || "
    "{ sweep \"$x\" && echo \"" NOTE
    "removed ${x#./}, which a push that was killed more than a day ago "
    "had left\" >&2; }; "
    "done; "

    /* The list. */
    "t=./$l; [ \"$l\" ] || t=.; "
    "case $(tar --version 2>/dev/null </dev/null) in *\"GNU tar\"*|bsdtar*) printf \"t 0 0 0 0 "
    "pax\\0\"; esac; "
    "if is_dir \"$t\"; then "
    "if find . -prune -printf x >/dev/null 2>&1; then "
    "(cd -P \"$t\" && find . -name \"$4*\" -prune -o \\( -type f -o -type d -o -type l \\) "
    "-printf \"%y %s %T@ %m %C@ %p\\0\" 2>/dev/null); "
    "else printf \"d 0 0 0 0 .\\0\"; fi; fi; "
    "printf \"\\0\"; "

    /* The archive. */
    "trap \"\" PIPE; trap \"exit 1\" HUP INT TERM; "
    "trap \"trap \\\"\\\" HUP INT TERM; sweep $s\" EXIT; "
    "(umask 077; mkdir \"$s\" \"$S\" && echo $$ >\"$s/pid\") || exit; "
    "(umask 0; exec tar -xpof - -C \"$S\") || exit; "
    "k=; for e in " FILES_SEAL_DIRECTORY " " FILES_SEAL_FILE "; do "
    "[ ! -f \"$S/$m$e\" ] || { k=$e; mv \"$S/$m$e\" \"$s/directories\" || exit; }; done; "
    "[ \"$k\" ] || die 08006 the archive is not complete; "

    /* From here on it goes to its end, whoever waits for that. */
    "trap \"\" HUP INT TERM; "
    "T=.; "
    "if [ $k = " FILES_SEAL_DIRECTORY " ]; then "
    "if [ \"$l\" ]; then T=./$l; "
    "if [ -L \"$T\" ] || { [ -e \"$T\" ] && [ ! -d \"$T\" ]; }; then "
    "die 22023 \"\\\"$l\\\" is no directory\"; fi; "
    "[ -d \"$T\" ] || mkdir \"$T\" || exit; fi; "
    "g=$(packed); "
    "over \"\"; "
    "apply || left; "
    "IFS=\"\n\"; set -f; for p in $g; do rm -f \"$T/$p\" || exit; done; "
    "if [ -s \"$s/directories\" ]; then "
    "(umask 0; exec tar -xpof \"$s/directories\" -C \"$T\" 2>\"$s/errors\") || "
    "{ read -r x <\"$s/errors\"; echo \"" NOTE "not all directories have the permissions and "
    "times that they have on the server: $x\" >&2; }; fi; "
    "else "
    "if [ \"$l\" ] && { [ \"$d\" ] || [ -d \"./$l\" ]; }; then "
    "[ ! -L \"./$l\" ] || die 22023 \"\\\"$l\\\" is a link\"; "
    "[ -d \"./$l\" ] || mkdir \"./$l\" || exit; T=./$l; l=; fi; "
    "if [ \"$l\" ] && [ \"$l\" != \"$n\" ]; then mv -f \"$S/$n\" \"$S/$l\" || exit; n=$l; fi; "
    "over \"\"; apply || exit; "
    "fi; exit 0";

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
	char *seal = ssh_transfer_seal(marker);
	char *script = xformat("%s%s", common_text, request->push ? push_text : pull_text);
	json_t *args = json_array();
	json_t *command = json_object();
	const char *const texts[] = {"-c",
	                             environment_text,
	                             "sh",
	                             script,
	                             "sh",
	                             way,
	                             last,
	                             request->push ? "make" : "",
	                             FILES_TEMPORARY,
	                             request->name,
	                             into ? "directory" : "",
	                             seal};

	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
		json_array_append_new(args, json_string(texts[i]));
	json_object_set_new(command, "command", json_string("sh"));
	json_object_set_new(command, "args", args);
	free(way);
	free(last);
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

/* Of what it wrote, the notes go, and the rest is what remains. */
static void
take_notes(const Bytes *errors, Bytes *notes, Bytes *rest)
{
	const char *line = errors->data;

	while (line != NULL && *line != '\0')
	{
		size_t length = strcspn(line, "\n");
		bool is_note = strncmp(line, NOTE, sizeof NOTE - 1) == 0;

		length += line[length] == '\n';
		if (is_note)
			bytes_append(notes, line + sizeof NOTE - 1, length - (sizeof NOTE - 1));
		else
			bytes_append(rest, line, length);
		line += length;
	}
}

static bool
is_full(const char *text)
{
	return strstr(text, "No space left") != NULL || strstr(text, "isk quota exceeded") != NULL ||
	       strstr(text, "hort write") != NULL;
}

static void
ssh_transfer_script_hint_what_is_there(HostError *error, const TransferRequest *request, int status,
                                       const char *text)
{
	if (!request->push)
		return;
	if (strstr(text, LEFT) != NULL)
		error_hint(error, "The detail names what is not in place; all else is.  Another push "
		                  "brings it.");
	else if (status > 0)
		error_hint(error, "Nothing in the workspace has changed.");
}

static HostError *
ssh_transfer_script_failure(const TransferRequest *request, int status, const char *text)
{
	HostError *error;

	if (status == 0 || is_harmless(request, status, text))
		return NULL;
	error = own_words(text);
	if (error != NULL)
	{
		transfer_error_in_workspace(error, request);
		ssh_transfer_script_hint_what_is_there(error, request, status, text);
		return error;
	}
	if (status < 0)
		error = error_new("38000", "the remote end of the transfer was ended by a signal");
	else
		error = error_new(is_full(text) ? "53100" : "38000",
		                  "the remote end of the transfer failed with status %d%s%.*s", status,
		                  text[0] ? ": " : "", (int) strcspn(text, "\n"), text);
	error_detail(error, "%s", text);
	ssh_transfer_script_hint_what_is_there(error, request, status, text);
	return error;
}

HostError *
ssh_transfer_failure(const TransferRequest *request, int status, const Bytes *errors, Bytes *notes)
{
	Bytes rest = {0};
	HostError *error;

	bytes_append(&rest, "", 0);
	take_notes(errors, notes, &rest);
	error = ssh_transfer_script_failure(request, status, rest.data);
	bytes_free(&rest);
	return error;
}
