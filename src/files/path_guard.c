/*
 * path_guard.c
 *		Finding the place of a transfer in the file system, and what must be left alone.
 *
 * A path is given in one of two ways.  On the server's own file system it is absolute, and comes
 * from somebody with the right to name files there.  It may lead through links, but only through
 * such as no transfer can have made: a pull makes links for the server's user, and lets the
 * workspace say where they lead, so none of that user's is followed, nor one of a stranger in a
 * directory where everybody may make some.  What remains are root's, and those of a directory's
 * owner in it.  In a workspace a path is relative, and whoever runs commands there decides what is
 * on the way: no link is followed then, and missing directories of a target are made.
 *
 * What is protected is known by device and inode, so no name, link or other mount of a
 * directory that is named itself leads around it: from the place that was found, the way up to the
 * root is looked at; from there down, every directory and file that is entered, and every name that
 * is about to be replaced.  By its name in its directory it is known, too, so that it is not made
 * where it is missing.  A bind mount of what is somewhere below one of these is a place of its
 * own, and another name of a file below one is not recognized either.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "files/path_guard.h"
#include "files/report.h"

#define MAX_PROTECTED 4000
#define MAX_HIDDEN 10
#define MAX_LINKS 40

typedef struct Identity
{
	dev_t device;
	ino_t inode;
} Identity;

static const char *base;
static Identity protected_files[MAX_PROTECTED];
static size_t protected_count;

typedef struct ProtectedName
{
	Identity directory;
	const char *name;
} ProtectedName;

static ProtectedName protected_names[MAX_PROTECTED];
static size_t protected_name_count;

/* Directories in which all that begins with a dot is protected. */
static Identity hidden[MAX_HIDDEN];
static size_t hidden_count;

void
place_set_base(const char *path)
{
	base = path;
}

bool
place_is_workspace(void)
{
	return base != NULL;
}

static Identity
identity_of(const struct stat *info)
{
	return (Identity){info->st_dev, info->st_ino};
}

static bool
is_same(const Identity *identity, const struct stat *info)
{
	return identity->device == info->st_dev && identity->inode == info->st_ino;
}

/* By its name in what it is in. */
static void
protect_name(const char *path)
{
	char *copy = strdup(path);
	char *slash = copy != NULL ? strrchr(copy, '/') : NULL;
	struct stat info;

	if (copy == NULL)
		fail_state("53400", "out of memory");
	if (slash != NULL && slash[1] != '\0')
	{
		*slash = '\0';
		if (stat(copy[0] != '\0' ? copy : "/", &info) == 0)
		{
			if (protected_name_count == MAX_PROTECTED)
				fail_state("53400", "more than %d protected places", MAX_PROTECTED);
			protected_names[protected_name_count].directory = identity_of(&info);
			protected_names[protected_name_count].name = strdup(slash + 1);
			if (protected_names[protected_name_count++].name == NULL)
				fail_state("53400", "out of memory");
		}
	}
	free(copy);
}

void
place_protect(const char *path)
{
	struct stat info;

	protect_name(path);
	if (stat(path, &info) < 0)
	{
		if (errno != ENOENT)
			fail(errno, "could not look at \"%s\", which is protected: %s", path, strerror(errno));
		return;
	}
	if (protected_count == MAX_PROTECTED)
		fail_state("53400", "more than %d protected places", MAX_PROTECTED);
	protected_files[protected_count++] = identity_of(&info);
}

/* What there is, and each such name. */
void
place_protect_hidden(const char *path)
{
	DIR *directory = opendir(path);
	const struct dirent *found;
	struct stat info;

	if (directory == NULL || fstat(dirfd(directory), &info) < 0)
	{
		if (directory != NULL)
			closedir(directory);
		return;
	}
	if (hidden_count == MAX_HIDDEN)
		fail_state("53400", "more than %d protected places", MAX_HIDDEN);
	hidden[hidden_count++] = identity_of(&info);
	while ((found = readdir(directory)) != NULL)
	{
		if (found->d_name[0] != '.' || strcmp(found->d_name, ".") == 0 ||
		    strcmp(found->d_name, "..") == 0)
			continue;
		for (int flags = 0; flags <= AT_SYMLINK_NOFOLLOW; flags += AT_SYMLINK_NOFOLLOW)
			if (fstatat(dirfd(directory), found->d_name, &info, flags) == 0 &&
			    protected_count < MAX_PROTECTED)
				protected_files[protected_count++] = identity_of(&info);
	}
	closedir(directory);
}

