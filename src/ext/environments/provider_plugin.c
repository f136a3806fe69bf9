/*
 * provider_plugin.c
 *		Which plugin is going to make the sandboxes of a provider.
 *
 * Several plugins can have one provider.  Which of them is asked is decided
 * before anything is made, and written into the ledger: so all that is ever
 * done to a sandbox is asked of the plugin that made it, after a crash as
 * well, and whatever is installed then.
 *
 * The driver host decides, by the folders that it has read; plugins that are
 * not to be used in this database are named to it.  A backend asks and waits.
 * The scheduler must not wait, least of all in a transaction: it asks, leaves
 * queued what needs the answer, and looks again when that has come.  What was
 * answered holds for a second, so that one answer serves a crowd, and a plugin
 * that is disabled or installed meanwhile is noticed soon.
 */
#include "postgres.h"

#include "hostlink/blocking_calls.h"
#include "hostlink/async_calls.h"
#include "environments/drivers.h"
#include "base/json.h"
#include "lib/ilist.h"
#include "environments/plugin_rows.h"
#include "environments/provider_plugin.h"
#include "ledger/work_due.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "rights/tables.h"
#include "base/timer.h"
#include "environments/builtin_providers.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define VALID_MS 1000
/* Names of providers come from users. */
#define MAX_ASKED 64
/* The driver host may have to read folders first, and run what is in them. */
#define ASK_TIMEOUT_MS (10 * 60 * 1000)

/* What the scheduler has asked. */
typedef struct KnownPlugin
{
	dlist_node node;
	json_t *params; /* what about */
	json_t *plugin; /* its key, or null; NULL: not answered yet */
	TimestampTz valid_until;
} KnownPlugin;

static dlist_head known = DLIST_STATIC_INIT(known);
static int nknown = 0;

/* The question (guarded); NULL: no plugin has to do with it. */
static json_t *
question(const char *driver_key)
{
	json_t *params;

	if (shared_state == NULL || provider_is_builtin(driver_key))
		return NULL;
	params = json_guard(json_pack("{s:s}", "driverKey", driver_key));
	plugins_restrict(params);
	return params;
}

static void
forget(KnownPlugin *plugin)
{
	dlist_delete(&plugin->node);
	nknown--;
	json_decref(plugin->params);
	json_decref(plugin->plugin);
	pfree(plugin);
}

/* See async_calls.h. */
static void
plugin_answered(void *data, const DriverAnswer *answer)
{
	KnownPlugin *plugin = data;

	plugin->plugin = json_incref(json_object_get(answer->result, "pluginKey"));
	if (plugin->plugin == NULL)
	{
		/* Whoever needs it asks again, in a while. */
		forget(plugin);
		return;
	}
	plugin->valid_until = TimestampTzPlusMilliseconds(timer_now(), VALID_MS);
	work_note(WORK_LEASE_REQUESTS);
}

/* What is known about it, if anything; what was known too long ago is forgotten. */
static KnownPlugin *
provider_plugin_find(json_t *params)
{
	TimestampTz now = timer_now();
	KnownPlugin *found = NULL;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &known)
	{
		KnownPlugin *plugin = dlist_container(KnownPlugin, node, iter.cur);

		if (plugin->plugin != NULL && plugin->valid_until < now)
			forget(plugin);
		else if (json_equal(plugin->params, params))
			found = plugin;
	}
	return found;
}

static void
provider_plugin_ask(json_t *params)
{
	KnownPlugin *plugin;

	if (nknown >= MAX_ASKED)
		return;
	plugin = MemoryContextAllocZero(TopMemoryContext, sizeof(KnownPlugin));
	plugin->params = json_incref(params);
	dlist_push_tail(&known, &plugin->node);
	nknown++;
	if (!driver_client_call("envrt/findPlugin", json_incref(params), ASK_TIMEOUT_MS,
	                        plugin_answered, plugin))
		forget(plugin);
}

bool
provider_plugin_is_known(const char *driver_key)
{
	json_t *params = question(driver_key);
	KnownPlugin *plugin;

	if (params == NULL)
		return true;
	plugin = provider_plugin_find(params);
	if (plugin == NULL)
		provider_plugin_ask(params);
	return plugin != NULL && plugin->plugin != NULL;
}

const char *
provider_plugin(const char *driver_key)
{
	json_t *params = question(driver_key);
	json_t *answer;
	KnownPlugin *plugin;

	if (params == NULL)
		return NULL;
	if (!am_scheduler)
	{
		answer = driver_host_call("envrt/findPlugin", params, 2 * (int64) envrt_provider_timeout);
		return json_string_value(json_object_get(answer, "pluginKey"));
	}
	plugin = provider_plugin_find(params);
	if (plugin == NULL || plugin->plugin == NULL)
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
		                errmsg("the driver host has not said yet who has this provider")));
	return json_string_value(json_guard(json_incref(plugin->plugin)));
}
