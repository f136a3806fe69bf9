/*
 * sandbox_directory.c
 *		Where sandboxes have their folders, and whether they may be there.
 *
 * The administrator names a directory, and by that allows sandboxes at all:
 *
 *   images/NAME            root file systems, made by the administrator
 *   leases/ID/workspace    what a lease keeps between its commands
 *   trash/                 what is being removed
 *   init/                  the first process of sandboxes (sandbox_program.c)
 *
 * Each use looks at it anew, in a thread of its own, since a file system can
 * hang.  It must be ours or root's and nobody else's to write, and not on the
 * data directory's file system, which a sandbox could fill, unless that is
 * accepted in so many words.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "sandbox/sandbox_directory.h"

static SandboxPlace settings;

static char *
copy_path(const json_t *value)
{
	const char *path = json_string_value(value);

	return path != NULL && path[0] == '/' ? xstrdup(path) : NULL;
}

/* Without the key nothing changes; null, or what is no path, turns sandboxes off. */
void
sandbox_place_configure(const json_t *params)
{
	const json_t *directory = json_object_get(params, "sandboxDirectory");
	const json_t *data_directory = json_object_get(params, "dataDirectory");
	json_t *hidden = json_object_get(params, "hiddenPaths");
	const json_t *any = json_object_get(params, "sandboxOnDataFileSystem");

	if (directory != NULL)
	{
		free(settings.directory);
		settings.directory = copy_path(directory);
	}
	if (data_directory != NULL)
	{
		free(settings.data_directory);
		settings.data_directory = copy_path(data_directory);
	}
	if (hidden != NULL)
	{
		json_decref(settings.hidden);
		settings.hidden = json_incref(hidden);
	}
	if (any != NULL)
		settings.any_file_system = json_is_true(any);
}

void
sandbox_place_set_directory(const char *directory)
{
	free(settings.directory);
	settings.directory = xstrdup(directory);
}

void
sandbox_place_clear(void)
{
	free(settings.directory);
	free(settings.data_directory);
	json_decref(settings.hidden);
	settings = (SandboxPlace){0};
}

SandboxPlace *
sandbox_place_now(void)
{
	SandboxPlace *place = xcalloc(1, sizeof *place);

	place->directory = settings.directory ? xstrdup(settings.directory) : NULL;
	place->data_directory = settings.data_directory ? xstrdup(settings.data_directory) : NULL;
	/* Nobody changes it: the next settings are another list. */
	place->hidden = json_incref(settings.hidden);
	place->any_file_system = settings.any_file_system;
	return place;
}

void
sandbox_place_free(SandboxPlace *place)
{
	if (place == NULL)
		return;
	free(place->directory);
	free(place->data_directory);
	json_decref(place->hidden);
	free(place);
}

static HostError *__attribute__((format(printf, 1, 2))) off(const char *detail, ...)
{
	HostError *error = error_new("55000", "sandboxes are off");
	va_list arguments;
	char *text = NULL;

	va_start(arguments, detail);
	if (vasprintf(&text, detail, arguments) >= 0)
		error_detail(error, "%s", text);
	va_end(arguments);
	free(text);
	error_hint(error, "Set envrt.sandbox_directory to an absolute path on another file system than "
	                  "the data directory's.");
	return error;
}

/* The number of processes can be limited for a sandbox by itself from Linux 5.14 on. */
static bool
is_old_kernel(void)
{
	struct utsname name;
	int major;
	int minor;

	return uname(&name) < 0 || sscanf(name.release, "%d.%d", &major, &minor) != 2 || major < 5 ||
	       (major == 5 && minor < 14);
}

static HostError *
judge(const SandboxPlace *place, int fd)
{
	struct stat ours;
	struct stat data;

	if (fd < 0)
	{
		HostError *error = off("could not open \"%s\": %s", place->directory, strerror(errno));

		error_hint(error, "Make the directory that envrt.sandbox_directory names, as the server's "
		                  "user, or set it to another one.");
		return error;
	}
	if (fstat(fd, &ours) < 0)
		return off("could not look at \"%s\": %s", place->directory, strerror(errno));
	if (ours.st_uid != geteuid() && ours.st_uid != 0)
		return off("\"%s\" belongs to another user.", place->directory);
	if ((ours.st_mode & (S_IWGRP | S_IWOTH)) != 0)
		return off("Others can write to \"%s\".", place->directory);
	if (place->data_directory != NULL && !place->any_file_system)
	{
		HostError *error;

		if (stat(place->data_directory, &data) < 0)
			return off("could not look at \"%s\": %s", place->data_directory, strerror(errno));
		if (data.st_dev != ours.st_dev)
			return NULL;
		error = off("\"%s\" is on the data directory's file system, which what a sandbox "
		            "writes could fill.",
		            place->directory);
		error_hint(error, "Set envrt.sandbox_directory to an absolute path on another file system "
		                  "than the data directory's, or set envrt.sandbox_on_data_filesystem.");
		return error;
	}
	return NULL;
}

HostError *
sandbox_place_open(const SandboxPlace *place, int *fd)
{
	HostError *error;

	*fd = -1;
	if (place->directory == NULL)
	{
		error = error_new("55000", "sandboxes are off");
		error_hint(error, "Set envrt.sandbox_directory to an absolute path on another file system "
		                  "than the data directory's.");
		return error;
	}
	if (is_old_kernel())
		return off("The kernel is older than Linux 5.14.");
	*fd = open(place->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	error = judge(place, *fd);
	if (error != NULL && *fd >= 0)
	{
		close(*fd);
		*fd = -1;
	}
	return error;
}
