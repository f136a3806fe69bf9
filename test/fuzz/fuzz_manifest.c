/*
 * fuzz_manifest.c
 *		Arbitrary manifests of plugins: no crash, and what is accepted is safe to
 *		use; and arbitrary secrets in arbitrary texts: none is left in.
 *
 * The first byte chooses between the two; a secret is what comes before the
 * first NUL.
 *
 * fuzz: src/host/plugins/plugin_manifest.c src/host/calls/secret_mask.c
 * fuzz: src/host/base/memory.c src/host/base/log.c
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "plugins/plugin_manifest.h"
#include "calls/secret_mask.h"

extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_accepted(const PluginManifest *manifest)
{
	/* It is part of a file's name, and of an environment variable. */
	if (manifest->id[0] == '\0' || strlen(manifest->id) > 200 ||
	    strchr(manifest->id, '/') != NULL || manifest->id[0] == '.' ||
	    manifest->version[0] == '\0' || manifest->display_name[0] == '\0')
		abort();
	if (strncmp(manifest->worker, "/folder/", 8) != 0 || strstr(manifest->worker, "/../") != NULL ||
	    strchr(manifest->worker, '\n') != NULL)
		abort();
	for (size_t i = 0; i < manifest->driver_count; i++)
		if (plugin_manifest_driver(manifest, manifest->drivers[i].key) != &manifest->drivers[i])
			abort();
	if (manifest->driver_count > 0 &&
	    !plugin_manifest_has_capability(manifest, "environment.drivers.register"))
		abort();
}

static void
check_manifest(const char *text, size_t length)
{
	char *problem = NULL;
	char *id = NULL;
	PluginManifest *manifest = plugin_manifest_parse("/folder", text, length, &problem, &id);

	if ((manifest == NULL) == (problem == NULL) || (manifest != NULL && id != NULL))
		abort();
	if (manifest != NULL)
	{
		check_accepted(manifest);
		plugin_manifest_free(manifest);
	}
	free(problem);
	free(id);
}

static void
check_mask(const char *data, size_t length)
{
	size_t secret_length = strnlen(data, length);
	json_t *secrets = json_pack("{s:s%}", "id", data, secret_length);
	SecretMask *mask;
	char *text;
	size_t text_length = secret_length < length ? length - secret_length - 1 : 0;

	/* No text. */
	if (secrets == NULL)
		return;
	mask = secret_mask_new(NULL, NULL);
	secret_mask_learn(mask, "company", secrets);
	secret_mask_learn(mask, "company", secrets);
	/* The secret twice, and what the fuzzer thinks of between them. */
	text = malloc(text_length + 2 * secret_length + 1);
	if (text == NULL)
		abort();
	memcpy(text, data, secret_length);
	memcpy(text + secret_length, data + length - text_length, text_length);
	memcpy(text + secret_length + text_length, data, secret_length);
	secret_mask_apply(mask, text, text_length + 2 * secret_length);
	/* Asterisks of a secret can't be told from those that hide one. */
	if (secret_length >= 4 && memchr(data, '*', secret_length) == NULL &&
	    memmem(text, text_length + 2 * secret_length, data, secret_length) != NULL)
		abort();
	free(text);
	secret_mask_free(mask);
	json_decref(secrets);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (sodium_init() < 0)
		abort();
	if (size == 0)
		return 0;
	if (data[0] % 2 == 0)
		check_manifest((const char *) data + 1, size - 1);
	else
		check_mask((const char *) data + 1, size - 1);
	return 0;
}
