/*
 * worker_services.c
 *		What a plugin's worker asks of the host.
 *
 * Few of the methods that the seed's application offers to plugins mean
 * something here: those that providers of environments need.  They are in the
 * table below, with the capability that the manifest must claim; methods that
 * the application has and we have not are told apart only by the capability
 * that is missing, if it is.  Everything else is unknown.
 *
 * secrets.resolve gives away only what a call that this plugin is working on
 * has brought, which is what its own config refers to; the values are the
 * request's (plugin.c) and go with it.  Newer SDKs say which call theirs is
 * about.  When that is missing, nobody can tell on whose behalf a worker asks:
 * nothing is given away then while calls of several companies are in flight
 * that have secrets.  The rate of each company is limited, so that references
 * can't be guessed.
 *
 * Log lines are masked, and limited: who has more to say than a person could
 * read is cut short, and how much is missing is said.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "plugins/plugin_metrics.h"
#include "plugins/plugin_state.h"
#include "shared/protocol.h"
#include "base/timer.h"
#include "plugins/worker_services.h"

/* Log lines: so many at once, and so many a second. */
#define LOG_BURST 200
#define LOG_RATE 20
#define MAX_LOG 4000
#define MAX_META 500

/* Secrets: so many in so long, for each of the companies that asked last. */
#define SECRETS_MAX 30
#define SECRETS_MS 60000
#define SECRETS_COMPANIES 64
#define MAX_COMPANY 64

typedef struct SecretsRate
{
	char company[MAX_COMPANY];
	uint64_t resolved_at[SECRETS_MAX];
	size_t resolved_next;
	uint64_t used; /* when, among others of the plugin; 0: free */
} SecretsRate;

struct WorkerServices
{
	const PluginManifest *manifest;
	SecretMask *mask;
	const WorkerServicesOwner *functions;
	void *owner;
	PluginState *state; /* NULL before it is needed */
	SecretsRate rates[SECRETS_COMPANIES];
	uint64_t rates_used;
	double log_tokens;
	uint64_t log_at;
	unsigned long log_dropped;
};

/* A request that is being served. */
typedef struct Service
{
	WorkerServices *services;
	json_int_t worker;
	json_t *id;
	const json_t *params;
	const char *invocation;
} Service;

static void
worker_services_answer(const Service *service, json_t *result)
{
	service->services->functions->send(service->services->owner, service->worker,
	                                   rpc_response(json_incref(service->id), result));
}

static void
worker_services_refuse(const Service *service, int code, const char *text)
{
	service->services->functions->send(service->services->owner, service->worker,
	                                   rpc_error(json_incref(service->id), code, text, NULL));
}

/* Takes the text. */
static void
refuse_with(const Service *service, int code, char *text)
{
	worker_services_refuse(service, code, text);
	free(text);
}

/*
 * Logging
 */

static bool
may_log(WorkerServices *services)
{
	uint64_t now = now_ms();

	services->log_tokens += (double) (now - services->log_at) * LOG_RATE / 1000;
	if (services->log_at == 0 || services->log_tokens > LOG_BURST)
		services->log_tokens = LOG_BURST;
	services->log_at = now;
	if (services->log_tokens < 1)
	{
		services->log_dropped++;
		return false;
	}
	services->log_tokens -= 1;
	if (services->log_dropped > 0)
		log_message(LOG_WARNING, "plugin \"%s\": %lu log lines are left out",
		            services->manifest->id, services->log_dropped);
	services->log_dropped = 0;
	return true;
}

static void
log_masked(WorkerServices *services, LogLevel level, const char *what, const char *text,
           size_t length)
{
	char *shown = secret_mask_excerpt(services->mask, text, length, MAX_LOG);

	log_message(level, "plugin \"%s\": %s%s", services->manifest->id, what, shown);
	secret_free(shown);
}

void
worker_services_log_noise(WorkerServices *services, const char *text, size_t length)
{
	if (may_log(services))
		log_masked(services, LOG_LOG, "on its output: ", text, length);
}

