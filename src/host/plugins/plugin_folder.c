/*
 * plugin_folder.c
 *		A folder below the plugin path, and what it holds.
 *
 * A plugin is a folder with a manifest.json, or, as the SDK's tools make them,
 * with a package.json whose member paperclipPlugin names a manifest, most
 * often a compiled JavaScript module, and a worker.  The first of the two that
 * is there counts.  Folders with neither are none of our business.
 *
 * Whatever is named there is run, so it must be what the administrator put
 * below the directory of the plugin path: the names must not lead out of the
 * folder, and where symbolic links lead is looked at as well.  Refused is what
 * everybody can write, or what belongs to somebody other than root and the
 * user that we run as: of the files, and of the directories from that of the
 * plugin path down to them.  Of the worker that is looked at again at each
 * start.  Who may write by way of a group, or of a directory above, is the
 * administrator's affair.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugins/plugin_folder.h"

#define MANIFEST_NAME "manifest.json"
#define PACKAGE_NAME "package.json"
#define PACKAGE_MEMBER "paperclipPlugin"

static char *
stamp_of(const struct stat *about)
{
	return xformat("%llu:%llu:%lld:%lld.%09ld", (unsigned long long) about->st_dev,
	               (unsigned long long) about->st_ino, (long long) about->st_size,
	               (long long) about->st_mtim.tv_sec, about->st_mtim.tv_nsec);
}

static void
add_stamp(char **stamps, const struct stat *about)
{
	char *one = stamp_of(about);
	char *all = xformat("%s %s", *stamps ? *stamps : "", one);

	free(one);
	free(*stamps);
	*stamps = all;
}

/* All below return what is wrong, to be freed, or NULL. */

/* Only root and we may change what is run. */
static char *
check_owner(const char *path, const struct stat *about)
{
	if (about->st_mode & S_IWOTH)
		return xformat("%s can be written by everybody", path);
	if (about->st_uid != 0 && about->st_uid != geteuid())
		return xformat("%s belongs to user %lu, who is neither root nor the server's", path,
		               (unsigned long) about->st_uid);
	return NULL;
}

/* The directories of a path without symbolic links, from the one that is `length` long. */
static char *
check_directories(const char *path, size_t length)
{
	char *copy = xstrdup(path);
	char *problem = NULL;
	struct stat about;

	for (size_t i = length; copy[i] != '\0' && problem == NULL; i++)
	{
		if (copy[i] != '/' || i == 0)
			continue;
		copy[i] = '\0';
		problem = stat(copy, &about) < 0 ? xformat("%s: %s", copy, strerror(errno))
		                                 : check_owner(copy, &about);
		copy[i] = '/';
	}
	free(copy);
	return problem;
}

/*
 * Where a path leads, which must be a file below root (itself without symbolic
 * links).  What is in it is judged by stat.
 */
static char *
resolve(const char *root, const char *path, char **resolved, struct stat *about)
{
	char *real_root = realpath(root, NULL);
	char *real = real_root ? realpath(path, NULL) : NULL;
	size_t length = real_root ? strlen(real_root) : 0;
	char *problem = NULL;

	if (real == NULL || real_root == NULL || stat(real, about) < 0)
		problem = xformat("%s: %s", path, strerror(errno));
	else if (strncmp(real, real_root, length) != 0 || (length > 1 && real[length] != '/'))
		problem = xformat("%s leads to %s, out of %s", path, real, real_root);
	else if (!S_ISREG(about->st_mode))
		problem = xformat("%s is no file", path);
	else
		problem = check_owner(path, about);
	if (problem == NULL)
		problem = check_directories(real, length);
	free(real_root);
	if (problem == NULL)
		*resolved = real;
	else
		free(real);
	return problem;
}

