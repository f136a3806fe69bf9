/*
 * fair_queue.h
 *		Who is served next, so that no company waits for all that another one wants.
 */
#ifndef ENVRT_HOST_FAIR_QUEUE_H
#define ENVRT_HOST_FAIR_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct FairCompany FairCompany;
typedef struct FairItem FairItem;

/* All zero at first; nothing is left of it when its last item has been removed. */
typedef struct FairQueue
{
	FairCompany *companies; /* that have an item */
	uint64_t turn;          /* of the last item that was served */
	size_t waiting;
	size_t serving;
} FairQueue;

/* A part of what waits; all zero while it is in no queue. */
struct FairItem
{
	FairItem *next;
	FairItem *previous;
	FairCompany *company; /* NULL: in no queue */
	bool serving;
	void *data;
};

/* The item waits; company: NULL for what is nobody's. */
extern void fair_queue_add(FairQueue *queue, FairItem *item, const char *company, void *data);

/*
 * Who is next among those that wait: of the company that is being served least,
 * and of several such the one whose turn was longest ago, the oldest item.  A
 * company that has `share` items in service is passed over; 0: none is.  NULL:
 * nobody.
 */
extern FairItem *fair_queue_next(const FairQueue *queue, size_t share);

/* The same among the companies for whose oldest item may() is true. */
extern FairItem *fair_queue_next_of(const FairQueue *queue, size_t share,
                                    bool (*may)(void *data, const FairItem *oldest), void *data);

/* The item is being served from now on, and counts as such until it is removed. */
extern void fair_queue_serve(FairQueue *queue, FairItem *item);

/* The company after that one, or the first after NULL, that has an item in service; NULL: none. */
extern const char *fair_queue_served(const FairQueue *queue, const char *company);

/* The item leaves, whether it waits, is served, or is in no queue. */
extern void fair_queue_remove(FairQueue *queue, FairItem *item);

#endif
