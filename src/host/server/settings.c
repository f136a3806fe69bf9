/*
 * settings.c
 *		What the launcher tells the host about its settings.
 *
 * A key that is missing or absurd leaves the setting as it is: the launcher
 * has checked what a person wrote.  (Also of a pluginPath: what can't be read
 * there is left out, and logged, when it is needed.)  allowedHosts is the exception: what is no
 * list must not open every host.
 */
#include "calls/call.h"
#include "base/log.h"
#include "plugins/plugin_state.h"
#include "plugins/plugin_turns.h"
#include "plugins/plugins.h"
#include "sandbox/sandbox_config.h"
#include "sandbox/sandbox_place.h"
#include "server/settings.h"
#include "ssh/ssh_pool.h"
#include "plugins/worker_process.h"

#define MAX_MEMORY_MB 1048576
#define MAX_CONCURRENCY 100000

Settings settings = {
    .ssh_idle_timeout_ms = 60000, .ssh_keepalive_ms = 15000, .ssh_sessions_per_host = 4};

void
settings_configure(const json_t *params)
{
	const json_t *idle = json_object_get(params, "sshIdleTimeoutMs");
	const json_t *keepalive = json_object_get(params, "sshKeepaliveMs");
	const json_t *sessions = json_object_get(params, "sshSessionsPerHost");
	const json_t *max_calls = json_object_get(params, "maxCalls");
	const json_t *hosts = json_object_get(params, "allowedHosts");
	const json_t *data_directory = json_object_get(params, "dataDirectory");
	const json_t *plugin_path = json_object_get(params, "pluginPath");
	const json_t *plugin_memory = json_object_get(params, "pluginMemoryMb");
	const json_t *plugin_concurrency = json_object_get(params, "pluginConcurrency");

	if (json_is_integer(idle) && json_integer_value(idle) >= 0)
		settings.ssh_idle_timeout_ms = (uint64_t) json_integer_value(idle);
	if (json_is_integer(keepalive) && json_integer_value(keepalive) >= 0)
		settings.ssh_keepalive_ms = (uint64_t) json_integer_value(keepalive);
	if (json_is_integer(sessions) && json_integer_value(sessions) > 0 &&
	    json_integer_value(sessions) <= 1000)
		settings.ssh_sessions_per_host = (unsigned) json_integer_value(sessions);
	if (json_is_integer(max_calls) && json_integer_value(max_calls) > 0)
		calls_set_max((size_t) json_integer_value(max_calls));
	if (json_is_array(hosts))
	{
		allowed_hosts_free(settings.allowed_hosts);
		settings.allowed_hosts = allowed_hosts_new(hosts);
	}
	else if (hosts != NULL && !json_is_null(hosts))
		log_message(LOG_WARNING, "configure: allowedHosts is no list, left as it was");
	if (json_is_array(plugin_path))
		plugins_set_path(plugin_path);
	if (json_is_integer(plugin_memory) && json_integer_value(plugin_memory) >= 0 &&
	    json_integer_value(plugin_memory) <= MAX_MEMORY_MB)
		worker_process_limit_memory((unsigned long long) json_integer_value(plugin_memory) * 1024 *
		                            1024);
	if (json_is_integer(plugin_concurrency) && json_integer_value(plugin_concurrency) > 0 &&
	    json_integer_value(plugin_concurrency) <= MAX_CONCURRENCY)
		plugin_turns_set_limit((size_t) json_integer_value(plugin_concurrency));
	if (json_is_string(data_directory))
		plugin_state_set_directory(json_string_value(data_directory));
	sandbox_place_configure(params);
	sandbox_config_configure(params);
	ssh_pool_settings_changed();
}
