/*
 * secret_mask.h
 *		Hides the secrets that a worker was given in what it says to people.
 */
#ifndef ENVRT_HOST_SECRET_MASK_H
#define ENVRT_HOST_SECRET_MASK_H

#include <stddef.h>

#include <jansson.h>

typedef struct SecretMask SecretMask;

extern SecretMask *secret_mask_new(void);
extern void secret_mask_free(SecretMask *mask);

/* The values of an object, as far as they are texts; NULL is fine. */
extern void secret_mask_learn(SecretMask *mask, const json_t *secrets);

/* Puts asterisks in their place; mask is a SecretMask. */
extern void secret_mask_apply(void *mask, char *text, size_t length);

#endif
