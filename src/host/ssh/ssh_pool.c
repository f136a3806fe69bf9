/*
 * ssh_pool.c
 *		Which session a command runs on.
 *
 * Sessions that are alike (same pool key: ssh_destination.c) form a group, and
 * so do those who wait for a place on one.  A place is a channel.  Whenever
 * something changes, pump() looks at the group again: it gives places away,
 * first come, first served; if there are too few and no session is being
 * connected, it connects another, up to envrt.ssh_sessions_per_host (to a server
 * whose sessions serve one command each, one for each that waits); if nobody
 * waits any more, it drops what is being connected.  So simultaneous cold
 * calls share one connection, and a caller that gives up takes its half-made
 * connection with it.
 *
 * When a session can't be made, all who wait are told, unless another session
 * of the group is in use: then they wait for that, and are told the reason if it is in vain.
 *
 * A session is closed when it has been idle for long; when its server ended it;
 * when a call gave up on an answer (then it is not given to anybody any more,
 * and closed after its last command); and when a channel that was closed before
 * its time is not gone after some seconds.
 *
 * A group learns what its server gives: how many channels at the same time, and whether it ends a
 * session with its last channel, as some small servers do.  A session of such a one serves one
 * command, since the next one might meet its end.
 *
 * pump() runs from a timer, never from within one of the calls below, so no
 * caller finds its group changed behind its back.
 */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "ssh/ssh_settings.h"
#include "ssh/ssh_pool.h"
#include "base/timer.h"

/* A default sshd allows ten. */
#define CHANNELS_PER_SESSION 8

/* With an unfinished close older than this, a session is given to nobody. */
#define CLOSING_SLOW_MS 1000
#define CLOSING_MAX_MS 5000

/* A session that ends so soon after its only command was ended with it; two in a row tell. */
#define SINGLE_USE_MS 1000
#define SINGLE_USE_SESSIONS 2

/* After a failure to connect, while other sessions work. */
#define CONNECT_PAUSE_MS 1000

/* Idle sessions, on the whole and of one company. */
#define MAX_IDLE 256
#define MAX_IDLE_OF_COMPANY 64

typedef struct SshGroup SshGroup;

struct SshPooled
{
	SshPooled *next;
	SshGroup *group;
	SshSession *session;
	int limit;  /* channels */
	int active; /* places given away */
	bool retired;
	unsigned opened;      /* how many channels the server opened */
	uint64_t quiet_since; /* when the last one was gone, in terms of now_ms() */
	json_int_t calls;
	uint64_t idle_since; /* in terms of now_ms(); 0: not idle */
	int64_t idle_since_epoch;
	Timer *idle;
	Timer *closing;
};

struct SshGroup
{
	SshGroup *next;
	unsigned char key[crypto_generichash_BYTES];
	char *company_id;
	char *host;
	int port;
	char *username;
	SshPooled *sessions;
	SshWaiter *waiters;
	Timer *pump;
	uint64_t no_connect_before;
	char *trouble;       /* why the last connection failed, while others work; NULL: it did not */
	int limit;           /* channels of a session, as far as is known */
	unsigned single_use; /* sessions in a row that ended with their only command */
};

static SshGroup *first_group;

static void pump(void *data);

static void
pump_after(SshGroup *group, uint64_t milliseconds)
{
	timer_start(&group->pump, milliseconds, pump, group);
}

static SshGroup *
find_group(const SshDestination *destination)
{
	SshGroup *group;

	for (group = first_group; group != NULL; group = group->next)
		if (memcmp(group->key, destination->pool_key, sizeof group->key) == 0)
			return group;
	group = xcalloc(1, sizeof *group);
	memcpy(group->key, destination->pool_key, sizeof group->key);
	group->company_id = destination->company_id ? xstrdup(destination->company_id) : NULL;
	group->host = xstrdup(destination->host);
	group->port = destination->port;
	group->username = xstrdup(destination->username);
	group->limit = CHANNELS_PER_SESSION;
	group->next = first_group;
	first_group = group;
	return group;
}

static void
free_group(SshGroup *group)
{
	SshGroup **link = &first_group;

	while (*link != group)
		link = &(*link)->next;
	*link = group->next;
	timer_stop(&group->pump);
	free(group->company_id);
	free(group->host);
	free(group->username);
	free(group->trouble);
	free(group);
}

