/*
 * environments.h
 *		Environments as rows; see environments.c.
 */
#ifndef ENVRT_ENVIRONMENTS_H
#define ENVRT_ENVIRONMENTS_H

#include "postgres.h"

#include "shared/json_library.h"
#include "rights/tables.h"
#include "utils/jsonb.h"

typedef struct Environment
{
	pg_uuid_t *id; /* NULL: a config that is not stored */
	pg_uuid_t *company_id;
	char *name;
	char *driver;
	char *status;
	Jsonb *config;
	const char *unsaved_private_key; /* of a probed config, UTF-8; NULL: by its reference */
	json_t *unsaved_secrets;         /* values in a probed config, to be masked; NULL: none */
} Environment;

extern Environment *environment_load(const ApiCall *call, const pg_uuid_t *id);
extern void environment_require_active(const Environment *environment);
extern void environment_check_again(const Environment *environment, bool wait);

#endif
