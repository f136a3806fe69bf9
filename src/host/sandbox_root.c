/*
 * sandbox_root.c
 *		The file system that a sandbox sees, as bwrap's arguments.
 *
 * / is a small file system in memory, read-only when all is in place, with:
 *
 *   - what is at the top of the image, or the machine's own /usr with what
 *     belongs to it, each bound read-only (so the image need not have the
 *     directories that are ours)
 *   - /proc of the sandbox's own; /dev with the harmless ones, read-only
 *   - /tmp and /dev/shm in memory, of limited size
 *   - /workspace, the lease's folder
 *
 * bwrap mounts all of it nosuid and, but for /dev, nodev.
 *
 * Sandboxes run as the server's user, so what this user may read, they may:
 * should the data directory, its tablespaces, or the sandbox directory itself
 * lie below the machine's /usr, they are hidden.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sandbox_folder.h"
#include "sandbox_program.h"
#include "sandbox_root.h"
#include "sandbox_spec.h"

static void
add_list(Bytes *arguments, const char *const *list)
{
	for (; *list != NULL; list++)
		bytes_append(arguments, *list, strlen(*list) + 1);
}

#define add(arguments, ...) add_list(arguments, (const char *const[]){__VA_ARGS__, NULL})

/*
 * What is at the top
 */

/* One entry of `directory`, as /name. */
static void
add_entry(Bytes *arguments, int directory, const char *path, const char *name)
{
	char target[PATH_MAX];
	struct stat info;
	char *source;
	char *place;

	if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) < 0)
		return;
	source = xformat("%s/%s", path, name);
	place = xformat("/%s", name);
	if (S_ISLNK(info.st_mode))
	{
		ssize_t length = readlinkat(directory, name, target, sizeof target - 1);

		if (length > 0)
		{
			target[length] = '\0';
			add(arguments, "--symlink", target, place);
		}
	}
	else if (S_ISDIR(info.st_mode) || S_ISREG(info.st_mode))
		add(arguments, "--ro-bind", source, place);
	free(source);
	free(place);
}

static HostError *
add_image(Bytes *arguments, const char *path, const char *image)
{
	/* Ours, and what is usually not readable. */
	static const char *const skipped[] = {".", "..", "dev", "proc", "tmp", "lost+found"};
	DIR *directory = opendir(path);
	const struct dirent *entry;

	if (directory == NULL)
		return error_new("55000", "could not read the image \"%s\": %s", image, strerror(errno));
	while ((entry = readdir(directory)) != NULL)
	{
		bool skip = strcmp(entry->d_name, &SANDBOX_WORKSPACE[1]) == 0 ||
		            strcmp(entry->d_name, &SANDBOX_INIT_PATH[1]) == 0;

		for (size_t i = 0; i < sizeof skipped / sizeof skipped[0]; i++)
			skip = skip || strcmp(entry->d_name, skipped[i]) == 0;
		if (!skip)
			add_entry(arguments, dirfd(directory), path, entry->d_name);
	}
	closedir(directory);
	return NULL;
}

static void
add_machine(Bytes *arguments)
{
	static const char *const top[] = {"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"};
	/* What programs of /usr don't run without; nothing of it is a secret. */
	static const char *const etc[] = {"/etc/alternatives", "/etc/ld.so.cache"};
	char passwd[8];
	char group[8];
	char hosts[8];
	int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	for (size_t i = 0; i < sizeof top / sizeof top[0]; i++)
		add_entry(arguments, root, "", top[i]);
	if (root >= 0)
		close(root);
	add(arguments, "--perms", "0755", "--dir", "/etc");
	for (size_t i = 0; i < sizeof etc / sizeof etc[0]; i++)
		add(arguments, "--ro-bind-try", etc[i], etc[i]);
	snprintf(passwd, sizeof passwd, "%d", SANDBOX_FD_PASSWD);
	snprintf(group, sizeof group, "%d", SANDBOX_FD_GROUP);
	snprintf(hosts, sizeof hosts, "%d", SANDBOX_FD_HOSTS);
	add(arguments, "--perms", "0644", "--file", passwd, "/etc/passwd");
	add(arguments, "--perms", "0644", "--file", group, "/etc/group");
	add(arguments, "--perms", "0644", "--file", hosts, "/etc/hosts");
}

