/*
 * pack.c
 *		Files as an archive on stdout.
 *
 * The format is GNU tar's, which every tar reads, with names as the bytes that they
 * are.  Directories, regular files and links are packed, with permissions and the time of
 * the last change; sockets, pipes and devices are left out, and who owns what is not
 * said.  Further names of a file are files of their own.
 *
 * The tree may change while it is read.  It is walked by descriptors, and no link is
 * followed, so nothing outside of it is read.  What vanishes meanwhile is left out, what
 * grows ends where it did when it was opened; a file that becomes shorter is an
 * error, since its length has been said.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <archive.h>
#include <archive_entry.h>

#include "files.h"
#include "files_protocol.h"
#include "known.h"
#include "place.h"
#include "report.h"

#define BLOCK 65536

static struct archive *archive;
static struct archive_entry *entry;

/* Not every tar can unpack into a directory that may not be written: such get their mode last. */
static bool for_any_tar;

/* What comes from a workspace is writable for nobody but its owner: see unpack.c. */
static mode_t mode_mask = 0777;

/* Files are listed, not packed. */
static bool listing;
static bool knows;

static la_ssize_t
write_out(struct archive *writer, void *data, const void *buffer, size_t length)
{
	ssize_t count;

	(void) data;
	while ((count = write(STDOUT_FILENO, buffer, length)) < 0 && errno == EINTR)
		;
	if (count < 0)
		archive_set_error(writer, errno, "%s", strerror(errno));
	return count;
}

static void
check_written(int status)
{
	if (status >= ARCHIVE_WARN)
		return;
	if (archive_errno(archive) == EPIPE)
		fail_second("the other end takes no more");
	fail(archive_errno(archive), "could not write the archive: %s", archive_error_string(archive));
}

static void
put_header(const char *path, const struct stat *info, const char *link)
{
	archive_entry_clear(entry);
	archive_entry_copy_pathname(entry, path);
	archive_entry_set_filetype(entry, info->st_mode & S_IFMT);
	archive_entry_set_perm(entry, info->st_mode & mode_mask);
	archive_entry_set_mtime(entry, info->st_mtim.tv_sec, info->st_mtim.tv_nsec);
	archive_entry_set_size(entry, S_ISREG(info->st_mode) ? info->st_size : 0);
	if (link != NULL)
		archive_entry_copy_symlink(entry, link);
	check_written(archive_write_header(archive, entry));
}

/* Takes the descriptor. */
static void
pack_file(int fd, const char *path, const struct stat *info)
{
	static char block[BLOCK];
	uint64_t left = (uint64_t) info->st_size;

	put_header(path, info, NULL);
	while (left > 0)
	{
		ssize_t count = read(fd, block, left < sizeof block ? (size_t) left : sizeof block);

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			fail(errno, "could not read \"%s\": %s", path, strerror(errno));
		if (count == 0)
			fail_state("55000", "\"%s\" became shorter while it was read", path);
		if (archive_write_data(archive, block, (size_t) count) < 0)
			check_written(ARCHIVE_FATAL);
		left -= (uint64_t) count;
		report_bytes((uint64_t) count);
	}
	close(fd);
	report_file();
}

static void
pack_link(int directory, const char *name, const char *path, const struct stat *info)
{
	char target[PATH_MAX];
	ssize_t length = readlinkat(directory, name, target, sizeof target - 1);

	if (length < 0)
		return;
	target[length] = '\0';
	put_header(path, info, target);
	report_file();
}

static void pack_directory(int fd, const char *path, int depth);

