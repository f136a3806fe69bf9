/*
 * lease_keys.c
 *		What is known of each lease of a plugin's driver, by its key.
 *
 * A hash table of keys.  Whoever works on a key pins it.  One that nobody
 * works on is kept for what is known of it, in one of two lists, oldest first:
 *
 *   settled   absent or ended: kept for ten minutes, for a request that was
 *             overtaken by the end of its lease and comes late, and for an end
 *             that is asked for again
 *   open      held or unknown: kept until the lease ends
 *
 * Both lists are bounded.  What is dropped from the first was over.  What is
 * dropped from the second makes the table incomplete for the rest of the
 * process's life: "unseen" does not mean "never seen" any more, and whoever
 * ends an unseen lease has to ask the plugin.
 *
 * Keys come from clients, so the hash is keyed.
 */
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "calls/lease_keys.h"
#include "base/memory.h"

#define SETTLED_MS 600000
#define FIRST_BUCKETS 64

typedef struct KeyList
{
	LeaseKey *oldest;
	LeaseKey *newest;
	size_t count;
} KeyList;

static LeaseKey **buckets;
static size_t bucket_count;
static size_t key_count;
static size_t max_kept = 100000;
static KeyList settled;
static KeyList open_keys;
static bool incomplete;

/*
 * The table
 */

static LeaseKey **
lease_keys_bucket_of(const char *id)
{
	static unsigned char secret[crypto_shorthash_KEYBYTES];
	static bool has_secret;
	unsigned char bytes[crypto_shorthash_BYTES];
	uint64_t hash;

	if (!has_secret)
	{
		randombytes_buf(secret, sizeof secret);
		has_secret = true;
	}
	crypto_shorthash(bytes, (const unsigned char *) id, strlen(id), secret);
	memcpy(&hash, bytes, sizeof hash);
	return &buckets[hash & (bucket_count - 1)];
}

static void
grow(void)
{
	LeaseKey **old = buckets;
	size_t old_count = bucket_count;

	bucket_count = old_count ? old_count * 2 : FIRST_BUCKETS;
	buckets = xcalloc(bucket_count, sizeof(LeaseKey *));
	for (size_t i = 0; i < old_count; i++)
	{
		LeaseKey *next;

		for (LeaseKey *key = old[i]; key != NULL; key = next)
		{
			LeaseKey **bucket = lease_keys_bucket_of(key->id);

			next = key->in_bucket;
			key->in_bucket = *bucket;
			*bucket = key;
		}
	}
	free(old);
}

static void
lease_keys_forget(LeaseKey *key)
{
	LeaseKey **link = lease_keys_bucket_of(key->id);

	while (*link != key)
		link = &(*link)->in_bucket;
	*link = key->in_bucket;
	key_count--;
	json_decref(key->lease);
	free(key->plugin_key);
	free(key->ended_id);
	free(key->id);
	free(key);
}

/*
 * The lists
 */

static void
lease_keys_list_append(KeyList *list, LeaseKey *key)
{
	key->list = list;
	key->newer = NULL;
	key->older = list->newest;
	if (list->newest != NULL)
		list->newest->newer = key;
	else
		list->oldest = key;
	list->newest = key;
	list->count++;
}

static void
lease_keys_list_remove(LeaseKey *key)
{
	KeyList *list = key->list;

	if (list == NULL)
		return;
	if (key->older != NULL)
		key->older->newer = key->newer;
	else
		list->oldest = key->newer;
	if (key->newer != NULL)
		key->newer->older = key->older;
	else
		list->newest = key->older;
	list->count--;
	key->list = NULL;
}

static void
lease_keys_drop_oldest(KeyList *list)
{
	LeaseKey *key = list->oldest;

	lease_keys_list_remove(key);
	lease_keys_forget(key);
}

static void
drop_surplus(uint64_t now)
{
	while (settled.oldest != NULL &&
	       (settled.count > max_kept || now - settled.oldest->kept_since > SETTLED_MS))
		lease_keys_drop_oldest(&settled);
	while (open_keys.count > max_kept)
	{
		incomplete = true;
		lease_keys_drop_oldest(&open_keys);
	}
}

/*
 * Keys
 */

LeaseKey *
lease_key_pin(const char *id)
{
	LeaseKey *key = NULL;

	if (key_count >= bucket_count)
		grow();
	for (key = *lease_keys_bucket_of(id); key != NULL && strcmp(key->id, id) != 0;)
		key = key->in_bucket;
	if (key == NULL)
	{
		LeaseKey **bucket = lease_keys_bucket_of(id);

		key = xcalloc(1, sizeof *key);
		key->id = xstrdup(id);
		key->in_bucket = *bucket;
		*bucket = key;
		key_count++;
	}
	lease_keys_list_remove(key);
	key->pins++;
	return key;
}

void
lease_key_unpin(LeaseKey *key, uint64_t now)
{
	if (--key->pins > 0)
		return;
	key->kept_since = now;
	switch (key->knowledge)
	{
		case LEASE_UNSEEN:
			lease_keys_forget(key);
			break;
		case LEASE_ABSENT:
		case LEASE_ENDED:
			lease_keys_list_append(&settled, key);
			break;
		case LEASE_UNKNOWN:
		case LEASE_HELD:
			lease_keys_list_append(&open_keys, key);
			break;
	}
	drop_surplus(now);
}

void
lease_key_learn(LeaseKey *key, LeaseKnowledge knowledge, json_t *lease)
{
	json_decref(key->lease);
	key->lease = lease;
	key->knowledge = knowledge;
	key->outcome = NULL;
}

void
lease_key_ended(LeaseKey *key, const char *outcome)
{
	lease_key_learn(key, LEASE_ENDED, NULL);
	key->outcome = outcome;
	key->condemned = false;
}

bool
lease_keys_are_complete(void)
{
	return !incomplete;
}

size_t
lease_keys_count(void)
{
	return key_count;
}

void
lease_keys_set_max(size_t max)
{
	max_kept = max;
}

void
lease_keys_clear(void)
{
	while (settled.oldest != NULL)
		lease_keys_drop_oldest(&settled);
	while (open_keys.oldest != NULL)
		lease_keys_drop_oldest(&open_keys);
	free(buckets);
	buckets = NULL;
	bucket_count = 0;
}
