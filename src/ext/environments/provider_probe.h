/*
 * provider_probe.h
 *		Probes of environments whose sandboxes a provider makes; see provider_probe.c.
 */
#ifndef ENVRT_PROVIDER_PROBE_H
#define ENVRT_PROVIDER_PROBE_H

#include "postgres.h"

#include "environments/drivers.h"

extern void provider_probe(const Environment *environment, ProbeResult *result);
extern void plugin_probe(const Environment *environment, ProbeResult *result);

#endif
