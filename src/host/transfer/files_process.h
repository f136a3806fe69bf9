/*
 * files_process.h
 *		An envrt_files on the server's own file system.
 */
#ifndef ENVRT_HOST_FILES_PROCESS_H
#define ENVRT_HOST_FILES_PROCESS_H

#include <stdbool.h>

#include "transfer/files_report.h"
#include "base/host_error.h"

typedef struct FilesProcess FilesProcess;

typedef enum
{
	FILES_PACK,
	FILES_UNPACK, /* from a workspace */
	FILES_LIST,
	FILES_CHOOSE /* what a workspace's end is to send */
} FilesMode;

typedef struct FilesProcessSpec
{
	FilesMode mode;
	int fd;       /* packs, lists and answers to it, unpacks from it; the caller's */
	int known_fd; /* where a list comes from, or -1: packs all; the caller's */
	bool force;   /* also what the list says is equal */
	const char *path;
	const char *remote_path;      /* in the workspace */
	uint64_t max_bytes;           /* that are unpacked; 0: any number */
	const char *name;             /* of a file that is packed */
	const char *seal;             /* NULL: none */
	char *const *protected_paths; /* up to NULL */
	char *const *hidden_paths;    /* up to NULL */

	FilesReport *report; /* the caller's, until ended() */
	void (*progress)(void *data);
	/* It has ended, and the report is complete. */
	void (*ended)(void *data);
	void *data;
} FilesProcessSpec;

/* NULL with *error set. */
extern FilesProcess *files_process_start(const FilesProcessSpec *spec, HostError **error);

/* Ends it, with nothing left that is not complete; ended() will run. */
extern void files_process_stop(FilesProcess *process);

/* The program's path, to be freed. */
extern char *files_program(void);

/* At the end of the host: all are ended, with nobody told. */
extern void files_processes_kill(void);
extern bool files_processes_exist(void);

#endif
