/*
 * master_key.h
 *		The key that secrets are encrypted under; see master_key.c.
 */
#ifndef ENVRT_MASTER_KEY_H
#define ENVRT_MASTER_KEY_H

#include "postgres.h"

#include <sodium.h>

/* Everything that is derived from the master key.  Zero it after use. */
typedef struct SecretKeys
{
	unsigned char encryption[crypto_aead_xchacha20poly1305_ietf_KEYBYTES];
	unsigned char hash[crypto_auth_hmacsha256_KEYBYTES];
	unsigned char sealing_public[crypto_box_PUBLICKEYBYTES];
	unsigned char sealing_secret[crypto_box_SECRETKEYBYTES];
} SecretKeys;

/* Loads the keys, or raises 55000; the caller is SPI-connected and in an ApiCall. */
extern void secret_keys_load(SecretKeys *keys);
extern void secret_keys_clear(SecretKeys *keys);

/* In the scheduler, when it starts and when it is told to; false: once more later. */
extern bool master_key_start(void);

#endif
