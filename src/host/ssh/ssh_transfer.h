/*
 * ssh_transfer.h
 *		Files between the server and a workspace on a remote host.
 */
#ifndef ENVRT_HOST_SSH_TRANSFER_H
#define ENVRT_HOST_SSH_TRANSFER_H

#include <stdbool.h>

#include <jansson.h>

#include "calls/call.h"

/* Owns the call from here on. */
extern void ssh_transfer(Call *call, const json_t *params, bool push);

#endif
