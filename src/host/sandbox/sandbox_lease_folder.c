/*
 * sandbox_lease_folder.c
 *		The folders of leases.
 *
 * A lease has the folder leases/ID below the sandbox directory, with `workspace` in it, which is
 * the lease's own, and two symbolic links whose targets are to be read only: `image` says what the
 * lease was made with, `ledger` in which database's ledger it is.  The folder is the truth of
 * whether the lease exists: nothing else is written down.
 *
 * Removal.  The folder is renamed into trash/ first: from then on there is no lease.
 * What is in the trash is a stranger's work, of any depth and with any modes, so
 * it is not walked into: what is in a folder at the top is unlinked, or, if it is
 * a folder itself, moved to the top; then the folder is empty.  Links are never followed.
 *
 * Each removal has a folder of its own in the trash, locked as long as it goes on.  What is
 * not locked a crash has left: the next host takes it away.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sodium.h>

#include "base/memory.h"
#include "sandbox/sandbox_lease_folder.h"

#define LEASES "leases"
#define TRASH "trash"
#define IMAGES "images"
#define WORKSPACE "workspace"
#define IMAGE "image"
#define LEDGER "ledger"

bool
sandbox_is_id(const char *text)
{
	if (text == NULL || strlen(text) != SANDBOX_ID_LENGTH)
		return false;
	for (size_t i = 0; i < SANDBOX_ID_LENGTH; i++)
	{
		bool hyphen = i == 8 || i == 13 || i == 18 || i == 23;

		if (hyphen ? text[i] != '-' : strchr("0123456789abcdef", text[i]) == NULL)
			return false;
	}
	return true;
}

static int
open_directory(int parent, const char *name)
{
	return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

int
sandbox_folder_open_own(int fd, const char *name)
{
	int own;
	struct stat info;

	if (mkdirat(fd, name, 0700) < 0 && errno != EEXIST)
		return -1;
	own = open_directory(fd, name);
	/* Who could write here could exchange one lease for another. */
	if (own >= 0 && (fstat(own, &info) < 0 || info.st_uid != geteuid() || fchmod(own, 0700) < 0))
	{
		close(own);
		errno = EPERM;
		return -1;
	}
	return own;
}

static HostError *
sandbox_lease_folder_failure(const char *what, const char *name)
{
	int problem = errno;
	HostError *error = error_new(problem == ENOSPC || problem == EDQUOT ? "53400" : "55000",
	                             "could not %s \"%s\" in the sandbox directory: %s", what, name,
	                             strerror(problem));

	error->outcome = OUTCOME_UNKNOWN;
	return error;
}

/*
 * Making
 */

HostError *
sandbox_folder_check_image(int fd, const char *image)
{
	char path[sizeof IMAGES + 256];
	struct stat info;
	HostError *error;

	snprintf(path, sizeof path, IMAGES "/%.200s", image);
	/* A link is the administrator's. */
	if (fstatat(fd, path, &info, 0) == 0 && S_ISDIR(info.st_mode))
		return NULL;
	error = error_new("22023", "there is no image \"%s\" in the sandbox directory", image);
	error_hint(error, "An image is a folder with a root file system, in \"%s\" there.", IMAGES);
	error->outcome = OUTCOME_ABSENT;
	return error;
}

HostError *
sandbox_folder_make(int fd, const char *id, const char *image, const char *ledger)
{
	HostError *error = image ? sandbox_folder_check_image(fd, image) : NULL;
	int leases = error == NULL ? sandbox_folder_open_own(fd, LEASES) : -1;
	int folder = -1;

	if (error != NULL)
		return error;
	if (leases < 0)
		return sandbox_lease_folder_failure("make", LEASES);
	if (mkdirat(leases, id, 0700) < 0 && errno != EEXIST)
		error = sandbox_lease_folder_failure("make", id);
	else if ((folder = open_directory(leases, id)) < 0)
		error = sandbox_lease_folder_failure("open", id);
	else
	{
		char *target = xformat("../../" IMAGES "/%s", image ? image : "");

		/* The workspace last: with it, all is there. */
		if (symlinkat(target, folder, IMAGE) < 0 && errno != EEXIST)
			error = sandbox_lease_folder_failure("make the image's link of", id);
		else if (ledger != NULL && symlinkat(ledger, folder, LEDGER) < 0 && errno != EEXIST)
			error = sandbox_lease_folder_failure("mark", id);
		else if (mkdirat(folder, WORKSPACE, 0700) < 0 && errno != EEXIST)
			error = sandbox_lease_folder_failure("make the workspace of", id);
		free(target);
	}
	if (folder >= 0)
		close(folder);
	close(leases);
	return error;
}

