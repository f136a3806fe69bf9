/*
 * known.c
 *		What the target of a transfer has already, and so need not be sent.
 *
 * One end lists its files, the other reads that and compares.  Equal is a file of the same size,
 * permissions and time of last change (in seconds, as archives have it).  A change within that
 * second, after the file was sent, could look equal, so what was made at the target so soon after
 * its time of change is sent again.  Of git's objects it is the name that counts; its branches are
 * sent in any case (git_refs.c).
 *
 * Mostly the target's end lists, and the source's leaves out what is equal (known_read).  Where the
 * source's end can list, but not compare, the target's chooses for it (known_choose): it answers
 * "some", a line break, and the names of what it wants, each with a NUL; or "all" and a line break,
 * when it knows nothing, or there is too much to say.
 *
 * A record is "KIND SIZE MODIFIED MODE CHANGED PATH" and a NUL, where KIND is f for a regular file;
 * others are always wanted.  A NUL alone is the end.  Of a list that is too long, as much counts as
 * there is room for; one without an end, or one that goes on and on, is none: what is not known
 * is sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"
#include "git_refs.h"
#include "known.h"
#include "place.h"
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

/* What a list says about a file. */
typedef struct Record
{
	char kind;
	long long size;
	long long modified;
	long long changed;
	unsigned mode;
	const char *path;
} Record;

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

static bool
parse(const char *text, Record *record)
{
	int path = 0;

	/* Times may have fractions, which say no more here. */
	if (sscanf(text, "%c %lld %lld%*[.0-9] %o %lld%*[.0-9] %n", &record->kind, &record->size,
	           &record->modified, &record->mode, &record->changed, &path) < 5 ||
	    path == 0)
		return false;
	record->path = text + path;
	return true;
}

/* Of what the target has. */
static bool
can_be_trusted(const char *path, long long modified, long long changed)
{
	return changed > modified + SAME_TIME || is_git_object(path);
}

/* False when there is no room for more. */
static bool
remember(const Record *record)
{
	static size_t bytes;
	static size_t count;
	Known *known;
	size_t length;
	size_t bucket;

	if (record == NULL || record->kind != 'f' ||
	    !can_be_trusted(record->path, record->modified, record->changed))
		return true;
	length = strlen(record->path);
	bytes += sizeof *known + length + 1;
	if (bytes > MAX_BYTES || ++count > MAX_FILES)
		return false;
	known = malloc(sizeof *known + length + 1);
	if (known == NULL)
		return false;
	known->size = record->size;
	known->modified = record->modified;
	known->mode = record->mode;
	memcpy(known->path, record->path, length + 1);
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

/*
 * Reads a list up to its end, for as long as its records are taken; NULL is one that can't be
 * read.  False: it has no end.
 */
static bool
read_list(bool (*take)(const Record *record))
{
	static char buffer[65536];
	static char text[MAX_RECORD];
	size_t total = 0;
	size_t length = 0;
	bool room = true;
	ssize_t count;

	while ((count = read(STDIN_FILENO, buffer, sizeof buffer)) != 0)
	{
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return false;
		total += (size_t) count;
		if (total > MAX_READ)
		{
			known_refuse();
			return false;
		}
		for (ssize_t i = 0; i < count; i++)
		{
			Record record;
			bool valid;

			if (buffer[i] != '\0')
			{
				if (length < sizeof text - 1)
					text[length] = buffer[i];
				length++;
				continue;
			}
			if (length == 0)
				return true;
			text[length < sizeof text ? length : 0] = '\0';
			valid = length < sizeof text && parse(text, &record);
			room = room && take(valid ? &record : NULL);
			length = 0;
		}
	}
	return false;
}

void
known_read(void)
{
	bucket_count = 65536;
	buckets = calloc(bucket_count, sizeof *buckets);
	if (buckets == NULL)
		known_refuse();
	else
		complete = read_list(remember);
}

bool
known_is_equal(const char *path, const struct stat *info)
{
	if (!complete || git_refs_include(path))
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

/*
 * Choosing
 */

static int target;
static char *wanted;
static size_t wanted_length;
static size_t wanted_size;

/* What the target has of this name; through no link. */
static bool
look_at(const char *path, struct stat *info)
{
	int fd = place_open_below(target, path, O_PATH);
	bool found = fd >= 0 && fstat(fd, info) == 0;

	if (fd >= 0)
		close(fd);
	return found;
}

static bool
has(const Record *record)
{
	struct stat info;

	if (record->kind != 'f' || git_refs_include(record->path) || !look_at(record->path, &info) ||
	    !S_ISREG(info.st_mode) || place_is_protected(&info) ||
	    record->size != (long long) info.st_size)
		return false;
	if (is_git_object(record->path))
		return true;
	return record->modified == (long long) info.st_mtim.tv_sec &&
	       (record->mode & WORKSPACE_MODE) == (info.st_mode & 07777) &&
	       can_be_trusted(record->path, (long long) info.st_mtim.tv_sec,
	                      (long long) info.st_ctim.tv_sec);
}

/* False when all is wanted: there is no target, or no room for more. */
static bool
want(const Record *record)
{
	size_t length;

	report_file();
	if (record == NULL)
		target = -1;
	if (target < 0)
		return false;
	if (has(record))
		return true;
	length = strlen(record->path) + 1;
	if (wanted_length + length > wanted_size)
	{
		size_t size = wanted_size > 0 ? wanted_size * 2 : 65536;
		char *grown = size <= MAX_BYTES ? realloc(wanted, size) : NULL;

		if (grown == NULL)
		{
			target = -1;
			return false;
		}
		wanted = grown;
		wanted_size = size;
	}
	memcpy(wanted + wanted_length, record->path, length);
	wanted_length += length;
	return true;
}

void
known_choose(const char *path)
{
	static const char all[] = "all\n";
	static const char some[] = "some\n";
	bool chosen;

	target = place_open_existing(path);
	chosen = read_list(want) && target >= 0;
	if (!chosen)
		wanted_length = 0;
	/* Who sends an empty list does not ask. */
	if ((!chosen || wanted_length > 0) &&
	    (fputs(chosen ? some : all, stdout) == EOF ||
	     fwrite(wanted, 1, wanted_length, stdout) != wanted_length || fflush(stdout) == EOF))
		fail_second("the other end takes no answer");
	report_done();
}
