/*
 * scheduler_watch.h
 *		The launcher's care for the schedulers; see scheduler_watch.c.
 */
#ifndef ENVRT_SCHEDULER_WATCH_H
#define ENVRT_SCHEDULER_WATCH_H

#include "postgres.h"

#include "datatype/timestamp.h"

extern void schedulers_begin(void);
/* Does what is due; when to come again at the latest. */
extern TimestampTz schedulers_tend(void);

#endif
