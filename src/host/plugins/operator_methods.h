/*
 * operator_methods.h
 *		What operators ask about plugins, and tell them.
 */
#ifndef ENVRT_HOST_OPERATOR_METHODS_H
#define ENVRT_HOST_OPERATOR_METHODS_H

#include <stdbool.h>

#include <jansson.h>

#include "calls/call.h"

extern bool plugin_methods_has(const char *method);

/* Owns the call from here on; params are the caller's. */
extern void plugin_methods_start(Call *call, const char *method, const json_t *params);

#endif
