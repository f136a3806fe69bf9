/*
 * sparse_write.h
 *		Writes into a file, and leaves holes where nothing is; see sparse_write.c.
 */
#ifndef ENVRT_FILES_SPARSE_WRITE_H
#define ENVRT_FILES_SPARSE_WRITE_H

#include <stdbool.h>
#include <stddef.h>

#include <archive.h>

/* Whether the last byte was written: else the file is to be made as long as it should be. */
extern bool sparse_write(int fd, const char *bytes, size_t length, la_int64_t offset,
                         const char *path);

#endif
