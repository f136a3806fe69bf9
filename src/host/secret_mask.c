/*
 * secret_mask.c
 *		Hides the secrets that a worker was given in what it says to people.
 *
 * A worker may write down a secret long after the call that brought it has
 * ended, and the end of its stderr is shown to whoever's call fails next, of
 * whatever company.  So what is to be hidden is remembered as long as the
 * plugin, but not the secrets themselves: of each pattern there is its length
 * and a hash, polynomial at a secret base modulo a prime of 61 bits, so that
 * two texts have the same one by an unlikely chance only.
 *
 * Patterns are a secret's whole text, the same as JSON writes it, and its
 * first so many lines that have a few bytes.  They are found by the hash of
 * their first four bytes.  The hashes of all parts of a text follow from those
 * of its beginnings, so each place of a text costs one step, and one more for
 * each pattern that begins as the text goes on there, however long it is.
 *
 * Every company has room for so many patterns.  When it brings more, its own
 * oldest ones go, which nobody else's secrets are among; not those that calls
 * in flight brought, since the owner learns these once more before.  When the
 * room of all is full nevertheless, nothing is forgotten: all is hidden.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "memory.h"
#include "secret_mask.h"

#define MAX_PATTERNS 65536
#define MAX_OF_COMPANY 512
#define MAX_LINES 64
#define MIN_LENGTH 4
#define MIN_LINE 8
#define MAX_LENGTH 16384
#define BUCKETS 4096

#define PRIME (((uint64_t) 1 << 61) - 1)
#define NONE UINT32_MAX

typedef struct Pattern
{
	uint64_t hash;
	uint64_t power; /* the base to the length */
	uint64_t company;
	uint64_t learned; /* when last, among others */
	uint32_t length;
	uint32_t bucket;
	uint32_t next; /* of the bucket */
} Pattern;

struct SecretMask
{
	Pattern *patterns;
	uint32_t count;
	uint32_t room;
	uint32_t buckets[BUCKETS];
	uint64_t learned;
	uint64_t base;
	unsigned char key[crypto_shorthash_KEYBYTES];
	bool making_room;
	bool full;       /* something could not be learned */
	uint32_t enough; /* no room is made before there are as many */
	void (*make_room)(void *owner);
	void *owner;
};

static uint64_t
multiply(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128) a * b;
	uint64_t sum = (uint64_t) (product & PRIME) + (uint64_t) (product >> 61);

	return sum >= PRIME ? sum - PRIME : sum;
}

static uint64_t
append(const SecretMask *mask, uint64_t hash, char c)
{
	uint64_t sum = multiply(hash, mask->base) + (unsigned char) c + 1;

	return sum >= PRIME ? sum - PRIME : sum;
}

/* Of what is between two beginnings of a text, by their hashes. */
static uint64_t
between(uint64_t start, uint64_t end, uint64_t power)
{
	uint64_t before = multiply(start, power);

	return end >= before ? end - before : end + PRIME - before;
}

SecretMask *
secret_mask_new(void (*make_room)(void *owner), void *owner)
{
	SecretMask *mask = xcalloc(1, sizeof *mask);

	randombytes_buf(&mask->base, sizeof mask->base);
	mask->base = mask->base % (PRIME - 1000) + 500;
	crypto_shorthash_keygen(mask->key);
	memset(mask->buckets, 0xff, sizeof mask->buckets);
	mask->make_room = make_room;
	mask->owner = owner;
	return mask;
}

void
secret_mask_free(SecretMask *mask)
{
	free(mask->patterns);
	explicit_bzero(mask, sizeof *mask);
	free(mask);
}

/*
 * Learning
 */

static void
enter(SecretMask *mask, uint32_t index)
{
	Pattern *pattern = &mask->patterns[index];

	pattern->next = mask->buckets[pattern->bucket];
	mask->buckets[pattern->bucket] = index;
}

static int
compare_times(const void *a, const void *b)
{
	const uint64_t *left = a;
	const uint64_t *right = b;

	return *left < *right ? -1 : *left > *right;
}

/*
 * Forgets the older half of a company's patterns, as far as they were last
 * learned before `limit`.  Many at once, since the owner has work with it.
 */
static void
forget_some(SecretMask *mask, uint64_t company, uint64_t limit)
{
	uint64_t *times = xcalloc(mask->count, sizeof *times);
	size_t count = 0;
	uint64_t median;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < mask->count; i++)
		if (mask->patterns[i].company == company)
			times[count++] = mask->patterns[i].learned;
	qsort(times, count, sizeof *times, compare_times);
	median = times[count / 2];
	free(times);
	memset(mask->buckets, 0xff, sizeof mask->buckets);
	for (uint32_t i = 0; i < mask->count; i++)
	{
		const Pattern *pattern = &mask->patterns[i];

		if (pattern->company == company && pattern->learned < limit && pattern->learned <= median)
			continue;
		mask->patterns[kept] = *pattern;
		enter(mask, kept++);
	}
	mask->count = kept;
}

static size_t
count_of(const SecretMask *mask, uint64_t company)
{
	size_t count = 0;

	for (uint32_t i = 0; i < mask->count; i++)
		count += mask->patterns[i].company == company;
	return count;
}

