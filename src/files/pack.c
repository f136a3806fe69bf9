/*
 * pack.c
 *		Files as an archive on stdout.
 *
 * The format is pax, which has times to the nanosecond and files with holes, or GNU tar's, which
 * every tar reads; names are the bytes that they are.  Directories, regular files and links are
 * packed, with permissions and the time of the last change; sockets, pipes and devices are left
 * out, and who owns what is not said.  Further names of a file are files of their own.
 *
 * A directory is packed when the target does not have it as it is, or something in it is packed,
 * and then before that.  What any tar unpacks (a sealed archive) has directories that may be
 * written, so that all can be put into them; the seal is itself an archive of them all as they are
 * to be in the end, with their permissions and times.
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
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "files/pack.h"
#include "files/unpack.h"
#include "shared/files_protocol.h"
#include "files/already_there.h"
#include "files/path_guard.h"
#include "files/report.h"
#include "files/tar.h"

#define BLOCK 65536

/* A file has so many pieces at most; from the last one on it is as if it had no more holes. */
#define MAX_PIECES 10000

/* A tar unpacks it, and not this program. */
static bool sealed;

/* What comes from a workspace is writable for nobody but its owner: see unpack.c. */
static mode_t mode_mask = 0777;

/* Files are listed, not packed. */
static bool listing;
static bool knows;

/* A directory on the way to the current entry. */
typedef struct Directory
{
	struct Directory *above;
	const char *path;
	const struct stat *info;
	bool sent;
} Directory;

/* What the seal says of a directory. */
typedef struct SealedDirectory
{
	char *path;
	mode_t mode;
	struct timespec modified;
} SealedDirectory;

static SealedDirectory *sealed_directories;
static size_t sealed_count;

/* What the target does not get. */
static uint64_t with_attributes;
static bool times_cut;

/* What was removed from a target. */
static uint64_t leftovers;

/* Labels of the whole system are no file's own. */
static bool
is_own_attribute(const char *name)
{
	return strncmp(name, "user.", 5) == 0 || strncmp(name, "trusted.", 8) == 0 ||
	       strncmp(name, "system.posix_acl", 16) == 0 || strcmp(name, "security.capability") == 0;
}

static void
note_attributes(int fd)
{
	char names[4096];
	ssize_t length = flistxattr(fd, names, sizeof names);

	for (ssize_t i = 0; i < length; i += (ssize_t) strlen(names + i) + 1)
		if (is_own_attribute(names + i))
		{
			with_attributes++;
			return;
		}
	if (length < 0 && errno == ERANGE)
		with_attributes++;
}

static void
report_losses(void)
{
	if (with_attributes > 0)
		report_note("extended attributes and access control lists of %llu files and directories "
		            "are not transferred",
		            (unsigned long long) with_attributes);
	if (times_cut)
		report_note("times are transferred to the second: the other end's tar knows no fractions");
}

/* What a transfer that was killed more than a day ago has left in its target. */
static void
remove_leftover(int directory, const char *name)
{
	struct stat info;

	if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(info.st_mode) &&
	    info.st_ctim.tv_sec < time(NULL) - FILES_LEFTOVER_AGE && unlinkat(directory, name, 0) == 0)
		leftovers++;
}

static void
put_entry(const TarEntry *entry)
{
	times_cut = times_cut || (!tar_is_pax() && entry->modified.tv_nsec != 0);
	tar_put(entry);
}

/*
 * Directories
 */

static void
remember_sealed(const Directory *directory)
{
	SealedDirectory *grown;

	/* There is no room for another one when their number is a power of two. */
	if ((sealed_count & (sealed_count - 1)) == 0)
	{
		grown = realloc(sealed_directories,
		                (sealed_count > 0 ? sealed_count * 2 : 1) * sizeof *sealed_directories);
		if (grown == NULL)
			fail_state("53400", "out of memory");
		sealed_directories = grown;
	}
	sealed_directories[sealed_count].mode = directory->info->st_mode;
	sealed_directories[sealed_count].modified = directory->info->st_mtim;
	sealed_directories[sealed_count].path = strdup(directory->path);
	if (sealed_directories[sealed_count++].path == NULL)
		fail_state("53400", "out of memory");
}

