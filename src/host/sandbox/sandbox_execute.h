/*
 * sandbox_execute.h
 *		environmentExecute in a sandbox, and the probe that is one.
 */
#ifndef ENVRT_HOST_SANDBOX_EXECUTE_H
#define ENVRT_HOST_SANDBOX_EXECUTE_H

#include <jansson.h>

#include "calls/call.h"
#include "calls/execute_request.h"
#include "sandbox/sandbox_config.h"

/* Makes the call's answer of the command's: takes both, of which one is NULL. */
typedef void (*SandboxAnswer)(Call *call, json_t *result, HostError *error);

/*
 * Owns the call, the config and the request from here on.  lease: its id; NULL
 * for a sandbox that goes with the command.
 */
extern void sandbox_execute(Call *call, const char *lease, SandboxConfig *config,
                            ExecuteRequest *request, SandboxAnswer answer);

#endif
