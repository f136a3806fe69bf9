/*
 * drivers.c
 *		Which driver serves an environment.
 *
 * A driver has two sides.  The extension's side, a Driver, turns an
 * environment into a call and the answer into a lease; the code that meets
 * the outside runs in the driver host (src/host), where plugins are known too.
 * local and the fake sandbox have no outside and no other side.
 */
#include "postgres.h"

#include "environments/drivers.h"
#include "base/json.h"

static const Driver *const drivers[] = {&local_driver, &fake_driver, &ssh_driver, &plugin_driver};

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

/* The driver of that name (and, for a sandbox, of the config's provider), or ERROR 42704. */
const Driver *
driver_find(const char *name, Jsonb *config)
{
	char *provider = NULL;

	if (strcmp(name, "sandbox") == 0)
		provider = sandbox_provider(config);
	for (int i = 0; i < (int) lengthof(drivers); i++)
	{
		const Driver *driver = drivers[i];

		if (strcmp(driver->name, name) == 0 &&
		    (driver->provider == NULL || strcmp(driver->provider, provider) == 0))
			return driver;
	}
	/* The driver host knows which providers there are. */
	if (provider != NULL)
		return &provider_driver;
	ereport(ERROR,
	        (errcode(ERRCODE_UNDEFINED_OBJECT),
	         errmsg("Environment driver \"%s\" is not registered in the environment runtime yet.",
	                name)));
}
