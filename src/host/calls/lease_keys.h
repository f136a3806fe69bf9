/*
 * lease_keys.h
 *		What is known of each lease of a plugin's driver, by its key.
 */
#ifndef ENVRT_HOST_LEASE_KEYS_H
#define ENVRT_HOST_LEASE_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

typedef enum
{
	LEASE_UNSEEN,  /* nothing was asked */
	LEASE_ABSENT,  /* it was asked to be made, and was not */
	LEASE_UNKNOWN, /* it was asked to be made, and whether it was is not known */
	LEASE_HELD,    /* it was made */
	LEASE_ENDED    /* it is over: a tombstone */
} LeaseKnowledge;

typedef struct LeaseKey LeaseKey;

struct LeaseKey
{
	char *id;
	LeaseKnowledge knowledge;

	/* HELD: the answer that made it.  UNKNOWN: a providerLeaseId to try, or NULL. */
	json_t *lease;

	/* Who was last asked to make it, or NULL. */
	char *plugin_key;

	/* ENDED: the outcome that was told, a constant, and the providerLeaseId that was ended, or
	 * NULL. */
	const char *outcome;
	char *ended_id;

	/* Its client ends what it knows the name of, and nothing is to be ended without that. */
	bool identified;

	/* Of lease_queue.c. */
	struct LeaseOperation *running;
	struct LeaseOperation *first_waiting;
	struct LeaseOperation *last_waiting;
	unsigned doomed; /* makers not yet answered whose lease has been ended */
	bool advancing;
	bool condemned; /* what was made must not be given to anybody */

	/* Of lease_keys.c. */
	LeaseKey *in_bucket;
	LeaseKey *older;
	LeaseKey *newer;
	struct KeyList *list;
	uint64_t kept_since;
	unsigned pins;
};

/* Finds it, or makes it unseen; it stays until unpinned as often. */
extern LeaseKey *lease_key_pin(const char *id);
extern void lease_key_unpin(LeaseKey *key, uint64_t now);

/* Takes the lease, which may be NULL. */
extern void lease_key_learn(LeaseKey *key, LeaseKnowledge knowledge, json_t *lease);
extern void lease_key_ended(LeaseKey *key, const char *outcome);

/* Whether a key that is unseen here was never seen in this process's life. */
extern bool lease_keys_are_complete(void);

extern size_t lease_keys_count(void);

/* Of those over and of those not over, each; for tests. */
extern void lease_keys_set_max(size_t max);

/* Only when none is pinned. */
extern void lease_keys_clear(void);

#endif
