/*
 * cleanup_call.c
 *		One row of the ledger that is being cleaned up, in the memory of the scheduler.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "base/shared_state.h"
#include "scheduler/cleanup_call.h"

ArrayType *
cleanup_uuid_array(Datum *ids, int count)
{
	return construct_array(ids, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
}

void
cleanup_free(Cleanup *cleanup)
{
	json_decref(cleanup->params);
	json_decref(cleanup->values);
	json_decref(cleanup->found);
	pfree(cleanup->maker);
	if (cleanup->name != NULL)
		pfree(cleanup->name);
	pfree(cleanup);
}

/* In UTF-8, cut where a character ends. */
void
cleanup_set_error(Cleanup *cleanup, const char *message, const char *detail)
{
	size_t space = sizeof(cleanup->error) - 1;
	size_t length = pg_encoding_mbcliplen(PG_UTF8, message, strlen(message), space);

	memcpy(cleanup->error, message, length);
	if (detail != NULL && length + 1 < space)
	{
		cleanup->error[length++] = '\n';
		space = pg_encoding_mbcliplen(PG_UTF8, detail, strlen(detail), space - length);
		memcpy(cleanup->error + length, detail, space);
		length += space;
	}
	cleanup->error[length] = '\0';
}
