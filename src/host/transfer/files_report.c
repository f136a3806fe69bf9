/*
 * files_report.c
 *		What an envrt_files says.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shared/files_protocol.h"
#include "transfer/files_report.h"

static bool
files_report_take_line(FilesReport *report, const char *line)
{
	unsigned long long files;
	unsigned long long bytes;
	bool moved;

	switch (line[0])
	{
		case FILES_PROGRESS:
		case FILES_DONE:
			if (sscanf(line + 1, " %llu %llu", &files, &bytes) != 2)
				return false;
			moved = report->files != files || report->bytes != bytes;
			report->files = files;
			report->bytes = bytes;
			if (line[0] == FILES_DONE)
				report->end = FILES_DONE;
			return moved;
		case FILES_ERROR:
		case FILES_SECOND:
			if (strlen(line) < 8 || line[1] != ' ' || line[7] != ' ')
				return false;
			report->end = line[0];
			memcpy(report->sqlstate, line + 2, 5);
			free(report->text);
			report->text = xstrdup(line + 8);
			return false;
		case FILES_NOTE:
			if (line[1] == ' ' && report->notes.length < FILES_MAX_LINE)
			{
				bytes_append_text(&report->notes, line + 2);
				bytes_append_text(&report->notes, "\n");
			}
			return false;
		default:
			return false;
	}
}

bool
files_report_take(FilesReport *report, const char *bytes, size_t length)
{
	bool moved = false;

	while (length > 0)
	{
		const char *end = memchr(bytes, '\n', length);
		size_t count = end != NULL ? (size_t) (end - bytes) : length;

		if (report->line.length + count <= FILES_MAX_LINE)
			bytes_append(&report->line, bytes, count);
		if (end == NULL)
			break;
		bytes_append(&report->line, "", 0);
		moved = files_report_take_line(report, report->line.data) || moved;
		report->line.length = 0;
		report->line.data[0] = '\0';
		bytes += count + 1;
		length -= count + 1;
	}
	return moved;
}

HostError *
files_report_error(const FilesReport *report)
{
	if (report->end != FILES_ERROR && report->end != FILES_SECOND)
		return NULL;
	return error_new(report->sqlstate, "%s", report->text);
}

void
files_report_clear(FilesReport *report)
{
	free(report->text);
	bytes_free(&report->notes);
	bytes_free(&report->line);
	*report = (FilesReport){0};
}
