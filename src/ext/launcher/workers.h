/*
 * workers.h
 *		The background workers and what they share.
 */
#ifndef ENVRT_WORKERS_H
#define ENVRT_WORKERS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "base/shared_state.h"
#include "storage/latch.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* launcher.c */
extern void launcher_register(void);
extern PGDLLEXPORT void envrt_launcher_main(Datum argument);

/* scheduler_watch.c: the launcher's care for schedulers */
extern void schedulers_begin(void);
extern TimestampTz schedulers_tend(void);

/* launcher.c: for SIGINT */
extern void worker_ignore_cancel(SIGNAL_ARGS);

/* scheduler.c */
extern PGDLLEXPORT void envrt_scheduler_main(Datum argument);

/* expiry.c */
extern TimestampTz expiry_tend(SchedulerSlot *slot);
/* The time of day when the next lease expires; DT_NOEND: none does. */
extern TimestampTz expiry_expected(void);
/* A reload says that what was in the way may be mended. */
extern void expiry_try_again(void);
/* Whether a commit has set an earlier end of a lease since; the caller holds shared_state->lock. */
extern bool expiry_is_asked_for(const SchedulerSlot *slot);

/* host_process.c: the launcher's care for the driver host */
extern TimestampTz host_process_tend(void);
extern void host_process_add_events(WaitEventSet *events);
extern bool host_process_take_change(void);
extern void host_process_read(void);
extern void host_process_configure(void);
extern void host_process_database_gone(Oid database);
extern void host_process_stop(const char *reason);

/* database_ddl.c */
extern void database_ddl_install_hooks(void);

#endif
