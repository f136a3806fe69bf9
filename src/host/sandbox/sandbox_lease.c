/*
 * sandbox_lease.c
 *		The leases of sandboxes: what is done to them, and what runs in them.
 *
 * A lease is a folder (sandbox_lease_folder.c).  Here is what this process has to do with it: the
 * operations that wait for their turn, one at a time in the order in which they came, and
 * the commands that run, any number.
 *
 * An end (release, destroy) first turns away new commands and kills those that run; when
 * all their processes are gone, the folder goes, unless it is kept for reuse.  A key that
 * is over is remembered (lease_keys.c), for an acquire that comes too late.  An acquire of what
 * exists, and an end of what does not, change nothing: both can be repeated.
 *
 * Operations go on without their client; the file system is touched in other threads.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "calls/lease_keys.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/sandbox_lease_folder.h"
#include "sandbox/sandbox_lease.h"
#include "sandbox/sandbox_directory.h"
#include "base/timer.h"

typedef struct Operation
{
	struct Operation *next;
	struct SandboxLease *lease;
	Call *call; /* NULL: gone */
	SandboxLeaseAct act;
	bool keep;
	char *image;
	char *ledger;
	uv_work_t work;
	SandboxPlace *place;
	SandboxFolder folder;
	bool existed;
	HostError *error;
} Operation;

typedef struct SandboxLease
{
	struct SandboxLease *next;
	struct SandboxLease *previous;
	char id[SANDBOX_ID_LENGTH + 1];
	char *image;
	int64_t since;
	bool known; /* there is a folder */
	SandboxUsage usage;
	Operation *running;
	Operation *first_waiting;
	Operation *last_waiting;
	SandboxMember *members;
} SandboxLease;

static SandboxLease *first_lease;

static void sandbox_lease_advance(SandboxLease *lease);

/*
 * Memory
 */

static SandboxLease *
lease_find(const char *id)
{
	SandboxLease *lease = first_lease;

	while (lease != NULL && strcmp(lease->id, id) != 0)
		lease = lease->next;
	return lease;
}

static SandboxLease *
lease_get(const char *id)
{
	SandboxLease *lease = lease_find(id);

	if (lease != NULL)
		return lease;
	lease = xcalloc(1, sizeof *lease);
	memcpy(lease->id, id, SANDBOX_ID_LENGTH + 1);
	lease->since = epoch_ms();
	lease->next = first_lease;
	if (first_lease != NULL)
		first_lease->previous = lease;
	first_lease = lease;
	return lease;
}

static void
lease_free_if_unused(SandboxLease *lease)
{
	if (lease->known || lease->running != NULL || lease->first_waiting != NULL ||
	    lease->members != NULL)
		return;
	if (lease->previous != NULL)
		lease->previous->next = lease->next;
	else
		first_lease = lease->next;
	if (lease->next != NULL)
		lease->next->previous = lease->previous;
	free(lease->image);
	free(lease);
}

static void
lease_is_known(SandboxLease *lease, const char *image)
{
	lease->known = true;
	if (lease->image == NULL && image != NULL && image[0] != '\0')
		lease->image = xstrdup(image);
}

static void
sandbox_lease_operation_free(Operation *operation)
{
	sandbox_place_free(operation->place);
	error_free(operation->error);
	free(operation->image);
	free(operation->ledger);
	free(operation);
}

/*
 * Keys that are over
 */

static bool
is_over(const char *id)
{
	LeaseKey *key = lease_key_pin(id);
	bool over = key->knowledge == LEASE_ENDED;

	lease_key_unpin(key, now_ms());
	return over;
}

static void
remember_end(const char *id)
{
	LeaseKey *key = lease_key_pin(id);

	lease_key_ended(key, "destroyed");
	lease_key_unpin(key, now_ms());
}

static HostError *
over_error(const char *outcome)
{
	HostError *error = error_new("55000", "the lease was ended meanwhile");

	error->outcome = outcome;
	return error;
}

/*
 * What runs in a lease
 */

static bool
is_ending(const SandboxLease *lease)
{
	return lease->running != NULL &&
	       (lease->running->act == SANDBOX_RELEASE || lease->running->act == SANDBOX_DESTROY);
}

HostError *
sandbox_lease_join(SandboxMember *member, const char *id, const char *image)
{
	SandboxLease *lease = lease_get(id);

	if (is_ending(lease) || is_over(id))
	{
		lease_free_if_unused(lease);
		return over_error(NULL);
	}
	if (lease->image == NULL && image != NULL)
		lease->image = xstrdup(image);
	member->lease = lease;
	member->previous = NULL;
	member->next = lease->members;
	if (lease->members != NULL)
		lease->members->previous = member;
	lease->members = member;
	return NULL;
}

