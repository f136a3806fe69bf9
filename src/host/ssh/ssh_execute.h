/*
 * ssh_execute.h
 *		environmentExecute of the ssh driver.
 */
#ifndef ENVRT_HOST_SSH_EXECUTE_H
#define ENVRT_HOST_SSH_EXECUTE_H

#include <stdbool.h>

#include <jansson.h>

#include "calls/call.h"

extern void ssh_execute(Call *call, const json_t *params);

/* At the end of the process: kills what runs, and forgets it once that is done or takes too long.
 */
extern void ssh_executions_kill(void);
extern bool ssh_executions_exist(void);
extern void ssh_executions_close(void);

#endif
