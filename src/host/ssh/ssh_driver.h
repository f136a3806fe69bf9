/*
 * ssh_driver.h
 *		The ssh driver.
 */
#ifndef ENVRT_HOST_SSH_DRIVER_H
#define ENVRT_HOST_SSH_DRIVER_H

#include "calls/driver.h"

extern const HostDriver ssh_host_driver;

#endif
