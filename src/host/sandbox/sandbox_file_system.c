/*
 * sandbox_file_system.c
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
 * Sandboxes run as the server's user, so what this user may read, they may.  So what
 * belongs to the server and lies below the machine's /usr is hidden: the data directory
 * with its tablespaces, and what the settings name (the master key, the folders of
 * plugins and sandboxes).  A directory gets an empty one over it, a file /dev/null, which
 * can't be opened there.  Of a file that is still to be made its directory is hidden.  An
 * image in which such a thing lies is not used.
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

#include "sandbox/sandbox_lease_folder.h"
#include "sandbox/sandbox_program.h"
#include "sandbox/sandbox_file_system.h"
#include "shared/sandbox_spec.h"

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
sandbox_file_system_add_entry(Bytes *arguments, int directory, const char *path, const char *name)
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
			sandbox_file_system_add_entry(arguments, dirfd(directory), path, entry->d_name);
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
		sandbox_file_system_add_entry(arguments, root, "", top[i]);
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

static bool
is_below(const char *path, const char *directory)
{
	size_t length = strlen(directory);

	return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* Whether a sandbox without an image sees what is at this (real) path. */
static bool
is_seen(const char *path)
{
	static const char *const bound[] = {"/usr",   "/bin",   "/sbin",   "/lib",
	                                    "/lib32", "/lib64", "/libx32", "/etc/alternatives"};

	for (size_t i = 0; i < sizeof bound / sizeof bound[0]; i++)
		if (is_below(path, bound[i]))
			return true;
	return false;
}

/*
 * The real path of what is there, or of the directory in which the server may still make
 * it; NULL: neither is.
 */
static char *
real_path(const char *path, bool *exists)
{
	char *real = realpath(path, NULL);
	char *parent;
	char *slash;

	*exists = real != NULL;
	if (real != NULL)
		return real;
	parent = xstrdup(path);
	slash = strrchr(parent, '/');
	if (slash != NULL && slash != parent)
	{
		*slash = '\0';
		real = access(parent, W_OK) == 0 ? realpath(parent, NULL) : NULL;
	}
	free(parent);
	return real;
}

/* Programs need what else is there. */
static bool
is_needed(const char *path)
{
	const char *below = is_below(path, "/usr") ? path + strlen("/usr") : path;

	return *below == '\0' || strchr(below + 1, '/') == NULL;
}

static HostError *
hide(Bytes *arguments, const char *path)
{
	HostError *error = NULL;
	struct stat info;
	bool exists;
	char *real = path ? real_path(path, &exists) : NULL;

	if (real != NULL && is_seen(real) && stat(real, &info) == 0)
	{
		if (!exists && is_needed(real))
		{
			error = error_new("55000", "what the server's settings name can't be hidden from "
			                           "sandboxes");
			error_hint(error, "A file that such a setting (envrt.master_key_file, say) names is "
			                  "missing, and its directory is one that programs need. Make the "
			                  "file, or have it elsewhere.");
		}
		else if (S_ISDIR(info.st_mode))
			add(arguments, "--size", "4096", "--tmpfs", real, "--remount-ro", real);
		else
			add(arguments, "--ro-bind", "/dev/null", real);
	}
	free(real);
	return error;
}

/* A data directory, its WAL and its tablespaces. */
static HostError *
hide_database(Bytes *arguments, const char *data_directory)
{
	char *path = xformat("%s/pg_tblspc", data_directory);
	DIR *directory = opendir(path);
	const struct dirent *entry;
	HostError *error = NULL;

	while (directory != NULL && error == NULL && (entry = readdir(directory)) != NULL)
	{
		char *tablespace = xformat("%s/%s", path, entry->d_name);

		if (entry->d_name[0] != '.')
			error = hide(arguments, tablespace);
		free(tablespace);
	}
	if (directory != NULL)
		closedir(directory);
	free(path);
	path = xformat("%s/pg_wal", data_directory);
	if (error == NULL)
		error = hide(arguments, path);
	free(path);
	return error != NULL ? error : hide(arguments, data_directory);
}

static HostError *
hide_all(const SandboxPlace *place, Bytes *arguments)
{
	HostError *error = hide(arguments, place->directory);
	size_t index;
	json_t *path;

	if (error == NULL && place->data_directory != NULL)
		error = hide_database(arguments, place->data_directory);
	json_array_foreach(place->hidden, index, path) if (error == NULL) error =
	    hide(arguments, json_string_value(path));
	return error;
}

/* An image's own files are all that is seen of it: nothing in it is hidden. */
static HostError *
check_image(const SandboxPlace *place, const char *path, const char *image)
{
	char *root = realpath(path, NULL);
	HostError *error = NULL;
	size_t index;
	json_t *hidden;

	json_array_foreach(place->hidden, index, hidden)
	{
		bool exists;
		char *real = real_path(json_string_value(hidden), &exists);

		if (error == NULL && root != NULL && real != NULL && is_below(real, root))
		{
			error = error_new("55000", "the image \"%s\" holds what is the server's", image);
			error_hint(error, "A setting of the server names a file or a folder in it: move that "
			                  "elsewhere.");
		}
		free(real);
	}
	free(root);
	return error;
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
			error = check_image(place, path, image);
		if (error == NULL)
			error = add_image(arguments, path, image);
		free(path);
	}
	else
	{
		add_machine(arguments);
		error = hide_all(place, arguments);
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
