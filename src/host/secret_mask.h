/*
 * secret_mask.h
 *		Hides the secrets that a worker was given in what it says to people.
 */
#ifndef ENVRT_HOST_SECRET_MASK_H
#define ENVRT_HOST_SECRET_MASK_H

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

/* Puts asterisks in their place; mask is a SecretMask. */
extern void secret_mask_apply(void *mask, char *text, size_t length);

/* At most the first `shown` bytes of a text, masked; to be freed with secret_free(). */
extern char *secret_mask_excerpt(SecretMask *mask, const char *text, size_t length, size_t shown);

#endif
