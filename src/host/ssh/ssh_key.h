/*
 * ssh_key.h
 *		Private keys, and the certificates that may stand beside them.
 */
#ifndef ENVRT_HOST_SSH_KEY_H
#define ENVRT_HOST_SSH_KEY_H

#include <libssh/libssh.h>

#include "base/host_error.h"

/*
 * A key that can log in, with its certificate if the text holds one; free it
 * with ssh_key_free().  NULL with *error set when there is none.
 */
extern ssh_key ssh_key_from_text(const char *text, HostError **error);

#endif
