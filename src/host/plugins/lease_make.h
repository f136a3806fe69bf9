/*
 * lease_make.h
 *		What makes a lease of a key: acquire and resume.
 */
#ifndef ENVRT_HOST_LEASE_MAKE_H
#define ENVRT_HOST_LEASE_MAKE_H

#include "plugins/lease_queue.h"

extern const OperationDoing lease_maker;

#endif
