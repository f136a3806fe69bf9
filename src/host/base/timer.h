/*
 * timer.h
 *		One-shot timers.
 */
#ifndef ENVRT_HOST_TIMER_H
#define ENVRT_HOST_TIMER_H

#include <stdint.h>

typedef struct Timer Timer;
typedef void (*TimerExpired)(void *data);

/*
 * Runs expired(data) once, after so many milliseconds, unless stopped before;
 * *timer is NULL from then on.  A timer that runs already is stopped first.
 */
extern void timer_start(Timer **timer, uint64_t milliseconds, TimerExpired expired, void *data);
extern void timer_stop(Timer **timer);

/* Milliseconds of a clock that only grows, as the event loop sees it. */
extern uint64_t now_ms(void);

/* Milliseconds since 1970, for people. */
extern int64_t epoch_ms(void);

#endif
