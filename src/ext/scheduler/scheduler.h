/*
 * scheduler.h
 *		The scheduler, one in a database; see scheduler.c.
 */
#ifndef ENVRT_SCHEDULER_H
#define ENVRT_SCHEDULER_H

#include "postgres.h"

extern PGDLLEXPORT void envrt_scheduler_main(Datum argument);

#endif