/*
 * What must not be seen
 */

static void
hide(Bytes *arguments, const char *path)
{
	static const char *const bound[] = {"/usr/",   "/bin/",   "/sbin/",   "/lib/",
	                                    "/lib32/", "/lib64/", "/libx32/", "/etc/alternatives/"};
	char *real = path ? realpath(path, NULL) : NULL;
	struct stat info;

	for (size_t i = 0; real != NULL && i < sizeof bound / sizeof bound[0]; i++)
		if (strncmp(real, bound[i], strlen(bound[i])) == 0 && stat(real, &info) == 0 &&
		    S_ISDIR(info.st_mode))
			add(arguments, "--size", "4096", "--tmpfs", real, "--remount-ro", real);
	free(real);
}

/* A data directory, its WAL and its tablespaces. */
static void
hide_database(Bytes *arguments, const char *data_directory)
{
	char *path = xformat("%s/pg_tblspc", data_directory);
	DIR *directory = opendir(path);
	const struct dirent *entry;

	while (directory != NULL && (entry = readdir(directory)) != NULL)
	{
		char *tablespace = xformat("%s/%s", path, entry->d_name);

		if (entry->d_name[0] != '.')
			hide(arguments, tablespace);
		free(tablespace);
	}
	if (directory != NULL)
		closedir(directory);
	free(path);
	path = xformat("%s/pg_wal", data_directory);
	hide(arguments, path);
	free(path);
	hide(arguments, data_directory);
}

static void
add_memory(Bytes *arguments, const char *path, uint64_t size)
{
	char text[24];

	snprintf(text, sizeof text, "%llu", (unsigned long long) size);
	add(arguments, "--perms", "1777", "--size", text, "--tmpfs", path);
}

/* Bound from the sandbox directory, or copied, which takes longer. */
static void
add_program(Bytes *arguments, const SandboxPlace *place, int fd)
{
	char *path = sandbox_program_path(place, fd);
	char number[8];

	snprintf(number, sizeof number, "%d", SANDBOX_FD_INIT);
	if (path != NULL)
		add(arguments, "--ro-bind", path, SANDBOX_INIT_PATH);
	else
		add(arguments, "--perms", "0555", "--file", number, SANDBOX_INIT_PATH);
	free(path);
}

HostError *
sandbox_root_arguments(const SandboxPlace *place, int fd, const char *image, const char *lease,
                       const SandboxSizes *sizes, Bytes *arguments)
{
	HostError *error = NULL;

	if (image != NULL)
	{
		char *path = xformat("%s/images/%s", place->directory, image);

		error = sandbox_folder_check_image(fd, image);
		if (error == NULL)
			error = add_image(arguments, path, image);
		free(path);
	}
	else
	{
		add_machine(arguments);
		hide(arguments, place->directory);
		if (place->data_directory != NULL)
			hide_database(arguments, place->data_directory);
	}
	if (error != NULL)
		return error;
	add(arguments, "--proc", "/proc", "--dev", "/dev");
	add_memory(arguments, "/dev/shm", sizes->shm);
	add_memory(arguments, "/tmp", sizes->tmp);
	if (lease != NULL)
	{
		char *path = xformat("%s/leases/%s/workspace", place->directory, lease);

		add(arguments, "--bind", path, SANDBOX_WORKSPACE);
		free(path);
	}
	else
		add_memory(arguments, SANDBOX_WORKSPACE, sizes->tmp);
	add_program(arguments, place, fd);
	add(arguments, "--remount-ro", "/dev", "--remount-ro", "/");
	return NULL;
}
