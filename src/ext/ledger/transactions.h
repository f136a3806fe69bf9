/*
 * transactions.h
 *		Transactions of the scheduler; see transactions.c.
 */
#ifndef ENVRT_TRANSACTIONS_H
#define ENVRT_TRANSACTIONS_H

#include "postgres.h"

#include "rights/tables.h"

/* A transaction of the scheduler's on the ledger. */
extern void ledger_begin(ApiCall *call);
/* `durable`: flushed before anybody acts on it, whatever synchronous_commit says. */
extern void ledger_commit(ApiCall *call, bool durable);
/* The same on the shared tables, as their owner; ended by ledger_commit, too. */
extern void owner_begin(ApiCall *call);
/* Ends the transaction as something that others are about to rely on. */
extern void commit_durably(void);
/* In PG_CATCH: say in the log what happened, and end the transaction. */
extern void ledger_abort(const char *activity);

#endif