void
sandbox_lease_exists(const SandboxMember *member, SandboxUsage *usage)
{
	if (member->lease == NULL)
		return;
	member->lease->known = true;
	*usage = member->lease->usage;
}

void
sandbox_lease_measured(const SandboxMember *member, const SandboxUsage *usage)
{
	if (member->lease != NULL)
		member->lease->usage = *usage;
}

static void end_folder(Operation *operation);

void
sandbox_lease_leave(SandboxMember *member)
{
	SandboxLease *lease = member->lease;

	if (lease == NULL)
		return;
	if (member->previous != NULL)
		member->previous->next = member->next;
	else
		lease->members = member->next;
	if (member->next != NULL)
		member->next->previous = member->previous;
	member->lease = NULL;
	if (is_ending(lease) && lease->members == NULL)
		end_folder(lease->running);
	else
		lease_free_if_unused(lease);
}

/*
 * Operations
 */

json_t *
sandbox_lease_result(const char *id, const char *image)
{
	json_t *result = json_object();
	json_t *metadata = json_object();
	char *provider_id = xformat("sandbox://bubblewrap/%s", id);

	json_object_set_new(metadata, "remoteCwd", json_string(SANDBOX_WORKSPACE));
	json_object_set_new(metadata, "image", image && image[0] ? json_string(image) : json_null());
	json_object_set_new(result, "providerLeaseId", json_string(provider_id));
	json_object_set_new(result, "metadata", metadata);
	json_object_set_new(result, "expiresAt", json_null());
	free(provider_id);
	return result;
}

/* Takes both; one of them is NULL. */
static void
sandbox_lease_finish(Operation *operation, json_t *result, HostError *error)
{
	SandboxLease *lease = operation->lease;
	Call *call = operation->call;

	if (call == NULL)
	{
		json_decref(result);
		error_free(error);
	}
	else if (error != NULL)
		call_fail(call, error);
	else
		call_answer(call, result);
	lease->running = NULL;
	sandbox_lease_operation_free(operation);
	sandbox_lease_advance(lease);
}

static HostError *
take_error(Operation *operation)
{
	HostError *error = operation->error;

	operation->error = NULL;
	return error;
}

/* Another thread. */
static void
sweep_work(uv_work_t *work)
{
	SandboxPlace *place = work->data;
	HostError *error;
	int fd;

	error = sandbox_place_open(place, &fd);
	if (error == NULL)
	{
		sandbox_folder_sweep(fd);
		close(fd);
	}
	error_free(error);
}

static void
swept(uv_work_t *work, int status)
{
	(void) status;
	sandbox_place_free(work->data);
	free(work);
}

/* Once in the host's life. */
static void
sweep_once(void)
{
	static bool begun;
	uv_work_t *work;

	if (begun)
		return;
	begun = true;
	work = xcalloc(1, sizeof *work);
	work->data = sandbox_place_now();
	uv_queue_work(uv_default_loop(), work, sweep_work, swept);
}

static void
start_work(Operation *operation, uv_work_cb work, uv_after_work_cb done)
{
	sweep_once();
	operation->work.data = operation;
	operation->place = sandbox_place_now();
	uv_queue_work(uv_default_loop(), &operation->work, work, done);
}

/* Another thread. */
static void
make_work(uv_work_t *work)
{
	Operation *operation = work->data;
	int fd;

	operation->error = sandbox_place_open(operation->place, &fd);
	if (operation->error != NULL)
	{
		operation->error->outcome =
		    operation->act == SANDBOX_ACQUIRE ? OUTCOME_ABSENT : OUTCOME_UNKNOWN;
		return;
	}
	if (operation->act == SANDBOX_ACQUIRE)
		operation->error =
		    sandbox_folder_make(fd, operation->folder.id, operation->image, operation->ledger);
	if (operation->error == NULL)
		operation->existed = sandbox_folder_read(fd, &operation->folder);
	close(fd);
}

static void
sandbox_lease_made(uv_work_t *work, int status)
{
	Operation *operation = work->data;
	SandboxLease *lease = operation->lease;
	HostError *error = take_error(operation);

	(void) status;
	if (error == NULL && !operation->existed)
	{
		error = error_new("38000", "Lease %s not found \xe2\x80\x94 cannot resume", lease->id);
		error->outcome = OUTCOME_ABSENT;
	}
	if (error != NULL)
	{
		sandbox_lease_finish(operation, NULL, error);
		return;
	}
	lease_is_known(lease, operation->folder.image);
	sandbox_lease_finish(operation, sandbox_lease_result(lease->id, operation->folder.image), NULL);
}

