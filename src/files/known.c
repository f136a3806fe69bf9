/*
 * known.c
 *		What the other end has already.
 *
 * The target's end lists its regular files, the source's end reads that and does not send
 * what is equal: a file of the same size, permissions and time of last change (in seconds,
 * as archives have it).  A change within that second, after the file was sent, could look
 * equal, so what was made at the target so soon after its time of change is sent again.  Of git's
 * objects it is the name that counts.
 *
 * A record is "f SIZE MODIFIED MODE CHANGED PATH" and a NUL; a NUL alone is the end.  Of a list
 * that is too long, as much counts as there is room for; one without an end, or one that goes on
 * and on, is none: what is not known is sent.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "known.h"
#include "report.h"

#define MAX_RECORD 8192
#define MAX_BYTES ((size_t) 96 * 1024 * 1024)
#define MAX_FILES 500000
#define MAX_READ ((size_t) 256 * 1024 * 1024)
#define SAME_TIME 2

typedef struct Known
{
	struct Known *next;
	long long size;
	long long modified;
	unsigned mode;
	char path[];
} Known;

static Known **buckets;
static size_t bucket_count;
static bool complete;

/*
 * Whether a file's name says what is in it: git's objects and packs.  git sets their times anew
 * when it would have written them again.
 */
static bool
is_git_object(const char *path)
{
	static const char hex[] = "0123456789abcdef";
	const char *git = strstr(path, "/.git/");
	const char *objects = git != NULL ? strstr(git + 1, "/objects/") : NULL;

	if (objects == NULL)
		return false;
	objects += strlen("/objects/");
	if (strncmp(objects, "pack/pack-", strlen("pack/pack-")) == 0)
		return true;
	return strspn(objects, hex) == 2 && objects[2] == '/' && strlen(objects + 3) >= 38 &&
	       objects[3 + strspn(objects + 3, hex)] == '\0';
}

static size_t
bucket_of(const char *path)
{
	size_t hash = 5381;

	while (*path != '\0')
		hash = hash * 33 + (unsigned char) *path++;
	return hash % bucket_count;
}

/* False when there is no room for more. */
static bool
remember(const char *record)
{
	static size_t bytes;
	static size_t count;
	long long size;
	long long modified;
	long long changed;
	unsigned mode;
	int path = 0;
	Known *known;
	size_t length;
	size_t bucket;

	/* Times may have fractions, which say no more here. */
	if (sscanf(record, "f %lld %lld%*[.0-9] %o %lld%*[.0-9] %n", &size, &modified, &mode, &changed,
	           &path) < 4 ||
	    path == 0 || (changed <= modified + SAME_TIME && !is_git_object(record + path)))
		return true;
	length = strlen(record + path);
	bytes += sizeof *known + length + 1;
	if (bytes > MAX_BYTES || ++count > MAX_FILES)
		return false;
	known = malloc(sizeof *known + length + 1);
	if (known == NULL)
		return false;
	known->size = size;
	known->modified = modified;
	known->mode = mode;
	memcpy(known->path, record + path, length + 1);
	bucket = bucket_of(known->path);
	known->next = buckets[bucket];
	buckets[bucket] = known;
	return true;
}

void
known_refuse(void)
{
	close(STDIN_FILENO);
}

void
known_read(void)
{
	static char buffer[65536];
	static char record[MAX_RECORD];
	size_t total = 0;
	size_t length = 0;
	bool room = true;
	ssize_t count;

	bucket_count = 65536;
	buckets = calloc(bucket_count, sizeof *buckets);
	if (buckets == NULL)
	{
		known_refuse();
		return;
	}
	while ((count = read(STDIN_FILENO, buffer, sizeof buffer)) != 0)
	{
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return;
		total += (size_t) count;
		if (total > MAX_READ)
		{
			known_refuse();
			return;
		}
		for (ssize_t i = 0; i < count; i++)
		{
			if (buffer[i] != '\0')
			{
				if (length < sizeof record - 1)
					record[length] = buffer[i];
				length++;
				continue;
			}
			if (length == 0)
			{
				complete = true;
				return;
			}
			if (length < sizeof record && room)
			{
				record[length] = '\0';
				room = remember(record);
			}
			length = 0;
		}
	}
}

bool
known_is_equal(const char *path, const struct stat *info)
{
	if (!complete)
		return false;
	for (const Known *known = buckets[bucket_of(path)]; known != NULL; known = known->next)
		if (strcmp(known->path, path) == 0)
			return known->size == (long long) info->st_size &&
			       (is_git_object(path) || (known->modified == (long long) info->st_mtim.tv_sec &&
			                                known->mode == (info->st_mode & 07777)));
	return false;
}

void
known_write(const char *path, const struct stat *info)
{
	if (printf("f %lld %lld.0 %o %lld.0 %s", (long long) info->st_size,
	           (long long) info->st_mtim.tv_sec, info->st_mode & 07777U,
	           (long long) info->st_ctim.tv_sec, path) < 0 ||
	    putchar('\0') == EOF)
		fail_second("the other end takes no list");
}

void
known_write_end(void)
{
	if (putchar('\0') == EOF || fflush(stdout) == EOF)
		fail_second("the other end takes no list");
}
