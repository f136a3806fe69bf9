/*
 * lease_end.h
 *		What ends a lease of a key: release and destroy.
 */
#ifndef ENVRT_HOST_LEASE_END_H
#define ENVRT_HOST_LEASE_END_H

#include "plugins/lease_queue.h"

extern const OperationDoing lease_ender;

#endif
