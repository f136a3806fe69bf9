/*
 * ledger.h
 *		The ledger of provider leases, as the scheduler keeps it; see ledger.c.
 */
#ifndef ENVRT_LEDGER_H
#define ENVRT_LEDGER_H

#include "postgres.h"

#include "access/transam.h"
#include "datatype/timestamp.h"
#include "ledger/ledger_hints.h"
#include "ledger/ledger_request.h"
#include "rights/tables.h"

/* A transaction of the scheduler's on the ledger. */
extern void ledger_begin(ApiCall *call);
/* `durable`: flushed before anybody acts on it, whatever synchronous_commit says. */
extern void ledger_commit(ApiCall *call, bool durable);
/* The same on the shared tables, as their owner; ended by ledger_commit, too. */
extern void owner_begin(ApiCall *call);
/* Whether the same may work in a moment. */
extern bool error_is_passing(const ErrorData *error);
/* Ends the transaction as something that others are about to rely on. */
extern void commit_durably(void);
/* In PG_CATCH: say in the log what happened, and end the transaction. */
extern void ledger_abort(const char *activity);

/* " AND ..." for rows that this server made; parameters $1 to $4, see ledger_own_arguments. */
#define LEDGER_OWN_OF(table)                                                                       \
	" " table "system_identifier OPERATOR(pg_catalog.=) $1 AND " table                             \
	"database_id OPERATOR(pg_catalog.=) $2 AND " table                                             \
	"timeline OPERATOR(pg_catalog.=) $3 AND " table "instance OPERATOR(pg_catalog.=) $4"
#define LEDGER_OWN LEDGER_OWN_OF("")
#define LEDGER_OWN_TYPES INT8OID, OIDOID, INT8OID, UUIDOID

extern void ledger_own_arguments(Datum *values);

/*
 * Rows that stand for the same thing outside: made by the same plugin, or by
 * the same provider of ours, and named alike.
 */
#define LEDGER_MAKER_OF(table) "coalesce(" table "plugin_key, " table "driver_key)"
/* " AND ..." for rows of whatever server that rely on what they name. */
#define LEDGER_LIVE_OF(table)                                                                      \
	" AND (" table "state OPERATOR(pg_catalog.=) ANY (ARRAY['creating', 'held', 'idle'])"          \
	"   OR (" table "state OPERATOR(pg_catalog.=) 'cleaning'"                                      \
	"     AND " table "cleanup OPERATOR(pg_catalog.=) ANY (ARRAY['keep', 'report_keep'])))"

/* Take over what a promotion has left, if told to; say what is left alone. */
extern void ledger_start(void);
/* Cleanups wait for times of day: they are tried when the clock has been set. */
extern void ledger_clock_was_set(void);

/* Does what a request asks for, within ledger_enter. */
extern void ledger_execute(LedgerRequest *request);

/* How many provider leases of plugins nobody would know of without this ledger; -1: not known. */
extern int64 ledger_count(void);

/* Serves what backends ask for. */
extern TimestampTz ledger_serve(bool parked);

/* settle.c: whether a row's owner is a transaction that has not ended, or none of this server's. */
extern bool settle_owner_undecided(FullTransactionId owner);
/* Decides about rows whose transaction or lease has ended; false: come again soon. */
extern bool settle_hinted(const Hints *hints);
extern void settle_forget_foreign_leases(void);

/* cleanup.c */
extern void cleanup_begin(void);
extern TimestampTz cleanup_tend(void);
extern void cleanup_look_again(void); /* rows may have become due */
extern bool cleanup_take_freed(void); /* something reusable may have become free */
extern void cleanup_note_freed(void);
extern bool cleanup_has_freed(void);

#endif
