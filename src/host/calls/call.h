/*
 * call.h
 *		One call of a client, from its request to its answer, and the table of
 *		all calls in flight.
 */
#ifndef ENVRT_HOST_CALL_H
#define ENVRT_HOST_CALL_H

#include <stdbool.h>
#include <sys/types.h>

#include <jansson.h>

#include "base/host_error.h"

typedef struct Call Call;

/* Called when the client is gone: undo the call, free data, never touch the call again. */
typedef void (*CallCancelled)(void *data);

/* Where the messages of a call go: the connection that it came over, or something in the host. */
typedef struct CallSink
{
	/* As call_notify(); takes the params, which name the call where it has an id. */
	bool (*notify)(void *data, const char *method, json_t *params);
	/* The call's end, unless it is cancelled; takes result and error, of which one is NULL. */
	void (*end)(void *data, const json_t *id, json_t *result, HostError *error);
	/* Somebody waits for the end: its time counts in envrt.stat_latency. */
	bool measured;
} CallSink;

/* Who makes a call; no string is kept but by a copy. */
typedef struct CallOrigin
{
	const CallSink *sink;
	void *data;       /* the sink's */
	pid_t peer;       /* 0: the host itself */
	const json_t *id; /* NULL: it has none */
} CallOrigin;

extern void calls_set_max(size_t max);

/*
 * NULL when there are too many calls already, or so many of the company (NULL: nobody's)
 * that others would find no place; *refusal says which.
 */
extern Call *call_begin(const CallOrigin *origin, const char *method, const char *driver,
                        const char *company, HostError **refusal);

/* One that only waits for what another one has to say: it is not counted, nor refused. */
extern Call *call_begin_waiting(const CallOrigin *origin, const char *method);

/* Cancels it, of which its sink is told nothing. */
extern void call_cancel(Call *call);
/* What was sent has been read. */
extern void call_tell_room(const Call *call);

/* Who calls; 0: the host itself. */
extern pid_t call_peer(const Call *call);

/* For envrt/stats.  The state must be a constant. */
extern void call_set_target(Call *call, const char *target);
extern void call_set_state(Call *call, const char *state);

extern void call_on_cancel(Call *call, CallCancelled cancelled, void *data);

/*
 * Sends a notification about the call; takes the params, an object, and puts the
 * call's id into it.  False: the client is behind with reading, so send no more for
 * the time being; what was registered is told when it has caught up, from the event
 * loop, and must not end a call.
 */
extern bool call_notify(Call *call, const char *method, json_t *params);
extern void call_on_room(Call *call, void (*room)(void *data), void *data);

/* Both end the call and take their second argument. */
extern void call_answer(Call *call, json_t *result);
extern void call_fail(Call *call, HostError *error);

/* Ends one call of a sink's data as cancelled; false: there is none. */
extern bool calls_cancel_one(const void *data, const json_t *id);

/* The client has read what it was sent, or most of it. */
extern void calls_tell_room(const void *data);

/* Cancels the calls of a sink's data; NULL: every call. */
extern void calls_cancel(const void *data);

extern size_t calls_active(void);
extern json_int_t calls_total(void);
extern json_t *calls_describe(void);

#endif
