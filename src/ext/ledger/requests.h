/*
 * requests.h
 *		What backends ask the scheduler to do with the ledger; see requests.c.
 */
#ifndef ENVRT_REQUESTS_H
#define ENVRT_REQUESTS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/dsm.h"
#include "storage/latch.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

typedef enum LedgerVerb
{
	LEDGER_CREATE,         /* a row for a provider lease that is about to be made */
	LEDGER_REUSE,          /* an idle one if there is, else the same */
	LEDGER_REUSE_BESIDE,   /* the same, without waiting for the end of an earlier one */
	LEDGER_LEARN,          /* what the provider answered */
	LEDGER_NOTHING_MADE,   /* the provider has made nothing */
	LEDGER_GONE,           /* the provider has not got any more what was claimed */
	LEDGER_STRAY,          /* a resume made something else: that is to be destroyed */
	LEDGER_DOOM,           /* at its lease's end it is to be destroyed, not kept */
	LEDGER_RETRY,          /* clean up now, whatever came of it before */
	LEDGER_FORGET,         /* drop the row */
	LEDGER_TAKE_OVER,      /* rows of other servers are ours */
	LEDGER_FORGET_FOREIGN, /* rows of other servers are not our business */
} LedgerVerb;

typedef enum LedgerOutcome
{
	LEDGER_DONE,
	LEDGER_CREATED,
	LEDGER_CLAIMED,   /* lease_id is the key of what was idle */
	LEDGER_BUSY,      /* lease_id holds it */
	LEDGER_RETURNING, /* its lease is over, and it is about to be idle or gone */
	LEDGER_ENDING,    /* the same thing is being destroyed */
	LEDGER_NOT_FOUND, /* no such row */
	LEDGER_WRONG_STATE,
	LEDGER_FAILED /* message says why */
} LedgerOutcome;

typedef struct LedgerReply
{
	LedgerOutcome outcome;
	pg_uuid_t lease_id;
	int64 count;
	int sqlstate;
	char message[256];
} LedgerReply;

/* While shared_preload_libraries are loaded, before shared_state_reserve(). */
extern void ledger_requests_reserve(void);

/*
 * ledger_ask
 *		In a backend: has the scheduler do something, and waits for it to be durable.
 *
 * wait_ms is how long LEDGER_REUSE waits while another lease holds it.  What
 * ends by itself (LEDGER_RETURNING, LEDGER_ENDING) is always waited for, as
 * long as ledger_turn_ms says.
 * Raises 55000 where no scheduler is, and what made the request fail.
 */
extern int64 ledger_turn_ms(void);
extern void ledger_ask(LedgerVerb verb, Jsonb *content, int64 wait_ms, LedgerReply *reply);

/*
 * For who waits for something else of it: 55000 when there has been no scheduler for a
 * while.  *missing_since: 0 at first.
 */
extern void require_scheduler(TimestampTz *missing_since);

/* In the scheduler. */
typedef struct LedgerRequest
{
	int slot;
	LedgerVerb verb;
	Jsonb *content;
	bool may_wait;
	TimestampTz since;
	LedgerReply reply;
} LedgerRequest;

/* Whether anything waits that is not parked; the caller holds the lock. */
extern bool ledger_requests_waiting(void);

/* What waits to be served (parked: also what has been parked), in order; content is palloc'd. */
extern List *ledger_requests_take(bool parked);
extern void ledger_request_answer(LedgerRequest *request);
/* Leave it for the next time. */
extern void ledger_request_put_back(LedgerRequest *request);
/* Leave it until something becomes free; the reply's outcome says what it waits for. */
extern void ledger_request_park(LedgerRequest *request);
/* After a predecessor of this scheduler: what it has not answered is to be done. */
extern void ledger_requests_recover(void);

#endif