/* Closes a session and forgets it. */
static void
drop(SshPooled *pooled)
{
	SshPooled **link = &pooled->group->sessions;

	while (*link != pooled)
		link = &(*link)->next;
	*link = pooled->next;
	timer_stop(&pooled->idle);
	timer_stop(&pooled->closing);
	pump_after(pooled->group, 0);
	ssh_session_close(pooled->session);
	free(pooled);
}

/* Nobody gets it any more; it goes when its last command has ended. */
static void
retire(SshPooled *pooled)
{
	pooled->retired = true;
	if (pooled->active == 0)
		drop(pooled);
}

/*
 * Events of sessions
 */

static void
idle_for_long(void *data)
{
	SshPooled *pooled = data;

	if (pooled->active == 0)
		drop(pooled);
}

/* For what is left of the time that an idle session has. */
static void
start_idle_timer(SshPooled *pooled)
{
	uint64_t idle = now_ms() - pooled->idle_since;
	uint64_t most = pooled->retired ? 0 : ssh_settings.idle_timeout_ms;

	/* Later than pump(), which may have somebody for it, also when the time is 0. */
	timer_start(&pooled->idle, idle < most ? most - idle + 1 : 1, idle_for_long, pooled);
}

/*
 * Idle sessions are descriptors that others may need: over the limit, for one
 * company or in all, the one that has been idle longest goes.  By its timer,
 * since we may be called by a session.
 */
static void
limit_idle(const SshPooled *newest)
{
	SshPooled *oldest = NULL;
	SshPooled *oldest_of_company = NULL;
	unsigned count = 0;
	unsigned of_company = 0;

	for (SshGroup *group = first_group; group != NULL; group = group->next)
	{
		const char *company = newest->group->company_id;
		bool same = company == NULL ? group->company_id == NULL
		                            : group->company_id && !strcmp(group->company_id, company);

		for (SshPooled *pooled = group->sessions; pooled != NULL; pooled = pooled->next)
		{
			if (pooled->idle_since == 0)
				continue;
			count++;
			if (oldest == NULL || pooled->idle_since < oldest->idle_since)
				oldest = pooled;
			if (!same)
				continue;
			of_company++;
			if (oldest_of_company == NULL || pooled->idle_since < oldest_of_company->idle_since)
				oldest_of_company = pooled;
		}
	}
	if (of_company > MAX_IDLE_OF_COMPANY)
		timer_start(&oldest_of_company->idle, 1, idle_for_long, oldest_of_company);
	else if (count > MAX_IDLE)
		timer_start(&oldest->idle, 1, idle_for_long, oldest);
}

static void
note_idle(SshPooled *pooled)
{
	if (pooled->active > 0 || ssh_session_channels(pooled->session) > 0 || pooled->idle_since != 0)
		return;
	pooled->idle_since = now_ms();
	pooled->idle_since_epoch = epoch_ms();
	start_idle_timer(pooled);
	limit_idle(pooled);
}

static void
session_ready(void *owner)
{
	SshPooled *pooled = owner;

	free(pooled->group->trouble);
	pooled->group->trouble = NULL;
	note_idle(pooled);
	pump_after(pooled->group, 0);
}

static void
session_channel_gone(void *owner)
{
	SshPooled *pooled = owner;

	if (ssh_session_channels(pooled->session) == 0)
		pooled->quiet_since = now_ms();
	note_idle(pooled);
	pump_after(pooled->group, 0);
}

/* Whether some session of the group may give places away, now or later. */
static bool
has_usable(const SshGroup *group)
{
	for (const SshPooled *pooled = group->sessions; pooled != NULL; pooled = pooled->next)
		if (!pooled->retired)
			return true;
	return false;
}

static void
session_ended(void *owner, const HostError *error)
{
	SshPooled *pooled = owner;
	SshGroup *group = pooled->group;
	/* One that had been logged in has told its channels, and those decide for themselves. */
	bool failed_to_connect = pooled->idle_since_epoch == 0;

	if (pooled->opened == 1 && pooled->quiet_since != 0 &&
	    now_ms() - pooled->quiet_since < SINGLE_USE_MS)
		group->single_use++;
	drop(pooled);
	if (!failed_to_connect)
		return;
	if (has_usable(group))
	{
		group->no_connect_before = now_ms() + CONNECT_PAUSE_MS;
		free(group->trouble);
		group->trouble = xstrdup(error->message);
		return;
	}
	while (group->waiters != NULL)
	{
		SshWaiter *waiter = group->waiters;

		group->waiters = waiter->next;
		waiter->group = NULL;
		waiter->failed(waiter, error);
	}
}