bool
place_is_protected(const struct stat *info)
{
	for (size_t i = 0; i < protected_count; i++)
		if (is_same(&protected_files[i], info))
			return true;
	return false;
}

static void __attribute__((noreturn)) fail_protected(const char *path)
{
	fail_state("42501", "\"%s\" belongs to the server itself and can't be transferred", path);
}

void
place_check(const struct stat *info, const char *path)
{
	if (place_is_protected(info))
		fail_protected(path);
}

/* In capitals and small letters: not every file system tells them apart. */
void
place_check_new(int directory, const char *name, const char *path)
{
	struct stat info;

	if ((protected_name_count == 0 && hidden_count == 0) || fstat(directory, &info) < 0)
		return;
	for (size_t i = 0; i < protected_name_count; i++)
		if (is_same(&protected_names[i].directory, &info) &&
		    strcasecmp(protected_names[i].name, name) == 0)
			fail_protected(path);
	for (size_t i = 0; i < hidden_count; i++)
		if (is_same(&hidden[i], &info) && name[0] == '.' && name[1] != '\0')
			fail_protected(path);
}

void
place_check_name(int directory, const char *name, const char *path)
{
	struct stat info;

	if (protected_count == 0 || fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) < 0)
		return;
	place_check(&info, path);
	if (S_ISLNK(info.st_mode) && fstatat(directory, name, &info, 0) == 0)
		place_check(&info, path);
}

