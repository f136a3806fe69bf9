/*
 * place.c
 *		Finding the place of a transfer in the file system, and what must be left alone.
 *
 * A path is given in one of two ways.  On the server's own file system it is absolute, comes
 * from somebody with the right to name files there, and may lead through links.  In a workspace
 * it is relative, and whoever runs commands there decides what is on the way: no link is followed
 * then, and missing directories of a target are made.
 *
 * What is protected is known by device and inode, so no name, link or other mount of a
 * directory that is named itself leads around it: from the place that was found, the way up to the
 * root is looked at; from there down, every directory and file that is entered, and every name that
 * is about to be replaced.  A bind mount of what is somewhere below one of these is a place of its
 * own, and another name of a file below one is not recognized either.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "place.h"
#include "report.h"

#define MAX_PROTECTED 1000

typedef struct Identity
{
	dev_t device;
	ino_t inode;
} Identity;

static const char *base;
static Identity protected_files[MAX_PROTECTED];
static size_t protected_count;

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

void
place_protect(const char *path)
{
	struct stat info;

	if (stat(path, &info) < 0)
	{
		if (errno != ENOENT)
			fail(errno, "could not look at \"%s\", which is protected: %s", path, strerror(errno));
		return;
	}
	if (protected_count == MAX_PROTECTED)
		fail_state("53400", "more than %d protected places", MAX_PROTECTED);
	protected_files[protected_count++] = (Identity){info.st_dev, info.st_ino};
}

bool
place_is_protected(const struct stat *info)
{
	for (size_t i = 0; i < protected_count; i++)
		if (protected_files[i].device == info->st_dev && protected_files[i].inode == info->st_ino)
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
step(int directory, const char *name, bool make)
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
			fd = step(fd, *last, make);
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

	if (base == NULL)
		found = open(path, O_PATH | O_CLOEXEC);
	else
	{
		char *name;
		int directory = walk(path, false, &name);

		found = openat(directory, name[0] ? name : ".", O_PATH | O_NOFOLLOW | O_CLOEXEC);
		free(name);
		close(directory);
	}
	if (found < 0)
		fail(errno, "could not open \"%s\": %s", path, strerror(errno));
	fd = reopen(found, path, info);
	if (base == NULL && S_ISDIR(info->st_mode))
		check_upwards(fd, path);
	else if (base == NULL)
		check_above_file(fd, info, path);
	return fd;
}

/* The directory above an absolute path, and the last name of it; "": it is the root. */
static int
open_above(const char *path, char **last)
{
	char *copy = strdup(path);
	size_t length = strlen(path);
	char *slash;
	int fd;

	if (copy == NULL)
		fail_state("53400", "out of memory");
	while (length > 0 && copy[length - 1] == '/')
		copy[--length] = '\0';
	slash = strrchr(copy, '/');
	*last = strdup(slash != NULL ? slash + 1 : "");
	if (slash != NULL)
		*slash = '\0';
	fd = open(copy[0] ? copy : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		fail(errno, "could not open \"%s\": %s", copy[0] ? copy : "/", strerror(errno));
	free(copy);
	check_upwards(fd, path);
	return fd;
}

int
place_open_existing(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

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
	fd = openat(above, name[0] ? name : ".",
	            O_RDONLY | O_DIRECTORY | O_CLOEXEC | (base != NULL ? O_NOFOLLOW : 0));
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
		fd = openat(above, *name,
		            O_RDONLY | O_DIRECTORY | O_CLOEXEC | (base != NULL ? O_NOFOLLOW : 0));
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