static const SshSessionEvents session_events = {
    .ready = session_ready, .channel_gone = session_channel_gone, .ended = session_ended};

/*
 * Places
 */

static bool
is_allowed(const SshPooled *pooled)
{
	return allowed_hosts_name(ssh_settings.allowed_hosts, pooled->group->host) ||
	       allowed_hosts_address(ssh_settings.allowed_hosts, ssh_session_address(pooled->session));
}

static bool
is_single_use(const SshGroup *group)
{
	return group->single_use >= SINGLE_USE_SESSIONS;
}

static bool
has_place(const SshPooled *pooled)
{
	uint64_t closing_since = ssh_session_closing_since(pooled->session);

	return !pooled->retired && ssh_session_is_ready(pooled->session) &&
	       (pooled->calls == 0 || !is_single_use(pooled->group)) &&
	       ssh_session_channels(pooled->session) < pooled->limit &&
	       (closing_since == 0 || now_ms() - closing_since < CLOSING_SLOW_MS);
}

static void
check_closing(void *data)
{
	SshPooled *pooled = data;
	uint64_t since = ssh_session_closing_since(pooled->session);
	uint64_t age = since ? now_ms() - since : 0;

	if (since == 0)
		return;
	if (age >= CLOSING_MAX_MS)
		retire(pooled);
	else
		timer_start(&pooled->closing, CLOSING_MAX_MS - age, check_closing, pooled);
}

static void
watch_closing(SshPooled *pooled)
{
	if (pooled->closing == NULL)
		timer_start(&pooled->closing, CLOSING_MAX_MS, check_closing, pooled);
}

static void
give_place(SshPooled *pooled)
{
	SshGroup *group = pooled->group;
	SshWaiter *waiter = group->waiters;

	group->waiters = waiter->next;
	waiter->group = NULL;
	timer_stop(&pooled->idle);
	pooled->idle_since = 0;
	pooled->active++;
	pooled->calls++;
	waiter->granted(waiter, pooled);
}

static void
give_places(const SshGroup *group)
{
	for (SshPooled *pooled = group->sessions; pooled != NULL; pooled = pooled->next)
		while (group->waiters != NULL && has_place(pooled))
			give_place(pooled);
}

static void
connect_another(SshGroup *group)
{
	SshPooled *pooled = xcalloc(1, sizeof *pooled);
	uint64_t deadline = 0;

	for (SshWaiter *waiter = group->waiters; waiter != NULL; waiter = waiter->next)
		if (waiter->deadline > deadline)
			deadline = waiter->deadline;
	pooled->group = group;
	pooled->limit = group->limit;
	pooled->session =
	    ssh_session_new(group->waiters->destination, deadline, &session_events, pooled);
	pooled->next = group->sessions;
	group->sessions = pooled;
}

static SshPooled *
find_connecting(const SshGroup *group)
{
	for (SshPooled *pooled = group->sessions; pooled != NULL; pooled = pooled->next)
		if (!ssh_session_is_ready(pooled->session))
			return pooled;
	return NULL;
}

static void
pump(void *data)
{
	SshGroup *group = data;
	unsigned waiting = 0;
	unsigned connecting = 0;
	unsigned count = 0;
	SshPooled *next;

	for (SshPooled *pooled = group->sessions; pooled != NULL; pooled = next)
	{
		next = pooled->next;
		if (!pooled->retired && ssh_session_is_ready(pooled->session) && !is_allowed(pooled))
			retire(pooled);
	}
	give_places(group);

	for (const SshWaiter *waiter = group->waiters; waiter != NULL; waiter = waiter->next)
		waiting++;
	/* One serves all who wait, unless each session serves one command. */
	if (!is_single_use(group) && waiting > 1)
		waiting = 1;
	for (SshPooled *pooled = group->sessions; pooled != NULL; pooled = next)
	{
		next = pooled->next;
		if (waiting == 0 && !ssh_session_is_ready(pooled->session))
		{
			drop(pooled);
			continue;
		}
		if (!ssh_session_is_ready(pooled->session))
			connecting++;
		if (!pooled->retired)
			count++;
	}
	for (; connecting < waiting && count < ssh_settings.sessions_per_host; connecting++, count++)
	{
		uint64_t now = now_ms();

		if (now < group->no_connect_before && count > 0)
		{
			pump_after(group, group->no_connect_before - now);
			break;
		}
		connect_another(group);
	}
	if (group->waiters == NULL && group->sessions == NULL)
		free_group(group);
}

