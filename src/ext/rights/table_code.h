/*
 * table_code.h
 *		Whose code runs when tables are used with the rights of their owner.
 */
#ifndef ENVRT_TABLE_CODE_H
#define ENVRT_TABLE_CODE_H

#include "postgres.h"

#include "nodes/pg_list.h"

typedef struct UsedTable
{
	const char *name;
	bool written; /* by us: its triggers fire */
	bool deleted; /* rows of it, by us: foreign keys of others then change their tables */
} UsedTable;

/*
 * Tables of one schema that are used with the rights of one role.  Define as
 * static: what is checked once is checked until something changes.
 */
typedef struct UsedTables
{
	const char *schema;
	const UsedTable *tables;
	int ntables;
	bool by_others; /* their policies are asked, as the caller */

	/* What the last check found, while it holds. */
	bool valid;
	Oid owner;
	Oid *oids; /* of the tables */
	MemoryContext context;
	List *relations;   /* OIDs of what it looked at */
	List *hashes[3];   /* and of types, functions and operators the hash values */
	List *constraints; /* of the tables that are written, those that can be deferred */
} UsedTables;

extern Oid used_table_oid(const UsedTables *set, int table);

/*
 * table_code_check
 *		ERROR 42501 when the tables can run code of somebody without the owner's rights.
 */
extern void table_code_check(UsedTables *set, Oid owner);

/*
 * table_code_undefer
 *		SET CONSTRAINTS ... IMMEDIATE for those of the tables that can be deferred.
 *
 * What a write leaves for the commit would run with the rights of whoever
 * commits, and a security-restricted operation is refused for it.  Called as
 * the caller: what he has left for the commit himself is fired now, as he.
 */
extern void table_code_undefer(const UsedTables *set);

#endif
