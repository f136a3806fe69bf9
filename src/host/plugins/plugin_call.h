/*
 * plugin_call.h
 *		Calls of clients that a plugin answers.
 */
#ifndef ENVRT_HOST_PLUGIN_CALL_H
#define ENVRT_HOST_PLUGIN_CALL_H

#include <jansson.h>

#include "calls/call.h"

/* Owns the call from here on; params are the caller's and have a driverKey. */
extern void plugin_call_start(Call *call, const char *method, const json_t *params);

#endif
