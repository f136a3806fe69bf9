/*
 * failures.h
 *		What the scheduler could not do and tries again later; see failures.c.
 */
#ifndef ENVRT_FAILURES_H
#define ENVRT_FAILURES_H

#include "postgres.h"

#include "base/compat.h"
#include "datatype/timestamp.h"
#include "utils/array.h"
#include "utils/uuid.h"

/*
 * An activity is named by a constant text, such as "ending leases that have expired".  The id is
 * that of the row that it was about; NULL stands for the activity as a whole.
 */

/*
 * In PG_CATCH: counts the failure, logs the error when it is the first of its kind in this
 * episode, and ends the transaction.  The error is flushed.  Returns the time of the next try.
 */
extern TimestampTz failure_caught(const char *activity, const pg_uuid_t *id);

/* Counts and logs it for an error whose transaction is over. */
extern TimestampTz failure_noted(const char *activity, const pg_uuid_t *id, const ErrorData *error);

/* The same for a change without an effect: a trigger or rule has taken it back. */
extern TimestampTz failure_without_effect(const char *activity, const pg_uuid_t *id);

/* Puts the next try off, and counts no failure; without an entry nothing happens. */
extern void failure_put_off(const char *activity, const pg_uuid_t *id, int64 ms);

/* The row was dealt with, or needs nothing any more. */
extern void failure_over(const char *activity, const pg_uuid_t *id);

/* Whether the row's next try is in the future; *retry_at says when. */
extern bool failure_holds(const char *activity, const pg_uuid_t *id, TimestampTz *retry_at);

/* The ids of all rows of the activity that have failed, as an array of uuid. */
extern ArrayType *failures_array(const char *activity);

/* Ids of up to `most` rows whose next try is due. */
extern int failures_due(const char *activity, pg_uuid_t *ids, int most);

/* When the next row is to be tried again; DT_NOEND without any. */
extern TimestampTz failures_next(const char *activity);

/* Whether the same may work in a moment. */
extern bool error_is_passing(const ErrorData *error);

/* Raises the error of a change without an effect. */
pg_noreturn extern void ereport_without_effect(const char *what, const char *table);

/* Empties the database's part of envrt.stat_failures; the caller holds shared_state->lock. */
extern void failures_forget(Oid database);

#endif
