/*
 * call.c
 *		One call of a client, from its request to its answer, and the table of
 *		all calls in flight.
 *
 * A call is begun by the server, given to a driver, and ends exactly once:
 * answered, failed (both by the driver), or cancelled (by the server, when the
 * connection is gone or its client says so).  Whoever ends it frees it.  Between, the driver owns
 * what it keeps for the call and registers how to undo it; the call itself
 * knows nothing about drivers, nor about the server: what it says goes to its
 * CallSink, a connection's or that of a long execution, which it never outlives.
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
#include "base/timer.h"

struct Call
{
	Call *next;
	Call *previous;
	bool waits; /* for another one's news, and does not count */
	const CallSink *sink;
	void *sink_data;
	pid_t peer;
	json_t *id; /* NULL: none */
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
call_new(const CallOrigin *origin, const char *method, const char *driver, const char *company,
         bool waits)
{
	Call *call = xcalloc(1, sizeof *call);

	call->sink = origin->sink;
	call->sink_data = origin->data;
	call->peer = origin->peer;
	call->id = json_incref((json_t *) origin->id);
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
call_begin(const CallOrigin *origin, const char *method, const char *driver, const char *company,
           HostError **refusal)
{
	*refusal = refusal_for(company);
	return *refusal == NULL ? call_new(origin, method, driver, company, false) : NULL;
}

Call *
call_begin_waiting(const CallOrigin *origin, const char *method)
{
	return call_new(origin, method, NULL, NULL, true);
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
	if (call->id != NULL)
		json_object_set(params, "id", call->id);
	return call->sink->notify(call->sink_data, method, params);
}

void
calls_tell_room(const void *data)
{
	for (Call *call = first_call; call != NULL; call = call->next)
		if (call->sink_data == data)
			call_tell_room(call);
}

void
call_tell_room(const Call *call)
{
	if (call->room != NULL)
		call->room(call->room_data);
}

static void
note_latency(const Call *call, bool failed)
{
	if (call->sink->measured && !call->waits)
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
	const CallSink *sink = call->sink;
	void *sink_data = call->sink_data;
	json_t *id = json_incref(call->id);

	note_latency(call, error != NULL);
	call_free(call);
	sink->end(sink_data, id, result, error);
	json_decref(id);
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
calls_cancel_one(const void *data, const json_t *id)
{
	for (Call *call = first_call; call != NULL; call = call->next)
	{
		const CallSink *sink = call->sink;
		json_t *its_id;

		if (call->sink_data != data || !json_equal(call->id, id))
			continue;
		its_id = json_incref(call->id);
		sink->end(call->sink_data, its_id, NULL, error_new("57014", "the call was cancelled"));
		json_decref(its_id);
		call_cancel(call);
		return true;
	}
	return false;
}

void
calls_cancel(const void *data)
{
	Call *call = first_call;

	/* A driver that undoes one call can end others, so the walk begins anew after each. */
	while (call != NULL)
	{
		if (data == NULL || call->sink_data == data)
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
