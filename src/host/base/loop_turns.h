/*
 * loop_turns.h
 *		How long the event loop is busy at a time, and who waits for a later turn.
 */
#ifndef ENVRT_HOST_LOOP_TURNS_H
#define ENVRT_HOST_LOOP_TURNS_H

#include <stdbool.h>

#include <jansson.h>

extern void loop_turns_watch(void);

/* Whether this turn has done enough: what can wait is for a later one. */
extern bool loop_turn_is_long(void);

/* Somebody's wish for a later turn; all zero at first, but for serve and data. */
typedef struct LoopTurn
{
	struct LoopTurn *next;
	bool waits;
	/* first: nobody was served in this turn yet, so one thing is to be done in any case. */
	void (*serve)(void *data, bool first);
	void *data;
} LoopTurn;

/* It is served once, after those that wait already, by the first turn that has time. */
extern void loop_turn_wait(LoopTurn *turn);
extern void loop_turn_forget(LoopTurn *turn);

/* {turns, longestCpuUs, longestUs}, since the start or the last call that said `reset`. */
extern json_t *loop_turns_describe(bool reset);

#endif