static char *
read_file(const char *path, Bytes *text)
{
	/* Nothing that a folder can hold may block the host. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat about;
	char buffer[16384];
	ssize_t count = 0;
	char *problem = NULL;

	if (fd < 0)
		return xformat("%s", strerror(errno));
	if (fstat(fd, &about) < 0 || !S_ISREG(about.st_mode))
		problem = xformat("it is no file");
	while (problem == NULL && text->length <= PLUGIN_MANIFEST_MAX &&
	       (count = read(fd, buffer, sizeof buffer)) > 0)
		bytes_append(text, buffer, (size_t) count);
	if (problem == NULL && count < 0)
		problem = xformat("%s", strerror(errno));
	if (problem == NULL && text->length > PLUGIN_MANIFEST_MAX)
		problem = xformat("it has more than %d bytes", PLUGIN_MANIFEST_MAX);
	close(fd);
	return problem;
}

/* A file of the folder: its text, and its stamp among the folder's. */
static char *
read_member(PluginFolder *folder, const char *path, Bytes *text)
{
	struct stat about;
	char *resolved = NULL;
	char *problem = resolve(folder->root, path, &resolved, &about);

	if (problem != NULL)
		return problem;
	add_stamp(&folder->stamp, &about);
	problem = read_file(resolved, text);
	free(resolved);
	return problem;
}

/* Whether there is anything by that name. */
static bool
exists(const char *path)
{
	struct stat about;

	return lstat(path, &about) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

static char *
take_manifest_of_package(PluginFolder *folder, const char *name)
{
	char *path;
	char *problem;
	struct stat about;

	if (!plugin_path_stays_inside(name))
		return xformat(PACKAGE_MEMBER ".manifest must be a path within the folder");
	path = xformat("%s/%s", folder->path, name);
	if (plugin_path_is_for_node(name))
	{
		problem = resolve(folder->root, path, &folder->script, &about);
		if (problem == NULL)
		{
			add_stamp(&folder->stamp, &about);
			folder->kind = FOLDER_PROGRAM;
		}
	}
	else
	{
		problem = read_member(folder, path, &folder->text);
		folder->kind = FOLDER_TEXT;
	}
	free(path);
	return problem;
}

static char *
take_package(PluginFolder *folder, const char *path)
{
	Bytes text = {0};
	char *problem = read_member(folder, path, &text);
	json_t *package = NULL;
	const json_t *member;
	const char *manifest;
	const char *worker;

	if (problem == NULL)
	{
		package = json_loadb(text.data ? text.data : "", text.length, 0, NULL);
		if (package == NULL)
			problem = xformat(PACKAGE_NAME " is no JSON");
	}
	bytes_free(&text);
	member = json_object_get(package, PACKAGE_MEMBER);
	manifest = json_string_value(json_object_get(member, "manifest"));
	worker = json_string_value(json_object_get(member, "worker"));
	/* Without the member it is a package of another kind. */
	if (problem == NULL && member != NULL)
	{
		if (worker != NULL)
			folder->worker = xstrdup(worker);
		if (manifest == NULL)
			problem = xformat(PACKAGE_MEMBER ".manifest is missing or no text");
		else
			problem = take_manifest_of_package(folder, manifest);
	}
	json_decref(package);
	return problem;
}

static char *
check_folder(const PluginFolder *folder)
{
	struct stat about;

	if (stat(folder->path, &about) < 0)
		return xformat("%s", strerror(errno));
	return check_owner("it", &about);
}

PluginFolder *
plugin_folder_look(const char *root, const char *path)
{
	PluginFolder *folder = xcalloc(1, sizeof *folder);
	char *manifest = xformat("%s/%s", path, MANIFEST_NAME);
	char *package = xformat("%s/%s", path, PACKAGE_NAME);

	folder->root = xstrdup(root);
	folder->path = xstrdup(path);
	folder->kind = FOLDER_EMPTY;
	if (exists(manifest))
	{
		folder->problem = read_member(folder, manifest, &folder->text);
		folder->kind = FOLDER_TEXT;
	}
	else if (exists(package))
		folder->problem = take_package(folder, package);
	if (folder->problem == NULL && folder->kind != FOLDER_EMPTY)
		folder->problem = check_folder(folder);
	if (folder->problem != NULL)
		folder->kind = FOLDER_BAD;
	free(manifest);
	free(package);
	return folder;
}

void
plugin_folder_free(PluginFolder *folder)
{
	free(folder->root);
	free(folder->path);
	free(folder->problem);
	bytes_free(&folder->text);
	free(folder->script);
	free(folder->worker);
	free(folder->stamp);
	free(folder);
}

/* The worker's file must be there, so that a wrong name shows at once. */
static char *
find_worker(const PluginFolder *folder, PluginManifest *manifest)
{
	char *resolved = NULL;
	char *problem;
	struct stat about;

	if (folder->worker != NULL && access(manifest->worker, F_OK) != 0 &&
	    plugin_path_stays_inside(folder->worker))
	{
		free(manifest->worker);
		manifest->worker = xformat("%s/%s", folder->path, folder->worker);
		manifest->node = plugin_path_is_for_node(manifest->worker);
	}
	problem = resolve(folder->root, manifest->worker, &resolved, &about);
	if (problem != NULL)
	{
		char *text = xformat("its worker %s", problem);

		free(problem);
		return text;
	}
	if (access(resolved, manifest->node ? R_OK : X_OK) < 0)
		problem = xformat("its worker %s is not %s", manifest->worker,
		                  manifest->node ? "readable" : "executable");
	free(manifest->worker);
	manifest->worker = resolved;
	manifest->stamp = stamp_of(&about);
	return problem;
}

PluginManifest *
plugin_folder_manifest(const PluginFolder *folder, const char *text, size_t length, char **problem,
                       char **id)
{
	PluginManifest *manifest = plugin_manifest_parse(folder->path, text, length, problem, id);

	if (manifest == NULL)
		return NULL;
	*problem = find_worker(folder, manifest);
	if (*problem == NULL)
		return manifest;
	*id = xstrdup(manifest->id);
	plugin_manifest_free(manifest);
	return NULL;
}

char *
plugin_folder_check_worker(const PluginManifest *manifest)
{
	const char *name = strrchr(manifest->folder, '/');
	char *root = xstrndup(manifest->folder,
	                      name > manifest->folder ? (size_t) (name - manifest->folder) : 1);
	char *real = realpath(manifest->worker, NULL);
	char *resolved = NULL;
	char *problem = NULL;
	char *text = NULL;
	struct stat about;

	if (real == NULL || strcmp(real, manifest->worker) != 0)
		text = xformat("could not be started: %s is not there any more", manifest->worker);
	else if ((problem = resolve(root, manifest->worker, &resolved, &about)) != NULL)
		text = xformat("could not be started: %s", problem);
	free(root);
	free(real);
	free(resolved);
	free(problem);
	return text;
}