void
ssh_pool_ask(SshWaiter *waiter, bool first)
{
	SshGroup *group = find_group(waiter->destination);
	SshWaiter **link = &group->waiters;
	SshPooled *connecting = find_connecting(group);

	while (!first && *link != NULL)
		link = &(*link)->next;
	waiter->group = group;
	waiter->next = *link;
	*link = waiter;
	if (connecting != NULL)
		ssh_session_set_deadline(connecting->session, waiter->deadline);
	pump_after(group, 0);
}

void
ssh_pool_withdraw(SshWaiter *waiter)
{
	SshWaiter **link = &waiter->group->waiters;

	while (*link != waiter)
		link = &(*link)->next;
	*link = waiter->next;
	pump_after(waiter->group, 0);
	waiter->group = NULL;
}

const char *
ssh_pool_phase(const SshWaiter *waiter)
{
	const SshPooled *connecting = find_connecting(waiter->group);

	if (connecting != NULL)
		return ssh_session_phase(connecting->session);
	return "waiting for a free channel";
}

const char *
ssh_pool_trouble(const SshWaiter *waiter)
{
	const SshPooled *connecting = find_connecting(waiter->group);
	const char *trouble = connecting ? ssh_session_trouble(connecting->session) : NULL;

	return trouble ? trouble : waiter->group->trouble;
}

SshSession *
ssh_pooled_session(const SshPooled *pooled)
{
	return pooled->session;
}

bool
ssh_pooled_is_used(const SshPooled *pooled)
{
	return pooled->calls > 1;
}

void
ssh_pool_done(SshPooled *pooled, PlaceState state)
{
	pooled->active--;
	if (state == PLACE_ABANDONED)
		watch_closing(pooled);
	if (state == PLACE_DOUBTFUL || is_single_use(pooled->group))
		pooled->retired = true;
	/* Not from here: the caller may be one of the session's own callbacks. */
	pump_after(pooled->group, 0);
	if (pooled->retired && pooled->active == 0)
		timer_start(&pooled->idle, 0, idle_for_long, pooled);
}

void
ssh_pool_opened(SshPooled *pooled)
{
	if (++pooled->opened > 1)
		pooled->group->single_use = 0;
}

bool
ssh_pool_refused(SshPooled *pooled)
{
	/* The refused one is still among them. */
	int others = ssh_session_channels(pooled->session) - 1;

	ssh_pool_done(pooled, PLACE_FREE);
	if (others < 1)
	{
		/*
		 * One that has opened channels before has not yet taken note of the end
		 * of the last: another session will do.
		 */
		bool opened = pooled->opened > 0;

		retire(pooled);
		return opened;
	}
	/* Others of the group are not asked for more either. */
	if (others < pooled->limit)
		pooled->limit = others;
	if (others < pooled->group->limit)
		pooled->group->limit = others;
	return true;
}

void
ssh_pool_settings_changed(void)
{
	for (SshGroup *group = first_group; group != NULL; group = group->next)
	{
		for (SshPooled *pooled = group->sessions; pooled != NULL; pooled = pooled->next)
			if (pooled->idle_since != 0)
				start_idle_timer(pooled);
		pump_after(group, 0);
	}
}

json_t *
ssh_pool_describe(void)
{
	json_t *sessions = json_array();

	for (SshGroup *group = first_group; group != NULL; group = group->next)
	{
		for (SshPooled *pooled = group->sessions; pooled != NULL; pooled = pooled->next)
		{
			json_t *row;

			if (!ssh_session_is_ready(pooled->session))
				continue;
			row = json_object();
			json_object_set_new(row, "host", json_string(group->host));
			json_object_set_new(row, "port", json_integer(group->port));
			json_object_set_new(row, "user", json_string(group->username));
			json_object_set_new(row, "companyId",
			                    group->company_id ? json_string(group->company_id) : json_null());
			json_object_set_new(row, "channels",
			                    json_integer(ssh_session_channels(pooled->session)));
			json_object_set_new(row, "idleSince",
			                    pooled->idle_since ? json_integer(pooled->idle_since_epoch)
			                                       : json_null());
			json_object_set_new(row, "calls", json_integer(pooled->calls));
			json_array_append_new(sessions, row);
		}
	}
	return sessions;
}

void
ssh_pool_close(void)
{
	while (first_group != NULL)
	{
		SshGroup *group = first_group;

		while (group->sessions != NULL)
			drop(group->sessions);
		free_group(group);
	}
}
