/*
 * active_lease.h
 *		Calls to the driver of an active lease; see active_lease.c.
 */
#ifndef ENVRT_ACTIVE_LEASE_H
#define ENVRT_ACTIVE_LEASE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "shared/json_library.h"
#include "rights/tables.h"
#include "utils/jsonb.h"

typedef struct CalledLease
{
	const pg_uuid_t *id;
	pg_uuid_t *company_id;
	pg_uuid_t *environment_id;
	pg_uuid_t *run_id;       /* NULL: none (any more) */
	pg_uuid_t *workspace_id; /* NULL: none */
	char *driver;            /* the lease's own, else the environment's */
	char *provider;          /* NULL: none */
	char *provider_lease_id; /* NULL: none */
	Jsonb *metadata;         /* NULL: none */
	TimestampTz expires_at;  /* DT_NOEND: none */
} CalledLease;

/* Or ERROR: there is none that the caller can see (42704), it is not active (55000). */
extern void called_lease_load(const ApiCall *call, const pg_uuid_t *lease_id, CalledLease *lease);

/* Whether it is of the built-in provider that makes names only. */
extern bool called_lease_is_fake(const CalledLease *lease);

/* Whether it is of the driver host's own provider of that name, and not of a plugin's. */
extern bool called_lease_is_bubblewrap(const CalledLease *lease);

/* Whether a plugin has made what is behind it. */
extern bool called_lease_is_of_plugin(const CalledLease *lease);

/*
 * ERROR 55000 unless it is still of the company and the environment that something was asked for,
 * which is done only now.
 */
extern void called_lease_require_same(const CalledLease *lease, const pg_uuid_t *company_id,
                                      const pg_uuid_t *environment_id);

/* ERROR 42501 unless the ledger's row of the lease is of the company that the lease names. */
extern void called_lease_require_row(const pg_uuid_t *lease_id, const pg_uuid_t *company_id,
                                     const json_t *row);

/*
 * The params of a call about it, secrets included (guarded); ERROR 0A000 when its
 * driver has no such operation, which is for the message.  Call by provider_call().
 */
extern json_t *called_lease_params(const ApiCall *call, const CalledLease *lease,
                                   const char *operation);

/* The param "lease" among those params: what its driver has made of it (a new reference). */
extern json_t *called_lease_json(const CalledLease *lease, const json_t *params);

#endif
