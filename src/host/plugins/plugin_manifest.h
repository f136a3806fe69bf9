/*
 * plugin_manifest.h
 *		What a plugin says about itself.
 */
#ifndef ENVRT_HOST_PLUGIN_MANIFEST_H
#define ENVRT_HOST_PLUGIN_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

/* The most bytes of a manifest. */
#define PLUGIN_MANIFEST_MAX (1024 * 1024)

typedef struct PluginDriver
{
	const char *key;
	bool sandbox_provider; /* a provider of the sandbox driver, found without the plugin's key */
	bool accepts_lease_id; /* ends a lease by leaseId alone */
} PluginDriver;

typedef struct PluginManifest
{
	char *folder; /* absolute */
	const char *id;
	const char *version;
	const char *display_name; /* the id when it has none */
	char *worker;             /* absolute */
	bool node;                /* the worker is a program for node */
	char *stamp;              /* of the worker's file; NULL before it was looked at */
	PluginDriver *drivers;
	size_t driver_count;
	json_t *json; /* as read; the constants above are in it */
} PluginManifest;

/*
 * A manifest of this text, without a look at the worker's file.  NULL when it
 * is no good: *problem says why (to be freed), and *id is the id, if that much
 * could be read (to be freed), or NULL.
 */
extern PluginManifest *plugin_manifest_parse(const char *folder, const char *text, size_t length,
                                             char **problem, char **id);
extern void plugin_manifest_free(PluginManifest *manifest);

extern bool plugin_manifest_has_capability(const PluginManifest *manifest, const char *capability);

/* NULL when the plugin does not declare it. */
extern const PluginDriver *plugin_manifest_driver(const PluginManifest *manifest, const char *key);

/* Whether a path, as text, starts in a folder and stays within it. */
extern bool plugin_path_stays_inside(const char *path);

/* Whether a file is a program for node, by its name. */
extern bool plugin_path_is_for_node(const char *path);

#endif
