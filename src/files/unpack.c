/*
 * unpack.c
 *		An archive from stdin as files.
 *
 * Who has made the archive is not trusted.  libarchive reads the format; what is made of
 * it in the file system is decided here:
 *
 *   - A name is relative and without "..", or all fails.
 *   - Directories are entered one by one by descriptors, without following links, from the
 *     target down.  Those of the current entry are kept open (a Level each), so a directory that
 *     is moved meanwhile is still the one that was entered.  What is no directory and
 *     stands where one is needed is replaced.
 *   - A regular file is written without a name and gets its name when it is complete
 *     (or, on file systems that can't do that, is renamed from a temporary one).  Who
 *     opens it sees the old or the new one.  SIGKILL at the moment of a rename, or on such a
 *     file system, leaves the temporary name, which no transfer takes along.
 *   - A link is made as it is said, and never followed.  Another name for a file is given to one
 *     that was found in the same way.
 *   - Permissions are those of user, group and others; no set-user-ID, no owner, no device,
 *     no pipe, no socket.
 *   - Nothing that is protected, nor a link to it, loses its name.
 *   - A directory gets the permissions and the time that the archive gives it whenever it is left,
 * and may be written while it is entered: entries may come in any order, and return to a
 * directory.
 *
 * What comes from a workspace is without what would have a git run its programs (git_settings.c),
 * by what the place is called on either side; it is writable for nobody but its owner, and
 * directories that were there keep their mode.  What the source's git has packed goes
 * (git_branches.c).
 *
 * An archive whose first entry is "." is that of a directory; else it is one file, and its
 * name is the target's or, when that is a directory, that in it.
 */
#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <archive.h>
#include <archive_entry.h>

#include "files/unpack.h"
#include "shared/files_protocol.h"
#include "files/git_branches.h"
#include "files/git_settings.h"
#include "files/path_guard.h"
#include "files/report.h"
#include "files/sparse_write.h"

#define BLOCK 65536
#define MAX_NAME 255
#define MAX_SAID ((size_t) 64 * 1024 * 1024)
#define BLOCK_OF_DISK 4096

/* What may follow the end of an archive: it is read, so that who writes it is not interrupted. */
#define MAX_PADDING (1024 * 1024)

/* A directory of the current entry's path. */
typedef struct Level
{
	int fd;
	char *name;
	bool was_there;
	bool has_meta; /* these are to be set when it is left */
	mode_t mode;
	struct timespec modified;
} Level;

/* What the archive has said of a directory, by its path below the target. */
typedef struct Said
{
	mode_t mode;
	struct timespec modified;
	char path[];
} Said;

static struct archive *archive;
static void *said; /* of tsearch() */
static size_t said_bytes;
static Level levels[MAX_DEPTH + 1];
static int depth = -1; /* of the last level; 0 is the target */
static char *names[MAX_DEPTH + 1];
static bool something_read;
static uint64_t max_bytes; /* 0: any number; what comes, and what it takes on the disk besides */
static uint64_t bytes_taken;
static bool from_workspace;
static int name_count;

/* What a git makes of where it comes from and goes to. */
static GitPlace source_place;
static GitPlace target_place;

/* A file that has a temporary name, for the case that all ends. */
static int temporary_directory;
static char temporary_name[64];

/*
 * How much there may be
 */

void
files_limit(uint64_t limit)
{
	max_bytes = limit;
}

static void
count_bytes(uint64_t count)
{
	bytes_taken += count;
	if (max_bytes > 0 && bytes_taken > max_bytes)
		fail_state("53400", "the workspace holds more than the %llu MB that envrt.max_pull allows",
		           (unsigned long long) (max_bytes / 1024 / 1024));
}

/*
 * Temporary names
 */

static void
remove_temporary(void)
{
	if (temporary_name[0] != '\0')
		unlinkat(temporary_directory, temporary_name, 0);
	temporary_name[0] = '\0';
}

/* What may be written only while it is entered.  (Safe in a signal handler.) */
static void
restore_modes(void)
{
	for (int i = depth; i >= 0; i--)
		if (levels[i].has_meta)
			fchmod(levels[i].fd, levels[i].mode);
}

static void
clean_up(void)
{
	remove_temporary();
	restore_modes();
}

void
files_abandon(void)
{
	clean_up();
}

