/*
 * already_there.c
 *		What the target of a transfer has already, and so need not be sent.
 *
 * One end lists what it has, the other reads that and compares.  Equal is a file of the same size,
 * permissions and time of last change, a link of the same length and time, a directory of the same
 * permissions.  Times are compared to the nanosecond; where one end has none but whole seconds, as
 * some archives have them, to the second.  A change after the file was sent, but within the time
 * that the clock of a file system takes to go on, could look equal, so what was made at the target
 * so soon after its time of change is sent again.  Of git's objects it is the name that counts;
 * its branches are sent in any case (git_branches.c).
 *
 * Mostly the target's end lists, and the source's leaves out what is equal (known_read).  Where the
 * source's end can list, but not compare, the target's chooses for it (known_choose): it answers
 * "some", a line break, and the names of what it wants, each with a NUL; or "all" and a line break,
 * when it knows nothing, or there is too much to say.
 *
 * A record is "KIND SIZE MODIFIED MODE CHANGED PATH" and a NUL, where KIND is f for a regular
 * file, l for a link, d for a directory; others are always wanted.  First there may be "t 0 0 0 0
 * pax": the target's end reads archives with headers of pax.  A NUL alone is the end.  Of a list
 * that is too long, as much counts as there is room for; one without an end, or one that goes on
 * and on, is none: what is not known is sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files/unpack.h"
#include "files/git_branches.h"
#include "files/already_there.h"
#include "files/path_guard.h"
#include "files/report.h"

#define MAX_RECORD 8192
#define MAX_BYTES ((size_t) 96 * 1024 * 1024)
#define MAX_FILES 500000
#define MAX_READ ((size_t) 256 * 1024 * 1024)

/* So much later than it says that it was changed it may still change, in nanoseconds. */
#define CLOCK_OF_SECONDS 3000000000LL
#define CLOCK_OF_FILES 100000000LL
#define SECOND 1000000000LL

typedef struct FileMoment
{
	long long seconds;
	long nanoseconds;
} FileMoment;

typedef struct Known
{
	struct Known *next;
	char kind;
	bool trusted;
	long long size;
	FileMoment modified;
	unsigned mode;
	char path[];
} Known;

/* What a list says about a file. */
typedef struct Record
{
	char kind;
	long long size;
	FileMoment modified;
	FileMoment changed;
	unsigned mode;
	const char *path;
} Record;

static Known **buckets;
static size_t bucket_count;
static bool complete;
static bool force;
static bool reads_pax;
static bool has_target;

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

/* "-1.25", with as many digits as there are. */
static bool
parse_moment(const char **text, FileMoment *moment)
{
	const char *digit = *text;
	bool negative = *digit == '-';
	long unit = SECOND / 10;
	int count = 0;

	*moment = (FileMoment){0};
	for (digit += negative; *digit >= '0' && *digit <= '9' && count < 18; digit++, count++)
		moment->seconds = moment->seconds * 10 + (*digit - '0');
	if (*digit == '.')
		for (digit++; *digit >= '0' && *digit <= '9'; digit++, unit /= 10)
			moment->nanoseconds += unit * (*digit - '0');
	if (count == 0 || *digit != ' ')
		return false;
	if (negative)
	{
		moment->seconds = -moment->seconds;
		if (moment->nanoseconds > 0)
		{
			moment->seconds--;
			moment->nanoseconds = SECOND - moment->nanoseconds;
		}
	}
	*text = digit + 1;
	return true;
}

static bool
parse(const char *text, Record *record)
{
	int length = 0;

	if (sscanf(text, "%c %lld %n", &record->kind, &record->size, &length) < 2 || length == 0)
		return false;
	text += length;
	if (!parse_moment(&text, &record->modified))
		return false;
	length = 0;
	if (sscanf(text, "%o %n", &record->mode, &length) < 1 || length == 0)
		return false;
	text += length;
	if (!parse_moment(&text, &record->changed))
		return false;
	record->path = text;
	return true;
}

static FileMoment
moment_of(const struct timespec *time)
{
	return (FileMoment){.seconds = time->tv_sec, .nanoseconds = time->tv_nsec};
}

/* Where one end has whole seconds only, more is not known. */
static bool
is_same_moment(const FileMoment *one, const FileMoment *other)
{
	return one->seconds == other->seconds && (one->nanoseconds == other->nanoseconds ||
	                                          one->nanoseconds == 0 || other->nanoseconds == 0);
}

