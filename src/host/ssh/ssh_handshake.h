/*
 * ssh_handshake.h
 *		The handshake of an SSH session: banner, key exchange, host key.
 */
#ifndef ENVRT_HOST_SSH_HANDSHAKE_H
#define ENVRT_HOST_SSH_HANDSHAKE_H

#include <stdbool.h>

#include "base/host_error.h"
#include "ssh/ssh_session.h"

/* Gives a connected socket to libssh, which closes it; with an error it is closed already. */
extern HostError *ssh_handshake_prepare(SshSession *session, int fd);

/*
 * In phase HANDSHAKE: goes on with it, to LOGIN, which is begun, or the end of the session.
 * False: the server dropped the connection before its banner, and may take a further one.
 */
extern bool ssh_handshake(SshSession *session);

#endif