static void
new_temporary(int directory)
{
	uint64_t random;

	/* Several transfers may go to one place, each in a PID namespace of its own. */
	if (getrandom(&random, sizeof random, 0) != (ssize_t) sizeof random)
		fail(errno, "could not get random bytes: %s", strerror(errno));
	temporary_directory = directory;
	snprintf(temporary_name, sizeof temporary_name, FILES_TEMPORARY "%016llx",
	         (unsigned long long) random);
}

/* What has the temporary name gets the other one.  Two names of one file are left as they are. */
static void
rename_temporary(const char *name, const char *path)
{
	place_check_name(temporary_directory, name, path);
	if (renameat(temporary_directory, temporary_name, temporary_directory, name) < 0)
	{
		int problem = errno;

		if (problem == EISDIR || problem == ENOTEMPTY || problem == EEXIST)
			fail_state("55000", "\"%s\" is a directory already", path);
		fail(problem, "could not make \"%s\": %s", path, strerror(problem));
	}
	remove_temporary();
}

/*
 * Names
 */

static void
forget_names(void)
{
	while (name_count > 0)
		free(names[--name_count]);
}

static void
read_names(const char *path)
{
	const char *next = path;

	forget_names();
	if (path[0] == '/')
		fail(0, "the archive holds \"%s\", which is outside of the target", path);
	while (*next != '\0')
	{
		size_t length = strcspn(next, "/");

		if (length == 2 && memcmp(next, "..", 2) == 0)
			fail(0, "the archive holds \"%s\", which is outside of the target", path);
		if (length > MAX_NAME || name_count == MAX_DEPTH)
			fail_state("53400", "the archive holds a name that is too long");
		if (length > 0 && !(length == 1 && *next == '.'))
		{
			names[name_count] = strndup(next, length);
			if (names[name_count++] == NULL)
				fail_state("53400", "out of memory");
		}
		next += length;
		next += strspn(next, "/");
	}
}

/*
 * What is not taken from a workspace
 */

/* kind: of the current entry, an S_IF. */
static bool
unpack_is_setting(mode_t kind)
{
	return from_workspace && (git_is_setting(source_place, names, name_count, kind) ||
	                          git_is_setting(target_place, names, name_count, kind));
}

/* The target by its real name: it may have been reached by a link. */
static void
find_git_place(int target)
{
	char link[64];
	char real[4096];
	ssize_t length;

	snprintf(link, sizeof link, "/proc/self/fd/%d", target);
	length = readlink(link, real, sizeof real - 1);
	if (length < 0)
		fail(errno, "could not find out where the target is: %s", strerror(errno));
	real[length] = '\0';
	target_place = git_place_of(real);
}

static void __attribute__((noreturn)) fail_setting(const char *path)
{
	fail_state("42501", "\"%s\" may have git run programs and is not taken from a workspace", path);
}

/*
 * Directories
 */

static int
compare_said(const void *one, const void *other)
{
	return strcmp(((const Said *) one)->path, ((const Said *) other)->path);
}

/* For the first `count` names; without a path when there is no room for more. */
static Said *
said_of(int count)
{
	size_t length = 0;
	Said *all;

	for (int i = 0; i < count; i++)
		length += strlen(names[i]) + 1;
	if (said_bytes + length > MAX_SAID)
		return NULL;
	all = malloc(sizeof *all + length + 1);
	if (all == NULL)
		fail_state("53400", "out of memory");
	all->path[0] = '\0';
	for (int i = 0, end = 0; i < count; i++)
		end += sprintf(all->path + end, "%s/", names[i]);
	return all;
}

static void
remember_level(const Level *level)
{
	Said *all = said_of(name_count);
	Said **found;

	if (all == NULL)
		return;
	found = tsearch(all, &said, compare_said);
	if (found == NULL)
		fail_state("53400", "out of memory");
	if (*found == all)
		said_bytes += sizeof *all + strlen(all->path) + 64;
	else
		free(all);
	(*found)->mode = level->mode;
	(*found)->modified = level->modified;
}

/* The one that was entered last, by the first names. */
static void
recall_level(Level *level, int count)
{
	Said *all = said != NULL ? said_of(count) : NULL;
	Said **found = all != NULL ? tfind(all, &said, compare_said) : NULL;

	if (found != NULL)
	{
		level->has_meta = true;
		level->mode = (*found)->mode;
		level->modified = (*found)->modified;
	}
	free(all);
}