/* Another thread. */
static void
end_work(uv_work_t *work)
{
	Operation *operation = work->data;
	int fd;

	operation->error = sandbox_place_open(operation->place, &fd);
	if (operation->error != NULL)
	{
		operation->error->outcome = OUTCOME_UNKNOWN;
		return;
	}
	if (operation->keep)
		operation->existed = sandbox_folder_exists(fd, operation->folder.id);
	else
		operation->error = sandbox_folder_remove(fd, operation->folder.id, &operation->existed);
	close(fd);
}

static void
sandbox_lease_ended(uv_work_t *work, int status)
{
	Operation *operation = work->data;
	SandboxLease *lease = operation->lease;
	const char *outcome = operation->act == SANDBOX_RELEASE ? "released" : "destroyed";
	HostError *error = take_error(operation);

	(void) status;
	if (error != NULL)
	{
		sandbox_lease_finish(operation, NULL, error);
		return;
	}
	if (!operation->keep)
	{
		/* What was over before is so still. */
		if (!operation->existed && !is_over(lease->id))
			outcome = OUTCOME_ABSENT;
		lease->known = false;
		lease->usage = (SandboxUsage){0};
		remember_end(lease->id);
	}
	sandbox_lease_finish(operation, json_pack("{s:s}", "outcome", outcome), NULL);
}

static void
end_folder(Operation *operation)
{
	start_work(operation, end_work, sandbox_lease_ended);
}

static void
evict_all(SandboxLease *lease)
{
	SandboxMember *next;

	/* One that leaves at once changes the list. */
	for (SandboxMember *member = lease->members; member != NULL; member = next)
	{
		next = member->next;
		member->evict(member);
	}
}

static void
sandbox_lease_run(Operation *operation)
{
	SandboxLease *lease = operation->lease;

	if (operation->act == SANDBOX_ACQUIRE || operation->act == SANDBOX_RESUME)
	{
		if (is_over(lease->id))
			sandbox_lease_finish(operation, NULL, over_error(OUTCOME_ABSENT));
		else
			start_work(operation, make_work, sandbox_lease_made);
	}
	else if (lease->members == NULL)
		end_folder(operation);
	else
		evict_all(lease);
}

static void
sandbox_lease_advance(SandboxLease *lease)
{
	Operation *operation = lease->first_waiting;

	if (operation == NULL || lease->running != NULL)
	{
		lease_free_if_unused(lease);
		return;
	}
	lease->first_waiting = operation->next;
	if (lease->first_waiting == NULL)
		lease->last_waiting = NULL;
	lease->running = operation;
	sandbox_lease_run(operation);
}

static void
sandbox_lease_client_gone(void *data)
{
	Operation *operation = data;

	operation->call = NULL;
}

void
sandbox_lease_start(Call *call, SandboxLeaseAct act, const char *id, bool keep,
                    const SandboxConfig *config, const char *ledger)
{
	SandboxLease *lease = lease_get(id);
	Operation *operation = xcalloc(1, sizeof *operation);

	operation->lease = lease;
	operation->call = call;
	operation->act = act;
	operation->keep = keep;
	if (config != NULL && config->image != NULL)
		operation->image = xstrdup(config->image);
	memcpy(operation->folder.id, id, SANDBOX_ID_LENGTH + 1);
	if (ledger != NULL)
		operation->ledger = xstrdup(ledger);
	if (call != NULL)
	{
		call_set_target(call, id);
		call_set_state(call, "waiting for its turn");
		call_on_cancel(call, sandbox_lease_client_gone, operation);
	}
	if (lease->last_waiting != NULL)
		lease->last_waiting->next = operation;
	else
		lease->first_waiting = operation;
	lease->last_waiting = operation;
	sandbox_lease_advance(lease);
}

/*
 * Lists
 */

typedef struct Listing
{
	uv_work_t work;
	Call *call; /* NULL: gone */
	SandboxPlace *place;
	json_t *ids; /* the main thread's */
	SandboxFolder *folders;
	size_t count;
	HostError *error;
} Listing;

/* Another thread. */
static void
list_work(uv_work_t *work)
{
	Listing *listing = work->data;
	int fd;

	listing->error = sandbox_place_open(listing->place, &fd);
	if (listing->error != NULL)
		return;
	listing->folders = sandbox_folder_list(fd, &listing->count);
	close(fd);
}

