/*
 * lease_make.c
 *		Making the lease of a key: acquire and resume.
 *
 * What the worker's answer says about the lease is kept with the key, whether
 * or not the client still waits for it.  After an acquire:
 *
 *   a lease                  held
 *   an error                 absent; unknown if the plugin can be asked later,
 *                            since then it is better asked than believed
 *   the worker's end         unknown
 *   something else           unknown
 *   never asked              absent
 *
 * A resume makes nothing.  When it fails, nothing new is known; when it is
 * lost, the lease that was to be resumed is what there is to try later.
 *
 * An acquire of a key whose lease is held gets the answer that made it: a
 * repeated request must not make a second thing.  One whose lease is unknown is
 * refused for the same reason.
 */
#include <stdlib.h>
#include <string.h>

#include "plugins/lease_make.h"
#include "plugins/lease_end.h"
#include "base/log.h"
#include "base/memory.h"
#include "plugins/worker_request.h"

static void
learn(LeaseOperation *operation, LeaseKnowledge knowledge, json_t *lease)
{
	LeaseKey *key = operation->key;

	/* Somebody has found what this made and ended it. */
	if (operation->doomed && key->knowledge == LEASE_ENDED)
		json_decref(lease);
	else
		lease_key_learn(key, knowledge, lease);
}

static void
withdrawn(LeaseOperation *operation)
{
	if (operation->kind == OPERATION_ACQUIRE && operation->key->knowledge == LEASE_UNSEEN)
		lease_key_learn(operation->key, LEASE_ABSENT, NULL);
}

static bool
was_ended(const LeaseKey *key, const json_t *lease)
{
	const char *id = json_string_value(json_object_get(lease, "providerLeaseId"));

	return id != NULL && key->ended_id != NULL && strcmp(id, key->ended_id) == 0;
}

/* Takes the lease. */
static void
lease_make_made(LeaseOperation *operation, json_t *lease)
{
	LeaseKey *key = operation->key;

	if (operation->kind == OPERATION_RESUME && (operation->doomed || key->knowledge == LEASE_ENDED))
	{
		json_decref(lease);
		operation_fail(operation, lease_ended_error(key));
		return;
	}
	/* It was found and ended before its maker said so, and its name may be another's by now. */
	if (key->knowledge == LEASE_ENDED && was_ended(key, lease))
	{
		json_decref(lease);
		operation_fail(operation, lease_ended_error(key));
		return;
	}
	/* An ender that had stepped aside may have had its answer meanwhile. */
	if (!operation->doomed && key->knowledge != LEASE_ENDED)
	{
		lease_key_learn(key, LEASE_HELD, lease);
		operation_answer(operation, json_incref(lease));
		return;
	}
	if (key->identified && key->knowledge != LEASE_ENDED)
	{
		/* Who ends it was told to come again. */
		lease_key_learn(key, LEASE_HELD, lease);
		key->condemned = true;
		operation_fail(operation, lease_ended_error(key));
		return;
	}
	log_message(LOG_LOG,
	            "plugin \"%s\": lease %s was ended before %s was answered: to be destroyed",
	            plugin_manifest(operation->plugin)->id, key->id, operation_method(operation->kind));
	lease_key_learn(key, LEASE_HELD, lease);
	key->condemned = true;
	operation_fail(operation, lease_ended_error(key));
	operation_start_own(operation, &lease_ender);
}

static void
lost(LeaseOperation *operation)
{
	json_t *id = json_object_get(operation->params, "providerLeaseId");
	json_t *metadata = json_object_get(operation->params, "leaseMetadata");
	LeaseKnowledge knowledge = operation->key->knowledge;

	if (operation->kind == OPERATION_ACQUIRE)
		learn(operation, LEASE_UNKNOWN, NULL);
	else if (knowledge == LEASE_UNSEEN || knowledge == LEASE_ABSENT)
	{
		json_t *lease = json_object();

		json_object_set(lease, "providerLeaseId", id);
		if (metadata != NULL)
			json_object_set(lease, "metadata", metadata);
		lease_key_learn(operation->key, LEASE_UNKNOWN, lease);
	}
}

/* Takes the error. */
static void
lease_make_failed(LeaseOperation *operation, PluginReply reply, HostError *error)
{
	bool acquire = operation->kind == OPERATION_ACQUIRE;

	if (reply == REPLY_LOST)
		lost(operation);
	else if (acquire && reply == REPLY_ERROR &&
	         plugin_can_tell_leases(operation->plugin, operation->driver_key))
		learn(operation, LEASE_UNKNOWN, NULL);
	else if (acquire)
	{
		error->outcome = OUTCOME_ABSENT;
		learn(operation, LEASE_ABSENT, NULL);
	}
	operation_fail(operation, error);
}

static void
lease_make_answered(void *data, PluginReply reply, json_t *result, HostError *error)
{
	LeaseOperation *operation = data;
	json_t *lease = NULL;

	operation_answered(operation);
	if (operation->doomed && operation->kind == OPERATION_ACQUIRE)
		operation->key->doomed--;
	if (reply != REPLY_RESULT)
		lease_make_failed(operation, reply, error);
	else if ((lease = plugin_lease(operation->plugin, operation_method(operation->kind), result,
	                               &error)) != NULL)
		lease_make_made(operation, lease);
	else
	{
		/* The same as if the answer had been lost. */
		lost(operation);
		operation_fail(operation, error);
	}
	operation_done(operation);
}

static HostError *
unsettled_error(void)
{
	HostError *error =
	    error_new("55000", "an earlier request may have made something for this lease");

	error_hint(error, "End the lease before it is made again.");
	error->outcome = OUTCOME_UNKNOWN;
	return error;
}

/* NULL when the plugin is to be asked; else the operation is over. */
static HostError *
refusal(LeaseOperation *operation)
{
	const LeaseKey *key = operation->key;

	if (key->knowledge == LEASE_ENDED || key->doomed > 0 || key->condemned)
		return lease_ended_error(key);
	if (operation->kind == OPERATION_ACQUIRE && key->knowledge == LEASE_UNKNOWN &&
	    key->lease == NULL)
		return unsettled_error();
	if (operation->plugin == NULL)
	{
		HostError *error = error_copy(operation->plugin_error);

		if (operation->kind == OPERATION_ACQUIRE && key->knowledge != LEASE_HELD)
			error->outcome = OUTCOME_ABSENT;
		return error;
	}
	return NULL;
}

static void
lease_make_run(LeaseOperation *operation)
{
	LeaseKey *key = operation->key;
	HostError *error = refusal(operation);

	if (error != NULL)
		operation_fail(operation, error);
	else if (operation->kind == OPERATION_ACQUIRE && key->knowledge == LEASE_HELD)
		operation_answer(operation, json_incref(key->lease));
	else
	{
		free(key->plugin_key);
		key->plugin_key = xstrdup(plugin_manifest(operation->plugin)->id);
		operation_ask(operation, operation_method(operation->kind), NULL,
		              json_incref(operation->params), lease_make_answered);
		return;
	}
	operation_done(operation);
}

const OperationDoing lease_maker = {.run = lease_make_run, .withdrawn = withdrawn};
