/*
 * config_values.h
 *		Values of a config: read, checked and coerced; see config_values.c.
 */
#ifndef ENVRT_CONFIG_VALUES_H
#define ENVRT_CONFIG_VALUES_H

#include <stdbool.h>
#include <stddef.h>

#include "shared/driver_config.h"

/* Cuts at a whole character. */
extern void config_copy_utf8(char *buffer, size_t size, const char *text);
extern void config_add_issue(ConfigIssues *issues, const char *path, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
extern void config_add_type_issue(ConfigIssues *issues, const char *path, const char *expected,
                                  const json_t *value);

/* Narrows a text as String.prototype.trim() does. */
extern void config_js_trim(const char **text, size_t *length);

/*
 * A key of the config as a new reference, with its default where it may lack.  What is wrong
 * is added to the issues.
 */
extern json_t *config_read_integer(json_t *config, const char *key, double min, double max,
                                   ConfigIssues *issues);
extern json_t *config_read_boolean(json_t *config, const char *key, bool otherwise,
                                   ConfigIssues *issues);
extern bool config_string_bytes(json_t *value, const char *key, const char **text, size_t *length,
                                ConfigIssues *issues);
extern json_t *config_read_required_string(json_t *config, const char *key, const char *empty_text,
                                           ConfigIssues *issues);
extern json_t *config_read_name(json_t *config, const char *key, const char *what,
                                ConfigIssues *issues);
extern void config_check_unknown_keys(json_t *object, const char *const *known, const char *path,
                                      ConfigIssues *issues);
extern json_t *config_read_secret_reference(json_t *config, ConfigIssues *issues);
extern json_t *config_read_known_hosts(json_t *config, ConfigIssues *issues);

#endif