/*
 * Looking
 */

bool
sandbox_folder_exists(int fd, const char *id)
{
	char path[sizeof LEASES + sizeof WORKSPACE + SANDBOX_ID_LENGTH + 2];
	struct stat info;

	snprintf(path, sizeof path, LEASES "/%s/" WORKSPACE, id);
	return fstatat(fd, path, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode);
}

bool
sandbox_folder_read(int fd, SandboxFolder *folder)
{
	char path[sizeof LEASES + sizeof IMAGE + SANDBOX_ID_LENGTH + 2];
	char target[256];
	const char *name;
	ssize_t length;

	snprintf(path, sizeof path, LEASES "/%s/" IMAGE, folder->id);
	length = readlinkat(fd, path, target, sizeof target - 1);
	target[length > 0 ? length : 0] = '\0';
	name = strrchr(target, '/');
	snprintf(folder->image, sizeof folder->image, "%.128s", name ? name + 1 : "");
	return sandbox_folder_exists(fd, folder->id);
}

bool
sandbox_folder_is_of(int fd, const char *id, const char *ledger)
{
	char path[sizeof LEASES + sizeof LEDGER + SANDBOX_ID_LENGTH + 2];
	char target[256];
	ssize_t length;

	snprintf(path, sizeof path, LEASES "/%s/" LEDGER, id);
	length = readlinkat(fd, path, target, sizeof target);
	return length > 0 && (size_t) length == strlen(ledger) &&
	       memcmp(target, ledger, (size_t) length) == 0;
}

SandboxFolder *
sandbox_folder_list(int fd, size_t *count)
{
	int leases = open_directory(fd, LEASES);
	DIR *directory = leases >= 0 ? fdopendir(leases) : NULL;
	SandboxFolder *list = NULL;
	size_t allocated = 0;
	const struct dirent *entry;

	*count = 0;
	if (directory == NULL)
	{
		if (leases >= 0)
			close(leases);
		return NULL;
	}
	while ((entry = readdir(directory)) != NULL)
	{
		if (!sandbox_is_id(entry->d_name))
			continue;
		if (*count == allocated)
		{
			allocated = allocated ? allocated * 2 : 64;
			list = xrealloc(list, allocated * sizeof *list);
		}
		memcpy(list[*count].id, entry->d_name, SANDBOX_ID_LENGTH + 1);
		if (sandbox_folder_read(fd, &list[*count]))
			(*count)++;
	}
	closedir(directory);
	return list;
}

/*
 * Removing
 */

/* A name that is not in use at the top. */
static void
fresh_name(char *name, size_t size)
{
	unsigned char bytes[16];
	char text[2 * sizeof bytes + 1];

	randombytes_buf(bytes, sizeof bytes);
	sodium_bin2hex(text, sizeof text, bytes, sizeof bytes);
	snprintf(name, size, "%s", text);
}

/* Unlinks what is in a folder of the top, or moves it there.  False: something is left. */
static bool
empty_folder(int trash, int folder)
{
	int copy = dup(folder);
	DIR *directory = copy >= 0 ? fdopendir(copy) : NULL;
	const struct dirent *entry;
	bool complete = directory != NULL;

	if (directory == NULL && copy >= 0)
		close(copy);
	while (directory != NULL && (entry = readdir(directory)) != NULL)
	{
		char name[40];

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (unlinkat(folder, entry->d_name, 0) == 0 || errno == ENOENT)
			continue;
		/* Moving a folder writes to it.  It is one: nobody is here to exchange it for a link. */
		if (errno == EISDIR)
		{
			if (unlinkat(folder, entry->d_name, AT_REMOVEDIR) == 0)
				continue;
			fchmodat(folder, entry->d_name, 0700, 0);
			fresh_name(name, sizeof name);
			if (renameat(folder, entry->d_name, trash, name) == 0)
				continue;
		}
		complete = complete && errno == ENOENT;
	}
	if (directory != NULL)
		closedir(directory);
	return complete;
}

