/*
 * worker_supervisor.h
 *		The process between the host and a plugin's worker.
 */
#ifndef ENVRT_HOST_WORKER_SUPERVISOR_H
#define ENVRT_HOST_WORKER_SUPERVISOR_H

/* The host's first argument that means: supervise a worker, whose arguments are the others. */
#define WORKER_SUPERVISOR_OPTION "--worker"

/* What the host says on the channel. */
#define WORKER_SUPERVISOR_TERMINATE "T"

/* What it hears there besides the worker's id: for their memory it has killed the worker, or a
 * child. */
#define WORKER_SUPERVISOR_KILLED "K"
#define WORKER_SUPERVISOR_KILLED_CHILD "C"

/*
 * argv: the program's name, the option, the limit of open files, the bytes of memory (0: any
 * number), the worker and its arguments.
 */
extern void worker_supervisor(int argc, char **argv) __attribute__((noreturn));

#endif
