/*
 * worker_services.h
 *		What a plugin's worker asks of the host.
 */
#ifndef ENVRT_HOST_WORKER_SERVICES_H
#define ENVRT_HOST_WORKER_SERVICES_H

#include <stdbool.h>

#include <jansson.h>

#include "shared/jsonrpc.h"
#include "plugins/plugin_manifest.h"
#include "calls/secret_mask.h"

typedef struct WorkerServices WorkerServices;

/* What it needs of the plugin, which is the owner. */
typedef struct WorkerServicesOwner
{
	/* Sends a message to the worker that has this number, if it is still there. */
	void (*send)(void *owner, json_int_t worker, json_t *message);

	/*
	 * The company of the call in flight with this invocation.  When that is NULL,
	 * of all calls in flight that brought secrets; false when there are several.
	 * *company may be NULL.
	 */
	bool (*company)(void *owner, const char *invocation, const char **company);

	/*
	 * The value of a secret that a call in flight brought: of the call with this
	 * invocation, or of any when it is NULL, which is the asker's only when all of
	 * them are of one company.  NULL when there is none.
	 */
	const json_t *(*secret)(void *owner, const char *invocation, const char *reference);

	/* Keep the owner while an answer is on its way. */
	void (*keep)(void *owner);
	void (*release)(void *owner);
} WorkerServicesOwner;

/* The manifest and the mask are the owner's. */
extern WorkerServices *worker_services_new(const PluginManifest *manifest, SecretMask *mask,
                                           const WorkerServicesOwner *functions, void *owner);
extern void worker_services_free(WorkerServices *services);

/* A request or a notification of a worker. */
extern void worker_services_serve(WorkerServices *services, json_int_t worker,
                                  const RpcMessage *message);

/* A line for the log, masked, unless there are too many. */
extern void worker_services_log_noise(WorkerServices *services, const char *text, size_t length);

#endif
