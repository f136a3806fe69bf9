/*
 * cleanup.h
 *		Ends provider leases that nobody has any more; see cleanup.c.
 */
#ifndef ENVRT_CLEANUP_H
#define ENVRT_CLEANUP_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* Writes answers down and starts what is due; when to come again at the latest. */
extern TimestampTz cleanup_tend(void);

#endif
