/*
 * plugin_turns.c
 *		Which request a plugin's worker is sent next.
 *
 * A worker takes memory for each request that it works on, most take a thread,
 * so it is not given more than the limit at once; the rest waits here, where it
 * costs little.  Commands can last for a day, and what ends them must not wait
 * for them, so they and the other requests have places apart; and a company has at
 * most three quarters of either, so that another one that comes always finds
 * a place.  Within that, places go around by company (fair_queue.c).
 *
 * A request whose time is over, unanswered, has no place any more, but still counts
 * for its company: whoever makes a worker owe answers gets no more of it than
 * his share, and others are not disturbed.
 *
 * Crashes.  A company for which a crashed worker was working is a suspect: its next
 * requests wait as worker_backoff.c says, nobody else's do.  Most of those that
 * are suspected only happened to be there.  So from its second crash on a suspect is
 * served while no other such suspect has just begun to be: the next crash
 * tells which of them it was.
 */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "plugins/plugin_turns.h"

/* A suspect that is served for so long without a crash may be joined by others. */
#define ALONE_MS 10000
/* From so many crashes on it is served alone. */
#define ALONE_CRASHES 2
/* Who was no suspect for so long is none. */
#define FORGOTTEN_MS (10 * 60 * 1000)

struct PluginSuspect
{
	PluginSuspect *next;
	WorkerBackoff backoff;
	size_t serving;
	uint64_t crashed_at;
	char company[];
};

static size_t limit = 400;

void
plugin_turns_set_limit(size_t new_limit)
{
	limit = new_limit;
}

static const char *
name_of(const PluginTurn *turn)
{
	return turn->company != NULL ? turn->company : "";
}

static PluginSuspect *
find_suspect(const PluginTurns *turns, const char *company)
{
	PluginSuspect *suspect = turns->suspects;

	while (suspect != NULL && strcmp(suspect->company, company) != 0)
		suspect = suspect->next;
	return suspect;
}

/* The turn of an item, which is its first member. */
static const PluginTurn *
turn_of(const FairItem *item)
{
	return (const PluginTurn *) (const void *) item;
}

void
plugin_turns_add(PluginTurns *turns, PluginTurn *turn, const char *company, bool is_command,
                 void *data)
{
	memset(turn, 0, sizeof *turn);
	turn->company = company;
	turn->lane = is_command ? 0 : 1;
	fair_queue_add(&turns->lanes[turn->lane], &turn->item, company, data);
}

void
plugin_turns_remove(PluginTurns *turns, PluginTurn *turn)
{
	PluginSuspect *suspect = find_suspect(turns, name_of(turn));

	if (turn->item.company == NULL)
		return;
	if (turn->overdue)
		turns->overdue[turn->lane]--;
	if (turn->item.serving && suspect != NULL && suspect->serving > 0)
		suspect->serving--;
	fair_queue_remove(&turns->lanes[turn->lane], &turn->item);
}

typedef struct Moment
{
	const PluginTurns *turns;
	uint64_t now;
} Moment;

/* Whether the crashes so far let the item's company be served now. */
static bool
may_be_served(void *data, const FairItem *item)
{
	const Moment *moment = data;
	const PluginSuspect *suspect = find_suspect(moment->turns, name_of(turn_of(item)));

	if (suspect == NULL)
		return true;
	if (worker_backoff_delay(&suspect->backoff, moment->now) > 0)
		return false;
	if (suspect->backoff.crashes < ALONE_CRASHES)
		return true;
	for (const PluginSuspect *other = moment->turns->suspects; other != NULL; other = other->next)
		if (other != suspect && other->serving > 0 && other->backoff.crashes >= ALONE_CRASHES &&
		    moment->now < other->backoff.started_at + ALONE_MS)
			return false;
	return true;
}

void *
plugin_turns_next(PluginTurns *turns, uint64_t now)
{
	Moment moment = {turns, now};
	size_t share = limit - limit / 4;

	for (unsigned i = 1; i <= PLUGIN_LANES; i++)
	{
		unsigned number = (turns->last_lane + i) % PLUGIN_LANES;
		const FairQueue *lane = &turns->lanes[number];
		FairItem *item;

		if (lane->serving - turns->overdue[number] >= limit)
			continue;
		item = fair_queue_next_of(lane, share, may_be_served, &moment);
		if (item != NULL)
			return item->data;
	}
	return NULL;
}

