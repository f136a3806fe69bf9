/*
 * fault_points.h
 *		Named places where a test can make the code wait, fail or crash.
 */
#ifndef ENVRT_FAULT_POINTS_H
#define ENVRT_FAULT_POINTS_H

#include "postgres.h"

#include "base/shared_state.h"

extern void fault_point_reached(const char *name);

/* Costs a look at one shared variable while none is armed. */
#define FAULT_POINT(name)                                                                          \
	do                                                                                             \
	{                                                                                              \
		if (unlikely(shared_state != NULL && shared_state->fault_points_armed > 0))                \
			fault_point_reached(name);                                                             \
	}                                                                                              \
	while (0)

#endif
