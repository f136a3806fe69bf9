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
#include "environments/builtin_providers.h"

static const Driver *const drivers[] = {&local_driver, &fake_driver, &ssh_driver, &plugin_driver};

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