/* Before anything that is in it. */
static void
put_directory(Directory *directory)
{
	TarEntry entry = {0};

	if (directory == NULL || directory->sent)
		return;
	put_directory(directory->above);
	directory->sent = true;
	/* A target that is there keeps what it has. */
	if (sealed && (directory->above != NULL || !known_has_target()))
		remember_sealed(directory);
	entry.path = directory->path;
	entry.mode = (directory->info->st_mode & (S_IFMT | mode_mask)) | (sealed ? 0700 : 0);
	entry.modified = directory->info->st_mtim;
	put_entry(&entry);
}

/*
 * Files
 */

/* What holes a file has; NULL: none, or they can't be told. */
static TarPiece *
find_pieces(int fd, const struct stat *info, size_t *count)
{
	TarPiece *pieces;
	off_t end = 0;

	*count = 0;
	if (!tar_is_pax() || info->st_blocks * (off_t) 512 >= info->st_size)
		return NULL;
	pieces = malloc(MAX_PIECES * sizeof *pieces);
	while (pieces != NULL && end < info->st_size)
	{
		off_t start = lseek(fd, end, SEEK_DATA);

		if (start < 0 && errno != ENXIO)
			break;
		/* What has come meanwhile is not taken along. */
		if (start < 0 || start > info->st_size)
			start = info->st_size;
		end = *count < MAX_PIECES - 1 ? lseek(fd, start, SEEK_HOLE) : info->st_size;
		if (end < start || end > info->st_size)
			end = info->st_size;
		pieces[(*count)++] =
		    (TarPiece){.offset = (uint64_t) start, .length = (uint64_t) (end - start)};
	}
	if (end >= info->st_size)
		return pieces;
	free(pieces);
	*count = 0;
	return NULL;
}

static void
put_piece(int fd, const TarPiece *piece, const char *path)
{
	static char block[BLOCK];
	uint64_t done = 0;

	while (done < piece->length)
	{
		size_t wanted = piece->length - done < BLOCK ? (size_t) (piece->length - done) : BLOCK;
		ssize_t count = pread(fd, block, wanted, (off_t) (piece->offset + done));

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			fail(errno, "could not read \"%s\": %s", path, strerror(errno));
		if (count == 0)
			fail_state("55000", "\"%s\" became shorter while it was read", path);
		tar_put_content(block, (size_t) count);
		done += (uint64_t) count;
		report_bytes((uint64_t) count);
	}
}

/* Takes the descriptor. */
static void
pack_file(int fd, const char *path, const struct stat *info)
{
	TarPiece whole = {.length = (uint64_t) info->st_size};
	TarEntry entry = {.path = path,
	                  .mode = info->st_mode & (S_IFMT | mode_mask),
	                  .modified = info->st_mtim,
	                  .size = (uint64_t) info->st_size};
	TarPiece *pieces = find_pieces(fd, info, &entry.piece_count);
	uint64_t content = 0;

	note_attributes(fd);
	entry.pieces = pieces;
	put_entry(&entry);
	for (size_t i = 0; i < entry.piece_count; i++)
	{
		put_piece(fd, &pieces[i], path);
		content += pieces[i].length;
	}
	if (pieces == NULL)
		put_piece(fd, &whole, path);
	else
		report_bytes(entry.size - content);
	tar_end_content();
	free(pieces);
	close(fd);
	report_file();
}

static void
pack_link(int directory, const char *name, const char *path, const struct stat *info)
{
	char target[PATH_MAX];
	ssize_t length = readlinkat(directory, name, target, sizeof target - 1);
	TarEntry entry = {
	    .path = path, .mode = info->st_mode, .modified = info->st_mtim, .link = target};

	if (length < 0)
		return;
	target[length] = '\0';
	put_entry(&entry);
	report_file();
}

static void walk_directory(int fd, Directory *directory, int depth);

/* Takes the descriptor. */
static void
pack_directory(int fd, const char *path, Directory *above, int depth)
{
	struct stat info;
	Directory directory = {.above = above, .path = path, .info = &info};

	if (fstat(fd, &info) < 0)
		fail(errno, "could not look at \"%s\": %s", path, strerror(errno));
	if (listing)
		known_write(path, &info);
	else
	{
		place_check(&info, path);
		note_attributes(fd);
	}
	walk_directory(fd, &directory, depth);
	if (!listing && !known_is_equal(path, &info, mode_mask))
		put_directory(&directory);
}