static void
learn_text(SecretMask *mask, uint64_t company, const char *text, size_t length, size_t min)
{
	Pattern pattern = {.length = (uint32_t) length, .power = 1, .company = company};

	if (length < min || length > MAX_LENGTH)
		return;
	for (size_t i = 0; i < length; i++)
	{
		if (i == MIN_LENGTH)
			pattern.bucket = (uint32_t) (pattern.hash % BUCKETS);
		pattern.hash = append(mask, pattern.hash, text[i]);
		pattern.power = multiply(pattern.power, mask->base);
	}
	if (length == MIN_LENGTH)
		pattern.bucket = (uint32_t) (pattern.hash % BUCKETS);
	pattern.learned = ++mask->learned;
	for (uint32_t i = mask->buckets[pattern.bucket]; i != NONE; i = mask->patterns[i].next)
	{
		Pattern *known = &mask->patterns[i];

		/* Each company has its own, so that it is not forgotten on another's account. */
		if (known->length == pattern.length && known->hash == pattern.hash &&
		    known->company == company)
		{
			known->learned = pattern.learned;
			return;
		}
	}
	if (mask->making_room)
		return;
	if (mask->count >= MAX_PATTERNS)
	{
		mask->full = true;
		return;
	}
	if (mask->count == mask->room)
	{
		mask->room = mask->room > 0 ? mask->room * 2 : 64;
		mask->patterns = xrealloc(mask->patterns, mask->room * sizeof *mask->patterns);
	}
	mask->patterns[mask->count] = pattern;
	enter(mask, mask->count++);
}

static void
learn_lines(SecretMask *mask, uint64_t company, const char *text, size_t length)
{
	size_t start = 0;
	size_t lines = 0;

	for (size_t i = 0; i <= length && lines < MAX_LINES; i++)
	{
		if (i < length && text[i] != '\n' && text[i] != '\r')
			continue;
		if (i - start >= MIN_LINE && i - start < length)
		{
			learn_text(mask, company, text + start, i - start, MIN_LINE);
			lines++;
		}
		start = i + 1;
	}
}

void
secret_mask_learn(SecretMask *mask, const char *company, const json_t *secrets)
{
	const char *name;
	json_t *value;
	uint64_t account = 0;

	if (json_object_size(secrets) == 0)
		return;
	if (company != NULL)
		crypto_shorthash((unsigned char *) &account, (const unsigned char *) company,
		                 strlen(company), mask->key);
	json_object_foreach((json_t *) secrets, name, value)
	{
		const char *text = json_string_value(value);
		char *dumped;

		if (text == NULL)
			continue;
		learn_text(mask, account, text, json_string_length(value), MIN_LENGTH);
		learn_lines(mask, account, text, json_string_length(value));
		dumped = json_dumps(value, JSON_ENCODE_ANY);
		if (dumped != NULL && strlen(dumped) > 2)
			learn_text(mask, account, dumped + 1, strlen(dumped) - 2, MIN_LENGTH);
		secret_free(dumped);
	}
	if (!mask->making_room && mask->count > MAX_OF_COMPANY && mask->count >= mask->enough &&
	    count_of(mask, account) > MAX_OF_COMPANY)
	{
		uint64_t limit = mask->learned;

		mask->making_room = true;
		mask->make_room(mask->owner);
		secret_mask_learn(mask, company, secrets);
		mask->making_room = false;
		forget_some(mask, account, limit);
		/* When they are all in use, it makes no sense to try each time. */
		mask->enough =
		    count_of(mask, account) > MAX_OF_COMPANY ? mask->count + MAX_OF_COMPANY / 2 : 0;
	}
}

/*
 * Hiding
 */

void
secret_mask_apply(void *data, char *text, size_t length)
{
	const SecretMask *mask = data;
	uint64_t *hashes; /* of the beginnings */
	uint64_t power = 1;
	size_t hidden = 0; /* up to where */

	if (mask->full)
		memset(text, '*', length);
	if (mask->full || mask->count == 0 || length < MIN_LENGTH)
		return;
	for (size_t i = 0; i < MIN_LENGTH; i++)
		power = multiply(power, mask->base);
	hashes = xcalloc(length + 1, sizeof *hashes);
	for (size_t i = 0; i < length; i++)
		hashes[i + 1] = append(mask, hashes[i], text[i]);
	for (size_t start = 0; start < length; start++)
	{
		if (start + MIN_LENGTH <= length)
		{
			uint64_t head = between(hashes[start], hashes[start + MIN_LENGTH], power);

			for (uint32_t i = mask->buckets[head % BUCKETS]; i != NONE; i = mask->patterns[i].next)
			{
				const Pattern *pattern = &mask->patterns[i];
				size_t end = start + pattern->length;

				if (end > hidden && end <= length &&
				    between(hashes[start], hashes[end], pattern->power) == pattern->hash)
					hidden = end;
			}
		}
		if (start < hidden)
			text[start] = '*';
	}
	explicit_bzero(hashes, (length + 1) * sizeof *hashes);
	free(hashes);
}

char *
secret_mask_excerpt(SecretMask *mask, const char *text, size_t length, size_t shown)
{
	/* A secret that goes on where it is cut off must not be cut off before it is known. */
	size_t looked_at = length < shown + MAX_LENGTH ? length : shown + MAX_LENGTH;
	char *copy = xstrndup(text, looked_at);

	secret_mask_apply(mask, copy, looked_at);
	if (looked_at > shown)
	{
		explicit_bzero(copy + shown, looked_at - shown);
		copy[shown] = '\0';
	}
	return copy;
}
