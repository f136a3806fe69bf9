/*
 * provider_plugin.h
 *		Which plugin is going to make the sandboxes of a provider; see provider_plugin.c.
 */
#ifndef ENVRT_PROVIDER_PLUGIN_H
#define ENVRT_PROVIDER_PLUGIN_H

#include "postgres.h"

/*
 * The plugin's key, in UTF-8 as the provider's name is, for as long as the
 * current memory context; NULL: it is a built-in provider, or nobody's.  Asks
 * the driver host; in the scheduler, where that must not be waited for, ERROR
 * 55P03 unless it is known.
 */
extern const char *provider_plugin(const char *driver_key);

/* In the scheduler: if it is not, it is asked for, and requests are looked at when it is. */
extern bool provider_plugin_is_known(const char *driver_key);

#endif
