/*
 * files_report.h
 *		What an envrt_files says.
 */
#ifndef ENVRT_HOST_FILES_REPORT_H
#define ENVRT_HOST_FILES_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/host_error.h"
#include "base/memory.h"

typedef struct FilesReport
{
	uint64_t files;
	uint64_t bytes;
	char end; /* FILES_DONE, FILES_ERROR or FILES_SECOND; 0: not said (yet) */
	char sqlstate[6];
	char *text;
	Bytes notes; /* lines for who has called */
	Bytes line;
} FilesReport;

/* Takes what came; whether it got any further. */
extern bool files_report_take(FilesReport *report, const char *bytes, size_t length);

/* What it failed with; NULL: it has not said that it failed. */
extern HostError *files_report_error(const FilesReport *report);

extern void files_report_clear(FilesReport *report);

#endif
