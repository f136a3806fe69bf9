/*
 * sandbox_usage.c
 *		How full workspaces are.
 *
 * A workspace is a folder among others of one file system, and no ordinary user can set a
 * quota.  So it is measured: by walking through it, when it was not measured yet, or not for a
 * while, or when the file system has lost so much room since then that the
 * limit may have been reached, whoever it was.  The sandbox's first process does the
 * same while a command runs (src/sandbox); this is for the time before one.
 *
 * The table of measures is of the threads that prepare commands, hence locked.
 */
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <uv.h>

#include "memory.h"
#include "sandbox_folder.h"
#include "sandbox_usage.h"

/* What a file costs that has nothing in it. */
#define INODE_BYTES 4096

#define MEASURE_AGAIN_NS ((uint64_t) 60 * 1000000000)
#define MAX_MEASURES 10000

typedef struct Measure
{
	struct Measure *next;
	char lease[SANDBOX_ID_LENGTH + 1];
	uint64_t used;
	uint64_t room; /* what the file system had left then */
	uint64_t when;
} Measure;

static uv_once_t once = UV_ONCE_INIT;
static uv_mutex_t lock;
static Measure *first_measure;
static size_t measure_count;

static void
make_lock(void)
{
	uv_mutex_init(&lock);
}

/* The list is locked, and in the order of use. */
static Measure *
take_out(const char *lease)
{
	for (Measure **link = &first_measure; *link != NULL; link = &(*link)->next)
	{
		Measure *measure = *link;

		if (strcmp(measure->lease, lease) != 0)
			continue;
		*link = measure->next;
		measure_count--;
		return measure;
	}
	return NULL;
}

static void
put_in(Measure *measure)
{
	Measure **link = &first_measure;

	measure->next = first_measure;
	first_measure = measure;
	if (++measure_count <= MAX_MEASURES)
		return;
	while ((*link)->next != NULL)
		link = &(*link)->next;
	free(*link);
	*link = NULL;
	measure_count--;
}

static uint64_t
room_left(int fd)
{
	struct statvfs info;

	if (fstatvfs(fd, &info) < 0)
		return 0;
	return (uint64_t) info.f_bfree * info.f_frsize + (uint64_t) info.f_ffree * INODE_BYTES;
}

static uint64_t
walk(char *path)
{
	char *const roots[] = {path, NULL};
	/* A thread has no working directory of its own. */
	FTS *files = fts_open(roots, FTS_PHYSICAL | FTS_XDEV | FTS_NOCHDIR, NULL);
	const FTSENT *entry;
	uint64_t sum = 0;

	while (files != NULL && (entry = fts_read(files)) != NULL)
	{
		const struct stat *info = entry->fts_statp;

		if (entry->fts_info == FTS_DP || entry->fts_info == FTS_NS || entry->fts_info == FTS_ERR ||
		    entry->fts_info == FTS_DNR)
			continue;
		sum += ((uint64_t) info->st_blocks * 512 + INODE_BYTES) /
		       (S_ISDIR(info->st_mode) || info->st_nlink == 0 ? 1 : info->st_nlink);
	}
	if (files != NULL)
		fts_close(files);
	return sum;
}

bool
sandbox_usage_is_full(int fd, const char *lease, uint64_t limit)
{
	uint64_t now = uv_hrtime();
	uint64_t room = room_left(fd);
	Measure *measure;
	bool full;

	uv_once(&once, make_lock);
	uv_mutex_lock(&lock);
	measure = take_out(lease);
	uv_mutex_unlock(&lock);
	if (measure == NULL || now - measure->when > MEASURE_AGAIN_NS ||
	    measure->used + (room < measure->room ? measure->room - room : 0) > limit)
	{
		char *path = xformat("/proc/self/fd/%d/leases/%s/workspace", fd, lease);

		if (measure == NULL)
			measure = xcalloc(1, sizeof *measure);
		snprintf(measure->lease, sizeof measure->lease, "%s", lease);
		measure->used = walk(path);
		measure->room = room;
		measure->when = now;
		free(path);
	}
	full = measure->used > limit;
	uv_mutex_lock(&lock);
	free(take_out(lease));
	put_in(measure);
	uv_mutex_unlock(&lock);
	return full;
}

void
sandbox_usage_forget(const char *lease)
{
	uv_once(&once, make_lock);
	uv_mutex_lock(&lock);
	free(take_out(lease));
	uv_mutex_unlock(&lock);
}

void
sandbox_usage_clear(void)
{
	Measure *next;

	for (Measure *measure = first_measure; measure != NULL; measure = next)
	{
		next = measure->next;
		free(measure);
	}
	first_measure = NULL;
	measure_count = 0;
}
