/*
 * git_settings.c
 *		What would have a git run programs of a workspace.
 *
 * Whoever uses git on what was pulled must not run what somebody in the workspace has put there.
 * Taken from a git directory's own names are not:
 *
 *   config, config.worktree, hooks      they name programs, or are some
 *   rebase-merge                        its list of what is to be done may have commands
 *   commondir, gitdir                   they say where another git directory is
 *
 * Nor is anything that only leads to a git directory: a .git that is a file or a link, and links
 * in .git/modules and .git/worktrees.  The git directories are .git, those of worktrees, and those
 * of submodules, whose names may have any number of slashes: below .git/modules nothing with one
 * of the names above is taken, so a submodule's branch is neither that is called "config" or
 * "hooks/x".
 *
 * Names are compared without regard to case, as some file systems do.  A bare repository is no
 * different from any other directory, and is not recognized.
 */
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "files/git_settings.h"

static bool
is(const char *name, size_t length, const char *expected)
{
	return strlen(expected) == length && strncasecmp(name, expected, length) == 0;
}

static bool
git_settings_is_setting(const char *name, size_t length)
{
	static const char *const settings[] = {"config",       "config.worktree", "hooks",
	                                       "rebase-merge", "commondir",       "gitdir"};

	for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
		if (is(name, length, settings[i]))
			return true;
	return false;
}

static GitPlace
git_settings_step(GitPlace place, const char *name, size_t length)
{
	if (place == GIT_SETTING ||
	    ((place == GIT_DIRECTORY || place == GIT_MODULE) && git_settings_is_setting(name, length)))
		return GIT_SETTING;
	if (is(name, length, ".git") || place == GIT_WORKTREES)
		return GIT_DIRECTORY;
	if (place == GIT_MODULES || place == GIT_MODULE)
		return GIT_MODULE;
	if (place == GIT_DIRECTORY && is(name, length, "modules"))
		return GIT_MODULES;
	if (place == GIT_DIRECTORY && is(name, length, "worktrees"))
		return GIT_WORKTREES;
	return place == GIT_NONE ? GIT_NONE : GIT_OTHER;
}

GitPlace
git_place_of(const char *path)
{
	GitPlace place = GIT_NONE;

	for (const char *name = path + strspn(path, "/"); *name != '\0'; name += strspn(name, "/"))
	{
		size_t length = strcspn(name, "/");

		if (!(length == 1 && name[0] == '.'))
			place = git_settings_step(place, name, length);
		name += length;
	}
	return place;
}

bool
git_is_setting(GitPlace place, char *const *names, int count, mode_t kind)
{
	if (count == 0)
		return place == GIT_SETTING;
	for (int i = 0; i < count; i++)
		place = git_settings_step(place, names[i], strlen(names[i]));
	switch (place)
	{
		case GIT_SETTING:
			return true;
		case GIT_DIRECTORY:
			return kind != S_IFDIR;
		case GIT_WORKTREES:
		case GIT_MODULES:
		case GIT_MODULE:
			return kind == S_IFLNK;
		default:
			return false;
	}
}