/* The directory and all above it. */
static void
check_upwards(int directory, const char *path)
{
	int fd = openat(directory, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct stat info;
	struct stat above;

	if (fd < 0 || fstat(fd, &info) < 0)
		fail(errno, "could not look at \"%s\": %s", path, strerror(errno));
	for (;;)
	{
		int parent;

		place_check(&info, path);
		parent = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (parent < 0 || fstat(parent, &above) < 0)
			fail(errno, "could not look at what is above \"%s\": %s", path, strerror(errno));
		close(fd);
		fd = parent;
		if (above.st_dev == info.st_dev && above.st_ino == info.st_ino)
			break;
		info = above;
	}
	close(fd);
}

/* Where an open file is, by the kernel's word, which is verified. */
static void
check_above_file(int file, const struct stat *info, const char *path)
{
	char link[64];
	char real[4096];
	struct stat found;
	ssize_t length;
	char *slash;
	int directory;

	place_check(info, path);
	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	length = readlink(link, real, sizeof real - 1);
	if (length < 0)
		fail(errno, "could not look at \"%s\": %s", path, strerror(errno));
	real[length] = '\0';
	slash = strrchr(real, '/');
	if (slash == NULL)
		fail(0, "could not find out where \"%s\" is", path);
	*slash = '\0';
	directory = open(real[0] ? real : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0 || fstatat(directory, slash + 1, &found, AT_SYMLINK_NOFOLLOW) < 0 ||
	    found.st_dev != info->st_dev || found.st_ino != info->st_ino)
		fail_state("55000", "\"%s\" was moved while it was opened", path);
	check_upwards(directory, path);
	close(directory);
}

/*
 * Paths below the base
 */

static int
open_base(void)
{
	int fd = open(base, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		fail(errno, "could not open \"%s\": %s", base, strerror(errno));
	return fd;
}

static void
close_keeping_errno(int fd)
{
	int problem = errno;

	close(fd);
	errno = problem;
}

/* One step down; takes the directory.  -1: errno. */
static int
path_guard_step(int directory, const char *name, bool make)
{
	int fd;

	if (make && mkdirat(directory, name, 0755) < 0 && errno != EEXIST)
		fd = -1;
	else
		fd = openat(directory, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	close_keeping_errno(directory);
	return fd;
}

static void __attribute__((noreturn)) fail_step(int problem, const char *path)
{
	if (problem == ENOTDIR || problem == ELOOP)
		fail_state("22023", "\"%s\" leads through something that is no directory", path);
	fail(problem, "could not open \"%s\": %s", path, strerror(problem));
}

/* The directory that holds the path's last name, which is put into *last; "": there is none. */
static int
walk(const char *path, bool make, char **last)
{
	char *copy = strdup(path);
	char *rest = copy;
	char *name;
	char *next;
	int fd = open_base();

	if (copy == NULL)
		fail_state("53400", "out of memory");
	*last = NULL;
	for (name = strtok_r(copy, "/", &rest); name != NULL; name = next)
	{
		next = strtok_r(NULL, "/", &rest);
		if (strcmp(name, ".") == 0)
			continue;
		if (strcmp(name, "..") == 0)
			fail_state("22023", "\"%s\" leads out of the workspace", path);
		if (*last != NULL)
		{
			fd = path_guard_step(fd, *last, make);
			if (fd < 0)
				fail_step(errno, path);
			free(*last);
		}
		*last = strdup(name);
	}
	free(copy);
	if (*last == NULL)
		*last = strdup("");
	return fd;
}

int
place_open_below(int directory, const char *path, int flags)
{
	char *copy = strdup(path);
	char *rest = copy;
	char *name;
	char *next;
	int fd = openat(directory, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (copy == NULL)
		fail_state("53400", "out of memory");
	for (name = strtok_r(copy, "/", &rest); name != NULL && fd >= 0; name = next)
	{
		int way = O_PATH | O_DIRECTORY;
		int above = fd;

		next = strtok_r(NULL, "/", &rest);
		if (strcmp(name, "..") == 0)
		{
			fd = -1;
			errno = EXDEV;
		}
		else
			fd = openat(above, name, (next != NULL ? way : flags) | O_NOFOLLOW | O_CLOEXEC);
		close_keeping_errno(above);
	}
	free(copy);
	return fd;
}

/*
 * Absolute paths
 */

/* Whether a link that lies in a directory can't have been made by a transfer, or a stranger. */
static bool
may_follow(const struct stat *directory, const struct stat *link)
{
	return link->st_uid != geteuid() && (link->st_uid == 0 || link->st_uid == directory->st_uid);
}

/* Where it leads, then the rest of the path; takes the link and the rest. */
static char *
follow(int directory, int link, const char *name, char *rest, const char *path)
{
	char target[PATH_MAX];
	struct stat above;
	struct stat info;
	ssize_t length;
	char *joined;

	if (fstat(directory, &above) < 0 || fstat(link, &info) < 0)
		fail(errno, "could not look at \"%s\": %s", path, strerror(errno));
	if (!may_follow(&above, &info))
		fail_state("42501",
		           "\"%s\" leads through the link \"%s\", which may have come from a workspace: "
		           "it belongs neither to root nor to another owner of its directory",
		           path, name);
	length = readlinkat(link, "", target, sizeof target - 1);
	if (length < 0)
		fail(errno, "could not read the link \"%s\": %s", path, strerror(errno));
	target[length] = '\0';
	if (asprintf(&joined, "%s/%s", target, rest) < 0)
		fail_state("53400", "out of memory");
	close(link);
	free(rest);
	return joined;
}

/*
 * The directory that holds the path's last name, which is put into *last and is no link; "": it is
 * the directory itself.  -1: errno.
 */
static int
walk_absolute(const char *path, char **last)
{
	char *rest = strdup(path);
	int fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int links = 0;

	*last = strdup("");
	while (rest != NULL && *last != NULL && fd >= 0)
	{
		size_t skipped = strspn(rest, "/");
		size_t length = strcspn(rest + skipped, "/");
		char *name = strndup(rest + skipped, length);
		char *after = strdup(rest + skipped + length);
		bool is_last = after != NULL && after[strspn(after, "/")] == '\0';
		struct stat info;
		int below;

		if (name == NULL || after == NULL)
			fail_state("53400", "out of memory");
		free(rest);
		rest = after;
		if (length == 0 || strcmp(name, ".") == 0)
		{
			free(name);
			if (is_last)
				break;
			continue;
		}
		below = openat(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (below >= 0 && (fstat(below, &info) < 0))
			fail(errno, "could not look at \"%s\": %s", path, strerror(errno));
		if (below >= 0 && S_ISLNK(info.st_mode))
		{
			if (++links > MAX_LINKS)
				fail(ELOOP, "could not open \"%s\": %s", path, strerror(ELOOP));
			rest = follow(fd, below, name, rest, path);
			if (rest[0] == '/')
			{
				close(fd);
				fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
			}
			free(name);
			continue;
		}
		if (is_last && strcmp(name, "..") != 0)
		{
			if (below >= 0)
				close(below);
			free(*last);
			*last = name;
			break;
		}
		free(name);
		close_keeping_errno(fd);
		fd = below;
		if (fd >= 0 && !S_ISDIR(info.st_mode))
		{
			close(fd);
			fd = -1;
			errno = ENOTDIR;
		}
	}
	if (rest == NULL || *last == NULL)
		fail_state("53400", "out of memory");
	free(rest);
	return fd;
}

/*
 * The places
 */

/* What was found by O_PATH, to be read. */
static int
reopen(int found, const char *path, struct stat *info)
{
	char link[64];
	int fd;

	if (fstat(found, info) < 0)
		fail(errno, "could not look at \"%s\": %s", path, strerror(errno));
	if (S_ISLNK(info->st_mode))
		fail_state("22023", "\"%s\" is a link", path);
	if (!S_ISDIR(info->st_mode) && !S_ISREG(info->st_mode))
		fail_state("22023", "\"%s\" is neither a file nor a directory", path);
	snprintf(link, sizeof link, "/proc/self/fd/%d", found);
	fd = open(link, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail(errno, "could not open \"%s\": %s", path, strerror(errno));
	close(found);
	return fd;
}

int
place_open_source(const char *path, struct stat *info)
{
	int found;
	int fd;

	char *name;
	int directory = base != NULL ? walk(path, false, &name) : walk_absolute(path, &name);

	if (directory < 0)
		fail(errno, "could not open \"%s\": %s", path, strerror(errno));
	found = openat(directory, name[0] ? name : ".", O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (found < 0)
		fail(errno, "could not open \"%s\": %s", path, strerror(errno));
	free(name);
	close(directory);
	fd = reopen(found, path, info);
	if (base == NULL && S_ISDIR(info->st_mode))
		check_upwards(fd, path);
	else if (base == NULL)
		check_above_file(fd, info, path);
	return fd;
}

/* The directory above an absolute path, and the last name of it; "": it is that directory. */
static int
open_above(const char *path, char **last)
{
	int fd = walk_absolute(path, last);

	if (fd < 0)
		fail(errno, "could not open what is above \"%s\": %s", path, strerror(errno));
	check_upwards(fd, path);
	if ((*last)[0] != '\0')
		place_check_new(fd, *last, path);
	return fd;
}

int
place_open_existing(const char *path)
{
	char *name;
	int above = walk_absolute(path, &name);
	int fd = -1;

	if (above >= 0)
	{
		fd = openat(above, name[0] ? name : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		close(above);
	}
	free(name);
	if (fd >= 0)
		check_upwards(fd, path);
	return fd;
}

int
place_open_target(const char *path, bool *made)
{
	char *name;
	int above = base != NULL ? walk(path, true, &name) : open_above(path, &name);
	int problem;
	int fd;

	*made = name[0] != '\0' && mkdirat(above, name, 0755) == 0;
	problem = name[0] == '\0' || *made ? 0 : errno;
	fd = openat(above, name[0] ? name : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && (errno == ENOTDIR || errno == ELOOP))
		fail_state("22023", "\"%s\" is no directory", path);
	if (fd < 0 && errno == ENOENT && problem != 0 && problem != EEXIST)
		fail(problem, "could not make \"%s\": %s", path, strerror(problem));
	if (fd < 0)
		fail(errno, "could not open \"%s\": %s", path, strerror(errno));
	if (base == NULL)
		check_upwards(fd, path);
	free(name);
	close(above);
	return fd;
}

int
place_open_parent(const char *path, const char *own_name, char **name)
{
	size_t length = strlen(path);
	int above = base != NULL ? walk(path, true, name) : open_above(path, name);
	int fd = -1;

	if ((*name)[0] == '\0')
		fd = openat(above, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	else if (length > 0 && path[length - 1] == '/')
	{
		bool made;

		fd = place_open_target(path, &made);
	}
	else
		fd = openat(above, *name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0)
	{
		free(*name);
		*name = strdup(own_name);
		if (base == NULL)
			check_upwards(fd, path);
	}
	else
	{
		fd = openat(above, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			fail(errno, "could not open what is above \"%s\": %s", path, strerror(errno));
	}
	close(above);
	return fd;
}
