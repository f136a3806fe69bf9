/*
 * ssh_pool.h
 *		Which session a command runs on.
 */
#ifndef ENVRT_HOST_SSH_POOL_H
#define ENVRT_HOST_SSH_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "ssh/ssh_destination.h"
#include "ssh/ssh_session.h"

/* A session in the pool. */
typedef struct SshPooled SshPooled;

/* Somebody who needs a place on a session. */
typedef struct SshWaiter SshWaiter;

struct SshWaiter
{
	SshDestination *destination;
	uint64_t deadline; /* in terms of now_ms() */

	/* A place: run a channel on the session at once, and tell ssh_pool_done() when it is over. */
	void (*granted)(SshWaiter *waiter, SshPooled *pooled);
	/* No session could be made; the error is the pool's. */
	void (*failed)(SshWaiter *waiter, const HostError *error);

	/* The pool's. */
	struct SshGroup *group;
	SshWaiter *next;
};

/* first: before the others that wait. */
extern void ssh_pool_ask(SshWaiter *waiter, bool first);

/* Only while it waits. */
extern void ssh_pool_withdraw(SshWaiter *waiter);

/* What it waits for, and what went wrong so far, or NULL. */
extern const char *ssh_pool_phase(const SshWaiter *waiter);
extern const char *ssh_pool_trouble(const SshWaiter *waiter);

extern SshSession *ssh_pooled_session(const SshPooled *pooled);

/* Whether a command has run on it before. */
extern bool ssh_pooled_is_used(const SshPooled *pooled);

typedef enum
{
	PLACE_FREE,      /* the channel has ended, or ends by itself */
	PLACE_ABANDONED, /* the channel is being closed before its time */
	PLACE_DOUBTFUL   /* the server did not answer in time: not for others */
} PlaceState;

extern void ssh_pool_done(SshPooled *pooled, PlaceState state);

/* The server has opened a channel. */
extern void ssh_pool_opened(SshPooled *pooled);

/*
 * The server opens no further channel.  False when there was no other one
 * either, so that waiting won't help.  Instead of ssh_pool_done().
 */
extern bool ssh_pool_refused(SshPooled *pooled);

extern void ssh_pool_settings_changed(void);
extern json_t *ssh_pool_describe(void);

/* Drops every session. */
extern void ssh_pool_close(void);

#endif