static void
leave_level(void)
{
	Level *level = &levels[depth];
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, level->modified};

	if (level->has_meta)
	{
		futimens(level->fd, times);
		fchmod(level->fd, level->mode);
	}
	close(level->fd);
	free(level->name);
	depth--;
}

static int
open_directory(int above, const char *name)
{
	return openat(above, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Its mode is to be writable for us until it is left. */
static void
enter_level(const char *name, const char *path)
{
	Level *level = &levels[depth + 1];
	int above = levels[depth].fd;
	bool made;
	struct stat info;

	place_check_new(above, name, path);
	made = mkdirat(above, name, 0700) == 0;
	level->fd = open_directory(above, name);
	if (level->fd < 0 && (errno == ENOTDIR || errno == ELOOP))
	{
		place_check_name(above, name, path);
		unlinkat(above, name, 0);
		made = mkdirat(above, name, 0700) == 0;
		level->fd = open_directory(above, name);
	}
	if (level->fd < 0 || fstat(level->fd, &info) < 0)
		fail(errno, "could not make the directory of \"%s\": %s", path, strerror(errno));
	place_check(&info, path);
	level->name = strdup(name);
	if (level->name == NULL)
		fail_state("53400", "out of memory");
	/* That of an entry was counted with it. */
	if (made && depth + 1 < name_count)
		count_bytes(BLOCK_OF_DISK);
	level->was_there = !made;
	level->has_meta = made;
	level->mode = made ? 0755 : info.st_mode & 07777;
	level->modified.tv_nsec = UTIME_OMIT;
	if (!made && (info.st_mode & 0700) != 0700)
	{
		fchmod(level->fd, (info.st_mode & 0777) | 0700);
		level->has_meta = true;
	}
	depth++;
	recall_level(level, depth);
}

/* Has exactly the first `count` names entered. */
static void
go_to(int count, const char *path)
{
	int same = 0;

	while (same < count && same < depth && strcmp(levels[same + 1].name, names[same]) == 0)
		same++;
	while (depth > same)
		leave_level();
	while (depth < count)
		enter_level(names[depth], path);
}

static mode_t
mode_of(struct archive_entry *entry)
{
	return archive_entry_perm(entry) & (from_workspace ? WORKSPACE_MODE : 0777);
}

/* As the library reads a time: of one before 1970 it takes the fraction for one that goes on. */
static struct timespec
time_of(struct archive_entry *entry)
{
	struct timespec time = {.tv_sec = archive_entry_mtime(entry),
	                        .tv_nsec = archive_entry_mtime_nsec(entry)};

	if (!archive_entry_mtime_is_set(entry))
		time.tv_nsec = UTIME_OMIT;
	else if (time.tv_sec < 0 && time.tv_nsec > 0)
	{
		time.tv_sec--;
		time.tv_nsec = 1000000000 - time.tv_nsec;
	}
	return time;
}

static void
make_directory(struct archive_entry *entry, const char *path)
{
	Level *level;

	go_to(name_count, path);
	if (name_count == 0)
		return;
	level = &levels[depth];
	level->has_meta = true;
	if (!from_workspace || !level->was_there)
		level->mode = mode_of(entry);
	level->modified = time_of(entry);
	remember_level(level);
}

/*
 * Files
 */

static void __attribute__((noreturn)) fail_reading(void)
{
	const char *text = archive_error_string(archive);

	if (!something_read)
		fail_second("there is no archive");
	if (text != NULL && strstr(text, "runcated") != NULL)
		fail_second("the archive is not complete");
	fail(0, "the archive can't be read: %s", text != NULL ? text : "it is none");
}

static void
write_content(int fd, struct archive_entry *entry, const char *path)
{
	const void *bytes;
	size_t length;
	la_int64_t offset;
	la_int64_t next = 0;
	la_int64_t end = 0;
	int status;

	while ((status = archive_read_data_block(archive, &bytes, &length, &offset)) == ARCHIVE_OK)
	{
		/* After a hole a single byte takes a block. */
		if (offset != next)
		{
			count_bytes(BLOCK_OF_DISK);
			report_bytes(offset > next ? (uint64_t) (offset - next) : 0);
		}
		next = offset + (la_int64_t) length;
		if (sparse_write(fd, bytes, length, offset, path))
			end = offset + (la_int64_t) length;
		report_bytes(length);
	}
	if (status != ARCHIVE_EOF)
		fail_reading();
	if (archive_entry_size(entry) > next)
		report_bytes((uint64_t) (archive_entry_size(entry) - next));
	/* A hole at the end. */
	if (end != archive_entry_size(entry) && ftruncate(fd, archive_entry_size(entry)) < 0)
		fail(errno, "could not write \"%s\": %s", path, strerror(errno));
}

/* Without a name, or with a temporary one. */
static int
open_new(int directory, const char *path)
{
	int fd = openat(directory, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);

	if (fd >= 0)
		return fd;
	new_temporary(directory);
	fd = openat(directory, temporary_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
	            0600);
	if (fd < 0)
		fail(errno, "could not write \"%s\": %s", path, strerror(errno));
	return fd;
}

static void
name_file(int fd, int directory, const char *name, const char *path)
{
	char link[64];

	if (temporary_name[0] == '\0')
	{
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		if (linkat(AT_FDCWD, link, directory, name, AT_SYMLINK_FOLLOW) == 0)
			return;
		if (errno != EEXIST)
			fail(errno, "could not make \"%s\": %s", path, strerror(errno));
		new_temporary(directory);
		if (linkat(AT_FDCWD, link, directory, temporary_name, AT_SYMLINK_FOLLOW) < 0)
		{
			int problem = errno;

			temporary_name[0] = '\0';
			fail(problem, "could not make \"%s\": %s", path, strerror(problem));
		}
	}
	rename_temporary(name, path);
}

static void
make_file(struct archive_entry *entry, int directory, const char *name, const char *path)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
	int fd;

	place_check_new(directory, name, path);
	fd = open_new(directory, path);
	write_content(fd, entry, path);
	times[1] = time_of(entry);
	if (fchmod(fd, mode_of(entry)) < 0)
		fail(errno, "could not write \"%s\": %s", path, strerror(errno));
	futimens(fd, times);
	name_file(fd, directory, name, path);
	if (close(fd) < 0)
		fail(errno, "could not write \"%s\": %s", path, strerror(errno));
	report_file();
}

/*
 * Links
 */

static void
make_link(struct archive_entry *entry, int directory, const char *name, const char *path)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
	const char *target = archive_entry_symlink(entry);

	if (target == NULL || target[0] == '\0')
		fail(0, "the archive's link \"%s\" leads nowhere", path);
	place_check_new(directory, name, path);
	new_temporary(directory);
	if (symlinkat(target, directory, temporary_name) < 0)
		fail(errno, "could not make \"%s\": %s", path, strerror(errno));
	times[1] = time_of(entry);
	utimensat(directory, temporary_name, times, AT_SYMLINK_NOFOLLOW);
	rename_temporary(name, path);
	report_file();
}

