/*
 * ssh_host_key.h
 *		Whether a server's host key is one that the environment's knownHosts has.
 */
#ifndef ENVRT_HOST_SSH_HOST_KEY_H
#define ENVRT_HOST_SSH_HOST_KEY_H

#include "base/host_error.h"
#include "ssh/ssh_session.h"

/* After the key exchange.  NULL: the session may go on to the login. */
extern HostError *ssh_host_key_check(SshSession *session);

#endif
