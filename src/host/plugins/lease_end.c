/*
 * lease_end.c
 *		Ending the lease of a key: release and destroy.
 *
 * What is there to end is, in this order:
 *
 *   1. nothing, when it was ended before: a tombstone
 *   2. what the client names
 *   3. what the key remembers
 *   4. nothing, when the key is known to be absent; or was never seen, by the
 *      very host that would have made it
 *   5. what the plugin lists for the key
 *   6. whatever the plugin finds by the key alone, if it does that
 *   7. nobody knows: an outcome of its own, which is for a person to settle
 *
 * 5 and 6 say little while a maker of the same key has not been answered:
 * what they don't find may come to be a moment later.  The client is told an
 * error then, so that it asks again; by then the maker has been answered, and
 * what it made destroyed, or the worker is another one, whose word counts.
 *
 * A provider may have given a name again that something else of its had: whether
 * what a key made may be ended is then for the client to say.  To one that asks
 * to identify, 3 and 5 are answered with the name, and nothing is ended before
 * the client comes with it (2).
 *
 * An operation of the host's own ends what a doomed maker made.  Nobody else
 * may ever ask for that, so it tries again for a while when it fails.
 */
#include <stdlib.h>
#include <string.h>

#include "plugins/lease_end.h"
#include "base/log.h"
#include "base/memory.h"
#include "shared/protocol.h"

#define OUTCOME_DESTROYED "destroyed"
#define OUTCOME_RELEASED "released"
#define OUTCOME_FOUND "found"

#define OWN_ATTEMPTS 10
#define OWN_DELAY_MS 1000
#define OWN_MAX_DELAY_MS 60000

static void end_one(LeaseOperation *operation, json_t *id, json_t *metadata);

/*
 * The end of the operation
 */

static void
answer_outcome(LeaseOperation *operation, const char *outcome)
{
	operation_answer(operation, json_pack("{s:s}", "outcome", outcome));
	operation_done(operation);
}

static const char *
success(const LeaseOperation *operation)
{
	return operation->kind == OPERATION_RELEASE ? OUTCOME_RELEASED : OUTCOME_DESTROYED;
}

static void
lease_end_ended(LeaseOperation *operation, const char *outcome)
{
	if (!operation->keep)
		lease_key_ended(operation->key, outcome);
	answer_outcome(operation, outcome);
}

static bool
identifies(const LeaseOperation *operation, const json_t *lease)
{
	return operation->identify && json_is_string(json_object_get(lease, "providerLeaseId"));
}

static void
answer_found(LeaseOperation *operation, json_t *lease)
{
	operation_answer(operation,
	                 json_pack("{s:s, s:O, s:O?}", "outcome", OUTCOME_FOUND, "providerLeaseId",
	                           json_object_get(lease, "providerLeaseId"), "metadata",
	                           json_object_get(lease, "metadata")));
	operation_done(operation);
}

/* Takes the error. */
static void
lease_end_failed(LeaseOperation *operation, HostError *error)
{
	uint64_t delay = OWN_DELAY_MS;

	if (!operation->own)
	{
		operation_fail(operation, error);
		operation_done(operation);
		return;
	}
	operation->attempts++;
	log_message(LOG_WARNING,
	            "plugin \"%s\": what was made for the ended lease %s is not destroyed%s: %s",
	            plugin_manifest(operation->plugin)->id, operation->key->id,
	            operation->attempts < OWN_ATTEMPTS ? " yet" : ", and stays", error->message);
	error_free(error);
	if (operation->attempts >= OWN_ATTEMPTS)
	{
		operation_done(operation);
		return;
	}
	for (unsigned i = 1; i < operation->attempts && delay < OWN_MAX_DELAY_MS; i++)
		delay *= 2;
	operation_retry_later(operation, delay < OWN_MAX_DELAY_MS ? delay : OWN_MAX_DELAY_MS);
}

static void
nothing_seen(LeaseOperation *operation, const char *outcome)
{
	HostError *error;

	if (operation->key->doomed == 0)
	{
		lease_end_ended(operation, outcome);
		return;
	}
	error = error_new("38000", "Plugin \"%s\" has not answered yet whether it makes the lease",
	                  plugin_manifest(operation->plugin)->id);
	error_detail(error, "What it makes is destroyed when it answers.");
	error->outcome = OUTCOME_UNKNOWN;
	lease_end_failed(operation, error);
}

/*
 * Telling the worker
 */

static void
one_ended(LeaseOperation *operation)
{
	size_t index = operation->next_found;

	if (index < json_array_size(operation->found))
	{
		json_t *lease = json_array_get(operation->found, index);

		operation->next_found++;
		end_one(operation, json_object_get(lease, "providerLeaseId"),
		        json_object_get(lease, "metadata"));
	}
	else if (operation->unseen)
		nothing_seen(operation, success(operation));
	else
		lease_end_ended(operation, success(operation));
}

static void
end_answered(void *data, PluginReply reply, json_t *result, HostError *error)
{
	LeaseOperation *operation = data;

	(void) result;
	operation_answered(operation);
	if (reply == REPLY_RESULT)
		one_ended(operation);
	else if (reply == REPLY_UNSUPPORTED && operation->keep)
	{
		/* There is no word for it, so there is nothing to be said. */
		error_free(error);
		one_ended(operation);
	}
	else
		lease_end_failed(operation, error);
}

