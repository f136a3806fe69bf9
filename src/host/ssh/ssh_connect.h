/*
 * ssh_connect.h
 *		The TCP connection of an SSH session: from a name to a socket that is ready.
 */
#ifndef ENVRT_HOST_SSH_CONNECT_H
#define ENVRT_HOST_SSH_CONNECT_H

#include "ssh/ssh_session.h"

/* The first step of a session. */
extern void ssh_connect_begin(void *session);

/* In phase CONNECTING: the socket is writable, so it is connected, or not to be connected. */
extern void ssh_connect_done(SshSession *session);

/* The server dropped the connection before its banner: tries again after a pause, some times. */
extern void ssh_connect_again(SshSession *session);

/* What has come is read: waits for more, and for room for what is still to be sent. */
extern void ssh_connect_watch(SshSession *session);

#endif
