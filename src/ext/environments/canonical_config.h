/*
 * canonical_config.h
 *		An environment's config in its canonical shape; see canonical_config.c.
 */
#ifndef ENVRT_CANONICAL_CONFIG_H
#define ENVRT_CANONICAL_CONFIG_H

#include "postgres.h"

#include "shared/json_library.h"
#include "utils/jsonb.h"

/* A driver's config in its canonical shape (guarded), or ERROR 22023. */
extern json_t *config_canonical(const char *driver, Jsonb *config);
extern json_t *config_canonical_json(const char *driver, json_t *config);

/* What is wrong with a config, or NULL. */
extern char *config_problem(const char *driver, Jsonb *config);

/* What to store: the canonical config, with numbers of keys that pass through as given. */
extern Jsonb *config_stored(const char *driver, Jsonb *given, const json_t *canonical);

#endif