static void
serve_log(WorkerServices *services, const json_t *params)
{
	const char *level = json_string_value(json_object_get(params, "level"));
	const char *message = json_string_value(json_object_get(params, "message"));
	const json_t *meta = json_object_get(params, "meta");
	LogLevel known = LOG_LOG;
	char *dumped = NULL;
	char *shown_meta = NULL;
	char *shown;

	if (message == NULL || !may_log(services))
		return;
	if (level != NULL && strcmp(level, "debug") == 0)
		known = LOG_DEBUG;
	else if (level != NULL && (strcmp(level, "warn") == 0 || strcmp(level, "error") == 0))
		known = LOG_WARNING;
	if (json_object_size(meta) > 0)
		dumped = json_dumps(meta, JSON_COMPACT);
	if (dumped != NULL)
		shown_meta = secret_mask_excerpt(services->mask, dumped, strlen(dumped), MAX_META);
	shown = secret_mask_excerpt(services->mask, message, strlen(message), MAX_LOG);
	log_message(known, "plugin \"%s\": %s%s%s", services->manifest->id, shown,
	            shown_meta ? " " : "", shown_meta ? shown_meta : "");
	secret_free(shown);
	secret_free(shown_meta);
	secret_free(dumped);
}

static void
log_request(Service *service)
{
	serve_log(service->services, service->params);
	worker_services_answer(service, json_null());
}

/*
 * Config and secrets
 */

/* A plugin has no config of its own here: what it needs comes with each environment. */
static void
get_config(Service *service)
{
	worker_services_answer(service, json_object());
}

static bool
is_uuid(const char *text)
{
	for (size_t i = 0; i < 36; i++)
	{
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? text[i] != '-' : !isxdigit((unsigned char) text[i]))
			return false;
	}
	return text[36] == '\0';
}

static SecretsRate *
rate_of(WorkerServices *services, const char *company)
{
	SecretsRate *rate = services->rates;

	for (size_t i = 0; i < SECRETS_COMPANIES; i++)
	{
		SecretsRate *one = &services->rates[i];

		if (one->used != 0 && strncmp(one->company, company, MAX_COMPANY - 1) == 0)
		{
			one->used = ++services->rates_used;
			return one;
		}
		if (one->used < rate->used)
			rate = one;
	}
	memset(rate, 0, sizeof *rate);
	strncpy(rate->company, company, MAX_COMPANY - 1);
	rate->used = ++services->rates_used;
	return rate;
}

static bool
may_resolve(WorkerServices *services, const char *company)
{
	SecretsRate *rate = rate_of(services, company != NULL ? company : "");
	uint64_t now = now_ms();
	uint64_t *oldest = &rate->resolved_at[rate->resolved_next];

	if (*oldest != 0 && now - *oldest < SECRETS_MS)
		return false;
	*oldest = now > 0 ? now : 1;
	rate->resolved_next = (rate->resolved_next + 1) % SECRETS_MAX;
	return true;
}

static void
resolve_secret(Service *service)
{
	WorkerServices *services = service->services;
	const json_t *given = json_object_get(service->params, "secretRef");
	const json_t *value;
	const char *company;
	bool one = services->functions->company(services->owner, service->invocation, &company);
	char *reference;

	/* Newer SDKs also take the object that is in the config. */
	if (json_is_object(given))
		given = json_object_get(given, "secretId");
	reference = clean_text(json_is_string(given) ? json_string_value(given) : "",
	                       json_string_length(given), 100, false);
	if (!may_resolve(services, one ? company : NULL))
		worker_services_refuse(service, RPC_INTERNAL_ERROR,
		                       "Rate limit exceeded for secret resolution");
	else if (!is_uuid(reference))
		refuse_with(service, RPC_INTERNAL_ERROR,
		            xformat("Invalid secret reference: %s", reference));
	else if (!one)
		worker_services_refuse(
		    service, RPC_INTERNAL_ERROR,
		    "Secret refused: calls of several companies are under way, and the request does "
		    "not say with paperclipInvocationId which of them it is about");
	else
	{
		for (char *c = reference; *c != '\0'; c++)
			*c = (char) tolower((unsigned char) *c);
		value = services->functions->secret(services->owner, service->invocation, reference);
		if (value == NULL)
			refuse_with(service, RPC_INTERNAL_ERROR, xformat("Secret not found: %s", reference));
		else if (!json_is_string(value))
			refuse_with(service, RPC_INTERNAL_ERROR,
			            xformat("No version found for secret: %s", reference));
		else
			/* A copy, so that its memory is the message's. */
			worker_services_answer(service, json_deep_copy(value));
	}
	free(reference);
}

/*
 * State and metrics
 */

static PluginState *
state_of(WorkerServices *services)
{
	if (services->state == NULL)
		services->state = plugin_state_open(services->manifest->id);
	return services->state;
}

