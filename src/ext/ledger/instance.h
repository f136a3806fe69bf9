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

/* " AND ..." for rows that this server made; parameters $1 to $4, see ledger_own_arguments. */
#define LEDGER_OWN_OF(table)                                                                       \
	" " table "system_identifier = $1 AND " table "database_id = $2 AND " table                    \
	"timeline = $3 AND " table "instance = $4"
#define LEDGER_OWN LEDGER_OWN_OF("")
#define LEDGER_OWN_TYPES INT8OID, OIDOID, INT8OID, UUIDOID

extern void ledger_own_arguments(Datum *values);

#endif
