/*
 * secrets.h
 *		Company secrets; see secrets.c.
 */
#ifndef ENVRT_SECRETS_H
#define ENVRT_SECRETS_H

#include "postgres.h"

#include "shared/json_library.h"

#include "rights/tables.h"

/* value: UTF-8. */
extern pg_uuid_t *secret_create(const pg_uuid_t *company_id, const char *name, const char *value,
                                size_t length, const char *description);

#endif
