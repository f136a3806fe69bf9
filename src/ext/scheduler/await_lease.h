/*
 * await_lease.h
 *		envrt_await_lease: waits for a requested lease; see await_lease.c.
 */
#ifndef ENVRT_AWAIT_LEASE_H
#define ENVRT_AWAIT_LEASE_H

#include "postgres.h"

#endif
