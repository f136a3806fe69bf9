/*
 * company_turns.h
 *		Passes over rows that wait, in which companies take turns.
 */
#ifndef ENVRT_COMPANY_TURNS_H
#define ENVRT_COMPANY_TURNS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "rights/tables.h"
#include "utils/uuid.h"

/* A company in a pass: how far it is, and what of it is to be looked at next. */
typedef struct CompanyTurn
{
	pg_uuid_t company_id;
	TimestampTz at; /* the row that was looked at last */
	pg_uuid_t at_id;
	int serving; /* of its rows, as company_turns_count() was told */
	bool over;   /* nothing of it is left for this pass */
	void *page;  /* the user's, of this round */
	int page_length;
	int page_next;
} CompanyTurn;

typedef struct CompanyTurns
{
	Statement *find; /* the ids of companies above $1 that have rows, in order */
	CompanyTurn *turns;
	int count;
	pg_uuid_t from; /* where the list begins */
	pg_uuid_t last; /* whose turn it was last */
} CompanyTurns;

/* The statement for CompanyTurns.find: `table` is scanned by an index on its company_id. */
#define COMPANY_TURNS_LIMIT 1000
#define COMPANY_TURNS_FIND(table, condition)                                                       \
	"WITH RECURSIVE c(company_id) AS ("                                                            \
	" (SELECT company_id FROM " table " WHERE " condition                                          \
	"  AND company_id > $1 ORDER BY company_id LIMIT 1)"                                           \
	" UNION ALL"                                                                                   \
	" SELECT (SELECT t.company_id FROM " table " t WHERE " condition                               \
	"   AND t.company_id > c.company_id ORDER BY t.company_id LIMIT 1)"                            \
	"  FROM c WHERE c.company_id IS NOT NULL)"                                                     \
	" SELECT company_id FROM c WHERE company_id IS NOT NULL LIMIT 1000"

/* A pass begins: lists the companies.  In a transaction. */
extern void company_turns_begin(CompanyTurns *turns);

/* During a pass: companies that have come since take part.  In a transaction. */
extern void company_turns_join(CompanyTurns *turns);

/* A round begins: pages are forgotten, and nothing is counted as served. */
extern void company_turns_round(CompanyTurns *turns);

/* A row of this company is being served. */
extern void company_turns_count(CompanyTurns *turns, const pg_uuid_t *company_id);

/*
 * Whose turn it is: of those that are not over, the company that is served least,
 * and of several such the next one in order.  NULL: the pass is over.
 */
extern CompanyTurn *company_turns_next(CompanyTurns *turns);

#endif
