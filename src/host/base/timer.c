/*
 * timer.c
 *		One-shot timers.
 *
 * libuv wants a handle's memory until its close callback has run, which is
 * later than its owner may live.  So a timer is memory of its own, and its
 * owner keeps a pointer that is NULL while nothing runs.
 */
#include <stdlib.h>
#include <sys/time.h>
#include <uv.h>

#include "base/memory.h"
#include "base/timer.h"

struct Timer
{
	uv_timer_t handle;
	Timer **owner;
	TimerExpired expired;
	void *data;
};

static void
timer_closed(uv_handle_t *handle)
{
	free(handle->data);
}

static void
timer_fired(uv_timer_t *handle)
{
	Timer *timer = handle->data;
	TimerExpired expired = timer->expired;
	void *data = timer->data;

	timer_stop(timer->owner);
	expired(data);
}

void
timer_start(Timer **owner, uint64_t milliseconds, TimerExpired expired, void *data)
{
	Timer *timer;

	timer_stop(owner);
	timer = xcalloc(1, sizeof *timer);
	timer->owner = owner;
	timer->expired = expired;
	timer->data = data;
	uv_timer_init(uv_default_loop(), &timer->handle);
	timer->handle.data = timer;
	/* The loop's idea of now is as old as the event that it handles. */
	uv_update_time(uv_default_loop());
	uv_timer_start(&timer->handle, timer_fired, milliseconds, 0);
	*owner = timer;
}

void
timer_stop(Timer **owner)
{
	if (*owner == NULL)
		return;
	uv_close((uv_handle_t *) &(*owner)->handle, timer_closed);
	*owner = NULL;
}

uint64_t
now_ms(void)
{
	uv_update_time(uv_default_loop());
	return uv_now(uv_default_loop());
}

int64_t
epoch_ms(void)
{
	struct timeval now;

	gettimeofday(&now, NULL);
	return (int64_t) now.tv_sec * 1000 + now.tv_usec / 1000;
}
