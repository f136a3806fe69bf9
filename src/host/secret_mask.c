/*
 * secret_mask.c
 *		Hides the secrets that a worker was given in what it says to people.
 *
 * A worker may write down a secret long after the call that brought it has
 * ended, and the end of its stderr is shown to whoever's call fails next, of
 * whatever company.  So what is to be hidden is remembered as long as the
 * plugin, but not the secrets themselves: of each there is its length and two
 * keyed hashes.  One can be computed for every place of a text at the cost of
 * one step each; where it agrees, the other decides.
 *
 * Hidden are a secret's whole text, the same as JSON writes it, and each of
 * its lines, when they have a few bytes.  There is room for so many; the oldest
 * go first.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "memory.h"
#include "secret_mask.h"

#define MAX_PATTERNS 256
#define MIN_LENGTH 4
#define MIN_LINE 8
#define MAX_LENGTH 16384

typedef struct Pattern
{
	size_t length;
	uint64_t rolling;
	unsigned char hash[crypto_shorthash_BYTES];
} Pattern;

struct SecretMask
{
	Pattern patterns[MAX_PATTERNS];
	size_t count;
	size_t oldest;
	uint64_t base;
	unsigned char key[crypto_shorthash_KEYBYTES];
};

SecretMask *
secret_mask_new(void)
{
	SecretMask *mask = xcalloc(1, sizeof *mask);

	randombytes_buf(&mask->base, sizeof mask->base);
	mask->base |= 1;
	crypto_shorthash_keygen(mask->key);
	return mask;
}

void
secret_mask_free(SecretMask *mask)
{
	explicit_bzero(mask, sizeof *mask);
	free(mask);
}

static Pattern
pattern_of(const SecretMask *mask, const char *text, size_t length)
{
	Pattern pattern = {.length = length};

	for (size_t i = 0; i < length; i++)
		pattern.rolling = pattern.rolling * mask->base + (unsigned char) text[i];
	crypto_shorthash(pattern.hash, (const unsigned char *) text, length, mask->key);
	return pattern;
}

static bool
is_same(const Pattern *a, const Pattern *b)
{
	return a->length == b->length && a->rolling == b->rolling &&
	       memcmp(a->hash, b->hash, sizeof a->hash) == 0;
}

static void
learn_text(SecretMask *mask, const char *text, size_t length, size_t min)
{
	Pattern pattern;

	if (length < min || length > MAX_LENGTH)
		return;
	pattern = pattern_of(mask, text, length);
	for (size_t i = 0; i < mask->count; i++)
		if (is_same(&mask->patterns[i], &pattern))
			return;
	if (mask->count < MAX_PATTERNS)
		mask->patterns[mask->count++] = pattern;
	else
	{
		mask->patterns[mask->oldest] = pattern;
		mask->oldest = (mask->oldest + 1) % MAX_PATTERNS;
	}
}

static void
learn_lines(SecretMask *mask, const char *text, size_t length)
{
	size_t start = 0;

	for (size_t i = 0; i <= length; i++)
	{
		if (i < length && text[i] != '\n' && text[i] != '\r')
			continue;
		learn_text(mask, text + start, i - start, MIN_LINE);
		start = i + 1;
	}
}

void
secret_mask_learn(SecretMask *mask, const json_t *secrets)
{
	const char *name;
	json_t *value;

	json_object_foreach((json_t *) secrets, name, value)
	{
		const char *text = json_string_value(value);
		char *dumped;

		if (text == NULL)
			continue;
		learn_text(mask, text, json_string_length(value), MIN_LENGTH);
		learn_lines(mask, text, json_string_length(value));
		dumped = json_dumps(value, JSON_ENCODE_ANY);
		if (dumped != NULL && strlen(dumped) > 2)
			learn_text(mask, dumped + 1, strlen(dumped) - 2, MIN_LENGTH);
		secret_free(dumped);
	}
}

/* Where patterns of one length are. */
static void
apply_length(const SecretMask *mask, size_t pattern_length, const char *text, size_t length,
             char *hidden)
{
	uint64_t rolling = 0;
	uint64_t leading = 1;

	if (pattern_length > length)
		return;
	for (size_t i = 1; i < pattern_length; i++)
		leading *= mask->base;
	for (size_t i = 0; i < length; i++)
	{
		size_t start = i + 1 - pattern_length;

		if (i >= pattern_length)
			rolling -= leading * (unsigned char) text[start - 1];
		rolling = rolling * mask->base + (unsigned char) text[i];
		if (i + 1 < pattern_length)
			continue;
		for (size_t p = 0; p < mask->count; p++)
		{
			unsigned char hash[crypto_shorthash_BYTES];

			if (mask->patterns[p].length != pattern_length || mask->patterns[p].rolling != rolling)
				continue;
			crypto_shorthash(hash, (const unsigned char *) text + start, pattern_length, mask->key);
			if (memcmp(hash, mask->patterns[p].hash, sizeof hash) == 0)
				memset(hidden + start, 1, pattern_length);
		}
	}
}

void
secret_mask_apply(void *data, char *text, size_t length)
{
	const SecretMask *mask = data;
	char *hidden;

	if (mask->count == 0 || length == 0)
		return;
	hidden = xcalloc(1, length);
	for (size_t p = 0; p < mask->count; p++)
	{
		bool done = false;

		for (size_t before = 0; before < p && !done; before++)
			done = mask->patterns[before].length == mask->patterns[p].length;
		if (!done)
			apply_length(mask, mask->patterns[p].length, text, length, hidden);
	}
	for (size_t i = 0; i < length; i++)
		if (hidden[i])
			text[i] = '*';
	free(hidden);
}
