/*
 * table_code.c
 *		Whose code runs when tables are used with the rights of their owner.
 *
 * A statement on a table evaluates what its owner, and whoever has the
 * TRIGGER privilege, has put there: trigger functions and WHEN clauses,
 * rules, policies, CHECK and default expressions, generated columns,
 * expressions and predicates of indexes, partition keys, statistics, domains
 * of columns, and the operators, casts and functions behind all of these.
 * envrt runs its statements with the rights of the tables' owner, so all of
 * that must be of somebody who has these rights: else a call of envrt would
 * lend them to a stranger.
 *
 * There is one rule for all kinds of code, and no list of the places where an
 * expression can be.  pg_depend records what each object uses, so from the
 * tables, by what belongs to a relation (parts_of_relation) and by what each
 * object depends on, every function, operator, type and relation is reached;
 * each must have a trusted owner.  What initdb has made is trusted.
 *
 * Followed where it runs with our rights only: the table that a foreign key
 * refers to is read with the rights of its own owner, and what a policy selects
 * from with those of the caller whom it is asked for; a function's inside is the
 * business of its owner.  The tables that foreign keys change when our rows go
 * (reach_follower) are followed, however many there are in a row.
 *
 * The check holds until something that it looked at changes: the callbacks
 * compare what is invalidated with what was noted.  An object is noted before
 * it is read, so a change is either seen by the read or makes the check void.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_amop.h"
#include "catalog/pg_amproc.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_cast.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_policy.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "base/compat.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "rewrite/rewriteDefine.h"
#include "rights/table_code.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#define MAX_SETS 16

/* Of an object that is reached: a relation whose triggers and rules fire, too. */
#define CODE_WRITTEN 1
/* Of a policy: what it selects from is read by us. */
#define CODE_READS 2
/* Of a relation that is written: rows of it are deleted, and its column id is changed. */
#define CODE_DELETED 4
#define CODE_REKEYED 8
#define CODE_WRITES (CODE_WRITTEN | CODE_DELETED | CODE_REKEYED)

typedef struct CodeKey
{
	Oid classid;
	Oid objid;
	uint32 flags;
} CodeKey;

typedef struct Code
{
	CodeKey key;
	/* For messages: the table, and what of it uses the object. */
	Oid table;
	Oid part_classid;
	Oid part_objid;
} Code;

typedef struct Walk
{
	UsedTables *set;
	HTAB *seen; /* CodeKey -> Code */
	List *todo; /* of Code */
} Walk;

/* Classes with an owner that an invalidation names by a hash value; see UsedTables.hashes. */
static const struct
{
	Oid classid;
	int cache;
} hashed_classes[] = {
    {TypeRelationId, TYPEOID},
    {ProcedureRelationId, PROCOID},
    {OperatorRelationId, OPEROID},
};

static UsedTables *sets[MAX_SETS];
static int nsets = 0;

static void
relation_changed(Datum arg, Oid relid)
{
	for (int i = 0; i < nsets; i++)
		if (!OidIsValid(relid) || list_member_oid(sets[i]->relations, relid))
			sets[i]->valid = false;
}

static void
object_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	for (int i = 0; i < nsets; i++)
		if (hashvalue == 0 || list_member_oid(sets[i]->hashes[DatumGetInt32(arg)], (Oid) hashvalue))
			sets[i]->valid = false;
}

/* Of roles, schemas and casts, which change rarely. */
static void
anything_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	for (int i = 0; i < nsets; i++)
		sets[i]->valid = false;
}

static void
watch(UsedTables *set)
{
	if (nsets == 0)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		for (int i = 0; i < (int) lengthof(hashed_classes); i++)
			CacheRegisterSyscacheCallback(hashed_classes[i].cache, object_changed,
			                              Int32GetDatum(i));
		CacheRegisterSyscacheCallback(AUTHOID, anything_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, anything_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, anything_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(CASTSOURCETARGET, anything_changed, (Datum) 0);
	}
	Assert(nsets < MAX_SETS);
	set->context =
	    AllocSetContextCreate(TopMemoryContext, "envrt checked tables", ALLOCSET_SMALL_SIZES);
	sets[nsets++] = set;
}

/* Before the object is read. */
static void
table_code_note(UsedTables *set, Oid classid, Oid objid)
{
	MemoryContext saved = MemoryContextSwitchTo(set->context);

	if (classid == RelationRelationId)
		set->relations = list_append_unique_oid(set->relations, objid);
	for (int i = 0; i < (int) lengthof(hashed_classes); i++)
		if (classid == hashed_classes[i].classid)
			set->hashes[i] =
			    lappend_oid(set->hashes[i], (Oid) GetSysCacheHashValue1(hashed_classes[i].cache,
			                                                            ObjectIdGetDatum(objid)));
	MemoryContextSwitchTo(saved);
}

