/*
 * launcher.h
 *		The launcher, one in a server; see launcher.c.
 */
#ifndef ENVRT_LAUNCHER_H
#define ENVRT_LAUNCHER_H

#include "postgres.h"

extern void launcher_register(void);
extern PGDLLEXPORT void envrt_launcher_main(Datum argument);

#endif
