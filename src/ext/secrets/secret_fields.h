/*
 * secret_fields.h
 *		Which strings of a config are secrets; see secret_fields.c.
 */
#ifndef ENVRT_SECRET_FIELDS_H
#define ENVRT_SECRET_FIELDS_H

#include "postgres.h"

#include "shared/json_library.h"

/* What is to stand in the string's place (it is kept alive by the callee), or NULL: it stays. */
typedef json_t *(*SecretFieldVisitor)(void *data, const char *path, const json_t *string);

/* Calls `visitor` for each string that the schema marks as a secret; `path` is dotted. */
extern void secret_fields_visit(json_t *schema, json_t *config, SecretFieldVisitor visitor,
                                void *data);

#endif
