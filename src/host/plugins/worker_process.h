/*
 * worker_process.h
 *		The process of a plugin's worker: lines in, lines out, and its end.
 */
#ifndef ENVRT_HOST_WORKER_PROCESS_H
#define ENVRT_HOST_WORKER_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "shared/jsonrpc.h"

typedef struct WorkerProcess WorkerProcess;

/* What is run. */
typedef struct WorkerProgram
{
	const char *folder;       /* its working directory */
	const char *plugin;       /* for its environment; may be empty */
	const char *arguments[6]; /* up to a NULL; the first is the program, looked up in PATH */
} WorkerProgram;

/* All run from the event loop, never from within a call. */
typedef struct WorkerProcessEvents
{
	/* A message that it wrote: a request, a notification or a response. */
	void (*message)(void *owner, const RpcMessage *message);

	/* A line that is none, or must not be read; problem: why.  Of a long one the beginning. */
	void (*unusable)(void *owner, const RpcIdentity *identity, const char *problem,
	                 const char *line, size_t length);

	/* Instead of both, of a program that writes something else: a line, of 16 MiB at most. */
	void (*line)(void *owner, const char *line, size_t length);

	/* All that was sent has left us. */
	void (*drained)(void *owner);

	/* It is gone, and nothing of what it wrote is left.  The owner forgets it. */
	void (*ended)(void *owner, const char *how);
} WorkerProcessEvents;

/* The soft limit of open files that workers get; before the host raises its own. */
extern void worker_process_note_file_limit(void);

/* What memory those that are started from now on get, with all that they start; 0: any amount. */
extern void worker_process_limit_memory(unsigned long long bytes);

/* NULL with *problem set, to be freed. */
extern WorkerProcess *worker_process_start(const WorkerProgram *program,
                                           const WorkerProcessEvents *events, void *owner,
                                           char **problem);

/* Of the worker; 0 while it is not known. */
extern pid_t worker_process_pid(const WorkerProcess *process);

/* Whether nothing of what was sent is still here. */
extern bool worker_process_is_drained(const WorkerProcess *process);

/* Takes the message.  False when it could not be sent at all. */
extern bool worker_process_send(WorkerProcess *process, json_t *message);

/* Ends it at once; ended() will say why.  Nothing comes any more. */
extern void worker_process_kill(WorkerProcess *process, const char *why);

/*
 * Ends it in order, and kills it when it does not end; ended() says when.
 * Messages may still come.
 */
extern void worker_process_stop(WorkerProcess *process);

/* The same; but the owner forgets it: no event comes. */
extern void worker_process_dismiss(WorkerProcess *process);

/* Hides secrets in a text, in place. */
typedef void (*WorkerMask)(void *data, char *text, size_t length);

/* The end of what it wrote to stderr, masked unless mask is NULL; to be freed. */
extern char *worker_process_stderr(const WorkerProcess *process, WorkerMask mask, void *data);

/* Masks what is kept of it. */
extern void worker_process_mask_stderr(WorkerProcess *process, WorkerMask mask, void *data);

/* Gives every one SIGTERM; kills every one; and whether there still are any. */
extern void worker_processes_terminate(void);
extern void worker_processes_kill(void);
extern bool worker_processes_exist(void);

#endif
