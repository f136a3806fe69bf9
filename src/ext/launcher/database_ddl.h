/*
 * database_ddl.h
 *		Statements that want a database for themselves; see database_ddl.c.
 */
#ifndef ENVRT_DATABASE_DDL_H
#define ENVRT_DATABASE_DDL_H

#include "postgres.h"

extern void database_ddl_install_hooks(void);

#endif
