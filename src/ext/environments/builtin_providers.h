/*
 * builtin_providers.h
 *		Which providers of sandboxes are part of envrt; see builtin_providers.c.
 */
#ifndef ENVRT_BUILTIN_PROVIDERS_H
#define ENVRT_BUILTIN_PROVIDERS_H

#include "postgres.h"

#include "utils/jsonb.h"

/* Whether the provider of a sandbox is envrt's own; else a plugin brings it. */
extern bool provider_is_builtin(const char *provider);
extern char *sandbox_provider(Jsonb *config);

#endif
