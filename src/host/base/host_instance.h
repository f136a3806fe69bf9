/*
 * host_instance.h
 *		Which life of the driver host this is.
 */
#ifndef ENVRT_HOST_HOST_INSTANCE_H
#define ENVRT_HOST_HOST_INSTANCE_H

/* 32 random hex digits, the same as long as the process lives. */
extern const char *host_instance(void);

#endif
