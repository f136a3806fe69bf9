/*
 * arguments.h
 *		Reading a function's arguments, with errors that name the argument.
 */
#ifndef ENVRT_ARGUMENTS_H
#define ENVRT_ARGUMENTS_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#define require_argument(n, name)                                                                  \
	do                                                                                             \
	{                                                                                              \
		if (PG_ARGISNULL(n))                                                                       \
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),                              \
			                errmsg("%s must not be null", name)));                                 \
	}                                                                                              \
	while (0)

static inline pg_uuid_t *
uuid_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	require_argument(n, name);
	return PG_GETARG_UUID_P(n);
}

static inline pg_uuid_t *
optional_uuid_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : PG_GETARG_UUID_P(n);
}

static inline char *
optional_text_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static inline char *
text_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	require_argument(n, name);
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static inline Jsonb *
jsonb_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	require_argument(n, name);
	return PG_GETARG_JSONB_P(n);
}

#endif
