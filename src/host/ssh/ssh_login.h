/*
 * ssh_login.h
 *		The login of an SSH session, by its key.
 */
#ifndef ENVRT_HOST_SSH_LOGIN_H
#define ENVRT_HOST_SSH_LOGIN_H

#include "ssh/ssh_session.h"

/* In phase LOGIN: goes on with it, to READY or the end of the session. */
extern void ssh_login(SshSession *session);

#endif
