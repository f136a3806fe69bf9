/*
 * sandbox_fixed_files.h
 *		What every sandbox gets that is always the same, as descriptors.
 */
#ifndef ENVRT_HOST_SANDBOX_FIXED_FILES_H
#define ENVRT_HOST_SANDBOX_FIXED_FILES_H

#include <stddef.h>

typedef enum
{
	SANDBOX_FILE_INIT,
	SANDBOX_FILE_ALLOWED,
	SANDBOX_FILE_REFUSED,
	SANDBOX_FILE_PASSWD,
	SANDBOX_FILE_GROUP,
	SANDBOX_FILE_HOSTS,
	SANDBOX_FILES
} SandboxFile;

/* A new descriptor, at the file's beginning, closed at exec; -1: not possible here. */
extern int sandbox_file_open(SandboxFile file);

/* The same of a content of one's own. */
extern int sandbox_file_of(const char *name, const void *content, size_t size);

/* The program of the first process. */
extern const void *sandbox_program(size_t *size);

extern void sandbox_files_close(void);

#endif
