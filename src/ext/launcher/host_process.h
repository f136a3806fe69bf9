/*
 * host_process.h
 *		The launcher's care for the driver host; see host_process.c.
 */
#ifndef ENVRT_HOST_PROCESS_H
#define ENVRT_HOST_PROCESS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "storage/latch.h"

extern TimestampTz host_process_tend(void);
extern void host_process_add_events(WaitEventSet *events);
extern bool host_process_take_change(void);
extern void host_process_read(void);
extern void host_process_configure(void);
extern void host_process_database_gone(Oid database);
extern void host_process_stop(const char *reason);

#endif
