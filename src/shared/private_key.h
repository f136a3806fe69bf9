/*
 * private_key.h
 *		Whether a text is a private key that ssh can use; see private_key.c.
 */
#ifndef ENVRT_PRIVATE_KEY_H
#define ENVRT_PRIVATE_KEY_H

#include <stddef.h>

/*
 * private_key_problem
 *		NULL when the text looks like a private key that envrt can use, else
 *		what is wrong with it and what to do (encrypted, a public key, no key
 *		at all).  A static string; never a part of the key.
 */
extern const char *private_key_problem(const char *text, size_t length);

#endif
