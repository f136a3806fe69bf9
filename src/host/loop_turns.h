/*
 * loop_turns.h
 *		How long the event loop is busy at a time.
 */
#ifndef ENVRT_HOST_LOOP_TURNS_H
#define ENVRT_HOST_LOOP_TURNS_H

#include <stdbool.h>

#include <jansson.h>

extern void loop_turns_watch(void);

/* Whether this turn has done enough: what can wait is for a later one. */
extern bool loop_turn_is_long(void);

/* {turns, longestCpuUs, longestUs}, since the start or the last call that said `reset`. */
extern json_t *loop_turns_describe(bool reset);

#endif
