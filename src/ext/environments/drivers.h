/*
 * drivers.h
 *		What the extension's side of a driver does; see drivers.c.
 */
#ifndef ENVRT_DRIVERS_H
#define ENVRT_DRIVERS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "environments/environments.h"
#include "shared/json_library.h"
#include "utils/jsonb.h"

typedef struct AcquireRequest
{
	const Environment *environment;
	const pg_uuid_t *run_id;
	const pg_uuid_t *lease_id;
	const pg_uuid_t *key;          /* of the provider lease: the lease's id, but for a second try */
	const char *workspace_mode;    /* NULL: none */
	const pg_uuid_t *workspace_id; /* NULL: none */
	json_t *replaced;              /* what it takes the place of, for the metadata; NULL: nothing */
} AcquireRequest;

/* What the driver made of it, ready for the lease's row. */
typedef struct AcquiredLease
{
	const char *provider;
	const char *provider_lease_id; /* NULL: none */
	const char *lease_policy;
	Jsonb *metadata;
	json_t *json_metadata;  /* the same, of a provider lease (guarded) */
	TimestampTz expires_at; /* the provider's own end of it; DT_NOEND: none */
} AcquiredLease;

typedef struct ProbeResult
{
	bool ok;
	const char *summary;
	Jsonb *details;
} ProbeResult;

typedef struct Driver
{
	const char *name;     /* environments.driver */
	const char *provider; /* of the sandbox driver, else NULL */

	/*
	 * Whether acquire calls the outside.  Such a call comes before the run is
	 * locked, so that no lock is held while the outside is awaited.
	 */
	bool calls_outside;

	/* Whether what acquire makes outlives the call, and so is in the ledger. */
	bool makes_provider_leases;

	void (*acquire)(const AcquireRequest *request, AcquiredLease *lease);

	/*
	 * The two halves of an acquire that calls the outside, for who can't wait:
	 * the call's params (guarded), and the lease that its result makes.
	 */
	json_t *(*acquire_params)(const AcquireRequest *request, int64 *timeout_ms);
	void (*acquire_result)(const AcquireRequest *request, json_t *result, AcquiredLease *lease);

	/* What every call about an environment has, secrets included (guarded). */
	json_t *(*call_params)(const Environment *environment);

	void (*probe)(const Environment *environment, ProbeResult *result);
} Driver;

extern const Driver local_driver;
extern const Driver fake_driver;
extern const Driver ssh_driver;
extern const Driver provider_driver;
extern const Driver plugin_driver;

extern const Driver *driver_find(const char *name, Jsonb *config);

#endif
