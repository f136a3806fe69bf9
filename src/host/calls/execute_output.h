/*
 * execute_output.h
 *		What a command writes, and the answer of environmentExecute.
 */
#ifndef ENVRT_HOST_EXECUTE_OUTPUT_H
#define ENVRT_HOST_EXECUTE_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "calls/call.h"
#include "calls/execute_request.h"

typedef struct ExecuteOutput ExecuteOutput;

/* How a command ended. */
typedef struct ExecuteEnd
{
	bool timed_out;     /* it was ended by its time limit */
	bool exited;        /* with exit_code; else by a signal, if that is known */
	int exit_code;      /* told unless timed_out */
	const char *signal; /* "SIGTERM"; NULL: none, or nobody knows */
} ExecuteEnd;

/*
 * What the command writes goes to the answer, or, when the request is to stream, to
 * the client at once.  The clock of durationMs begins.  room(data) runs from the event loop when a
 * caller that did not read enough has done so; see below.  The call must outlive
 * it, unless execute_output_detach() is called before.
 */
extern ExecuteOutput *execute_output_new(Call *call, const ExecuteRequest *request,
                                         void (*room)(void *data), void *data);

/*
 * Takes all of what the command wrote.  False: whoever reads the call's output
 * is behind, so read no more from the command until room() runs or
 * execute_output_has_room() is true.  May be called from anywhere: nothing of
 * a driver runs from within.
 */
extern bool execute_output_write(ExecuteOutput *output, bool is_stderr, const char *bytes,
                                 size_t length);
extern bool execute_output_has_room(const ExecuteOutput *output);

/* The call is gone: what is written from here on is dropped, and there is always room. */
extern void execute_output_detach(ExecuteOutput *output);

/* For a call that will fail: what is still to be streamed goes out. */
extern void execute_output_flush(ExecuteOutput *output);

/* The result of the call, which is to be answered now; nothing may be written any more. */
extern json_t *execute_output_result(ExecuteOutput *output, const ExecuteEnd *end);

extern void execute_output_free(ExecuteOutput *output);

/* "SIGTERM", "SIGRTMIN+1", and "SIG32" for one that has no name: static. */
extern const char *execute_signal_name(int number);

#endif
