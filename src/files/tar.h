/*
 * tar.h
 *		An archive that every tar reads.
 */
#ifndef ENVRT_FILES_TAR_H
#define ENVRT_FILES_TAR_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/types.h>
#include <time.h>

typedef struct TarEntry
{
	const char *path;
	mode_t mode; /* with its S_IF */
	struct timespec modified;
	uint64_t size;    /* of a regular file */
	const char *link; /* where a symbolic link leads */

	/* Where a file has content; none of them: everywhere. */
	const struct TarPiece *pieces;
	size_t piece_count;
} TarEntry;

typedef struct TarPiece
{
	uint64_t offset;
	uint64_t length;
} TarPiece;

/* Who reads it knows the headers of pax: times are exact, and pieces are possible. */
extern void tar_set_pax(bool is_pax);
extern bool tar_is_pax(void);

/* Of a file its content is to follow, of pieces theirs, and its end. */
extern void tar_put(const TarEntry *entry);
extern void tar_put_content(const void *bytes, size_t length);
extern void tar_end_content(void);

/* The end of the archive; all of it is in stdout then. */
extern void tar_end(void);

/*
 * In between, entries go into memory: an archive of its own, whose end tar_take() writes.  It is
 * the caller's to free.
 */
extern void tar_keep(void);
extern char *tar_take(size_t *length);

#endif