/* metadata: NULL for what the client said. */
static void
end_one(LeaseOperation *operation, json_t *id, json_t *metadata)
{
	json_t *params = json_copy(operation->params);
	bool release = operation->kind == OPERATION_RELEASE;
	const char *other = operation_method(release ? OPERATION_DESTROY : OPERATION_RELEASE);

	if (json_is_string(id))
		json_object_set(params, "providerLeaseId", id);
	else
		json_object_set_new(params, "providerLeaseId", json_null());
	if (metadata != NULL)
		json_object_set(params, "leaseMetadata", metadata);
	if (!operation->keep && json_is_string(id))
	{
		free(operation->key->ended_id);
		operation->key->ended_id = xstrdup(json_string_value(id));
	}
	/* What is to stay must not be destroyed for want of a milder word. */
	operation_ask(operation, operation_method(operation->kind), operation->keep ? NULL : other,
	              params, end_answered);
}

/*
 * Asking the worker
 */

/* The entries of the key; NULL when the answer is no list, or one of them has no name. */
static json_t *
found_in(const LeaseOperation *operation, const json_t *result)
{
	json_t *leases = json_object_get(result, "leases");
	json_t *found = json_array();
	bool valid = json_is_array(leases);
	size_t index;
	json_t *lease;

	json_array_foreach(leases, index, lease)
	{
		const char *key = json_string_value(json_object_get(lease, "leaseId"));

		if (key == NULL || strcmp(key, operation->key->id) != 0)
			continue;
		valid = valid && json_is_string(json_object_get(lease, "providerLeaseId"));
		json_array_append(found, lease);
	}
	if (valid)
		return found;
	json_decref(found);
	return NULL;
}

static void
lease_end_listed(LeaseOperation *operation, const json_t *result)
{
	HostError *error;

	operation->found = found_in(operation, result);
	if (operation->found == NULL)
	{
		error =
		    error_new("38000", "Plugin \"%s\" answered environmentListLeases with no valid list",
		              plugin_manifest(operation->plugin)->id);
		error->outcome = OUTCOME_UNKNOWN;
		lease_end_failed(operation, error);
	}
	else if (json_array_size(operation->found) == 0)
		nothing_seen(operation, OUTCOME_ABSENT);
	/* Of several things that one key made, only one could come back with its name. */
	else if (json_array_size(operation->found) == 1 &&
	         identifies(operation, json_array_get(operation->found, 0)))
		answer_found(operation, json_array_get(operation->found, 0));
	else
		one_ended(operation);
}

static void
list_answered(void *data, PluginReply reply, json_t *result, HostError *error)
{
	LeaseOperation *operation = data;
	const PluginDriver *driver =
	    plugin_manifest_driver(plugin_manifest(operation->plugin), operation->driver_key);

	operation_answered(operation);
	if (reply == REPLY_RESULT)
		lease_end_listed(operation, result);
	else if (reply != REPLY_UNSUPPORTED)
		lease_end_failed(operation, error);
	else
	{
		error_free(error);
		if (driver != NULL && driver->accepts_lease_id)
		{
			operation->unseen = true;
			end_one(operation, NULL, NULL);
		}
		else if (operation->key->doomed > 0)
			/* Its maker is alive, and will say. */
			nothing_seen(operation, OUTCOME_ABSENT);
		else
			answer_outcome(operation, OUTCOME_UNKNOWN);
	}
}

static void
ask_for_list(LeaseOperation *operation)
{
	static const char *const same[] = {"driverKey", "companyId", "environmentId", "config"};
	json_t *params = json_object();

	for (size_t i = 0; i < sizeof same / sizeof same[0]; i++)
	{
		json_t *value = json_object_get(operation->params, same[i]);

		if (value != NULL)
			json_object_set(params, same[i], value);
	}
	json_object_set_new(params, "leaseIds", json_pack("[s]", operation->key->id));
	json_decref(operation->found);
	operation->found = NULL;
	operation->next_found = 0;
	operation_ask(operation, "environmentListLeases", NULL, params, list_answered);
}

/*
 * The start
 */

/* Whether it is known, without the worker, that there is nothing. */
static bool
is_absent(const LeaseOperation *operation)
{
	const LeaseKey *key = operation->key;

	if (key->doomed > 0)
		return false;
	return key->knowledge == LEASE_ABSENT ||
	       (key->knowledge == LEASE_UNSEEN && operation->same_instance &&
	        lease_keys_are_complete());
}

/* Whether the metadata of the key's lease says more than the client. */
static json_t *
remembered_metadata(const LeaseOperation *operation)
{
	const json_t *given = json_object_get(operation->params, "leaseMetadata");

	if (given != NULL && !json_is_null(given))
		return NULL;
	return json_object_get(operation->key->lease, "metadata");
}

static void
lease_end_run(LeaseOperation *operation)
{
	const LeaseKey *key = operation->key;
	json_t *given = json_object_get(operation->params, "providerLeaseId");
	bool names_it = json_is_string(given);

	if (operation->identify)
		operation->key->identified = true;
	if (key->knowledge == LEASE_ENDED && strcmp(key->outcome, OUTCOME_ABSENT) != 0)
		answer_outcome(operation, success(operation));
	else if (!names_it && key->knowledge == LEASE_ENDED)
		answer_outcome(operation, OUTCOME_ABSENT);
	else if (!names_it && key->lease == NULL && is_absent(operation))
		lease_end_ended(operation, OUTCOME_ABSENT);
	else if (operation->plugin == NULL)
		lease_end_failed(operation, error_copy(operation->plugin_error));
	else if (names_it)
		end_one(operation, given, NULL);
	else if (key->lease != NULL && identifies(operation, key->lease))
		answer_found(operation, key->lease);
	else if (key->lease != NULL)
		end_one(operation, json_object_get(key->lease, "providerLeaseId"),
		        remembered_metadata(operation));
	else
		ask_for_list(operation);
}

const OperationDoing lease_ender = {.run = lease_end_run};
