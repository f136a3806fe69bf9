/*
 * glob.h
 *		Patterns for host names: "*", "?" and nothing else.
 */
#ifndef ENVRT_HOST_GLOB_H
#define ENVRT_HOST_GLOB_H

#include <stdbool.h>

/* Case is ignored, as in host names. */
extern bool glob_match(const char *pattern, const char *text);

#endif
