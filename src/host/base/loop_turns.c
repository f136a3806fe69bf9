/*
 * loop_turns.c
 *		How long the event loop is busy at a time, and who waits for a later turn.
 *
 * A turn is what the loop does between two waits, and nobody is served before
 * it ends: the longest one is the longest that a ping can have waited.  It is
 * counted in CPU time of the loop's thread, which says what the host does
 * itself, and in time by the clock, less what the loop slept: that has what
 * the machine did meanwhile as well.
 *
 * Whoever has more to do than a turn should take waits for a later one, and those
 * who wait are served first come, first served.
 */
#include <stdint.h>
#include <time.h>
#include <uv.h>

#include "base/log.h"
#include "base/loop_turns.h"

/* One turn takes up no new work after that. */
#define ENOUGH_US 10000

static uv_prepare_t prepare;
static uint64_t cpu_at_start;
static uint64_t clock_at_start; /* without what the loop has slept so far */
static uint64_t longest_cpu_us;
static uint64_t longest_us;
static uint64_t turns;

static uv_idle_t later;
static LoopTurn *first_waiting;
static LoopTurn *last_waiting;

static uint64_t
cpu_us(void)
{
	struct timespec used;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return (uint64_t) used.tv_sec * 1000000 + (uint64_t) used.tv_nsec / 1000;
}

static uint64_t
awake_us(void)
{
	return (uv_hrtime() - uv_metrics_idle_time(uv_default_loop())) / 1000;
}

/* Runs before each wait. */
static void
turn_ends(uv_prepare_t *handle)
{
	uint64_t cpu = cpu_us();
	uint64_t awake = awake_us();

	(void) handle;
	if (turns++ > 0)
	{
		if (cpu - cpu_at_start > longest_cpu_us)
			longest_cpu_us = cpu - cpu_at_start;
		if (awake - clock_at_start > longest_us)
			longest_us = awake - clock_at_start;
	}
	cpu_at_start = cpu;
	clock_at_start = awake;
}

void
loop_turns_watch(void)
{
	if (uv_loop_configure(uv_default_loop(), UV_METRICS_IDLE_TIME) < 0 ||
	    uv_prepare_init(uv_default_loop(), &prepare) < 0 ||
	    uv_prepare_start(&prepare, turn_ends) < 0)
		log_message(LOG_WARNING, "could not watch the event loop");
	else
		uv_unref((uv_handle_t *) &prepare);
}

bool
loop_turn_is_long(void)
{
	return cpu_us() - cpu_at_start > ENOUGH_US;
}

void
loop_turn_forget(LoopTurn *turn)
{
	LoopTurn **link = &first_waiting;

	if (!turn->waits)
		return;
	turn->waits = false;
	last_waiting = NULL;
	while (*link != NULL)
	{
		if (*link == turn)
			*link = turn->next;
		else
		{
			last_waiting = *link;
			link = &(*link)->next;
		}
	}
	turn->next = NULL;
}

/* Serves in each turn the first that waits, and others while there is time. */
static void
serve_waiting(uv_idle_t *handle)
{
	LoopTurn *turn;
	bool first = true;

	while ((turn = first_waiting) != NULL && (first || !loop_turn_is_long()))
	{
		loop_turn_forget(turn);
		turn->serve(turn->data, first);
		first = false;
	}
	if (first_waiting == NULL)
		uv_idle_stop(handle);
}

void
loop_turn_wait(LoopTurn *turn)
{
	if (turn->waits)
		return;
	turn->waits = true;
	if (last_waiting != NULL)
		last_waiting->next = turn;
	else
		first_waiting = turn;
	last_waiting = turn;
	/* What has no loop yet is not initialised. */
	if (later.loop == NULL)
		uv_idle_init(uv_default_loop(), &later);
	uv_idle_start(&later, serve_waiting);
}

json_t *
loop_turns_describe(bool reset)
{
	json_t *result = json_object();

	json_object_set_new(result, "turns", json_integer((json_int_t) turns));
	json_object_set_new(result, "longestCpuUs", json_integer((json_int_t) longest_cpu_us));
	json_object_set_new(result, "longestUs", json_integer((json_int_t) longest_us));
	if (reset)
		longest_cpu_us = longest_us = 0;
	return result;
}
