/*
 * plugin_turns.h
 *		Which request a plugin's worker is sent next.
 */
#ifndef ENVRT_HOST_PLUGIN_TURNS_H
#define ENVRT_HOST_PLUGIN_TURNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fair_queue.h"
#include "base/worker_backoff.h"

/* How many commands a worker is given at once, and as many other requests. */
extern void plugin_turns_set_limit(size_t limit);

#define PLUGIN_LANES 2

typedef struct PluginSuspect PluginSuspect;

/* A plugin's; all zero at first. */
typedef struct PluginTurns
{
	FairQueue lanes[PLUGIN_LANES]; /* commands, and what else is asked */
	size_t overdue[PLUGIN_LANES];  /* of those in service */
	unsigned last_lane;
	PluginSuspect *suspects;
} PluginTurns;

/* A request's; all zero while it has none. */
typedef struct PluginTurn
{
	FairItem item;
	unsigned lane;
	bool overdue;
	uint64_t served_at;
	const char *company;
} PluginTurn;

/* company: lives as long as the turn; NULL is nobody's.  data: the request. */
extern void plugin_turns_add(PluginTurns *turns, PluginTurn *turn, const char *company,
                             bool is_command, void *data);
extern void plugin_turns_remove(PluginTurns *turns, PluginTurn *turn);

/* The request that may be sent now, or NULL; and that it is. */
extern void *plugin_turns_next(PluginTurns *turns, uint64_t now);
extern void plugin_turns_serve(PluginTurns *turns, PluginTurn *turn, uint64_t now);

/* The worker should have answered by now: the place is others', but not more of that company's. */
extern void plugin_turns_overdue(PluginTurns *turns, PluginTurn *turn);

/*
 * The worker crashed; false when it did nothing for anybody, so that nobody can be suspected.
 * jitter: as of worker_backoff_crashed().
 */
extern bool plugin_turns_crashed(PluginTurns *turns, uint64_t now, unsigned jitter);

/* How long it is before the turn's company may be served after a crash. */
extern uint64_t plugin_turns_delay(const PluginTurns *turns, const PluginTurn *turn, uint64_t now);

/* The same for all that wait: 0 when one of them may be served as far as crashes go. */
extern uint64_t plugin_turns_wait(const PluginTurns *turns, uint64_t now);

/* Nobody is suspected any more. */
extern void plugin_turns_forgive(PluginTurns *turns);

#endif