static bool
has_rights_of(Oid role, Oid owner)
{
	return role == owner || superuser_arg(role) || has_privs_of_role(role, owner);
}

Oid
used_table_oid(const UsedTables *set, int table)
{
	const char *name = set->tables[table].name;
	Oid relid = get_relname_relid(name, get_namespace_oid(set->schema, true));

	if (!OidIsValid(relid))
		ereport(ERROR,
		        (errcode(ERRCODE_UNDEFINED_TABLE),
		         errmsg("table %s does not exist", quote_qualified_identifier(set->schema, name)),
		         errhint("Create the extension in this database: CREATE EXTENSION envrt;")));
	return relid;
}

static char *
description(Oid classid, Oid objid)
{
	ObjectAddress address;

	ObjectAddressSet(address, classid, objid);
	return getObjectDescription(&address, false);
}

static void
require_trusted(const Walk *walk, const Code *code, Oid author)
{
	const char *part;
	const char *object;

	if (has_rights_of(author, walk->set->owner))
		return;
	part = description(code->part_classid, code->part_objid);
	object = description(code->key.classid, code->key.objid);
	ereport(
	    ERROR,
	    (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
	     errmsg("code on table %s is not trusted",
	            quote_qualified_identifier(walk->set->schema, get_rel_name(code->table))),
	     errdetail("envrt uses the table with its owner's rights, which the owner of %s%s%s does "
	               "not have.",
	               object, strcmp(part, object) == 0 ? "" : " in ",
	               strcmp(part, object) == 0 ? "" : part),
	     errhint("Have it owned by the table's owner, or drop what uses it.")));
}

/* An object that is reached from another one (NULL: one of the tables themselves). */
static void
reach(Walk *walk, const Code *from, Oid classid, Oid objid, uint32 flags)
{
	CodeKey key = {classid, objid, flags};
	Code *code;
	bool found;

	if (objid < FirstNormalObjectId)
		return;
	code = hash_search(walk->seen, &key, HASH_ENTER, &found);
	if (found)
		return;
	if (from == NULL)
	{
		code->table = code->part_objid = objid;
		code->part_classid = classid;
	}
	else
	{
		bool of_table = from->part_classid == RelationRelationId && from->part_objid == from->table;

		code->table = from->table;
		code->part_classid = of_table ? classid : from->part_classid;
		code->part_objid = of_table ? objid : from->part_objid;
	}
	walk->todo = lappend(walk->todo, code);
}

/* What an object depends on, relations only where they are wanted. */
static void
reach_used(Walk *walk, const Code *code, bool relations, uint32 flags)
{
	Relation depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&keys[0], Anum_pg_depend_classid, BTEqualStrategyNumber, F_OIDEQ,
	            ObjectIdGetDatum(code->key.classid));
	ScanKeyInit(&keys[1], Anum_pg_depend_objid, BTEqualStrategyNumber, F_OIDEQ,
	            ObjectIdGetDatum(code->key.objid));
	scan = systable_beginscan(depend, DependDependerIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend used = (Form_pg_depend) GETSTRUCT(tuple);

		switch (used->refclassid)
		{
			case TypeRelationId:
			case ProcedureRelationId:
			case OperatorRelationId:
			case OperatorClassRelationId:
			case OperatorFamilyRelationId:
				reach(walk, code, used->refclassid, used->refobjid, 0);
				break;
			case RelationRelationId:
				if (relations || get_rel_relkind(used->refobjid) == RELKIND_COMPOSITE_TYPE)
					reach(walk, code, used->refclassid, used->refobjid, flags);
				break;
			default:
				break;
		}
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
}

/* The rows of a catalog, their first column an oid, that are parts of an object. */
typedef struct PartsOf
{
	Oid catalog;
	Oid index;
	AttrNumber column;
	Oid classid;
} PartsOf;

static const PartsOf parts_of_relation[] = {
    {RewriteRelationId, RewriteRelRulenameIndexId, Anum_pg_rewrite_ev_class, RewriteRelationId},
    {PolicyRelationId, PolicyPolrelidPolnameIndexId, Anum_pg_policy_polrelid, PolicyRelationId},
    {ConstraintRelationId, ConstraintRelidTypidNameIndexId, Anum_pg_constraint_conrelid,
     ConstraintRelationId},
    {AttrDefaultRelationId, AttrDefaultIndexId, Anum_pg_attrdef_adrelid, AttrDefaultRelationId},
    {IndexRelationId, IndexIndrelidIndexId, Anum_pg_index_indrelid, RelationRelationId},
    {StatisticExtRelationId, StatisticExtRelidIndexId, Anum_pg_statistic_ext_stxrelid,
     StatisticExtRelationId},
    {TriggerRelationId, TriggerRelidNameIndexId, Anum_pg_trigger_tgrelid, TriggerRelationId},
};

