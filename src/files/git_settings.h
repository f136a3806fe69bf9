/*
 * git_settings.h
 *		What would have a git run programs of a workspace.
 */
#ifndef ENVRT_FILES_GIT_SETTINGS_H
#define ENVRT_FILES_GIT_SETTINGS_H

#include <stdbool.h>
#include <sys/types.h>

typedef enum GitPlace
{
	GIT_NONE,
	GIT_DIRECTORY, /* the next name is in it */
	GIT_WORKTREES, /* the next name is that of a git directory */
	GIT_MODULES,   /* so it is here, perhaps */
	GIT_MODULE,
	GIT_OTHER,
	GIT_SETTING /* and all below it */
} GitPlace;

extern GitPlace git_place_of(const char *path);

/* Whether these names below a place are not taken; kind: of the last one, an S_IF. */
extern bool git_is_setting(GitPlace place, char *const *names, int count, mode_t kind);

#endif
