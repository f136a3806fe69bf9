/*
 * lease_queue.c
 *		Operations that make and end the lease of a key: their order and their time.
 *
 * A lease of a plugin's driver is something outside that must not be lost: not
 * when the client is cancelled, not when an answer comes late, not when a
 * worker dies.  So these calls become operations that live on their own.  An
 * operation answers its client while there is one, and finishes in any case;
 * what it learns stays with the key (lease_keys.c).
 *
 * Makers (acquire, resume: lease_make.c) and enders (release, destroy:
 * lease_end.c) of one key run one after the other, in the order in which they
 * came:
 *
 *   waiting   in the key's queue
 *   running   the key's one; asks the plugin
 *   aside     still waiting for an answer, but others of the key go on: an
 *             ender whose time was over, or a maker that is doomed
 *
 * Time.  An operation may wait as long as its call may last, and an ender that
 * has waited gets as long again to run.  What happens when it is over:
 *
 *   - waiting behind a maker, an ender dooms the maker: it steps aside, and
 *     what it may still make will be destroyed: by the ender, who is told to come
 *     again, if it wants to know the names of what it ends, else at once by an
 *     operation of the host's own.  A doomed resume makes nothing: what it says
 *     is heard by nobody;
 *   - waiting behind an ender, and before the plugin was sent anything, an
 *     operation ends as if it had never been;
 *   - running, a maker goes on holding the key until its answer comes, or an
 *     ender has waited for it long enough; an ender steps aside.
 *
 * A client that goes away changes nothing, except that a maker of which the
 * plugin knows nothing yet is dropped.
 */
#include <stdlib.h>
#include <string.h>

#include "base/host_error.h"
#include "plugins/lease_queue.h"
#include "base/memory.h"
#include "plugins/plugin_registry.h"
#include "shared/protocol.h"

static LeaseOperation *first_operation;
static size_t operation_count;
static bool closing;

static void limit_expired(void *data);

static const char *const methods[OPERATION_KINDS] = {
    [OPERATION_ACQUIRE] = "environmentAcquireLease",
    [OPERATION_RESUME] = "environmentResumeLease",
    [OPERATION_RELEASE] = "environmentReleaseLease",
    [OPERATION_DESTROY] = "environmentDestroyLease",
};

const char *
operation_method(OperationKind kind)
{
	return methods[kind];
}

static bool
is_maker(const LeaseOperation *operation)
{
	return operation->kind == OPERATION_ACQUIRE || operation->kind == OPERATION_RESUME;
}

static bool
is_sent(const LeaseOperation *operation)
{
	return operation->request != NULL && plugin_request_is_sent(operation->request);
}

/*
 * Memory
 */

LeaseOperation *
operation_new(OperationKind kind, const OperationDoing *doing, const char *key)
{
	LeaseOperation *operation = xcalloc(1, sizeof *operation);

	operation->kind = kind;
	operation->doing = doing;
	operation->key = lease_key_pin(key);
	operation->next = first_operation;
	if (first_operation != NULL)
		first_operation->previous = operation;
	first_operation = operation;
	operation_count++;
	return operation;
}

static void
lease_queue_operation_free(LeaseOperation *operation)
{
	if (operation->previous != NULL)
		operation->previous->next = operation->next;
	else
		first_operation = operation->next;
	if (operation->next != NULL)
		operation->next->previous = operation->previous;
	operation_count--;
	if (operation->request != NULL)
		plugin_request_forget(operation->request);
	timer_stop(&operation->limit);
	if (operation->plugin != NULL)
		plugin_release(operation->plugin);
	error_free(operation->plugin_error);
	json_decref(operation->params);
	json_decref(operation->secrets);
	json_decref(operation->found);
	free(operation->driver_key);
	lease_key_unpin(operation->key, now_ms());
	free(operation);
}

/*
 * The queue of a key
 */

static void
enqueue(LeaseOperation *operation)
{
	LeaseKey *key = operation->key;

	operation->waiting = true;
	operation->next_waiting = NULL;
	if (key->last_waiting != NULL)
		key->last_waiting->next_waiting = operation;
	else
		key->first_waiting = operation;
	key->last_waiting = operation;
}

