/*
 * stats.c
 *		The functions behind the views envrt.stat_*.
 *
 * Processes are read from shared memory.  What the driver host is doing is
 * asked from it, over the same connection as calls; a view of it is empty
 * while there is none, rather than an error in a monitoring query.
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/compat.h"
#include "hostlink/blocking_calls.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "base/json.h"
#include "miscadmin.h"
#include "base/shared_state.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(envrt_driver_host_stats);
PG_FUNCTION_INFO_V1(envrt_call_stats);
PG_FUNCTION_INFO_V1(envrt_latency_stats);
PG_FUNCTION_INFO_V1(envrt_ssh_session_stats);
PG_FUNCTION_INFO_V1(envrt_transfer_stats);
PG_FUNCTION_INFO_V1(envrt_sandbox_stats);
PG_FUNCTION_INFO_V1(envrt_scheduler_stats);
PG_FUNCTION_INFO_V1(envrt_failure_stats);
PG_FUNCTION_INFO_V1(envrt_plugins);
PG_FUNCTION_INFO_V1(envrt_plugin_metric_stats);

#define STATS_TIMEOUT_MS 1000
/* The folders may have to be read first, with programs that are to be run. */
#define PLUGINS_TIMEOUT_MS 20000

static json_t *
ask_driver_host(void)
{
	return driver_host_ask("envrt/stats", STATS_TIMEOUT_MS);
}

