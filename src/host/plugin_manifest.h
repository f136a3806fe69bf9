/*
 * plugin_manifest.h
 *		What a plugin's folder says about the plugin.
 */
#ifndef ENVRT_HOST_PLUGIN_MANIFEST_H
#define ENVRT_HOST_PLUGIN_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#define PLUGIN_MANIFEST_NAME "manifest.json"

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
	char *worker; /* absolute */
	bool node;    /* the worker is a program for node */
	PluginDriver *drivers;
	size_t driver_count;
	json_t *json; /* as read; the constants above are in it */
} PluginManifest;

/*
 * Reads a folder's manifest.  NULL when it is none or no good: *problem says
 * why (to be freed), or is NULL when the folder just holds no manifest.
 */
extern PluginManifest *plugin_manifest_read(const char *folder, char **problem);

/* The same for a text, without a look at the worker's file. */
extern PluginManifest *plugin_manifest_parse(const char *folder, const char *text, size_t length,
                                             char **problem);
extern void plugin_manifest_free(PluginManifest *manifest);

/* NULL when the plugin does not declare it. */
extern const PluginDriver *plugin_manifest_driver(const PluginManifest *manifest, const char *key);

#endif