/* The directory of the current names' last, entered without following links. */
static int
find_directory(const char *path)
{
	int fd = openat(levels[0].fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	for (int i = 0; fd >= 0 && i < name_count - 1; i++)
	{
		int below = open_directory(fd, names[i]);

		close(fd);
		fd = below;
	}
	if (fd < 0)
		fail(0, "the archive links \"%s\", which is not there", path);
	return fd;
}

/* Another name for a file that is there. */
static void
make_name(struct archive_entry *entry, const char *path)
{
	const char *target = archive_entry_hardlink(entry);
	struct stat info;
	bool may_be_link = !unpack_is_setting(S_IFLNK);
	char *name;
	int found;

	name = strdup(names[name_count - 1]);
	if (name == NULL)
		fail_state("53400", "out of memory");
	place_check_new(levels[depth].fd, name, path);
	new_temporary(levels[depth].fd);
	read_names(target);
	found = name_count > 0 ? find_directory(target) : -1;
	if (found < 0 || fstatat(found, names[name_count - 1], &info, AT_SYMLINK_NOFOLLOW) < 0 ||
	    !(S_ISREG(info.st_mode) || S_ISLNK(info.st_mode)))
		fail(0, "the archive links \"%s\", which is no file in it", target);
	place_check(&info, target);
	if (S_ISLNK(info.st_mode) && !may_be_link)
		fail(0, "the archive links \"%s\", which is a link", target);
	if (linkat(found, names[name_count - 1], temporary_directory, temporary_name, 0) < 0)
		fail(errno, "could not make \"%s\": %s", path, strerror(errno));
	close(found);
	rename_temporary(name, path);
	free(name);
	report_file();
}

/*
 * The archive
 */

static la_ssize_t
read_in(struct archive *reader, void *data, const void **buffer)
{
	static char block[BLOCK];
	ssize_t count;

	(void) data;
	while ((count = read(STDIN_FILENO, block, sizeof block)) < 0 && errno == EINTR)
		;
	if (count < 0)
		archive_set_error(reader, errno, "%s", strerror(errno));
	something_read = something_read || count > 0;
	count_bytes(count > 0 ? (uint64_t) count : 0);
	*buffer = block;
	return count;
}

static void
read_padding(void)
{
	const void *buffer;
	size_t total = 0;
	ssize_t count;

	while (total < MAX_PADDING && (count = read_in(archive, NULL, &buffer)) > 0)
		total += (size_t) count;
}

static struct archive_entry *
next_entry(void)
{
	struct archive_entry *entry;
	int status = archive_read_next_header(archive, &entry);

	if (status == ARCHIVE_EOF)
		return NULL;
	if (status < ARCHIVE_WARN)
		fail_reading();
	count_bytes(BLOCK_OF_DISK);
	return entry;
}

static void
unpack_entry(struct archive_entry *entry)
{
	char *path = strdup(archive_entry_pathname(entry) ? archive_entry_pathname(entry) : "/");
	const char *name;

	if (path == NULL)
		fail_state("53400", "out of memory");
	read_names(path);
	/* Of any kind, and also when it is not taken: the source has it. */
	if (archive_entry_hardlink(entry) != NULL || archive_entry_filetype(entry) != AE_IFDIR)
		git_refs_note(names, name_count);
	if (unpack_is_setting(archive_entry_hardlink(entry) != NULL ? S_IFREG
	                                                            : archive_entry_filetype(entry)))
		;
	else if (archive_entry_hardlink(entry) == NULL && archive_entry_filetype(entry) == AE_IFDIR)
		make_directory(entry, path);
	else if (name_count == 0)
		fail(0, "the archive holds a file without a name");
	else
	{
		go_to(name_count - 1, path);
		name = names[name_count - 1];
		if (archive_entry_hardlink(entry) != NULL)
			make_name(entry, path);
		else if (archive_entry_filetype(entry) == AE_IFREG)
			make_file(entry, levels[depth].fd, name, path);
		else if (archive_entry_filetype(entry) == AE_IFLNK)
			make_link(entry, levels[depth].fd, name, path);
	}
	free(path);
}

static void
unpack_directory(struct archive_entry *entry, const char *target)
{
	bool made;

	levels[0].fd = place_open_target(target, &made);
	find_git_place(levels[0].fd);
	if (unpack_is_setting(S_IFDIR))
		fail_setting(target);
	depth = 0;
	levels[0].has_meta = made;
	levels[0].mode = mode_of(entry);
	levels[0].modified.tv_nsec = UTIME_OMIT;
	while ((entry = next_entry()) != NULL)
		unpack_entry(entry);
	git_refs_settle(levels[0].fd);
	while (depth >= 0)
		leave_level();
}

static void
unpack_file(struct archive_entry *entry, const char *target)
{
	char *name;
	int directory;

	if (name_count != 1 || archive_entry_hardlink(entry) != NULL ||
	    archive_entry_filetype(entry) != AE_IFREG)
		fail(0, "the archive holds neither a directory nor a file");
	directory = place_open_parent(target, names[0], &name);
	find_git_place(directory);
	if (from_workspace && git_is_setting(target_place, &name, 1, S_IFREG))
		fail_setting(name);
	make_file(entry, directory, name, name);
	if (next_entry() != NULL)
		fail(0, "the archive of a file holds more than that");
	free(name);
	close(directory);
}

void
files_unpack(const char *target, const char *source)
{
	struct archive_entry *entry;

	from_workspace = source != NULL;
	if (source != NULL)
		source_place = git_place_of(source);
	report_before_exit(clean_up);
	archive = archive_read_new();
	if (archive == NULL)
		fail_state("53400", "out of memory");
	archive_read_support_format_tar(archive);
	if (archive_read_open(archive, NULL, NULL, read_in, NULL) != ARCHIVE_OK)
		fail_reading();
	entry = next_entry();
	if (entry == NULL)
		fail_second("there is no archive");
	read_names(archive_entry_pathname(entry) ? archive_entry_pathname(entry) : "/");
	if (name_count == 0 && archive_entry_filetype(entry) == AE_IFDIR)
		unpack_directory(entry, target);
	else
		unpack_file(entry, target);
	forget_names();
	read_padding();
	archive_read_free(archive);
	report_done();
}
