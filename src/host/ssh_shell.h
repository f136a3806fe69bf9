/*
 * ssh_shell.h
 *		A login shell that waits for its command.
 */
#ifndef ENVRT_HOST_SSH_SHELL_H
#define ENVRT_HOST_SSH_SHELL_H

#include "ssh_channel.h"
#include "ssh_execute_script.h"

typedef struct SshShell SshShell;

/*
 * Starts one, on a session that is ready and whose login shell is a sh (ExecuteStart.plain).
 * gone: it does not wait any more, and is freed; what is left of its channel is being closed.
 */
extern SshShell *ssh_shell_start(struct SshSession *session, void (*gone)(void *owner),
                                 void *owner);

/* It reads. */
extern bool ssh_shell_is_ready(const SshShell *shell);

/* Its channel's new owner, with the input of its command, and what it has said so far.  Frees it.
 */
extern SshChannel *ssh_shell_take(SshShell *shell, ExecuteStart *start, ChannelInput input,
                                  const SshChannelEvents *events, void *owner);

/* gone() does not run. */
extern void ssh_shell_end(SshShell *shell);

#endif
