/*
 * plugin_messages.h
 *		What a plugin's worker says: events of its process (worker_process.h).
 */
#ifndef ENVRT_HOST_PLUGIN_MESSAGES_H
#define ENVRT_HOST_PLUGIN_MESSAGES_H

#include <stddef.h>

#include "shared/jsonrpc.h"

extern void plugin_messages_came(void *plugin, const RpcMessage *message);

extern void plugin_messages_unusable(void *plugin, const RpcIdentity *identity, const char *problem,
                                     const char *line, size_t length);

#endif
