/*
 * sandbox_program.c
 *		Where bwrap finds the program of a sandbox's first process.
 *
 * The program is a part of the host's binary.  To hand it to each sandbox as a
 * copy costs a millisecond, so it is put into the sandbox directory, as init/HASH,
 * and bound from there.  A host believes what it finds there after it has
 * compared it once; names of another build's are another's.  On a file system
 * from which nothing can be executed there is none.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <sodium.h>

#include "base/memory.h"
#include "sandbox/sandbox_fixed_files.h"
#include "sandbox/sandbox_lease_folder.h"
#include "sandbox/sandbox_program.h"

#define FOLDER "init"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char name[2 * crypto_generichash_BYTES_MIN + 1];
static dev_t compared_device;
static ino_t compared_inode;

static void
find_name(const void *program, size_t size)
{
	unsigned char hash[crypto_generichash_BYTES_MIN];

	if (name[0] != '\0')
		return;
	crypto_generichash(hash, sizeof hash, program, size, NULL, 0);
	sodium_bin2hex(name, sizeof name, hash, sizeof hash);
}

static bool
is_equal(int fd, const char *program, size_t size)
{
	char buffer[16384];
	size_t done = 0;
	ssize_t count;

	while ((count = read(fd, buffer, sizeof buffer)) > 0)
	{
		if ((size_t) count > size - done || memcmp(buffer, program + done, (size_t) count) != 0)
			return false;
		done += (size_t) count;
	}
	return count == 0 && done == size;
}

/* Whether it is there, as it should be. */
static bool
is_there(int folder, const char *program, size_t size)
{
	struct stat info;
	int file;
	bool equal;

	if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(info.st_mode) ||
	    info.st_uid != geteuid() || info.st_size != (off_t) size)
		return false;
	if (info.st_dev == compared_device && info.st_ino == compared_inode)
		return true;
	file = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	equal = file >= 0 && is_equal(file, program, size);
	if (file >= 0)
		close(file);
	if (equal)
	{
		compared_device = info.st_dev;
		compared_inode = info.st_ino;
	}
	return equal;
}

static bool
put_there(int folder, const char *program, size_t size)
{
	char temporary[sizeof name + 32];
	size_t done = 0;
	bool complete;
	int file;

	snprintf(temporary, sizeof temporary, "%s.%d", name, (int) getpid());
	unlinkat(folder, temporary, 0);
	file = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0500);
	if (file < 0)
		return false;
	while (done < size)
	{
		ssize_t count = write(file, program + done, size - done);

		if (count <= 0)
			break;
		done += (size_t) count;
	}
	complete = done == size && fchmod(file, 0555) == 0;
	complete = close(file) == 0 && complete && renameat(folder, temporary, folder, name) == 0;
	if (!complete)
		unlinkat(folder, temporary, 0);
	return complete;
}

char *
sandbox_program_path(const SandboxPlace *place, int fd)
{
	struct statvfs info;
	size_t size;
	const char *program = sandbox_program(&size);
	char *path = NULL;
	int folder;

	if (program == NULL || fstatvfs(fd, &info) < 0 || (info.f_flag & ST_NOEXEC) != 0)
		return NULL;
	folder = sandbox_folder_open_own(fd, FOLDER);
	if (folder < 0)
		return NULL;
	pthread_mutex_lock(&lock);
	find_name(program, size);
	if (is_there(folder, program, size) || put_there(folder, program, size))
		path = xformat("%s/" FOLDER "/%s", place->directory, name);
	pthread_mutex_unlock(&lock);
	close(folder);
	return path;
}
