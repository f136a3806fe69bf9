/*
 * builtin_providers.c
 *		Which providers of sandboxes are part of envrt; any other is brought by a plugin.
 */
#include "postgres.h"

#include "base/json.h"
#include "environments/builtin_providers.h"

/* A sandbox config's provider, as config_normalize reads it: trimmed, fake when blank. */
char *
sandbox_provider(Jsonb *config)
{
	char *provider = jsonb_string_member(config, "provider");
	size_t length;

	if (provider == NULL)
		return "fake";
	provider += strspn(provider, " \t\r\n");
	length = strlen(provider);
	while (length > 0 && strchr(" \t\r\n", provider[length - 1]) != NULL)
		provider[--length] = '\0';
	return length > 0 ? provider : "fake";
}

bool
provider_is_builtin(const char *provider)
{
	return strcmp(provider, "fake") == 0 || strcmp(provider, "bubblewrap") == 0;
}
