/*
 * ledger.h
 *		The ledger of provider leases, as the scheduler keeps it; see ledger.c.
 */
#ifndef ENVRT_LEDGER_H
#define ENVRT_LEDGER_H

#include "postgres.h"

#include "access/transam.h"
#include "datatype/timestamp.h"
#include "ledger/scheduler_wake.h"
#include "ledger/instance.h"
#include "ledger/requests.h"
#include "ledger/transactions.h"
#include "ledger/work_due.h"
#include "rights/tables.h"

/*
 * Rows that stand for the same thing outside: made by the same plugin, or by
 * the same provider of ours, and named alike.
 */
#define LEDGER_MAKER_OF(table) "coalesce(" table "plugin_key, " table "driver_key)"
/* " AND ..." for rows of whatever server that rely on what they name. */
#define LEDGER_LIVE_OF(table)                                                                      \
	" AND (" table "state = ANY (ARRAY['creating', 'held', 'idle'])"                               \
	"   OR (" table "state = 'cleaning'"                                                           \
	"     AND " table "cleanup = ANY (ARRAY['keep', 'report_keep'])))"

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

#endif
