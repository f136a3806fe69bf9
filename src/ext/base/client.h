/*
 * client.h
 *		Whether the client of a backend that waits is still there; see client.c.
 */
#ifndef ENVRT_CLIENT_H
#define ENVRT_CLIENT_H

#include "postgres.h"

/* No wait in a backend is longer before it looks again, at its client as well. */
#define CLIENT_LOOK_MS 1000

/* Ends the session when its client is gone; else as CHECK_FOR_INTERRUPTS(). */
extern void client_check(void);

#endif
