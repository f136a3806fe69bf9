/*
 * worker_exec.h
 *		The host's binary as the first program of a plugin worker's process.
 */
#ifndef ENVRT_HOST_WORKER_EXEC_H
#define ENVRT_HOST_WORKER_EXEC_H

/* The option that comes first, and alone selects this mode. */
#define WORKER_EXEC_OPTION "--worker"

/* --worker PARENT OPEN-FILES PROGRAM ARGUMENT... */
extern void worker_exec(int argc, char **argv) __attribute__((noreturn));

#endif
