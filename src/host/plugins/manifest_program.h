/*
 * manifest_program.h
 *		A manifest that is a JavaScript module: node is asked what it says.
 */
#ifndef ENVRT_HOST_MANIFEST_PROGRAM_H
#define ENVRT_HOST_MANIFEST_PROGRAM_H

#include <stddef.h>

typedef struct ManifestProgram ManifestProgram;

/*
 * Called from the event loop, never from within manifest_program_start(): with
 * the manifest as JSON, or with text NULL, a problem, and the end of what the
 * program wrote to stderr.  All are the callee's to copy.
 */
typedef void (*ManifestProgramEnded)(void *data, const char *text, size_t length,
                                     const char *problem, const char *words);

extern ManifestProgram *manifest_program_start(const char *folder, const char *script,
                                               ManifestProgramEnded ended, void *data);

/* Nobody wants to know any more. */
extern void manifest_program_forget(ManifestProgram *program);

#endif
