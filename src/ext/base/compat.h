/*
 * compat.h
 *		Differences between the PostgreSQL versions that envrt supports (14 to 18).
 */
#ifndef ENVRT_COMPAT_H
#define ENVRT_COMPAT_H

#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#endif
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"

/* compat_report_stat() is how long what is left may wait, in milliseconds; 0: nothing, or not
 * known. */
#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#define compat_report_stat(force) (pgstat_report_stat(force), 0L)
#else
#define compat_report_stat(force) pgstat_report_stat(force)
#endif

#if PG_VERSION_NUM < 160000
#define object_ownercheck_database(oid, role) pg_database_ownercheck(oid, role)
#define compat_function_aclcheck(oid, role) pg_proc_aclcheck(oid, role, ACL_EXECUTE)
#define compat_schema_aclcheck(oid, role) pg_namespace_aclcheck(oid, role, ACL_USAGE)
#else
#define compat_function_aclcheck(oid, role)                                                        \
	object_aclcheck(ProcedureRelationId, oid, role, ACL_EXECUTE)
#define compat_schema_aclcheck(oid, role) object_aclcheck(NamespaceRelationId, oid, role, ACL_USAGE)
#define object_ownercheck_database(oid, role) object_ownercheck(DatabaseRelationId, oid, role)
#endif

/* Before a declaration, where both accept it. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* All settings there are. */
static inline struct config_generic **
compat_settings(int *count)
{
#if PG_VERSION_NUM >= 160000
	return get_guc_variables(count);
#else
	*count = GetNumConfigOptions();
	return get_guc_variables();
#endif
}

/* Begin a set-returning function's result: a tuplestore in rsinfo->setResult. */
static inline void
compat_begin_result_set(FunctionCallInfo fcinfo)
{
#if PG_VERSION_NUM >= 150000
	InitMaterializedSRF(fcinfo, 0);
#else
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext context;
	TupleDesc desc;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) || !(rsinfo->allowedModes & SFRM_Materialize))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
		                errmsg("set-valued function called in context that cannot accept a set")));
	context = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult =
	    tuplestore_begin_heap(rsinfo->allowedModes & SFRM_Materialize_Random, false, work_mem);
	rsinfo->setDesc = desc;
	MemoryContextSwitchTo(context);
#endif
}

/* From 0 to 1. */
static inline double
compat_random(void)
{
#if PG_VERSION_NUM >= 150000
	return pg_prng_double(&pg_global_prng_state);
#else
	return (double) random() / (double) MAX_RANDOM_VALUE;
#endif
}

/* Only outside of recovery. */
static inline TimeLineID
compat_timeline(void)
{
#if PG_VERSION_NUM >= 150000
	return GetWALInsertionTimeLine();
#else
	(void) RecoveryInProgress(); /* sets it */
	return ThisTimeLineID;
#endif
}

#if PG_VERSION_NUM < 170000
#define compat_create_wait_event_set(nevents) CreateWaitEventSet(CurrentMemoryContext, nevents)
#else
#define compat_create_wait_event_set(nevents) CreateWaitEventSet(NULL, nevents)
#endif

#endif
