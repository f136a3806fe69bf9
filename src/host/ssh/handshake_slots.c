/*
 * handshake_slots.c
 *		How many logins may be under way at one server.
 *
 * A default sshd drops connections at random while more than ten are not
 * logged in yet (MaxStartups), whoever they come from.  So no more than eight
 * are begun at a time per host and port; the others wait.  The next one is of the
 * company that has the fewest under way there, and of its logins the oldest; and
 * none has more than its share (fair_share.h), since a login may take long.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "shared/fair_share.h"
#include "ssh/handshake_slots.h"
#include "base/memory.h"
#include "base/timer.h"

#define SLOTS_PER_SERVER 8

struct HandshakeSlot
{
	HandshakeSlot *next; /* in the order in which they were asked for */
	char *host;
	int port;
	char *company;
	bool granted;
	Timer *grant;
	HandshakeGranted callback;
	void *data;
};

static HandshakeSlot *first_slot;

static void
granted(void *data)
{
	HandshakeSlot *slot = data;

	slot->callback(slot->data);
}

static bool
same_server(const HandshakeSlot *slot, const char *host, int port)
{
	return slot->port == port && strcasecmp(slot->host, host) == 0;
}

/* How many are granted at a server, to a company or (NULL) to all. */
static size_t
count_granted(const char *host, int port, const char *company)
{
	size_t count = 0;

	for (const HandshakeSlot *slot = first_slot; slot != NULL; slot = slot->next)
		count += slot->granted && same_server(slot, host, port) &&
		         (company == NULL || strcmp(slot->company, company) == 0);
	return count;
}

/* Grants what can be granted at one server. */
static void
grant_slots(const char *host, int port)
{
	size_t used = count_granted(host, port, NULL);
	HandshakeSlot *best;

	do
	{
		size_t least = 0;

		best = NULL;
		for (HandshakeSlot *slot = first_slot; slot != NULL && used < SLOTS_PER_SERVER;
		     slot = slot->next)
		{
			size_t own;

			if (slot->granted || !same_server(slot, host, port))
				continue;
			own = count_granted(host, port, slot->company);
			if (fair_share_allows(own, used, SLOTS_PER_SERVER) && (best == NULL || own < least))
			{
				best = slot;
				least = own;
			}
		}
		if (best != NULL)
		{
			best->granted = true;
			timer_start(&best->grant, 0, granted, best);
			used++;
		}
	}
	while (best != NULL);
}

HandshakeSlot *
handshake_slot_ask(const char *host, int port, const char *company, HandshakeGranted callback,
                   void *data)
{
	HandshakeSlot *slot = xcalloc(1, sizeof *slot);
	HandshakeSlot **end = &first_slot;

	slot->host = xstrdup(host);
	slot->port = port;
	slot->company = xstrdup(company ? company : "");
	slot->callback = callback;
	slot->data = data;
	while (*end != NULL)
		end = &(*end)->next;
	*end = slot;
	grant_slots(host, port);
	return slot;
}

void
handshake_slot_release(HandshakeSlot **owner)
{
	HandshakeSlot *slot = *owner;

	if (slot == NULL)
		return;
	*owner = NULL;
	for (HandshakeSlot **link = &first_slot; *link != NULL; link = &(*link)->next)
	{
		if (*link == slot)
		{
			*link = slot->next;
			break;
		}
	}
	timer_stop(&slot->grant);
	grant_slots(slot->host, slot->port);
	free(slot->host);
	free(slot->company);
	free(slot);
}
