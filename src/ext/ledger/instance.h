/*
 * instance.h
 *		Which server this is; see instance.c.
 */
#ifndef ENVRT_INSTANCE_H
#define ENVRT_INSTANCE_H

#include "postgres.h"

#include "utils/uuid.h"

/* What a row of the ledger says about the server that made it. */
typedef struct Instance
{
	uint64 system_identifier;
	Oid database;
	uint32 timeline;
	pg_uuid_t uuid;
} Instance;

/* In the launcher, before it starts any scheduler. */
extern void instance_establish(void);

/*
 * Names a ledger of this server on this machine (palloc'd): what a sandbox here is marked with.
 * No copy of the server or of the database has the same.  NULL where there is no launcher.
 */
extern char *instance_ledger_name(Oid database);

/* This server and the current database; false where there is no launcher. */
extern bool instance_get(Instance *instance);

#endif
