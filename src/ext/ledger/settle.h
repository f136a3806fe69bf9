/*
 * settle.h
 *		Decides what becomes of the ledger's rows; see settle.c.
 */
#ifndef ENVRT_SETTLE_H
#define ENVRT_SETTLE_H

#include "postgres.h"

#include "access/transam.h"
#include "ledger/scheduler_wake.h"

/* Whether a row's owner is a transaction that has not ended, or none of this server's. */
extern bool settle_owner_undecided(FullTransactionId owner);
/* Decides about rows whose transaction or lease has ended; false: come again soon. */
extern bool settle_hinted(const Hints *hints);
extern void settle_forget_foreign_leases(void);

#endif
