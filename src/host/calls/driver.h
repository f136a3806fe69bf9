/*
 * driver.h
 *		What a driver is: the methods that it answers.
 */
#ifndef ENVRT_HOST_DRIVER_H
#define ENVRT_HOST_DRIVER_H

#include <jansson.h>

#include "calls/call.h"

typedef struct DriverMethod
{
	const char *name;
	/* Owns the call from here on; params are the caller's. */
	void (*start)(Call *call, const json_t *params);
} DriverMethod;

typedef struct HostDriver
{
	const char *key;
	const DriverMethod *methods; /* up to one without a name */
} HostDriver;

#endif