static Datum
timestamp_member(const json_t *object, const char *key, bool *isnull)
{
	const json_t *value = json_object_get(object, key);

	*isnull = !json_is_number(value);
	if (*isnull)
		return (Datum) 0;
	/* Unix milliseconds to PostgreSQL's microseconds since 2000. */
	return TimestampTzGetDatum((TimestampTz) json_number_value(value) * 1000 -
	                           (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY);
}

static Datum
stats_text_member(const json_t *object, const char *key, bool *isnull)
{
	const char *value = json_string_value(json_object_get(object, key));

	*isnull = value == NULL;
	return value != NULL ? CStringGetTextDatum(text_from_utf8(value)) : (Datum) 0;
}

static Datum
uuid_member(const json_t *object, const char *key, bool *isnull)
{
	const char *value = json_string_value(json_object_get(object, key));

	*isnull = value == NULL;
	return value != NULL ? DirectFunctionCall1(uuid_in, CStringGetDatum(value)) : (Datum) 0;
}

static int64
integer_member(const json_t *object, const char *key)
{
	return (int64) json_integer_value(json_object_get(object, key));
}

/*
 * envrt.driver_host_stats()
 */
Datum
envrt_driver_host_stats(PG_FUNCTION_ARGS)
{
	static const char *const states[] = {"stopped", "starting", "running"};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum values[9] = {0};
	bool nulls[9] = {false};
	TimestampTz settings_since;
	HostState state;
	char last_exit[128];
	json_t *host;

	compat_begin_result_set(fcinfo);
	if (shared_state == NULL)
		return (Datum) 0;
	host = json_object_get(ask_driver_host(), "host");
	LWLockAcquire(shared_state->lock, LW_SHARED);
	state = shared_state->host_state;
	values[0] = Int32GetDatum(shared_state->host_pid);
	values[2] = TimestampTzGetDatum(shared_state->host_since);
	values[3] = Int64GetDatum(shared_state->host_restarts);
	settings_since = shared_state->host_settings_since;
	strlcpy(last_exit, shared_state->host_last_exit, sizeof(last_exit));
	LWLockRelease(shared_state->lock);

	nulls[0] = state == HOST_STOPPED;
	values[1] = CStringGetTextDatum(states[state]);
	nulls[2] = state != HOST_RUNNING;
	nulls[4] = last_exit[0] == '\0';
	values[4] = CStringGetTextDatum(last_exit);
	nulls[5] = nulls[6] = nulls[7] = host == NULL;
	values[5] = Int64GetDatum(integer_member(host, "calls"));
	values[6] = Int32GetDatum((int32) integer_member(host, "activeCalls"));
	values[7] = Int64GetDatum(integer_member(host, "rssBytes"));
	nulls[8] = settings_since == 0;
	values[8] = TimestampTzGetDatum(settings_since);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
}

/*
 * envrt.call_stats()
 */
Datum
envrt_call_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	size_t i;
	json_t *call;

	compat_begin_result_set(fcinfo);
	json_array_foreach(json_object_get(ask_driver_host(), "calls"), i, call)
	{
		Datum values[6];
		bool nulls[6] = {false};

		nulls[0] = !json_is_integer(json_object_get(call, "pid"));
		values[0] = Int32GetDatum((int32) integer_member(call, "pid"));
		values[1] = stats_text_member(call, "method", &nulls[1]);
		values[2] = stats_text_member(call, "driver", &nulls[2]);
		values[3] = stats_text_member(call, "target", &nulls[3]);
		values[4] = stats_text_member(call, "state", &nulls[4]);
		values[5] = timestamp_member(call, "startedAt", &nulls[5]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * envrt.latency_stats()
 */
Datum
envrt_latency_stats(PG_FUNCTION_ARGS)
{
	static const char *const times[] = {"totalUs", "p50Us", "p95Us", "p99Us", "maxUs"};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	size_t i;
	json_t *latency;

	compat_begin_result_set(fcinfo);
	json_array_foreach(json_object_get(ask_driver_host(), "latency"), i, latency)
	{
		Datum values[9];
		bool nulls[9] = {false};

		values[0] = stats_text_member(latency, "driver", &nulls[0]);
		values[1] = stats_text_member(latency, "method", &nulls[1]);
		values[2] = Int64GetDatum(integer_member(latency, "calls"));
		values[3] = Int64GetDatum(integer_member(latency, "errors"));
		for (int j = 0; j < (int) lengthof(times); j++)
			values[4 + j] = Float8GetDatum((double) integer_member(latency, times[j]) / 1000.0);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * envrt.ssh_session_stats()
 */
Datum
envrt_ssh_session_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	size_t i;
	json_t *session;

	compat_begin_result_set(fcinfo);
	json_array_foreach(json_object_get(ask_driver_host(), "sshSessions"), i, session)
	{
		Datum values[7];
		bool nulls[7] = {false};

		values[0] = stats_text_member(session, "host", &nulls[0]);
		values[1] = Int32GetDatum((int32) integer_member(session, "port"));
		values[2] = stats_text_member(session, "user", &nulls[2]);
		values[3] = uuid_member(session, "companyId", &nulls[3]);
		values[4] = Int32GetDatum((int32) integer_member(session, "channels"));
		values[5] = timestamp_member(session, "idleSince", &nulls[5]);
		values[6] = Int64GetDatum(integer_member(session, "calls"));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * envrt.sandbox_stats()
 */
Datum
envrt_sandbox_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	size_t i;
	json_t *sandbox;

	compat_begin_result_set(fcinfo);
	json_array_foreach(json_object_get(ask_driver_host(), "sandboxes"), i, sandbox)
	{
		Datum values[4];
		bool nulls[4] = {false};

		values[0] = uuid_member(sandbox, "leaseId", &nulls[0]);
		values[1] = stats_text_member(sandbox, "image", &nulls[1]);
		values[2] = Int32GetDatum((int32) integer_member(sandbox, "commands"));
		values[3] = timestamp_member(sandbox, "since", &nulls[3]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * envrt.transfer_stats()
 */
Datum
envrt_transfer_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	size_t i;
	json_t *transfer;

	compat_begin_result_set(fcinfo);
	json_array_foreach(json_object_get(ask_driver_host(), "transfers"), i, transfer)
	{
		Datum values[9];
		bool nulls[9] = {false};

		values[0] = Int32GetDatum((int32) integer_member(transfer, "pid"));
		values[1] = uuid_member(transfer, "leaseId", &nulls[1]);
		values[2] = stats_text_member(transfer, "driver", &nulls[2]);
		values[3] = stats_text_member(transfer, "direction", &nulls[3]);
		values[4] = stats_text_member(transfer, "localPath", &nulls[4]);
		values[5] = stats_text_member(transfer, "remotePath", &nulls[5]);
		values[6] = Int64GetDatum(integer_member(transfer, "files"));
		values[7] = Int64GetDatum(integer_member(transfer, "bytes"));
		values[8] = timestamp_member(transfer, "startedAt", &nulls[8]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * envrt.scheduler_stats()
 */
Datum
envrt_scheduler_stats(PG_FUNCTION_ARGS)
{
	static const char *const states[] = {"free", "starting", "running", "stopping", "stopping"};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SchedulerSlot *slots;
	int nslots = 0;

	compat_begin_result_set(fcinfo);
	if (shared_state == NULL)
		return (Datum) 0;
	slots = palloc(sizeof(SchedulerSlot) * shared_state->nslots);
	LWLockAcquire(shared_state->lock, LW_SHARED);
	for (int i = 0; i < shared_state->nslots; i++)
		if (shared_state->slots[i].state != SCHEDULER_FREE)
			slots[nslots++] = shared_state->slots[i];
	LWLockRelease(shared_state->lock);
	for (int i = 0; i < nslots; i++)
	{
		Datum values[5];
		bool nulls[5] = {false};

		values[0] = ObjectIdGetDatum(slots[i].database);
		nulls[1] = slots[i].pid == 0;
		values[1] = Int32GetDatum(slots[i].pid);
		values[2] = CStringGetTextDatum(states[slots[i].state]);
		values[3] = TimestampTzGetDatum(slots[i].since);
		values[4] = Int32GetDatum(slots[i].failing);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * envrt.failure_stats()
 */
Datum
envrt_failure_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ShownFailure *failures;
	int nfailures = 0;

	compat_begin_result_set(fcinfo);
	if (shared_state == NULL)
		return (Datum) 0;
	failures = palloc(sizeof(shared_state->failures));
	LWLockAcquire(shared_state->lock, LW_SHARED);
	for (int i = 0; i < MAX_SHOWN_FAILURES; i++)
		if (shared_state->failures[i].database == MyDatabaseId)
			failures[nfailures++] = shared_state->failures[i];
	LWLockRelease(shared_state->lock);
	for (int i = 0; i < nfailures; i++)
	{
		Datum values[8];
		bool nulls[8] = {false};

		values[0] = CStringGetTextDatum(failures[i].activity);
		nulls[1] = !failures[i].has_id;
		values[1] = UUIDPGetDatum(&failures[i].id);
		values[2] = Int32GetDatum(failures[i].attempts);
		values[3] = TimestampTzGetDatum(failures[i].since);
		values[4] = TimestampTzGetDatum(failures[i].last);
		values[5] = TimestampTzGetDatum(failures[i].retry_at);
		values[6] = CStringGetTextDatum(unpack_sql_state(failures[i].sqlstate));
		values[7] = CStringGetTextDatum(failures[i].message);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * envrt_plugins()
 */
Datum
envrt_plugins(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	size_t i;
	json_t *plugin;

	compat_begin_result_set(fcinfo);
	json_array_foreach(
	    json_object_get(driver_host_ask("envrt/plugins", PLUGINS_TIMEOUT_MS), "plugins"), i, plugin)
	{
		Datum values[12];
		bool nulls[12] = {false};

		values[0] = stats_text_member(plugin, "key", &nulls[0]);
		values[1] = stats_text_member(plugin, "version", &nulls[1]);
		values[2] = stats_text_member(plugin, "displayName", &nulls[2]);
		values[3] = stats_text_member(plugin, "path", &nulls[3]);
		values[4] = stats_text_member(plugin, "state", &nulls[4]);
		nulls[5] = !json_is_integer(json_object_get(plugin, "pid"));
		values[5] = Int32GetDatum((int32) integer_member(plugin, "pid"));
		values[6] = timestamp_member(plugin, "startedAt", &nulls[6]);
		values[7] = Int64GetDatum(integer_member(plugin, "restarts"));
		values[8] = stats_text_member(plugin, "lastError", &nulls[8]);
		values[9] = Int64GetDatum(integer_member(plugin, "calls"));
		values[10] = Int64GetDatum(integer_member(plugin, "failedCalls"));
		values[11] = Int32GetDatum((int32) integer_member(plugin, "activeCalls"));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * envrt.plugin_metric_stats()
 */
Datum
envrt_plugin_metric_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	size_t i;
	json_t *metric;

	compat_begin_result_set(fcinfo);
	json_array_foreach(
	    json_object_get(driver_host_ask("envrt/pluginMetrics", STATS_TIMEOUT_MS), "metrics"), i,
	    metric)
	{
		json_t *tags = json_object_get(metric, "tags");
		Datum values[7];
		bool nulls[7] = {false};

		values[0] = stats_text_member(metric, "plugin", &nulls[0]);
		values[1] = stats_text_member(metric, "name", &nulls[1]);
		nulls[2] = !json_is_object(tags);
		if (!nulls[2])
			values[2] = JsonbPGetDatum(jsonb_from_json(tags));
		values[3] = Float8GetDatum(json_number_value(json_object_get(metric, "last")));
		values[4] = Int64GetDatum(integer_member(metric, "count"));
		values[5] = Float8GetDatum(json_number_value(json_object_get(metric, "sum")));
		values[6] = timestamp_member(metric, "updatedAt", &nulls[6]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