static const PartsOf parts_of_type[] = {
    {ConstraintRelationId, ConstraintTypidIndexId, Anum_pg_constraint_contypid,
     ConstraintRelationId},
};

static const PartsOf parts_of_family[] = {
    {AccessMethodOperatorRelationId, AccessMethodStrategyIndexId, Anum_pg_amop_amopfamily,
     AccessMethodOperatorRelationId},
    {AccessMethodProcedureRelationId, AccessMethodProcedureIndexId, Anum_pg_amproc_amprocfamily,
     AccessMethodProcedureRelationId},
};

/* Add a constraint to those that can be deferred. */
static void
note_deferrable(UsedTables *set, Oid constraint)
{
	MemoryContext saved = MemoryContextSwitchTo(set->context);

	if (OidIsValid(constraint))
		set->constraints = list_append_unique_oid(set->constraints, constraint);
	MemoryContextSwitchTo(saved);
}

/* Whether a foreign key refers to a column that a write of the relation may change. */
static bool
refers_to_changed(const Code *code, Oid constraint)
{
	HeapTuple tuple;
	Datum columns;
	bool isnull;
	bool changes = (code->key.flags & CODE_REKEYED) != 0;

	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));
	if (!HeapTupleIsValid(tuple))
		return false;
	columns = SysCacheGetAttr(CONSTROID, tuple, Anum_pg_constraint_confkey, &isnull);
	if (!isnull)
	{
		ArrayType *array = DatumGetArrayTypeP(columns);
		int16 *numbers = (int16 *) ARR_DATA_PTR(array);
		int count = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));

		for (int i = 0; i < count; i++)
		{
			const char *name = get_attname(code->key.objid, numbers[i], true);

			changes = changes || name == NULL || strcmp(name, "id") != 0;
		}
	}
	ReleaseSysCache(tuple);
	return changes;
}

/*
 * A foreign key of another table that does something to that one's rows when
 * this one's are deleted or get other keys.  It is done as the other table's
 * owner, but that table's AFTER triggers fire at the end of our statement,
 * with our rights; and further foreign keys follow.  envrt never changes the
 * column id of its own tables.
 */
static void
reach_follower(Walk *walk, const Code *code, Form_pg_trigger trigger)
{
	uint32 flags;

	switch (trigger->tgfoid)
	{
		case F_RI_FKEY_CASCADE_DEL:
			if (!(code->key.flags & CODE_DELETED))
				return;
			flags = CODE_WRITTEN | CODE_DELETED;
			break;
		case F_RI_FKEY_SETNULL_DEL:
		case F_RI_FKEY_SETDEFAULT_DEL:
			if (!(code->key.flags & CODE_DELETED))
				return;
			flags = CODE_WRITTEN | CODE_REKEYED;
			break;
		case F_RI_FKEY_CASCADE_UPD:
		case F_RI_FKEY_SETNULL_UPD:
		case F_RI_FKEY_SETDEFAULT_UPD:
			if (!refers_to_changed(code, trigger->tgconstraint))
				return;
			flags = CODE_WRITTEN | CODE_REKEYED;
			break;
		default:
			return;
	}
	reach(walk, code, RelationRelationId, trigger->tgconstrrelid, flags);
}

/* One part of a relation: whether it is in force, and what it brings. */
static void
reach_part(Walk *walk, const Code *code, const PartsOf *parts, HeapTuple tuple, uint32 flags)
{
	Oid objid = *(Oid *) GETSTRUCT(tuple);

	switch (parts->classid)
	{
		case RewriteRelationId:
		{
			Form_pg_rewrite rule = (Form_pg_rewrite) GETSTRUCT(tuple);

			if (rule->ev_enabled == RULE_DISABLED ||
			    (rule->ev_type != '1' && !(code->key.flags & CODE_WRITTEN)))
				return;
			/* What it does is done in our statement, to other tables as well. */
			flags = rule->ev_type != '1' ? CODE_WRITES : 0;
			break;
		}
		case TriggerRelationId:
		{
			Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);

			if (trigger->tgenabled == TRIGGER_DISABLED)
				return;
			if (trigger->tgdeferrable)
				note_deferrable(walk->set, trigger->tgconstraint);
			reach_follower(walk, code, trigger);
			break;
		}
		default:
			break;
	}
	reach(walk, code, parts->classid, objid, flags);
}