static bool
is_wanted(const json_t *ids, const char *id)
{
	size_t index;
	json_t *value;

	if (ids == NULL)
		return true;
	json_array_foreach(ids, index,
	                   value) if (json_is_string(value) &&
	                              strcmp(json_string_value(value), id) == 0) return true;
	return false;
}

static void
sandbox_lease_listed(uv_work_t *work, int status)
{
	Listing *listing = work->data;
	json_t *leases = json_array();

	(void) status;
	for (size_t i = 0; i < listing->count; i++)
	{
		const SandboxFolder *folder = &listing->folders[i];
		json_t *lease;

		if (!is_wanted(listing->ids, folder->id))
			continue;
		lease = sandbox_lease_result(folder->id, folder->image);
		json_object_del(lease, "expiresAt");
		json_object_set_new(lease, "leaseId", json_string(folder->id));
		json_array_append_new(leases, lease);
	}
	if (listing->call == NULL)
	{
		json_decref(leases);
		error_free(listing->error);
	}
	else if (listing->error != NULL)
	{
		json_decref(leases);
		call_fail(listing->call, listing->error);
	}
	else
		call_answer(listing->call, json_pack("{s:o}", "leases", leases));
	sandbox_place_free(listing->place);
	json_decref(listing->ids);
	free(listing->folders);
	free(listing);
}

static void
listing_cancelled(void *data)
{
	Listing *listing = data;

	listing->call = NULL;
}

/*
 * What is left of a ledger that is gone
 */

typedef struct Drop
{
	uv_work_t work;
	SandboxPlace *place;
	char *ledger;
	SandboxFolder *folders;
	size_t count;
} Drop;

/* Another thread. */
static void
drop_work(uv_work_t *work)
{
	Drop *drop = work->data;
	size_t kept = 0;
	int fd;
	HostError *error = sandbox_place_open(drop->place, &fd);

	if (error != NULL)
	{
		/* Without a sandbox directory there is nothing. */
		error_free(error);
		return;
	}
	drop->folders = sandbox_folder_list(fd, &drop->count);
	for (size_t i = 0; i < drop->count; i++)
		if (sandbox_folder_is_of(fd, drop->folders[i].id, drop->ledger))
			drop->folders[kept++] = drop->folders[i];
	drop->count = kept;
	close(fd);
}

static void
dropped(uv_work_t *work, int status)
{
	Drop *drop = work->data;

	(void) status;
	if (drop->count > 0)
		log_message(LOG_LOG, "destroying %zu sandboxes of a database that has no envrt any more",
		            drop->count);
	for (size_t i = 0; i < drop->count; i++)
		sandbox_lease_start(NULL, SANDBOX_DESTROY, drop->folders[i].id, false, NULL, NULL);
	sandbox_place_free(drop->place);
	free(drop->folders);
	free(drop->ledger);
	free(drop);
}

void
sandbox_leases_drop(const char *ledger)
{
	Drop *drop = xcalloc(1, sizeof *drop);

	drop->work.data = drop;
	drop->place = sandbox_place_now();
	drop->ledger = xstrdup(ledger);
	uv_queue_work(uv_default_loop(), &drop->work, drop_work, dropped);
}

void
sandbox_leases_list(Call *call, const json_t *ids)
{
	Listing *listing = xcalloc(1, sizeof *listing);

	listing->call = call;
	listing->place = sandbox_place_now();
	listing->ids = json_is_array(ids) ? json_incref((json_t *) ids) : NULL;
	listing->work.data = listing;
	call_on_cancel(call, listing_cancelled, listing);
	uv_queue_work(uv_default_loop(), &listing->work, list_work, sandbox_lease_listed);
}

json_t *
sandbox_leases_describe(void)
{
	json_t *list = json_array();

	for (const SandboxLease *lease = first_lease; lease != NULL; lease = lease->next)
	{
		json_t *row = json_object();
		json_int_t commands = 0;

		for (const SandboxMember *member = lease->members; member != NULL; member = member->next)
			commands++;
		json_object_set_new(row, "leaseId", json_string(lease->id));
		json_object_set_new(row, "image", lease->image ? json_string(lease->image) : json_null());
		json_object_set_new(row, "commands", json_integer(commands));
		json_object_set_new(row, "since", json_integer(lease->since));
		json_array_append_new(list, row);
	}
	return list;
}

void
sandbox_leases_close(void)
{
	SandboxLease *next;

	for (SandboxLease *lease = first_lease; lease != NULL; lease = next)
	{
		next = lease->next;
		lease->known = false;
		lease_free_if_unused(lease);
	}
}