static void
get_state(Service *service)
{
	const char *problem;
	json_t *value = plugin_state_get(state_of(service->services), service->params, &problem);

	if (problem != NULL)
		worker_services_refuse(service, RPC_INTERNAL_ERROR, problem);
	else
		worker_services_answer(service, value ? json_incref(value) : json_null());
}

static void
stored(void *data, const char *problem)
{
	Service *service = data;
	WorkerServices *services = service->services;

	if (problem != NULL)
		worker_services_refuse(service, RPC_INTERNAL_ERROR, problem);
	else
		worker_services_answer(service, json_null());
	json_decref(service->id);
	free(service);
	services->functions->release(services->owner);
}

static Service *
worker_services_keep(const Service *service)
{
	Service *copy = xcalloc(1, sizeof *copy);

	*copy = *service;
	copy->params = NULL;
	copy->invocation = NULL;
	json_incref(copy->id);
	copy->services->functions->keep(copy->services->owner);
	return copy;
}

static void
worker_services_set_state(Service *service)
{
	plugin_state_set(state_of(service->services), service->params, stored,
	                 worker_services_keep(service));
}

static void
delete_state(Service *service)
{
	plugin_state_delete(state_of(service->services), service->params, stored,
	                    worker_services_keep(service));
}

static void
write_metric(Service *service)
{
	WorkerServices *services = service->services;
	const char *problem =
	    plugin_metrics_write(services->manifest->id, services->mask, service->params);

	if (problem != NULL)
		worker_services_refuse(service, RPC_INTERNAL_ERROR, problem);
	else
		worker_services_answer(service, json_null());
}

/*
 * All
 */

static const struct
{
	const char *method;
	const char *capability; /* NULL: none */
	void (*serve)(Service *service);
} known[] = {
    {"config.get", NULL, get_config},
    {"log", NULL, log_request},
    {"secrets.resolve", "secrets.read-ref", resolve_secret},
    {"state.get", "plugin.state.read", get_state},
    {"state.set", "plugin.state.write", worker_services_set_state},
    {"state.delete", "plugin.state.write", delete_state},
    {"metrics.write", "metrics.write", write_metric},
    /* Not served; what they would need is said first. */
    {"db.namespace", "database.namespace.read", NULL},
    {"db.query", "database.namespace.read", NULL},
    {"db.execute", "database.namespace.write", NULL},
    {"events.emit", "events.emit", NULL},
    {"events.subscribe", "events.subscribe", NULL},
    {"http.fetch", "http.outbound", NULL},
    {"activity.log", "activity.log.write", NULL},
    {"telemetry.track", "telemetry.track", NULL},
};

static void
serve_request(Service *service, const char *method)
{
	const PluginManifest *manifest = service->services->manifest;
	char *shown;

	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
	{
		if (strcmp(known[i].method, method) != 0)
			continue;
		if (known[i].capability != NULL &&
		    !plugin_manifest_has_capability(manifest, known[i].capability))
		{
			refuse_with(service, RPC_CAPABILITY_DENIED,
			            xformat("Plugin \"%s\" is missing required capability \"%s\" for method "
			                    "\"%s\"",
			                    manifest->id, known[i].capability, method));
			return;
		}
		if (known[i].serve == NULL)
			break;
		known[i].serve(service);
		return;
	}
	shown = clean_text(method, strlen(method), 200, false);
	refuse_with(service, RPC_METHOD_NOT_FOUND,
	            xformat("Host does not handle method \"%s\"", shown));
	free(shown);
}

void
worker_services_serve(WorkerServices *services, json_int_t worker, const RpcMessage *message)
{
	if (message->kind == RPC_REQUEST)
	{
		Service service = {
		    .services = services,
		    .worker = worker,
		    .id = message->id,
		    .params = message->params,
		    .invocation =
		        json_string_value(json_object_get(message->root, "paperclipInvocationId")),
		};

		serve_request(&service, message->method);
	}
	else if (strcmp(message->method, "log") == 0)
		serve_log(services, message->params);
}

WorkerServices *
worker_services_new(const PluginManifest *manifest, SecretMask *mask,
                    const WorkerServicesOwner *functions, void *owner)
{
	WorkerServices *services = xcalloc(1, sizeof *services);

	services->manifest = manifest;
	services->mask = mask;
	services->functions = functions;
	services->owner = owner;
	return services;
}

void
worker_services_free(WorkerServices *services)
{
	if (services->state != NULL)
		plugin_state_release(services->state);
	free(services);
}
