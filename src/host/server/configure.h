/*
 * configure.h
 *		What the launcher tells the host about its settings.
 */
#ifndef ENVRT_HOST_CONFIGURE_H
#define ENVRT_HOST_CONFIGURE_H

#include <jansson.h>

extern void settings_configure(const json_t *params);

#endif
