/*
 * secret_mask.c
 *		Hides the secrets that a worker was given in what it says to people.
 *
 * A worker may write down a secret long after the call that brought it has
 * ended, and the end of its stderr is shown to whoever's call fails next, of
 * whatever company.  So what is to be hidden is remembered as long as the
 * worker, but not the secrets themselves: of each pattern there is its length
 * and a hash, polynomial at a secret base modulo a prime of 61 bits, so that
 * two texts have the same one by an unlikely chance only.
 *
 * Patterns are a secret's whole text, the same as JSON writes it, and its
 * first so many lines that have a few bytes; of what is long, pieces, since
 * what people are shown may begin or end within it.  The hashes of all parts of
 * a text follow from those of its beginnings.  At each place of a text its next
 * four bytes tell which lengths come into question, and each of these is looked
 * up among the patterns: how many there are makes no difference.
 *
 * Every company has room for so many patterns.  When it brings more, its own
 * oldest ones go, which nobody else's secrets are among; not those that calls
 * in flight brought, since the owner learns these once more before.  What
 * several companies have brought stays.  When the room of all is full
 * nevertheless, nothing is forgotten: all is hidden, until the worker ends,
 * and with it what it may say; then only what is in use stays.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "base/memory.h"
#include "calls/secret_mask.h"

#define MAX_PATTERNS (256 * 1024)
#define MAX_OF_COMPANY 512
#define MAX_LINES 64
#define MIN_LENGTH 4
#define MIN_LINE 8
#define MAX_LENGTH 4096
#define FIRST_BUCKETS 1024

#define PRIME (((uint64_t) 1 << 61) - 1)
#define NONE UINT32_MAX

/* Numbers from 0 on by their keys, which are hashes; several can have the same key. */
typedef struct Index
{
	uint32_t *buckets;
	uint32_t bucket_count;
	uint64_t *keys;
	uint32_t *next; /* of the bucket */
	uint32_t count;
	uint32_t room;
} Index;

/* By their hashes. */
typedef struct Pattern
{
	uint64_t head; /* the hash of the first MIN_LENGTH bytes */
	uint64_t company;
	uint64_t learned; /* when last, among others */
	uint32_t length;
	bool shared; /* by several companies, and on nobody's account */
} Pattern;

/* The lengths of patterns, by their heads. */
typedef struct Size
{
	uint64_t power; /* the base to the length */
	uint32_t length;
} Size;

/* By companies. */
typedef struct Account
{
	uint32_t count;
	uint32_t enough; /* no room is made before there are as many */
} Account;

