/*
 * fair_queue.c
 *		Who is served next, so that no company waits for all that another one wants.
 *
 * Each company with an item has a list of those that wait, and counts those
 * that are in service.  The next item is of the company with the fewest in
 * service, so places that become free go to whoever has less than the others,
 * until all who want more have the same; companies with as many take turns.
 *
 * A company is forgotten with its last item.  One that comes gets the turn of
 * the item that was served last: neither is it behind all who have waited, nor
 * can it be the first again and again by coming anew each time.
 *
 * The search walks all companies with an item.  Their number is bounded by that
 * of the items, which every user of this file limits.
 */
#include <stdlib.h>
#include <string.h>

#include "base/fair_queue.h"
#include "base/memory.h"

struct FairCompany
{
	FairCompany *next;
	FairCompany *previous;
	FairItem *first;
	FairItem *last;
	size_t serving;
	uint64_t turn;
	char id[];
};

static FairCompany *
fair_queue_find_or_make(FairQueue *queue, const char *id)
{
	FairCompany *company = queue->companies;
	size_t size = strlen(id) + 1;

	while (company != NULL && strcmp(company->id, id) != 0)
		company = company->next;
	if (company != NULL)
		return company;
	company = xcalloc(1, sizeof *company + size);
	memcpy(company->id, id, size);
	company->turn = queue->turn;
	company->next = queue->companies;
	if (queue->companies != NULL)
		queue->companies->previous = company;
	queue->companies = company;
	return company;
}

static void
forget_if_idle(FairQueue *queue, FairCompany *company)
{
	if (company->first != NULL || company->serving > 0)
		return;
	if (company->previous != NULL)
		company->previous->next = company->next;
	else
		queue->companies = company->next;
	if (company->next != NULL)
		company->next->previous = company->previous;
	free(company);
}

static void
unlink_waiting(FairQueue *queue, FairItem *item)
{
	FairCompany *company = item->company;

	if (item->previous != NULL)
		item->previous->next = item->next;
	else
		company->first = item->next;
	if (item->next != NULL)
		item->next->previous = item->previous;
	else
		company->last = item->previous;
	item->next = item->previous = NULL;
	queue->waiting--;
}

void
fair_queue_add(FairQueue *queue, FairItem *item, const char *company_id, void *data)
{
	FairCompany *company = fair_queue_find_or_make(queue, company_id ? company_id : "");

	*item = (FairItem){.company = company, .previous = company->last, .data = data};
	if (company->last != NULL)
		company->last->next = item;
	else
		company->first = item;
	company->last = item;
	queue->waiting++;
}

FairItem *
fair_queue_next(const FairQueue *queue, size_t share)
{
	return fair_queue_next_of(queue, share, NULL, NULL);
}

FairItem *
fair_queue_next_of(const FairQueue *queue, size_t share,
                   bool (*may)(void *data, const FairItem *oldest), void *data)
{
	const FairCompany *best = NULL;

	for (const FairCompany *company = queue->companies; company != NULL; company = company->next)
	{
		if (company->first == NULL || (share > 0 && company->serving >= share))
			continue;
		if (may != NULL && !may(data, company->first))
			continue;
		if (best == NULL || company->serving < best->serving ||
		    (company->serving == best->serving && company->turn < best->turn))
			best = company;
	}
	return best != NULL ? best->first : NULL;
}

void
fair_queue_serve(FairQueue *queue, FairItem *item)
{
	unlink_waiting(queue, item);
	item->serving = true;
	item->company->serving++;
	item->company->turn = ++queue->turn;
	queue->serving++;
}

const char *
fair_queue_served(const FairQueue *queue, const char *company_id)
{
	const FairCompany *company = queue->companies;

	/* It is one of ours. */
	while (company_id != NULL && company->id != company_id)
		company = company->next;
	if (company_id != NULL)
		company = company->next;
	while (company != NULL && company->serving == 0)
		company = company->next;
	return company != NULL ? company->id : NULL;
}

void
fair_queue_remove(FairQueue *queue, FairItem *item)
{
	FairCompany *company = item->company;

	if (company == NULL)
		return;
	if (item->serving)
	{
		company->serving--;
		queue->serving--;
	}
	else
		unlink_waiting(queue, item);
	memset(item, 0, sizeof *item);
	forget_if_idle(queue, company);
}
