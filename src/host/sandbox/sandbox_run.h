/*
 * sandbox_run.h
 *		One command in a sandbox of its own: its process, its pipes, its end.
 */
#ifndef ENVRT_HOST_SANDBOX_RUN_H
#define ENVRT_HOST_SANDBOX_RUN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/host_error.h"
#include "base/memory.h"
#include "shared/sandbox_spec.h"

typedef struct SandboxRun SandboxRun;

typedef struct SandboxRunEvents
{
	/* False: read no more until sandbox_run_read_on(). */
	bool (*output)(void *data, bool is_stderr, const char *bytes, size_t length);

	/* Hides, in place, what bwrap's words must not show; NULL: nothing. */
	void (*mask)(void *data, char *text, size_t length);

	/* The workspace was measured; full: the command can't let any file grow. */
	void (*measured)(void *data, const SandboxUsage *usage, bool full);

	/*
	 * Every process of it has ended, all output has come, and the run goes.
	 * report: how the command ended; NULL when it was killed.
	 * error: the sandbox could not be made; to be freed.
	 */
	void (*ended)(void *data, const SandboxReport *report, HostError *error);
} SandboxRunEvents;

/*
 * Starts it.  arguments: the file system (sandbox_file_system.h); spec: see
 * sandbox_spec.h; input: stdin, which must stay until the end; drain_ms: how long, after
 * the command's end, other processes may hold its output open.  Nothing happens
 * from within.  NULL with *error set.
 */
extern SandboxRun *sandbox_run_start(const Bytes *arguments, const Bytes *spec, const char *input,
                                     size_t input_length, uint64_t drain_ms,
                                     const SandboxRunEvents *events, void *data, HostError **error);

/*
 * The same, with stdin and stdout from and to descriptors (the caller's, which are copied; -1: no
 * stdin, or a stdout like above).  Such a command leaves nothing behind that has a say.
 */
extern SandboxRun *sandbox_run_start_between(const Bytes *arguments, const Bytes *spec,
                                             int input_fd, int output_fd,
                                             const SandboxRunEvents *events, void *data,
                                             HostError **error);

/* All of bwrap's arguments, each with its NUL: the file system's, and what all sandboxes have in
 * common. */
extern void sandbox_run_arguments(const Bytes *root, Bytes *arguments);

extern void sandbox_run_read_on(SandboxRun *run);

/* Whether the command has ended; what it left behind may still write. */
extern bool sandbox_run_command_ended(const SandboxRun *run);

/* SIGTERM to the command's process group (when the command has ended, the other); SIGKILL to all.
 */
extern void sandbox_run_terminate(SandboxRun *run);
extern void sandbox_run_kill(SandboxRun *run);

/* At the end of the host: all are killed, with nobody told. */
extern void sandbox_runs_kill(void);
extern bool sandbox_runs_exist(void);

#endif
