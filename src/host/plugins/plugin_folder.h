/*
 * plugin_folder.h
 *		A folder below the plugin path, and what it holds.
 */
#ifndef ENVRT_HOST_PLUGIN_FOLDER_H
#define ENVRT_HOST_PLUGIN_FOLDER_H

#include <stdbool.h>

#include "base/memory.h"
#include "plugins/plugin_manifest.h"

typedef enum
{
	FOLDER_EMPTY,  /* no plugin, and no trouble */
	FOLDER_BAD,    /* problem says why */
	FOLDER_TEXT,   /* text is the manifest */
	FOLDER_PROGRAM /* the manifest is what the program for node at script says */
} PluginFolderKind;

typedef struct PluginFolder
{
	char *root; /* the directory of the plugin path */
	char *path; /* root/NAME */
	PluginFolderKind kind;
	char *problem;
	Bytes text;
	char *script; /* absolute, without symbolic links */
	char *worker; /* what package.json names, or NULL */
	char *stamp;  /* of the files that were looked at: changes when one of them does */
} PluginFolder;

extern PluginFolder *plugin_folder_look(const char *root, const char *path);
extern void plugin_folder_free(PluginFolder *folder);

/*
 * The manifest of this text, with the worker's file found.  As
 * plugin_manifest_parse(), else.
 */
extern PluginManifest *plugin_folder_manifest(const PluginFolder *folder, const char *text,
                                              size_t length, char **problem, char **id);

/*
 * Whether the worker is still the file that was found: what happened to the
 * folder since then must not make us run something else.  A problem, to be
 * freed, or NULL.
 */
extern char *plugin_folder_check_worker(const PluginManifest *manifest);

#endif
