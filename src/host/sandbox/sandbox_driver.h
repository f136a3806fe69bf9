/*
 * sandbox_driver.h
 *		The driver of sandboxes by bubblewrap.
 */
#ifndef ENVRT_HOST_SANDBOX_DRIVER_H
#define ENVRT_HOST_SANDBOX_DRIVER_H

#include "calls/driver.h"

extern const Driver bubblewrap_driver;

#endif