/* path: of the entry. */
static void
pack_entry(int directory, const char *name, const char *path, Directory *above, int depth)
{
	struct stat info;
	int fd;

	if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) < 0)
		return;
	if (!S_ISDIR(info.st_mode) && !S_ISREG(info.st_mode) && !S_ISLNK(info.st_mode))
		return;
	if (listing && place_is_protected(&info))
		return;
	if (listing && !S_ISDIR(info.st_mode))
	{
		known_write(path, &info);
		report_file();
		return;
	}
	if (!S_ISDIR(info.st_mode))
	{
		place_check(&info, path);
		if (known_is_equal(path, &info, mode_mask))
			return;
		put_directory(above);
	}
	if (S_ISLNK(info.st_mode))
	{
		pack_link(directory, name, path, &info);
		return;
	}
	fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 && (listing || errno == ENOENT || errno == ELOOP || errno == ENXIO))
		return;
	if (fd < 0 || fstat(fd, &info) < 0)
		fail(errno, "could not open \"%s\": %s", path, strerror(errno));
	place_check(&info, path);
	if (S_ISDIR(info.st_mode))
		pack_directory(fd, path, above, depth + 1);
	else if (S_ISREG(info.st_mode) && !listing)
	{
		put_directory(above);
		pack_file(fd, path, &info);
	}
	else
		close(fd);
}

/* Takes the descriptor. */
static void
walk_directory(int fd, Directory *this, int depth)
{
	DIR *directory;
	const struct dirent *found;

	if (depth > MAX_DEPTH)
		fail_state("53400", "\"%s\" is nested deeper than %d directories", this->path, MAX_DEPTH);
	directory = fdopendir(fd);
	if (directory == NULL)
		fail(errno, "could not read \"%s\": %s", this->path, strerror(errno));
	while ((errno = 0, found = readdir(directory)) != NULL)
	{
		char *below;

		if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0)
			continue;
		if (strncmp(found->d_name, FILES_TEMPORARY, strlen(FILES_TEMPORARY)) == 0)
		{
			if (listing)
				remove_leftover(dirfd(directory), found->d_name);
			continue;
		}
		if (!listing)
			place_check_new(dirfd(directory), found->d_name, found->d_name);
		if (asprintf(&below, "%s/%s", this->path, found->d_name) < 0)
			fail_state("53400", "out of memory");
		pack_entry(dirfd(directory), found->d_name, below, this, depth);
		free(below);
	}
	if (errno != 0)
		fail(errno, "could not read \"%s\": %s", this->path, strerror(errno));
	closedir(directory);
}

/*
 * The seal
 */

static void
put_seal(const char *seal, bool is_directory)
{
	TarEntry entry = {.mode = S_IFREG | 0600};
	char *directories = NULL;
	char *name;
	size_t length = 0;

	if (sealed_count > 0)
	{
		tar_keep();
		for (size_t i = 0; i < sealed_count; i++)
		{
			TarEntry directory = {.path = sealed_directories[i].path,
			                      .mode = sealed_directories[i].mode,
			                      .modified = sealed_directories[i].modified};

			tar_put(&directory);
		}
		directories = tar_take(&length);
	}
	if (asprintf(&name, "%s%s", seal, is_directory ? FILES_SEAL_DIRECTORY : FILES_SEAL_FILE) < 0)
		fail_state("53400", "out of memory");
	entry.path = name;
	entry.size = length;
	tar_put(&entry);
	tar_put_content(directories, length);
	tar_end_content();
	free(directories);
	free(name);
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
	known_write_reader();
	if (S_ISDIR(info.st_mode))
		pack_directory(fd, ".", NULL, 0);
	known_write_end();
	if (leftovers > 0)
		report_note("removed %llu temporary files of transfers that had ended early",
		            (unsigned long long) leftovers);
	report_done();
}

void
files_pack(const char *path, const char *name, const char *seal)
{
	struct stat info;
	int fd = place_open_source(path, &info);
	bool is_directory = S_ISDIR(info.st_mode);

	sealed = seal != NULL;
	if (place_is_workspace())
		mode_mask = WORKSPACE_MODE;
	if (knows && is_directory)
		known_read();
	else if (knows)
		known_read_first();
	/* Our own other end does. */
	tar_set_pax(!sealed || known_reads_pax());
	if (is_directory)
	{
		Directory root = {.path = ".", .info = &info};

		note_attributes(fd);
		put_directory(&root);
		walk_directory(fd, &root, 0);
	}
	else
		pack_file(fd, name, &info);
	if (sealed)
		put_seal(seal, is_directory);
	tar_end();
	report_losses();
	report_done();
}
