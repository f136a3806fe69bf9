/*
 * company_turns.c
 *		Passes over rows that wait, in which companies take turns.
 *
 * A queue is served company by company, and within a company by age, so that a
 * company that queues much waits for itself only.  A pass looks at each row once:
 * it has a list of the companies that have rows, found by an index without
 * reading any row twice, and for each how far it is.  A company that has more rows
 * than its share in service is passed over by the user of this file, which also
 * reads the rows.
 *
 * A pass goes on over many rounds of the scheduler's loop.  With more companies
 * than the list has room for, the next pass begins where the list ended.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "ledger/company_turns.h"
#include "utils/memutils.h"

static int
compare_turns(const void *a, const void *b)
{
	return memcmp(&((const CompanyTurn *) a)->company_id, &((const CompanyTurn *) b)->company_id,
	              UUID_LEN);
}

static CompanyTurn *
find_turn(const CompanyTurns *turns, const pg_uuid_t *company_id)
{
	CompanyTurn key = {.company_id = *company_id};

	return turns->count == 0
	           ? NULL
	           : bsearch(&key, turns->turns, turns->count, sizeof(CompanyTurn), compare_turns);
}

/* Adds those that are not in the list yet; how many there are. */
static int
company_turns_list_companies(CompanyTurns *turns)
{
	Datum values[1] = {UUIDPGetDatum(&turns->from)};
	int found = statement_execute(turns->find, values, NULL);
	int before = turns->count;

	for (int row = 0; row < found && turns->count < COMPANY_TURNS_LIMIT; row++)
	{
		CompanyTurn key = {.company_id = *result_uuid(row, 1), .at = DT_NOBEGIN};

		if (before > 0 &&
		    bsearch(&key, turns->turns, before, sizeof(CompanyTurn), compare_turns) != NULL)
			continue;
		turns->turns[turns->count++] = key;
	}
	qsort(turns->turns, turns->count, sizeof(CompanyTurn), compare_turns);
	return found;
}

void
company_turns_begin(CompanyTurns *turns)
{
	static const pg_uuid_t first = {{0}};

	if (turns->turns == NULL)
		turns->turns =
		    MemoryContextAlloc(TopMemoryContext, sizeof(CompanyTurn) * COMPANY_TURNS_LIMIT);
	turns->from =
	    turns->count == COMPANY_TURNS_LIMIT ? turns->turns[turns->count - 1].company_id : first;
	turns->count = 0;
	if (company_turns_list_companies(turns) == 0 && memcmp(&turns->from, &first, UUID_LEN) != 0)
	{
		turns->from = first;
		(void) company_turns_list_companies(turns);
	}
}

void
company_turns_join(CompanyTurns *turns)
{
	(void) company_turns_list_companies(turns);
}

void
company_turns_round(CompanyTurns *turns)
{
	for (int i = 0; i < turns->count; i++)
	{
		turns->turns[i].serving = 0;
		turns->turns[i].page = NULL;
		turns->turns[i].page_length = turns->turns[i].page_next = 0;
	}
}

void
company_turns_count(CompanyTurns *turns, const pg_uuid_t *company_id)
{
	CompanyTurn *turn = find_turn(turns, company_id);

	if (turn != NULL)
		turn->serving++;
}

CompanyTurn *
company_turns_next(CompanyTurns *turns)
{
	CompanyTurn *best = NULL;
	int first = 0;

	while (first < turns->count &&
	       memcmp(&turns->turns[first].company_id, &turns->last, UUID_LEN) <= 0)
		first++;
	for (int i = 0; i < turns->count; i++)
	{
		CompanyTurn *turn = &turns->turns[(first + i) % turns->count];

		if (!turn->over && (best == NULL || turn->serving < best->serving))
			best = turn;
	}
	if (best != NULL)
		turns->last = best->company_id;
	return best;
}
