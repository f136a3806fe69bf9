/*
 * sandbox_driver.h
 *		The driver of sandboxes by bubblewrap.
 */
#ifndef ENVRT_HOST_SANDBOX_DRIVER_H
#define ENVRT_HOST_SANDBOX_DRIVER_H

#include "calls/driver.h"

extern const HostDriver bubblewrap_host_driver;

#endif
