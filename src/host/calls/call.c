/*
 * call.c
 *		One call of a client, from its request to its answer, and the table of
 *		all calls in flight.
 *
 * A call is begun by the server, given to a driver, and ends exactly once:
 * answered, failed (both by the driver), or cancelled (by the server, when the
 * connection is gone or its client says so).  Whoever ends it frees it.  Between, the driver owns
 * what it keeps for the call and registers how to undo it; the call itself
 * knows nothing about drivers.  A call never outlives its connection, but for one
 * that has none: what it says goes to a CallSink of the host's own.
 *
 * There are only so many calls at once, and a company has no more of them than
 * its share (fair_share.h), so that the first call of another one finds a place.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uv.h>

#include "calls/call.h"
#include "shared/fair_share.h"
#include "shared/jsonrpc.h"
#include "base/latency.h"
#include "base/memory.h"
#include "server/server.h"
#include "base/timer.h"

/* A client with more unread than this is behind, until it has no more than that. */
#define BEHIND ((size_t) 1024 * 1024)
#define CAUGHT_UP ((size_t) 256 * 1024)

struct Call
{
	Call *next;
	Call *previous;
	bool waits;                    /* for another one's news, and does not count */
	struct Connection *connection; /* NULL: a sink's */
	const CallSink *sink;
	void *sink_data;
	pid_t peer;
	json_t *id;
	char *method;
	char *driver;
	char *company; /* NULL: nobody's */
	char *target;
	const char *state;
	int64_t started_at;
	uint64_t began; /* by uv_hrtime() */
	CallCancelled cancelled;
	void *data;
	void (*room)(void *data);
	void *room_data;
};

static Call *first_call;
static size_t active;
static json_int_t total;
static size_t max_active = 500;

void
calls_set_max(size_t max)
{
	max_active = max;
}

/* NULL: it may begin. */
static HostError *
refusal_for(const char *company)
{
	HostError *error;
	size_t own = 0;

	for (const Call *call = first_call; call != NULL && company != NULL; call = call->next)
		own += !call->waits && call->company != NULL && strcmp(call->company, company) == 0;
	if (fair_share_allows(own, active, max_active))
		return NULL;
	if (active >= max_active)
		error = error_new("53400", "the driver host is busy with %zu calls, its limit", active);
	else
		error = error_new("53400",
		                  "the driver host is busy with %zu calls of this company, its share", own);
	error_hint(error, "Try again later, or raise envrt.max_calls.");
	return error;
}

static Call *
begin(const char *method, const char *driver, const char *company, bool waits, HostError **refusal)
{
	Call *call;

	*refusal = waits ? NULL : refusal_for(company);
	if (*refusal != NULL)
		return NULL;
	call = xcalloc(1, sizeof *call);
	call->company = company ? xstrdup(company) : NULL;
	call->waits = waits;
	call->method = xstrdup(method);
	call->driver = driver ? xstrdup(driver) : NULL;
	call->state = "starting";
	call->started_at = epoch_ms();
	call->began = uv_hrtime();
	call->next = first_call;
	if (first_call != NULL)
		first_call->previous = call;
	first_call = call;
	if (!waits)
	{
		active++;
		total++;
	}
	return call;
}

Call *
call_begin(struct Connection *connection, pid_t peer, json_t *id, const char *method,
           const char *driver, const char *company, HostError **refusal)
{
	Call *call = begin(method, driver, company, false, refusal);

	if (call == NULL)
		return NULL;
	call->connection = connection;
	call->peer = peer;
	call->id = json_incref(id);
	return call;
}

Call *
call_begin_waiting(struct Connection *connection, pid_t peer, json_t *id, const char *method)
{
	HostError *none;
	Call *call = begin(method, NULL, NULL, true, &none);

	call->connection = connection;
	call->peer = peer;
	call->id = json_incref(id);
	return call;
}

Call *
call_begin_for(const CallSink *sink, void *data, const char *method, const char *driver,
               const char *company, HostError **refusal)
{
	Call *call = begin(method, driver, company, false, refusal);

	if (call == NULL)
		return NULL;
	call->sink = sink;
	call->sink_data = data;
	return call;
}

pid_t
call_peer(const Call *call)
{
	return call->peer;
}

void
call_set_target(Call *call, const char *target)
{
	free(call->target);
	call->target = xstrdup(target);
}

void
call_set_state(Call *call, const char *state)
{
	call->state = state;
}