/* Removes a folder of the top, what it has at the top included.  False: something is left. */
static bool
remove_top(int trash, const char *name)
{
	bool complete;
	int folder;

	if (unlinkat(trash, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
		return true;
	if (errno == ENOTDIR)
		return unlinkat(trash, name, 0) == 0 || errno == ENOENT;
	folder = open_directory(trash, name);
	if (folder < 0 && errno == EACCES)
	{
		fchmodat(trash, name, 0700, 0);
		folder = open_directory(trash, name);
	}
	if (folder < 0)
		return errno == ENOENT;
	fchmod(folder, 0700);
	complete = empty_folder(trash, folder);
	close(folder);
	return (unlinkat(trash, name, AT_REMOVEDIR) == 0 || errno == ENOENT) && complete;
}

/* Until a round finds nothing, or can't remove anything of what it finds. */
static bool
empty_trash(int trash)
{
	bool left = true;
	bool progress = true;

	while (left && progress)
	{
		int copy = open_directory(trash, ".");
		DIR *directory = copy >= 0 ? fdopendir(copy) : NULL;
		const struct dirent *entry;

		left = progress = false;
		if (directory == NULL)
		{
			if (copy >= 0)
				close(copy);
			return false;
		}
		while ((entry = readdir(directory)) != NULL)
		{
			if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
				continue;
			left = true;
			if (remove_top(trash, entry->d_name))
				progress = true;
		}
		closedir(directory);
	}
	return !left;
}

/* A folder of one's own in the trash; -1: errno. */
static int
open_trash_folder(int trash, char *name, size_t size)
{
	struct stat info;
	int own;

	for (;;)
	{
		fresh_name(name, size);
		if (mkdirat(trash, name, 0700) < 0)
			return -1;
		own = open_directory(trash, name);
		if (own >= 0 && flock(own, LOCK_EX | LOCK_NB) == 0 && fstat(own, &info) == 0 &&
		    info.st_nlink > 0)
			return own;
		/* Another host, which cleans up, was faster. */
		if (own >= 0)
			close(own);
		else if (errno != ENOENT)
			return -1;
	}
}

HostError *
sandbox_folder_remove(int fd, const char *id, bool *existed)
{
	HostError *error = NULL;
	int leases = sandbox_folder_open_own(fd, LEASES);
	int trash = leases >= 0 ? sandbox_folder_open_own(fd, TRASH) : -1;
	int own = -1;
	char name[40];

	*existed = false;
	if (trash < 0)
	{
		error = sandbox_lease_folder_failure("open", leases < 0 ? LEASES : TRASH);
		if (leases >= 0)
			close(leases);
		return error;
	}
	own = open_trash_folder(trash, name, sizeof name);
	if (own < 0)
		error = sandbox_lease_folder_failure("make a folder in", TRASH);
	else if (renameat(leases, id, own, id) == 0)
	{
		*existed = true;
		if (!empty_trash(own))
		{
			errno = EBUSY;
			error = sandbox_lease_folder_failure("remove all of", id);
		}
	}
	else if (errno != ENOENT)
		error = sandbox_lease_folder_failure("remove", id);
	if (own >= 0)
	{
		unlinkat(trash, name, AT_REMOVEDIR);
		close(own);
	}
	close(trash);
	close(leases);
	return error;
}

void
sandbox_folder_sweep(int fd)
{
	int trash = open_directory(fd, TRASH);
	DIR *directory = trash >= 0 ? fdopendir(trash) : NULL;
	const struct dirent *entry;

	if (directory == NULL && trash >= 0)
		close(trash);
	while (directory != NULL && (entry = readdir(directory)) != NULL)
	{
		int left = entry->d_name[0] != '.' ? open_directory(trash, entry->d_name) : -1;

		if (left < 0)
			continue;
		if (flock(left, LOCK_EX | LOCK_NB) == 0 && empty_trash(left))
			unlinkat(trash, entry->d_name, AT_REMOVEDIR);
		close(left);
	}
	if (directory != NULL)
		closedir(directory);
}