struct SecretMask
{
	Index by_hash;
	Pattern *patterns;
	Index by_head;
	Size *sizes;
	Index by_company;
	Account *accounts;
	uint64_t learned;
	uint64_t base;
	unsigned char key[crypto_shorthash_KEYBYTES];
	bool making_room;
	bool full; /* something could not be learned */
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

static uint64_t
power_of(const SecretMask *mask, size_t length)
{
	uint64_t power = 1;

	for (size_t i = 0; i < length; i++)
		power = multiply(power, mask->base);
	return power;
}

/*
 * Indexes
 */

static uint32_t *
secret_mask_bucket_of(const Index *index, uint64_t key)
{
	return &index->buckets[(key ^ key >> 32) & (index->bucket_count - 1)];
}

static uint32_t
with_key(const Index *index, uint32_t number, uint64_t key)
{
	while (number != NONE && index->keys[number] != key)
		number = index->next[number];
	return number;
}

/* The first of a key, and the next one with the same; NONE when there is none. */
static uint32_t
index_find(const Index *index, uint64_t key)
{
	return index->count > 0 ? with_key(index, *secret_mask_bucket_of(index, key), key) : NONE;
}

static uint32_t
index_next(const Index *index, uint32_t number)
{
	return with_key(index, index->next[number], index->keys[number]);
}

static void
index_enter(Index *index, uint32_t number)
{
	uint32_t *bucket = secret_mask_bucket_of(index, index->keys[number]);

	index->next[number] = *bucket;
	*bucket = number;
}

/* Adds one; *grown: there is more room than before, for the owner to make as well. */
static uint32_t
index_add(Index *index, uint64_t key, bool *grown)
{
	*grown = index->count == index->room;
	if (*grown)
	{
		index->room = index->room > 0 ? index->room * 2 : FIRST_BUCKETS;
		index->bucket_count = index->room;
		index->keys = xrealloc(index->keys, index->room * sizeof *index->keys);
		index->next = xrealloc(index->next, index->room * sizeof *index->next);
		index->buckets = xrealloc(index->buckets, index->room * sizeof *index->buckets);
		memset(index->buckets, 0xff, index->bucket_count * sizeof *index->buckets);
		for (uint32_t i = 0; i < index->count; i++)
			index_enter(index, i);
	}
	index->keys[index->count] = key;
	index_enter(index, index->count);
	return index->count++;
}

static void
index_free(Index *index)
{
	free(index->buckets);
	free(index->keys);
	free(index->next);
	memset(index, 0, sizeof *index);
}

SecretMask *
secret_mask_new(void (*make_room)(void *owner), void *owner)
{
	SecretMask *mask = xcalloc(1, sizeof *mask);

	randombytes_buf(&mask->base, sizeof mask->base);
	mask->base = mask->base % (PRIME - 1000) + 500;
	crypto_shorthash_keygen(mask->key);
	mask->make_room = make_room;
	mask->owner = owner;
	return mask;
}

static void
clear(SecretMask *mask)
{
	index_free(&mask->by_hash);
	index_free(&mask->by_head);
	index_free(&mask->by_company);
	free(mask->patterns);
	free(mask->sizes);
	free(mask->accounts);
	mask->patterns = NULL;
	mask->sizes = NULL;
	mask->accounts = NULL;
}

void
secret_mask_free(SecretMask *mask)
{
	clear(mask);
	explicit_bzero(mask, sizeof *mask);
	free(mask);
}

/*
 * Learning
 */

static Account *
account_of(SecretMask *mask, uint64_t company)
{
	uint32_t number = index_find(&mask->by_company, company);

	if (number == NONE)
	{
		bool grown;

		number = index_add(&mask->by_company, company, &grown);
		if (grown)
			mask->accounts =
			    xrealloc(mask->accounts, mask->by_company.room * sizeof *mask->accounts);
		mask->accounts[number] = (Account){0};
	}
	return &mask->accounts[number];
}

static void
add_size(SecretMask *mask, uint64_t head, uint32_t length)
{
	uint32_t number = index_find(&mask->by_head, head);
	bool grown;

	while (number != NONE && mask->sizes[number].length != length)
		number = index_next(&mask->by_head, number);
	if (number != NONE)
		return;
	number = index_add(&mask->by_head, head, &grown);
	if (grown)
		mask->sizes = xrealloc(mask->sizes, mask->by_head.room * sizeof *mask->sizes);
	mask->sizes[number] = (Size){.power = power_of(mask, length), .length = length};
}

static void
secret_mask_add(SecretMask *mask, uint64_t hash, const Pattern *pattern)
{
	bool grown;
	uint32_t number = index_add(&mask->by_hash, hash, &grown);

	if (grown)
		mask->patterns = xrealloc(mask->patterns, mask->by_hash.room * sizeof *mask->patterns);
	mask->patterns[number] = *pattern;
	if (!pattern->shared)
		account_of(mask, pattern->company)->count++;
	add_size(mask, pattern->head, pattern->length);
}

static Pattern *
secret_mask_find(const SecretMask *mask, uint64_t hash, uint32_t length)
{
	uint32_t number = index_find(&mask->by_hash, hash);

	while (number != NONE && mask->patterns[number].length != length)
		number = index_next(&mask->by_hash, number);
	return number != NONE ? &mask->patterns[number] : NULL;
}

/* Forgets what was last learned before `before`: of a company, not after `last`; NULL: of all. */
static void
secret_mask_forget(SecretMask *mask, const uint64_t *company, uint64_t before, uint64_t last)
{
	Index by_hash = mask->by_hash;
	Pattern *patterns = mask->patterns;

	memset(&mask->by_hash, 0, sizeof mask->by_hash);
	mask->patterns = NULL;
	clear(mask);
	for (uint32_t i = 0; i < by_hash.count; i++)
	{
		const Pattern *pattern = &patterns[i];
		bool ours = company == NULL || (!pattern->shared && pattern->company == *company);

		if (!ours || pattern->learned >= before || pattern->learned > last)
			secret_mask_add(mask, by_hash.keys[i], pattern);
	}
	index_free(&by_hash);
	free(patterns);
}

static int
compare_times(const void *a, const void *b)
{
	const uint64_t *left = a;
	const uint64_t *right = b;

	return *left < *right ? -1 : *left > *right;
}

/* The time before which half of a company's patterns were last learned. */
static uint64_t
median_of(const SecretMask *mask, uint64_t company)
{
	uint64_t *times = xcalloc(mask->by_hash.count, sizeof *times);
	size_t count = 0;
	uint64_t median;

	for (uint32_t i = 0; i < mask->by_hash.count; i++)
		if (!mask->patterns[i].shared && mask->patterns[i].company == company)
			times[count++] = mask->patterns[i].learned;
	qsort(times, count, sizeof *times, compare_times);
	median = times[count / 2];
	free(times);
	return median;
}

/* At most MAX_LENGTH bytes. */
static void
learn_piece(SecretMask *mask, uint64_t company, const char *text, size_t length)
{
	Pattern pattern = {.length = (uint32_t) length, .company = company};
	uint64_t hash = 0;
	Pattern *known;

	for (size_t i = 0; i < length; i++)
	{
		hash = append(mask, hash, text[i]);
		if (i + 1 == MIN_LENGTH)
			pattern.head = hash;
	}
	pattern.learned = ++mask->learned;
	known = secret_mask_find(mask, hash, pattern.length);
	if (known != NULL)
	{
		known->learned = pattern.learned;
		if (known->shared || known->company == company)
			return;
		/* It must not be forgotten on the other's account. */
		account_of(mask, known->company)->count--;
		known->shared = true;
	}
	else if (mask->making_room)
		return;
	else if (mask->by_hash.count >= MAX_PATTERNS)
		mask->full = true;
	else
		secret_mask_add(mask, hash, &pattern);
}

static void
learn_text(SecretMask *mask, uint64_t company, const char *text, size_t length, size_t min)
{
	size_t start = 0;

	if (length < min)
		return;
	for (; length - start > MAX_LENGTH; start += MAX_LENGTH)
		learn_piece(mask, company, text + start, MAX_LENGTH);
	/* The last one is as long as the others, since it may be all that is there. */
	if (start > 0)
		start = length - MAX_LENGTH;
	learn_piece(mask, company, text + start, length - start);
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

/* Has the owner learn once more what is to stay; what it has not learned since is older. */
static uint64_t
learn_again(SecretMask *mask)
{
	uint64_t before = ++mask->learned;

	mask->making_room = true;
	mask->make_room(mask->owner);
	mask->making_room = false;
	return before;
}

static void
make_room(SecretMask *mask, uint64_t company, uint64_t before)
{
	Account *account;

	secret_mask_forget(mask, &company, before, median_of(mask, company));
	account = account_of(mask, company);
	/* When they are all in use, it makes no sense to try each time. */
	account->enough = account->count > MAX_OF_COMPANY ? account->count + MAX_OF_COMPANY / 2 : 0;
}

void
secret_mask_learn(SecretMask *mask, const char *company, const json_t *secrets)
{
	const char *name;
	json_t *value;
	uint64_t number = 0;
	const Account *account;

	if (json_object_size(secrets) == 0)
		return;
	if (company != NULL)
		crypto_shorthash((unsigned char *) &number, (const unsigned char *) company,
		                 strlen(company), mask->key);
	json_object_foreach((json_t *) secrets, name, value)
	{
		const char *text = json_string_value(value);
		char *dumped;

		if (text == NULL)
			continue;
		learn_text(mask, number, text, json_string_length(value), MIN_LENGTH);
		learn_lines(mask, number, text, json_string_length(value));
		dumped = json_dumps(value, JSON_ENCODE_ANY);
		if (dumped != NULL && strlen(dumped) > 2)
			learn_text(mask, number, dumped + 1, strlen(dumped) - 2, MIN_LENGTH);
		secret_free(dumped);
	}
	account = account_of(mask, number);
	if (!mask->making_room && account->count > MAX_OF_COMPANY && account->count >= account->enough)
	{
		uint64_t before = learn_again(mask);

		mask->making_room = true;
		secret_mask_learn(mask, company, secrets);
		mask->making_room = false;
		make_room(mask, number, before);
	}
}

bool
secret_mask_is_full(const SecretMask *mask)
{
	return mask->full;
}

void
secret_mask_worker_ended(SecretMask *mask)
{
	if (!mask->full && mask->by_hash.count < MAX_PATTERNS / 2)
		return;
	secret_mask_forget(mask, NULL, learn_again(mask), UINT64_MAX);
	mask->full = false;
}

/*
 * Hiding
 */

/* Where the longest pattern ends that begins at a place; 0: none does. */
static size_t
end_of_pattern(const SecretMask *mask, const uint64_t *hashes, size_t start, size_t length,
               uint64_t power)
{
	uint64_t head = between(hashes[start], hashes[start + MIN_LENGTH], power);
	size_t last = 0;

	for (uint32_t i = index_find(&mask->by_head, head); i != NONE;
	     i = index_next(&mask->by_head, i))
	{
		const Size *size = &mask->sizes[i];
		size_t end = start + size->length;

		if (end > last && end <= length &&
		    secret_mask_find(mask, between(hashes[start], hashes[end], size->power),
		                     size->length) != NULL)
			last = end;
	}
	return last;
}

void
secret_mask_apply(void *data, char *text, size_t length)
{
	const SecretMask *mask = data;
	uint64_t *hashes; /* of the beginnings */
	uint64_t power;
	size_t hidden = 0; /* up to where */

	if (mask->full)
		memset(text, '*', length);
	if (mask->full || mask->by_hash.count == 0 || length < MIN_LENGTH)
		return;
	power = power_of(mask, MIN_LENGTH);
	hashes = xcalloc(length + 1, sizeof *hashes);
	for (size_t i = 0; i < length; i++)
		hashes[i + 1] = append(mask, hashes[i], text[i]);
	for (size_t start = 0; start < length; start++)
	{
		if (start + MIN_LENGTH <= length)
		{
			size_t end = end_of_pattern(mask, hashes, start, length, power);

			if (end > hidden)
				hidden = end;
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

/*
 * Parts of secrets in one text
 *
 * Eight bytes in a row that a secret has too are a part of it, of a shorter one all of it.  The
 * text's different parts are found by their hash, so a secret is gone through once; how often one
 * occurs in the text makes no difference, and nobody can choose texts whose hashes are the same.
 */

#define PART 8
/* What is longer on the whole would take too long: then nothing of the text is shown. */
#define PARTS_MAX_BYTES (1024 * 1024)

struct SecretParts
{
	char *text;
	size_t length;
	bool *hidden;      /* of each byte of the text */
	bool *found;       /* of each part of the text that is the first of its like: a secret has it */
	uint32_t *buckets; /* the first part with that hash, by its place in the text; NONE */
	uint32_t *next;    /* the next one with that hash */
	int shift;         /* leaves the number of a bucket of a hash */
	uint64_t factor;   /* odd */
	size_t searched;
};

static uint64_t
part_at(const char *bytes)
{
	uint64_t part;

	memcpy(&part, bytes, sizeof part);
	return part;
}

/*
 * By the highest bits, on which all of the part has an effect; on the lower ones its last bytes
 * have none.
 */
static uint32_t *
part_bucket(const SecretParts *parts, uint64_t part)
{
	return &parts->buckets[(part * parts->factor) >> parts->shift];
}

/* Where the text first has it; NONE. */
static uint32_t
part_place(const SecretParts *parts, uint64_t part)
{
	uint32_t place = *part_bucket(parts, part);

	while (place != NONE && part_at(parts->text + place) != part)
		place = parts->next[place];
	return place;
}

SecretParts *
secret_parts_new(char *text, size_t length)
{
	SecretParts *parts = xcalloc(1, sizeof *parts);
	size_t count = length >= PART ? length - PART + 1 : 0;
	uint32_t size = 64;

	parts->shift = 64 - 6;
	for (; size < count; size *= 2)
		parts->shift--;
	parts->text = text;
	parts->length = length;
	parts->hidden = xcalloc(length + 1, sizeof *parts->hidden);
	parts->found = xcalloc(count + 1, sizeof *parts->found);
	parts->buckets = xcalloc(size, sizeof *parts->buckets);
	parts->next = xcalloc(count + 1, sizeof *parts->next);
	randombytes_buf(&parts->factor, sizeof parts->factor);
	parts->factor |= 1;
	for (uint32_t i = 0; i < size; i++)
		parts->buckets[i] = NONE;
	for (uint32_t i = 0; i < count; i++)
	{
		uint64_t part = part_at(text + i);
		uint32_t *bucket = part_bucket(parts, part);

		if (part_place(parts, part) != NONE)
			continue;
		parts->next[i] = *bucket;
		*bucket = i;
	}
	return parts;
}

static void
find_short(SecretParts *parts, const char *secret, size_t length)
{
	const char *end = parts->text + parts->length;
	const char *found = parts->text;

	while ((found = memmem(found, (size_t) (end - found), secret, length)) != NULL)
	{
		memset(parts->hidden + (found - parts->text), true, length);
		found++;
	}
}

void
secret_parts_find(SecretParts *parts, const char *secret, size_t length)
{
	parts->searched += length < PART ? parts->length : length;
	if (length < MIN_LENGTH || parts->searched > PARTS_MAX_BYTES)
		return;
	if (length < PART)
	{
		find_short(parts, secret, length);
		return;
	}
	for (size_t i = 0; i + PART <= length; i++)
	{
		uint32_t place = part_place(parts, part_at(secret + i));

		if (place != NONE)
			parts->found[place] = true;
	}
}

void
secret_parts_hide(SecretParts *parts)
{
	for (size_t i = 0; i + PART <= parts->length; i++)
		if (parts->found[part_place(parts, part_at(parts->text + i))])
			memset(parts->hidden + i, true, PART);
	for (size_t i = 0; i < parts->length; i++)
		if (parts->hidden[i] || parts->searched > PARTS_MAX_BYTES)
			parts->text[i] = '*';
	free(parts->hidden);
	free(parts->found);
	free(parts->buckets);
	free(parts->next);
	free(parts);
}