/* path: of the entry. */
static void
pack_entry(int directory, const char *name, const char *path, int depth)
{
	struct stat info;
	int fd;

	if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) < 0)
		return;
	if (S_ISLNK(info.st_mode) && !listing)
		pack_link(directory, name, path, &info);
	if (!S_ISDIR(info.st_mode) && !S_ISREG(info.st_mode))
		return;
	if (listing && place_is_protected(&info))
		return;
	if (listing && S_ISREG(info.st_mode))
	{
		known_write(path, &info);
		report_file();
		return;
	}
	fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 && (errno == ENOENT || errno == ELOOP || errno == ENXIO))
		return;
	if (fd < 0 && listing)
		return;
	if (fd < 0 || fstat(fd, &info) < 0)
		fail(errno, "could not open \"%s\": %s", path, strerror(errno));
	if (listing && S_ISDIR(info.st_mode))
		pack_directory(fd, path, depth + 1);
	else if (S_ISDIR(info.st_mode))
	{
		bool twice = for_any_tar && (info.st_mode & 0700) != 0700;
		struct stat open_info = info;

		place_check(&info, path);
		open_info.st_mode |= twice ? 0700 : 0;
		put_header(path, &open_info, NULL);
		pack_directory(fd, path, depth + 1);
		if (twice)
			put_header(path, &info, NULL);
	}
	else if (S_ISREG(info.st_mode))
	{
		place_check(&info, path);
		info.st_mode &= S_IFMT | mode_mask;
		if (known_is_equal(path, &info))
			close(fd);
		else
			pack_file(fd, path, &info);
	}
	else
		close(fd);
}

/* Takes the descriptor. */
static void
pack_directory(int fd, const char *path, int depth)
{
	DIR *directory;
	const struct dirent *found;

	if (depth > MAX_DEPTH)
		fail_state("53400", "\"%s\" is nested deeper than %d directories", path, MAX_DEPTH);
	directory = fdopendir(fd);
	if (directory == NULL)
		fail(errno, "could not read \"%s\": %s", path, strerror(errno));
	while ((errno = 0, found = readdir(directory)) != NULL)
	{
		char *below;

		if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0 ||
		    strncmp(found->d_name, FILES_TEMPORARY, strlen(FILES_TEMPORARY)) == 0)
			continue;
		if (asprintf(&below, "%s/%s", path, found->d_name) < 0)
			fail_state("53400", "out of memory");
		pack_entry(dirfd(directory), found->d_name, below, depth);
		free(below);
	}
	if (errno != 0)
		fail(errno, "could not read \"%s\": %s", path, strerror(errno));
	closedir(directory);
}

static void
put_seal(const char *seal, bool is_directory)
{
	struct stat info = {.st_mode = S_IFREG | 0600};
	char *path;

	if (asprintf(&path, "%s%s", seal, is_directory ? FILES_SEAL_DIRECTORY : FILES_SEAL_FILE) < 0)
		fail_state("53400", "out of memory");
	put_header(path, &info, NULL);
	free(path);
}

void
files_know(void)
{
	knows = true;
}

void
files_list(const char *path)
{
	struct stat info;
	int fd = place_open_source(path, &info);

	listing = true;
	if (S_ISDIR(info.st_mode))
		pack_directory(fd, ".", 0);
	known_write_end();
	report_done();
}

void
files_pack(const char *path, const char *name, const char *seal)
{
	struct stat info;
	int fd = place_open_source(path, &info);
	bool is_directory = S_ISDIR(info.st_mode);

	for_any_tar = seal != NULL;
	if (place_is_workspace())
		mode_mask = WORKSPACE_MODE;
	if (knows && is_directory)
		known_read();
	else if (knows)
		known_refuse();
	archive = archive_write_new();
	entry = archive_entry_new();
	if (archive == NULL || entry == NULL)
		fail_state("53400", "out of memory");
	archive_write_set_format_gnutar(archive);
	archive_write_set_bytes_per_block(archive, BLOCK);
	archive_write_set_bytes_in_last_block(archive, 10240);
	check_written(archive_write_open(archive, NULL, NULL, write_out, NULL));
	if (is_directory)
	{
		info.st_mode |= for_any_tar ? 0700 : 0;
		put_header(".", &info, NULL);
		pack_directory(fd, ".", 0);
	}
	else
		pack_file(fd, name, &info);
	if (seal != NULL)
		put_seal(seal, is_directory);
	check_written(archive_write_close(archive));
	archive_entry_free(entry);
	archive_write_free(archive);
	report_done();
}
