/*
 * ssh_keepalive.h
 *		Whether the server of an SSH session still lives.
 */
#ifndef ENVRT_HOST_SSH_KEEPALIVE_H
#define ENVRT_HOST_SSH_KEEPALIVE_H

#include "ssh/ssh_session.h"

/* Watches over it from now on, while there are channels. */
extern void ssh_keepalive(SshSession *session);

#endif
