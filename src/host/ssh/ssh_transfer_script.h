/*
 * ssh_transfer_script.h
 *		The workspace's end of a transfer on a remote host: a shell script around tar.
 */
#ifndef ENVRT_HOST_SSH_TRANSFER_SCRIPT_H
#define ENVRT_HOST_SSH_TRANSFER_SCRIPT_H

#include <jansson.h>

#include "base/host_error.h"
#include "base/memory.h"
#include "transfer/transfer.h"

/*
 * What environmentExecute would be asked to do, with a marker for what is temporary: the
 * command, its args and env (a new reference).
 */
extern json_t *ssh_transfer_command(const TransferRequest *request, const char *marker);

/* How the packer is to name its last entry; to be freed. */
extern char *ssh_transfer_seal(const char *marker);

/*
 * What went wrong, by its status (-1: a signal) and what it wrote to stderr; NULL: nothing.  What
 * it wrote for who has called goes into the notes.
 */
extern HostError *ssh_transfer_failure(const TransferRequest *request, int status,
                                       const Bytes *errors, Bytes *notes);

#endif
