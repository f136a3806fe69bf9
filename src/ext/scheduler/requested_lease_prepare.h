/*
 * requested_lease_prepare.h
 *		The first half of serving a requested lease: what its driver is called with; see
 * requested_lease_prepare.c.
 */
#ifndef ENVRT_REQUESTED_LEASE_PREPARE_H
#define ENVRT_REQUESTED_LEASE_PREPARE_H

#include "postgres.h"

#include "scheduler/requested_lease.h"

/* The call to make is in *params (a new reference); false: none now, and held_up may say why. */
extern bool requested_lease_prepare(RequestedLease *lease, json_t **params, int64 *timeout_ms);
/* Another call for what the lease has claimed before. */
extern void requested_lease_prepare_again(RequestedLease *lease, json_t **params,
                                          int64 *timeout_ms);

#endif