void
plugin_turns_serve(PluginTurns *turns, PluginTurn *turn, uint64_t now)
{
	PluginSuspect *suspect = find_suspect(turns, name_of(turn));

	turns->last_lane = turn->lane;
	turn->served_at = now;
	if (suspect != NULL && suspect->serving++ == 0)
		worker_backoff_started(&suspect->backoff, now);
	fair_queue_serve(&turns->lanes[turn->lane], &turn->item);
}

void
plugin_turns_overdue(PluginTurns *turns, PluginTurn *turn)
{
	if (turn->overdue || !turn->item.serving)
		return;
	turn->overdue = true;
	turns->overdue[turn->lane]++;
}

/* The company of those for which the worker was working; lane by lane. */
static void
suspect(PluginTurns *turns, const char *company, uint64_t now, unsigned jitter)
{
	PluginSuspect *known = find_suspect(turns, company);
	size_t size = strlen(company) + 1;

	if (known == NULL)
	{
		known = xcalloc(1, sizeof *known + size);
		memcpy(known->company, company, size);
		known->backoff.started_at = now;
		known->next = turns->suspects;
		turns->suspects = known;
	}
	else if (known->crashed_at == now)
		return;
	known->crashed_at = now;
	known->serving = 0;
	worker_backoff_crashed(&known->backoff, now, jitter);
}

static void
forget_old(PluginTurns *turns, uint64_t now)
{
	PluginSuspect **link = &turns->suspects;

	while (*link != NULL)
	{
		PluginSuspect *old = *link;

		if (old->serving > 0 || now < old->backoff.due_at + FORGOTTEN_MS)
		{
			link = &old->next;
			continue;
		}
		*link = old->next;
		free(old);
	}
}

bool
plugin_turns_crashed(PluginTurns *turns, uint64_t now, unsigned jitter)
{
	bool any = false;

	forget_old(turns, now);
	for (unsigned number = 0; number < PLUGIN_LANES; number++)
	{
		const char *company = NULL;

		while ((company = fair_queue_served(&turns->lanes[number], company)) != NULL)
		{
			suspect(turns, company, now, jitter);
			any = true;
		}
	}
	return any;
}

uint64_t
plugin_turns_delay(const PluginTurns *turns, const PluginTurn *turn, uint64_t now)
{
	const PluginSuspect *suspect = find_suspect(turns, name_of(turn));

	return suspect != NULL ? worker_backoff_delay(&suspect->backoff, now) : 0;
}

typedef struct Shortest
{
	const PluginTurns *turns;
	uint64_t now;
	uint64_t wait;
} Shortest;

/* Picks nobody. */
static bool
note_wait(void *data, const FairItem *item)
{
	Shortest *shortest = data;
	Moment moment = {shortest->turns, shortest->now};
	uint64_t delay = plugin_turns_delay(shortest->turns, turn_of(item), shortest->now);

	if (may_be_served(&moment, item))
		shortest->wait = 0;
	else
	{
		/* Else it waits for another suspect. */
		delay = delay > 0 ? delay : ALONE_MS;
		if (delay < shortest->wait)
			shortest->wait = delay;
	}
	return false;
}

uint64_t
plugin_turns_wait(const PluginTurns *turns, uint64_t now)
{
	Shortest shortest = {turns, now, UINT64_MAX};

	for (unsigned number = 0; number < PLUGIN_LANES; number++)
		(void) fair_queue_next_of(&turns->lanes[number], 0, note_wait, &shortest);
	return shortest.wait == UINT64_MAX ? 0 : shortest.wait;
}

void
plugin_turns_forgive(PluginTurns *turns)
{
	while (turns->suspects != NULL)
	{
		PluginSuspect *next = turns->suspects->next;

		free(turns->suspects);
		turns->suspects = next;
	}
}
