/*
 * handshake_slots.c
 *		How many logins may be under way at one server.
 *
 * A default sshd drops connections at random while more than ten are not
 * logged in yet (MaxStartups), whoever they come from.  So no more than eight
 * are begun at a time per host and port; the others wait, first come, first served.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <strings.h>

#include "handshake_slots.h"
#include "memory.h"
#include "timer.h"

#define SLOTS_PER_SERVER 8

struct HandshakeSlot
{
	HandshakeSlot *next; /* in the order in which they were asked for */
	char *host;
	int port;
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

/* Grants what can be granted at one server. */
static void
grant_slots(const char *host, int port)
{
	int used = 0;

	for (HandshakeSlot *slot = first_slot; slot != NULL; slot = slot->next)
		if (slot->granted && same_server(slot, host, port))
			used++;
	for (HandshakeSlot *slot = first_slot; slot != NULL && used < SLOTS_PER_SERVER;
	     slot = slot->next)
	{
		if (slot->granted || !same_server(slot, host, port))
			continue;
		slot->granted = true;
		timer_start(&slot->grant, 0, granted, slot);
		used++;
	}
}

HandshakeSlot *
handshake_slot_ask(const char *host, int port, HandshakeGranted callback, void *data)
{
	HandshakeSlot *slot = xcalloc(1, sizeof *slot);
	HandshakeSlot **end = &first_slot;

	slot->host = xstrdup(host);
	slot->port = port;
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
	free(slot);
}