static void
reach_parts(Walk *walk, const Code *code, const PartsOf *parts, uint32 flags)
{
	Relation catalog = table_open(parts->catalog, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, parts->column, BTEqualStrategyNumber, F_OIDEQ,
	            ObjectIdGetDatum(code->key.objid));
	scan = systable_beginscan(catalog, parts->index, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		reach_part(walk, code, parts, tuple, flags);
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

/* Casts from and to the types that were reached; they belong to none of these. */
static void
reach_casts(Walk *walk)
{
	Relation casts = table_open(CastRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(casts, InvalidOid, false, NULL, 0, NULL);
	HeapTuple tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_cast cast = (Form_pg_cast) GETSTRUCT(tuple);
		CodeKey key = {TypeRelationId, cast->castsource, 0};
		Code *type = hash_search(walk->seen, &key, HASH_FIND, NULL);

		if (type == NULL)
		{
			key.objid = cast->casttarget;
			type = hash_search(walk->seen, &key, HASH_FIND, NULL);
		}
		if (type != NULL)
			reach(walk, type, ProcedureRelationId, cast->castfunc, 0);
	}
	systable_endscan(scan);
	table_close(casts, AccessShareLock);
}

static void
visit_relation(Walk *walk, const Code *code)
{
	HeapTuple tuple;
	FormData_pg_class relation;
	bool hidden;
	char kind = get_rel_relkind(code->key.objid);

	/* What changes of these is said of their table or type. */
	if (kind == RELKIND_INDEX || kind == RELKIND_PARTITIONED_INDEX ||
	    kind == RELKIND_COMPOSITE_TYPE || kind == RELKIND_SEQUENCE)
	{
		reach_used(walk, code, false, 0);
		return;
	}
	table_code_note(walk->set, RelationRelationId, code->key.objid);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(code->key.objid));
	if (!HeapTupleIsValid(tuple))
		return; /* dropped meanwhile, which makes the check void */
	relation = *(Form_pg_class) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);

	reach_used(walk, code, false, 0);
	require_trusted(walk, code, relation.relowner);
	/* Its policies are for others than its owner, unless he is made subject to them. */
	hidden = relation.relforcerowsecurity || relation.relowner != walk->set->owner;
	for (int i = 0; i < (int) lengthof(parts_of_relation); i++)
	{
		const PartsOf *parts = &parts_of_relation[i];
		uint32 flags = 0;

		if (parts->classid == PolicyRelationId)
		{
			if (!relation.relrowsecurity || (!hidden && !walk->set->by_others))
				continue;
			flags = hidden ? CODE_READS : 0;
		}
		if (parts->classid != TriggerRelationId || code->key.flags & CODE_WRITTEN)
			reach_parts(walk, code, parts, flags);
	}
	if (relation.relhassubclass)
	{
		List *children = find_inheritance_children(code->key.objid, NoLock);
		ListCell *cell;

		foreach (cell, children)
			reach(walk, code, RelationRelationId, lfirst_oid(cell), code->key.flags);
	}
}

static Oid
owner_of(Oid classid, Oid objid)
{
	Oid owner = InvalidOid;
	HeapTuple tuple;

#define OWNER_OF(class, cache, form, column)                                                       \
	case class:                                                                                    \
		tuple = SearchSysCache1(cache, ObjectIdGetDatum(objid));                                   \
		if (HeapTupleIsValid(tuple))                                                               \
		{                                                                                          \
			owner = ((form) GETSTRUCT(tuple))->column;                                             \
			ReleaseSysCache(tuple);                                                                \
		}                                                                                          \
		break;

	switch (classid)
	{
		OWNER_OF(TypeRelationId, TYPEOID, Form_pg_type, typowner)
		OWNER_OF(ProcedureRelationId, PROCOID, Form_pg_proc, proowner)
		OWNER_OF(OperatorRelationId, OPEROID, Form_pg_operator, oprowner)
		OWNER_OF(OperatorClassRelationId, CLAOID, Form_pg_opclass, opcowner)
		OWNER_OF(OperatorFamilyRelationId, OPFAMILYOID, Form_pg_opfamily, opfowner)
		default:
			break;
	}
	return owner;
}

