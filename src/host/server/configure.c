/*
 * configure.c
 *		What the launcher tells the host about its settings.
 *
 * A key that is missing or absurd leaves the setting as it is: the launcher
 * has checked what a person wrote.  (Also of a pluginPath: what can't be read
 * there is left out, and logged, when it is needed.)
 */
#include "calls/call.h"
#include "base/log.h"
#include "plugins/plugin_state.h"
#include "plugins/plugin_turns.h"
#include "plugins/plugin_registry.h"
#include "sandbox/sandbox_config.h"
#include "sandbox/sandbox_directory.h"
#include "server/configure.h"
#include "ssh/ssh_pool.h"
#include "ssh/ssh_settings.h"
#include "plugins/worker_process.h"

#define MAX_MEMORY_MB 1048576
#define MAX_CONCURRENCY 100000

void
settings_configure(const json_t *params)
{
	const json_t *max_calls = json_object_get(params, "maxCalls");
	const json_t *data_directory = json_object_get(params, "dataDirectory");
	const json_t *plugin_path = json_object_get(params, "pluginPath");
	const json_t *plugin_memory = json_object_get(params, "pluginMemoryMb");
	const json_t *plugin_concurrency = json_object_get(params, "pluginConcurrency");

	if (json_is_integer(max_calls) && json_integer_value(max_calls) > 0)
		calls_set_max((size_t) json_integer_value(max_calls));
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
	ssh_settings_configure(params);
	ssh_pool_settings_changed();
}