static void
dequeue(LeaseOperation *operation)
{
	LeaseKey *key = operation->key;
	LeaseOperation *before = NULL;

	if (!operation->waiting)
		return;
	for (LeaseOperation *o = key->first_waiting; o != operation; o = o->next_waiting)
		before = o;
	if (before != NULL)
		before->next_waiting = operation->next_waiting;
	else
		key->first_waiting = operation->next_waiting;
	if (key->last_waiting == operation)
		key->last_waiting = before;
	operation->waiting = false;
}

/*
 * Two plugins may have one provider, and which of them comes first changes.
 * Whoever was asked to make the lease is asked to end it, or nobody.
 */
static void
use_maker(LeaseOperation *operation)
{
	const char *maker = operation->key->plugin_key;
	Plugin *plugin;

	if (operation->plugin_named || operation->own || maker == NULL)
		return;
	if (operation->plugin != NULL && strcmp(plugin_manifest(operation->plugin)->id, maker) == 0)
		return;
	if (operation->plugin != NULL)
		plugin_release(operation->plugin);
	operation->plugin = NULL;
	error_free(operation->plugin_error);
	operation->plugin_error = NULL;
	plugin = plugins_find(maker, operation->driver_key, NULL, &operation->plugin_error);
	if (plugin != NULL)
		operation->plugin = plugin_keep(plugin);
	if (operation->call != NULL)
		call_set_target(operation->call, maker);
}

/*
 * Gives the key to the next ones, as long as they are done at once.  A done
 * one calls this again, from within: that changes nothing, so that a long
 * queue does not become a deep stack.
 */
static void
lease_queue_advance(LeaseKey *key)
{
	if (key->advancing)
		return;
	key->advancing = true;
	key = lease_key_pin(key->id);
	while (key->running == NULL && key->first_waiting != NULL && !closing)
	{
		LeaseOperation *operation = key->first_waiting;

		dequeue(operation);
		key->running = operation;
		if (!is_maker(operation))
		{
			timer_start(&operation->limit, operation->limit_ms, limit_expired, operation);
			use_maker(operation);
		}
		operation->doing->run(operation);
	}
	key->advancing = false;
	lease_key_unpin(key, now_ms());
}

static void
step_aside(LeaseOperation *operation)
{
	if (operation->key->running == operation)
		operation->key->running = NULL;
}

void
operation_done(LeaseOperation *operation)
{
	LeaseKey *key = lease_key_pin(operation->key->id);

	dequeue(operation);
	step_aside(operation);
	lease_queue_operation_free(operation);
	lease_queue_advance(key);
	lease_key_unpin(key, now_ms());
}

/*
 * The plugin's side and the client's
 */

void
operation_ask(LeaseOperation *operation, const char *method, const char *other, json_t *params,
              PluginAnswered answered)
{
	if (operation->call != NULL)
		call_set_state(operation->call, "asking the plugin");
	/* One that stepped aside, and has more to ask. */
	if (operation->limit == NULL)
		timer_start(&operation->limit, operation->limit_ms, limit_expired, operation);
	operation->request =
	    plugin_ask(operation->plugin,
	               &(PluginQuestion){
	                   .method = method,
	                   .other = other,
	                   .params = params,
	                   .secrets = json_incref(operation->secrets),
	                   .patience_ms = operation->own ? UINT64_MAX : operation->limit_ms,
	               },
	               answered, operation);
}

void
operation_answered(LeaseOperation *operation)
{
	operation->request = NULL;
}

void
operation_answer(LeaseOperation *operation, json_t *result)
{
	Call *call = operation->call;

	operation->call = NULL;
	if (call != NULL)
		call_answer(call, result);
	else
		json_decref(result);
}

void
operation_fail(LeaseOperation *operation, HostError *error)
{
	Call *call = operation->call;

	operation->call = NULL;
	if (call != NULL)
		call_fail(call, error);
	else
		error_free(error);
}

HostError *
lease_ended_error(const LeaseKey *key)
{
	HostError *error = error_new("55000", "the lease was ended meanwhile");

	error->outcome =
	    key->knowledge == LEASE_ENDED || (key->knowledge == LEASE_ABSENT && key->doomed == 0)
	        ? OUTCOME_ABSENT
	        : OUTCOME_UNKNOWN;
	return error;
}

/*
 * Time
 */

