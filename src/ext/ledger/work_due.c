/*
 * work_due.c
 *		What one part of the scheduler notes for another: that there may be work.
 *
 * The ledger, its cleanups and the requested leases each bring about work for
 * the others, and each round of the scheduler gives every one its turn.  So a
 * note is enough, and none of them needs to know the others.
 */
#include "postgres.h"

#include "ledger/work_due.h"

/* A scheduler that starts looks at everything. */
static bool noted[WORK_COUNT] = {true, true, true};

void
work_note(Work work)
{
	noted[work] = true;
}

bool
work_is_noted(Work work)
{
	return noted[work];
}

bool
work_take(Work work)
{
	bool result = noted[work];

	noted[work] = false;
	return result;
}
