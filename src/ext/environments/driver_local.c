/*
 * driver_local.c
 *		The driver of the local machine.
 *
 * There is nothing to make, reach or clean up: a lease on the local machine
 * is its row alone, so this works without the driver host.
 */
#include "postgres.h"

#include <unistd.h>

#include "environments/drivers.h"
#include "base/json.h"
#include "miscadmin.h"

static void
local_acquire(const AcquireRequest *request, AcquiredLease *lease)
{
	JsonbObject metadata;

	jsonb_object_begin(&metadata);
	jsonb_object_string(&metadata, "driver", "local");
	jsonb_object_string(&metadata, "executionWorkspaceMode", request->workspace_mode);

	lease->provider = "local";
	lease->provider_lease_id = NULL;
	lease->lease_policy = "ephemeral";
	lease->metadata = jsonb_object_end(&metadata);
}

static void
local_probe(const Environment *environment, ProbeResult *result)
{
	char hostname[256] = "";
	JsonbObject details;

	if (gethostname(hostname, sizeof(hostname) - 1) != 0)
		strlcpy(hostname, "unknown", sizeof(hostname));
	jsonb_object_begin(&details);
	jsonb_object_string(&details, "cwd", DataDir);
	jsonb_object_string(&details, "hostname", hostname);

	result->ok = true;
	result->summary = "Local environment is available on this Paperclip host.";
	result->details = jsonb_object_end(&details);
}

const Driver local_driver = {
    .name = "local",
    .acquire = local_acquire,
    .probe = local_probe,
};