/* The lease of the running maker is to be ended, and its answer is not awaited any longer. */
static void
doom(LeaseOperation *maker)
{
	if (!is_sent(maker))
	{
		maker->doing->withdrawn(maker);
		operation_fail(maker, lease_ended_error(maker->key));
		operation_done(maker);
		return;
	}
	maker->doomed = true;
	/* A resume makes nothing that would have to be ended, and may be tried again. */
	if (maker->kind == OPERATION_ACQUIRE)
		maker->key->doomed++;
	plugin_request_is_late(maker->request);
	step_aside(maker);
	lease_queue_advance(maker->key);
}

static HostError *
lease_queue_timeout_error(const LeaseOperation *operation)
{
	const char *method = operation_method(operation->kind);
	HostError *error;

	if (operation->plugin != NULL)
		return plugin_timeout_error(operation->plugin, method, operation->limit_ms);
	error = error_new("38000", "%s was not answered within %llu ms", method,
	                  (unsigned long long) operation->limit_ms);
	error->code = RPC_TIMEOUT;
	error->outcome = OUTCOME_UNKNOWN;
	return error;
}

static void
drop_unsent(LeaseOperation *operation)
{
	HostError *error = lease_queue_timeout_error(operation);

	if (operation->request != NULL)
		plugin_request_is_late(operation->request);
	if (is_maker(operation) && !operation->waiting)
	{
		operation->doing->withdrawn(operation);
		if (operation->kind == OPERATION_ACQUIRE)
			error->outcome = OUTCOME_ABSENT;
	}
	operation_fail(operation, error);
	operation_done(operation);
}

static void
limit_expired(void *data)
{
	LeaseOperation *operation = data;
	LeaseOperation *running = operation->key->running;

	if (operation->waiting && !is_maker(operation) && running != NULL && is_maker(running))
	{
		/* Before, since it may be over after. */
		timer_start(&operation->limit, operation->limit_ms, limit_expired, operation);
		doom(running);
	}
	else if (operation->own && !is_sent(operation))
		/* What nobody else will do can wait. */
		timer_start(&operation->limit, operation->limit_ms, limit_expired, operation);
	else if (!is_sent(operation))
		drop_unsent(operation);
	else
	{
		operation_fail(operation, lease_queue_timeout_error(operation));
		plugin_request_is_late(operation->request);
		if (!is_maker(operation))
		{
			LeaseKey *key = operation->key;

			step_aside(operation);
			lease_queue_advance(key);
		}
	}
}

static void
lease_queue_client_gone(void *data)
{
	LeaseOperation *operation = data;

	operation->call = NULL;
	if (!is_maker(operation) || is_sent(operation))
		return;
	if (!operation->waiting)
		operation->doing->withdrawn(operation);
	operation_done(operation);
}

/*
 * The host's own
 */

void
operation_start_own(const LeaseOperation *maker, const OperationDoing *ender)
{
	LeaseOperation *operation = operation_new(OPERATION_DESTROY, ender, maker->key->id);
	const json_t *lease = maker->key->lease;
	json_t *metadata = json_object_get(lease, "metadata");

	operation->own = true;
	operation->plugin = plugin_keep(maker->plugin);
	operation->driver_key = xstrdup(maker->driver_key);
	operation->limit_ms = maker->limit_ms;
	operation->params = json_copy(maker->params);
	operation->secrets = json_incref(maker->secrets);
	json_object_set(operation->params, "providerLeaseId",
	                json_object_get(lease, "providerLeaseId"));
	if (metadata != NULL)
		json_object_set(operation->params, "leaseMetadata", metadata);
	enqueue(operation);
	lease_queue_advance(operation->key);
}

static void
retry(void *data)
{
	LeaseOperation *operation = data;

	enqueue(operation);
	lease_queue_advance(operation->key);
}

void
operation_retry_later(LeaseOperation *operation, uint64_t delay_ms)
{
	LeaseKey *key = operation->key;

	timer_start(&operation->limit, delay_ms, retry, operation);
	step_aside(operation);
	lease_queue_advance(key);
}

/*
 * The beginning and the end
 */

size_t
operations_count(void)
{
	return operation_count;
}

void
operation_enter(LeaseOperation *operation)
{
	call_on_cancel(operation->call, lease_queue_client_gone, operation);
	timer_start(&operation->limit, operation->limit_ms, limit_expired, operation);
	enqueue(operation);
	lease_queue_advance(operation->key);
}

void
lease_operations_close(void)
{
	closing = true;
	while (first_operation != NULL)
		operation_done(first_operation);
	lease_keys_clear();
}
