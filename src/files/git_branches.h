/*
 * git_branches.h
 *		Branches that the source of a transfer has packed.
 */
#ifndef ENVRT_FILES_GIT_BRANCHES_H
#define ENVRT_FILES_GIT_BRANCHES_H

#include <stdbool.h>

/* Whether a file of this path has to do with them, and so is sent in any case. */
extern bool git_refs_include(const char *path);

/* The source has this file; and that was the last one of those below target. */
extern void git_refs_note(char *const *names, int count);
extern void git_refs_settle(int target);

#endif
