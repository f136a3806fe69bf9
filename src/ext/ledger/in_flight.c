/*
 * in_flight.c
 *		Calls about provider leases that wait for the driver host, and how many there may be.
 *
 * The scheduler makes calls for cleanups and for requested leases, each kind in a
 * set of its own.  A slow provider must not be in the way of the others, nor an
 * environment in that of its company, nor a company in that of the next: so the
 * calls in flight are limited for each of them, and a company's share of all
 * and of a provider's calls depends on how many are free (shared/fair_share.h).
 */
#include "postgres.h"

#include "base/settings.h"
#include "ledger/in_flight.h"
#include "shared/fair_share.h"

/* Backends and executions make calls as well. */
#define MAX_IN_FLIGHT Min(512, Max(envrt_max_calls / 4, 1))
#define MAX_PER_PROVIDER 64
#define MAX_PER_ENVIRONMENT 32

CallSet cleanup_calls = {
    .in_flight = DLIST_STATIC_INIT(cleanup_calls.in_flight),
    .answered = DLIST_STATIC_INIT(cleanup_calls.answered),
    .later = DLIST_STATIC_INIT(cleanup_calls.later),
};
CallSet acquire_calls = {
    .in_flight = DLIST_STATIC_INIT(acquire_calls.in_flight),
    .answered = DLIST_STATIC_INIT(acquire_calls.answered),
    .later = DLIST_STATIC_INIT(acquire_calls.later),
};

void
in_flight_begin(CallSet *set, CallInFlight *call)
{
	dlist_push_tail(&set->in_flight, &call->node);
	set->nin_flight++;
}

void
in_flight_withdraw(CallSet *set, CallInFlight *call)
{
	dlist_delete(&call->node);
	set->nin_flight--;
}

void
in_flight_answered(CallSet *set, CallInFlight *call)
{
	in_flight_withdraw(set, call);
	dlist_push_tail(&set->answered, &call->node);
}

static bool
is_in_list(const dlist_head *list, const pg_uuid_t *lease_id)
{
	dlist_iter iter;

	dlist_foreach(iter, unconstify(dlist_head *, list))
	{
		const CallInFlight *call = dlist_container(CallInFlight, node, iter.cur);

		if (memcmp(&call->lease_id, lease_id, UUID_LEN) == 0)
			return true;
	}
	return false;
}

bool
in_flight_has(const CallSet *set, const pg_uuid_t *lease_id)
{
	return is_in_list(&set->in_flight, lease_id) || is_in_list(&set->answered, lease_id) ||
	       is_in_list(&set->later, lease_id);
}

/* How many calls share something with a call. */
typedef struct CallLoad
{
	int all;
	int of_environment;
	int of_provider;
	int of_company;
	int of_company_and_provider;
} CallLoad;

static void
add_load(CallLoad *load, const CallInFlight *other, const CallInFlight *call)
{
	bool same_company = memcmp(&other->company_id, &call->company_id, UUID_LEN) == 0;
	bool same_provider = strcmp(other->provider, call->provider) == 0;

	if (other == call)
		return;
	load->all++;
	load->of_environment += memcmp(&other->environment_id, &call->environment_id, UUID_LEN) == 0;
	load->of_provider += same_provider;
	load->of_company += same_company;
	load->of_company_and_provider += same_company && same_provider;
}

bool
in_flight_allows(const CallSet *set, const CallInFlight *call, const List *chosen)
{
	CallLoad load = {0};
	dlist_iter iter;
	ListCell *cell;

	dlist_foreach(iter, unconstify(dlist_head *, &set->in_flight))
	{
		add_load(&load, dlist_container(CallInFlight, node, iter.cur), call);
	}
	foreach (cell, chosen)
	{
		add_load(&load, lfirst(cell), call);
	}
	return load.of_environment < MAX_PER_ENVIRONMENT &&
	       fair_share_allows(load.of_company_and_provider, load.of_provider, MAX_PER_PROVIDER) &&
	       fair_share_allows(load.of_company, load.all, MAX_IN_FLIGHT);
}

bool
in_flight_allows_company(const CallSet *set, int own)
{
	return fair_share_allows(own, set->nin_flight, MAX_IN_FLIGHT);
}
