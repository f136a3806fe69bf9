/*
 * execution_calls.c
 *		Calls to the driver host about one execution.
 */
#include "postgres.h"

#include "secrets/secret_references.h"
#include "hostlink/async_calls.h"
#include "scheduler/execution_calls.h"

void
execution_nothing_answered(void *data, const DriverAnswer *answer)
{
	(void) data;
	(void) answer;
}

json_t *
execution_id_params(const Running *running)
{
	json_t *params = json_object_new();

	json_object_set_new(params, "executionId", json_string(uuid_text(&running->id)));
	return params;
}

void
execution_answered(void *data, const DriverAnswer *answer)
{
	Running *running = data;

	if (answer->result == NULL && answer->error == NULL)
	{
		/* Its driver host is there still, or not: that is seen when there is one again. */
		running->phase = running->phase == PHASE_STARTING ? PHASE_START : PHASE_READ;
		return;
	}
	running->result = json_incref(unconstify(json_t *, answer->result));
	running->error = json_incref(unconstify(json_t *, answer->error));
	if (running->phase == PHASE_STARTING)
		config_mask_secrets(running->error, running->values);
	running->phase =
	    running->phase == PHASE_STARTING && running->error == NULL ? PHASE_READ : PHASE_ANSWERED;
	if (running->phase == PHASE_READ)
	{
		running->told = true;
		running_execution_drop_answer(running);
	}
}