void
call_on_cancel(Call *call, CallCancelled cancelled, void *data)
{
	call->cancelled = cancelled;
	call->data = data;
}

void
call_on_room(Call *call, void (*room)(void *data), void *data)
{
	call->room = room;
	call->room_data = data;
}

bool
call_notify(Call *call, const char *method, json_t *params)
{
	json_t *message;

	if (call->sink != NULL)
		return call->sink->notified(call->sink_data, params);
	message = json_object();
	json_object_set(params, "id", call->id);
	json_object_set_new(message, "jsonrpc", json_string("2.0"));
	json_object_set_new(message, "method", json_string(method));
	json_object_set_new(message, "params", params);
	connection_send(call->connection, message);
	return connection_unread(call->connection) <= BEHIND;
}

void
calls_tell_room(const struct Connection *connection)
{
	if (connection_unread(connection) > CAUGHT_UP)
		return;
	for (Call *call = first_call; call != NULL; call = call->next)
		if (call->connection == connection && call->room != NULL)
			call->room(call->room_data);
}

void
call_tell_room(const Call *call)
{
	if (call->room != NULL)
		call->room(call->room_data);
}

/* Those of the host's own are as long as their commands, and not what anybody waits for. */
static void
note_latency(const Call *call, bool failed)
{
	if (call->waits)
		return;
	if (call->sink == NULL)
		latency_note(call->driver, call->method, (uv_hrtime() - call->began) / 1000, failed);
}

static void
call_free(Call *call)
{
	if (call->previous != NULL)
		call->previous->next = call->next;
	else
		first_call = call->next;
	if (call->next != NULL)
		call->next->previous = call->previous;
	if (!call->waits)
		active--;
	json_decref(call->id);
	free(call->method);
	free(call->driver);
	free(call->company);
	free(call->target);
	free(call);
}

/* One of result and error is NULL; takes both. */
static void
call_end(Call *call, json_t *result, HostError *error)
{
	struct Connection *connection = call->connection;
	const CallSink *sink = call->sink;
	void *sink_data = call->sink_data;
	json_t *id = json_incref(call->id);

	note_latency(call, error != NULL);
	call_free(call);
	if (sink != NULL)
		sink->ended(sink_data, result, error);
	else
	{
		connection_send(connection, error ? error_response(id, error) : rpc_response(id, result));
		error_free(error);
	}
}

void
call_answer(Call *call, json_t *result)
{
	call_end(call, result, NULL);
}

void
call_fail(Call *call, HostError *error)
{
	call_end(call, NULL, error);
}

void
call_cancel(Call *call)
{
	CallCancelled cancelled = call->cancelled;
	void *data = call->data;

	note_latency(call, true);
	call_free(call);
	if (cancelled != NULL)
		cancelled(data);
}

bool
calls_cancel_one(const struct Connection *connection, const json_t *id)
{
	HostError *error;

	for (Call *call = first_call; call != NULL; call = call->next)
	{
		if (call->connection != connection || !json_equal(call->id, id))
			continue;
		error = error_new("57014", "the call was cancelled");
		connection_send(call->connection, error_response(json_incref(call->id), error));
		error_free(error);
		call_cancel(call);
		return true;
	}
	return false;
}

void
calls_cancel(const struct Connection *connection)
{
	Call *call = first_call;

	/* A driver that undoes one call can end others, so the walk begins anew after each. */
	while (call != NULL)
	{
		if (connection == NULL || call->connection == connection)
		{
			call_cancel(call);
			call = first_call;
		}
		else
			call = call->next;
	}
}

size_t
calls_active(void)
{
	return active;
}

json_int_t
calls_total(void)
{
	return total;
}

json_t *
calls_describe(void)
{
	json_t *calls = json_array();

	for (Call *call = first_call; call != NULL; call = call->next)
	{
		json_t *row = json_object();

		json_object_set_new(row, "pid", call->peer ? json_integer(call->peer) : json_null());
		json_object_set_new(row, "method", json_string(call->method));
		json_object_set_new(row, "driver", call->driver ? json_string(call->driver) : json_null());
		json_object_set_new(row, "target", call->target ? json_string(call->target) : json_null());
		json_object_set_new(row, "state", json_string(call->state));
		json_object_set_new(row, "startedAt", json_integer(call->started_at));
		json_array_append_new(calls, row);
	}
	return calls;
}
