/*
 * sandbox_transfer.h
 *		Files between the server and a sandbox's workspace.
 */
#ifndef ENVRT_HOST_SANDBOX_TRANSFER_H
#define ENVRT_HOST_SANDBOX_TRANSFER_H

#include <jansson.h>

#include "calls/call.h"
#include "sandbox/sandbox_config.h"
#include "transfer/transfer.h"

/* Owns the call, the config and the request from here on.  lease: its id. */
extern void sandbox_transfer(Call *call, const json_t *params, const char *lease,
                             SandboxConfig *config, TransferRequest *request);

#endif