/* Of what the target has. */
static bool
can_be_trusted(const char *path, const FileMoment *modified, const FileMoment *changed)
{
	long long seconds = changed->seconds - modified->seconds;
	long long margin = modified->nanoseconds == 0 ? CLOCK_OF_SECONDS : CLOCK_OF_FILES;

	if (is_git_object(path))
		return true;
	if (seconds < 0 || seconds > 10)
		return seconds > 0;
	return seconds * SECOND + changed->nanoseconds - modified->nanoseconds >= margin;
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

	if (record == NULL)
		return true;
	if (record->kind == 't')
		reads_pax = reads_pax || strcmp(record->path, "pax") == 0;
	if (record->kind == 'd' && strcmp(record->path, ".") == 0)
		has_target = true;
	if (record->kind != 'd' && record->kind != 'l' && record->kind != 'f')
		return true;
	length = strlen(record->path);
	bytes += sizeof *known + length + 1;
	if (bytes > MAX_BYTES || ++count > MAX_FILES)
		return false;
	known = malloc(sizeof *known + length + 1);
	if (known == NULL)
		return false;
	known->kind = record->kind;
	known->trusted = can_be_trusted(record->path, &record->modified, &record->changed);
	known->size = record->size;
	known->modified = record->modified;
	known->mode = record->mode;
	memcpy(known->path, record->path, length + 1);
	bucket = bucket_of(known->path);
	known->next = buckets[bucket];
	buckets[bucket] = known;
	return true;
}

static void
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

/* Byte by byte: what follows is none of ours. */
void
known_read_first(void)
{
	char text[MAX_RECORD];
	size_t length = 0;
	Record record;

	while (length < sizeof text && read(STDIN_FILENO, text + length, 1) == 1)
		if (text[length++] == '\0')
		{
			if (parse(text, &record) && record.kind == 't')
				reads_pax = strcmp(record.path, "pax") == 0;
			break;
		}
	known_refuse();
}

void
known_force(void)
{
	force = true;
}

bool
known_has_target(void)
{
	return has_target;
}

bool
known_reads_pax(void)
{
	return reads_pax;
}

/* Size, time and permissions, as far as they count for what kind of thing it is. */
static bool
is_equal(const char *path, char kind, long long size, const FileMoment *modified, unsigned mode,
         const struct stat *info, mode_t mask)
{
	FileMoment own = moment_of(&info->st_mtim);

	switch (info->st_mode & S_IFMT)
	{
		case S_IFDIR:
			return kind == 'd' && ((mode ^ info->st_mode) & mask & 07777) == 0;
		case S_IFLNK:
			return kind == 'l' && size == (long long) info->st_size &&
			       is_same_moment(modified, &own);
		case S_IFREG:
			return kind == 'f' && size == (long long) info->st_size &&
			       (is_git_object(path) ||
			        (is_same_moment(modified, &own) && mode == (info->st_mode & mask & 07777)));
		default:
			return false;
	}
}

bool
known_is_equal(const char *path, const struct stat *info, mode_t mask)
{
	bool is_directory = S_ISDIR(info->st_mode);

	if (!complete || (!is_directory && (force || git_refs_include(path))))
		return false;
	for (const Known *known = buckets[bucket_of(path)]; known != NULL; known = known->next)
		if (strcmp(known->path, path) == 0)
			return (known->trusted || is_directory) &&
			       is_equal(path, known->kind, known->size, &known->modified, known->mode, info,
			                mask);
	return false;
}

/* Not of every file system the seconds have fractions. */
static int
put_moment(const struct timespec *time)
{
	long long seconds = time->tv_sec;
	long nanoseconds = time->tv_nsec;
	bool negative = seconds < 0;

	if (negative && nanoseconds > 0)
	{
		seconds++;
		nanoseconds = SECOND - nanoseconds;
	}
	return printf("%s%lld.%09ld ", negative ? "-" : "", negative ? -seconds : seconds, nanoseconds);
}

static void
write_record(char kind, const char *path, const struct stat *info)
{
	if (printf("%c %lld ", kind, (long long) info->st_size) < 0 || put_moment(&info->st_mtim) < 0 ||
	    printf("%o ", info->st_mode & 07777U) < 0 || put_moment(&info->st_ctim) < 0 ||
	    fputs(path, stdout) == EOF || putchar('\0') == EOF)
		fail_second("the other end takes no list");
}

void
known_write_reader(void)
{
	static const struct stat nothing;

	write_record('t', "pax", &nothing);
}

void
known_write(const char *path, const struct stat *info)
{
	write_record(S_ISDIR(info->st_mode) ? 'd' : S_ISLNK(info->st_mode) ? 'l' : 'f', path, info);
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
	FileMoment own;
	FileMoment changed;

	if (force || (record->kind != 'f' && record->kind != 'l') || git_refs_include(record->path) ||
	    !look_at(record->path, &info) || S_ISDIR(info.st_mode) || place_is_protected(&info))
		return false;
	own = moment_of(&info.st_mtim);
	changed = moment_of(&info.st_ctim);
	return is_equal(record->path, record->kind, record->size, &record->modified,
	                record->mode & WORKSPACE_MODE, &info, 07777) &&
	       can_be_trusted(record->path, &own, &changed);
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
