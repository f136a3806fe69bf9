/*
 * json_library.h
 *		jansson, without its function json_object().
 *
 * The PostgreSQL executable exports a json_object() of its own (the SQL
 * function), which the dynamic linker finds first: a call of jansson's from
 * the extension would land there.  No other name is in both.  So code that is
 * linked into the extension makes objects with json_object_new(), and in the
 * extension the declaration is hidden, since PostgreSQL's headers have one
 * too.  (jansson itself is linked to find its own.)
 */
#ifndef ENVRT_JSON_LIBRARY_H
#define ENVRT_JSON_LIBRARY_H

#ifdef POSTGRES_H
/* First, since jansson's macro json_typeof would garble a declaration in it. */
#include "fmgr.h"
#include "utils/fmgrprotos.h"
#define json_object json_object_of_jansson
#include <jansson.h>
#undef json_object
#else
#include <jansson.h>
#endif

static inline json_t *
json_object_new(void)
{
	return json_pack("{}");
}

#endif
