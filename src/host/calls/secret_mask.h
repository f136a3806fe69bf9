/*
 * secret_mask.h
 *		Hides the secrets that a worker was given in what it says to people.
 */
#ifndef ENVRT_HOST_SECRET_MASK_H
#define ENVRT_HOST_SECRET_MASK_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

typedef struct SecretMask SecretMask;

/*
 * make_room(owner) is called before anything is forgotten: to mask what is kept
 * unmasked, and to learn once more what must stay.
 */
extern SecretMask *secret_mask_new(void (*make_room)(void *owner), void *owner);
extern void secret_mask_free(SecretMask *mask);

/*
 * The values of an object, as far as they are texts; NULL is fine.  company,
 * which may be NULL: on whose account.
 */
extern void secret_mask_learn(SecretMask *mask, const char *company, const json_t *secrets);

/* Whether there was no room for all, so that everything is hidden. */
extern bool secret_mask_is_full(const SecretMask *mask);

/*
 * What the worker wrote is masked and gone: the next one does not know what
 * this one was told.  When there is little room left, what is not learned once
 * more (make_room) is forgotten.
 */
extern void secret_mask_worker_ended(SecretMask *mask);

/* Puts asterisks in their place; mask is a SecretMask. */
extern void secret_mask_apply(void *mask, char *text, size_t length);

/* At most the first `shown` bytes of a text, masked; to be freed with secret_free(). */
extern char *secret_mask_excerpt(SecretMask *mask, const char *text, size_t length, size_t shown);

/*
 * The same for one text at hand, and secrets that are at hand too: hides what the two have in
 * common, not whole secrets alone, since a remote side may have cut or folded what it repeats.
 */
typedef struct SecretParts SecretParts;

extern SecretParts *secret_parts_new(char *text, size_t length);
extern void secret_parts_find(SecretParts *parts, const char *secret, size_t length);

/* Puts asterisks over all that was found, and frees parts. */
extern void secret_parts_hide(SecretParts *parts);

#endif