static void
table_code_visit(Walk *walk, const Code *code)
{
	Oid owner;

	if (code->key.classid == RelationRelationId)
	{
		visit_relation(walk, code);
		return;
	}
	table_code_note(walk->set, code->key.classid, code->key.objid);
	owner = owner_of(code->key.classid, code->key.objid);
	if (OidIsValid(owner))
		require_trusted(walk, code, owner);
	reach_used(walk, code, code->key.classid == RewriteRelationId || code->key.flags & CODE_READS,
	           code->key.flags & CODE_WRITES);
	if (code->key.classid == TypeRelationId)
		reach_parts(walk, code, parts_of_type, 0);
	if (code->key.classid == OperatorFamilyRelationId)
		for (int i = 0; i < (int) lengthof(parts_of_family); i++)
			reach_parts(walk, code, &parts_of_family[i], 0);
}

/*
 * One of the tables itself: what is no table, has an owner without the rights
 * that it is used with, or hides rows from them, is said by its name.
 */
static void
check_table(const UsedTables *set, int table, Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	const char *name = quote_qualified_identifier(set->schema, set->tables[table].name);
	FormData_pg_class relation;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	relation = *(Form_pg_class) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);
	if (relation.relkind != RELKIND_RELATION && relation.relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("%s is not a table", name)));
	if (!has_rights_of(relation.relowner, set->owner))
		ereport(ERROR,
		        (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		         errmsg("table %s has another owner than the tables it is used with", name),
		         errdetail("envrt uses the tables with the rights of one owner, which this one "
		                   "does not have."),
		         errhint("ALTER TABLE %s OWNER TO %s;", name,
		                 quote_identifier(GetUserNameFromId(set->owner, false)))));
	if (set->tables[table].written && relation.relforcerowsecurity && !superuser_arg(set->owner))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("row-level security of %s is forced on its owner", name),
		                errhint("ALTER TABLE %s NO FORCE ROW LEVEL SECURITY;", name)));
}

static void
check(UsedTables *set)
{
	HASHCTL control = {
	    .keysize = sizeof(CodeKey), .entrysize = sizeof(Code), .hcxt = CurrentMemoryContext};
	Walk walk = {.set = set};
	int done = 0;

	set->oids = MemoryContextAlloc(set->context, sizeof(Oid) * set->ntables);
	walk.seen = hash_create("code of tables", 256, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int table = 0; table < set->ntables; table++)
	{
		Oid relid = used_table_oid(set, table);

		set->oids[table] = relid;
		table_code_note(set, RelationRelationId, relid);
		check_table(set, table, relid);
		reach(&walk, NULL, RelationRelationId, relid,
		      (set->tables[table].written ? CODE_WRITTEN : 0) |
		          (set->tables[table].deleted ? CODE_DELETED : 0));
	}
	while (done < list_length(walk.todo))
	{
		table_code_visit(&walk, list_nth(walk.todo, done++));
		if (done == list_length(walk.todo))
			reach_casts(&walk);
	}
}

void
table_code_check(UsedTables *set, Oid owner)
{
	MemoryContext context;
	MemoryContext saved;

	if (set->valid && set->owner == owner)
		return;
	if (set->context == NULL)
		watch(set);
	set->relations = set->constraints = NIL;
	memset(set->hashes, 0, sizeof(set->hashes));
	MemoryContextReset(set->context);
	set->owner = owner;
	/* Set first: what is invalidated while we look counts. */
	set->valid = true;
	context = AllocSetContextCreate(CurrentMemoryContext, "code of tables", ALLOCSET_DEFAULT_SIZES);
	saved = MemoryContextSwitchTo(context);
	PG_TRY();
	{
		check(set);
	}
	PG_CATCH();
	{
		set->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(saved);
	MemoryContextDelete(context);
}

void
table_code_undefer(const UsedTables *set)
{
	ConstraintsSetStmt *statement = makeNode(ConstraintsSetStmt);
	ListCell *cell;

	foreach (cell, set->constraints)
	{
		HeapTuple tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(lfirst_oid(cell)));
		Form_pg_constraint constraint;

		if (!HeapTupleIsValid(tuple))
			continue;
		constraint = (Form_pg_constraint) GETSTRUCT(tuple);
		/* Who can't name the constraint has written nothing that waits for it. */
		if (compat_schema_aclcheck(constraint->connamespace, GetUserId()) == ACLCHECK_OK)
			statement->constraints = lappend(
			    statement->constraints, makeRangeVar(get_namespace_name(constraint->connamespace),
			                                         pstrdup(NameStr(constraint->conname)), -1));
		ReleaseSysCache(tuple);
	}
	if (statement->constraints != NIL)
		AfterTriggerSetState(statement);
}
