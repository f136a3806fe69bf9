/*
 * git_branches.c
 *		Branches that the source of a transfer has packed.
 *
 * git keeps the state of a branch in a file below refs, or in the file packed-refs, where the
 * former wins.  `git gc` moves all to the latter.  What the target has below refs from an
 * earlier transfer would then hide what the source's branches have become.  So the source always
 * sends both kinds of files, also when the target has them, and whoever unpacks them notes
 * which came; at the end, what is below refs in the target, is listed in the packed-refs that came
 * and has no file in the source is removed.
 *
 * A workspace decides by that about no more than about files of these names in the target, which
 * it could as well have replaced.  Of more files than can be noted none is removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "files/git_branches.h"
#include "files/path_guard.h"
#include "files/report.h"

#define MAX_FILES 200000
#define MAX_BYTES ((size_t) 32 * 1024 * 1024)
#define PACKED "packed-refs"

static char **noted;
static size_t noted_count;
static size_t noted_bytes;
static bool too_many;

/* What stands behind the last .git in a path, or NULL. */
static const char *
behind_git(const char *path)
{
	const char *found = NULL;
	const char *next = path;

	while ((next = strstr(next, ".git/")) != NULL)
	{
		if (next == path || next[-1] == '/')
			found = next + strlen(".git/");
		next++;
	}
	return found;
}

static bool
is_packed(const char *path)
{
	const char *slash = strrchr(path, '/');

	return behind_git(path) != NULL && slash != NULL && strcmp(slash + 1, PACKED) == 0;
}

bool
git_refs_include(const char *path)
{
	const char *rest = behind_git(path);

	/* (Those of submodules are further down.) */
	return rest != NULL &&
	       (strncmp(rest, "refs/", 5) == 0 || strstr(rest, "/refs/") != NULL || is_packed(path));
}

static char *
join(char *const *names, int count)
{
	size_t length = 0;
	char *path;
	char *end;

	for (int i = 0; i < count; i++)
		length += strlen(names[i]) + 1;
	path = malloc(length + 1);
	if (path == NULL)
		fail_state("53400", "out of memory");
	end = path;
	for (int i = 0; i < count; i++)
		end += sprintf(end, "%s%s", i > 0 ? "/" : "", names[i]);
	return path;
}

void
git_refs_note(char *const *names, int count)
{
	char *path = too_many ? NULL : join(names, count);

	if (path == NULL || !git_refs_include(path))
	{
		free(path);
		return;
	}
	noted_bytes += strlen(path) + 1;
	if (noted == NULL)
		noted = calloc(MAX_FILES, sizeof *noted);
	if (noted == NULL || noted_count == MAX_FILES || noted_bytes > MAX_BYTES)
	{
		too_many = true;
		free(path);
		return;
	}
	noted[noted_count++] = path;
}

static int
compare(const void *one, const void *other)
{
	return strcmp(*(char *const *) one, *(char *const *) other);
}

static void
remove_file(int target, const char *path)
{
	char *directory = strdup(path);
	char *name;
	struct stat info;
	int fd;

	if (directory == NULL)
		fail_state("53400", "out of memory");
	name = strrchr(directory, '/');
	*name++ = '\0';
	fd = place_open_below(target, directory, O_PATH | O_DIRECTORY);
	if (fd >= 0 && fstatat(fd, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(info.st_mode))
	{
		place_check(&info, path);
		if (unlinkat(fd, name, 0) < 0 && errno != ENOENT)
			fail(errno, "could not remove \"%s\": %s", path, strerror(errno));
	}
	if (fd >= 0)
		close(fd);
	free(directory);
}

/* The branch that a line is about, cut out of it, or NULL. */
static char *
branch_in(char *line)
{
	char *name = line + strspn(line, "0123456789abcdef");

	if (name == line || *name != ' ' || strncmp(name + 1, "refs/", 5) != 0)
		return NULL;
	name[1 + strcspn(name + 1, "\n")] = '\0';
	return name + 1;
}

/* packed: the path of a packed-refs below the target. */
static void
settle(int target, const char *packed)
{
	int fd = place_open_below(target, packed, O_RDONLY | O_NONBLOCK);
	FILE *file = fd >= 0 ? fdopen(fd, "r") : NULL;
	char *line = NULL;
	size_t size = 0;

	while (file != NULL && getline(&line, &size, file) >= 0)
	{
		const char *branch = branch_in(line);
		char *path;

		if (branch == NULL)
			continue;
		if (asprintf(&path, "%.*s%s", (int) (strlen(packed) - strlen(PACKED)), packed, branch) < 0)
			fail_state("53400", "out of memory");
		if (bsearch(&path, noted, noted_count, sizeof *noted, compare) == NULL)
			remove_file(target, path);
		free(path);
	}
	free(line);
	if (file != NULL)
		fclose(file);
	else if (fd >= 0)
		close(fd);
}

void
git_refs_settle(int target)
{
	if (too_many || noted_count == 0)
		return;
	qsort(noted, noted_count, sizeof *noted, compare);
	for (size_t i = 0; i < noted_count; i++)
		if (is_packed(noted[i]))
			settle(target, noted[i]);
}
