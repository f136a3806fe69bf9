/*
 * instance.c
 *		Which server this is: what tells an original from its copies.
 *
 * A copy of a database brings the ledger of the original with it, and must
 * not act on it.  Copies differ from the original in one of four things:
 *
 *		a logical copy in another server	system identifier
 *		CREATE DATABASE ... TEMPLATE		database oid
 *		a promotion, or recovery to a point	timeline
 *		a copied data directory				the instance
 *
 * The last one is a uuid in the file pg_envrt/instance, together with that
 * file's inode number and time of birth.  These a copy of the file has not,
 * whatever program copies it, while a restart, a move within the file system
 * or a change of owner leaves them.  So where they don't match, the directory
 * is a copy, and gets a uuid of its own.  (A snapshot of the whole block
 * device has the same inodes: there envrt_claim_instance('forget') must say
 * it.)
 *
 * The launcher looks once, before it starts a scheduler; the uuid is in
 * shared memory from then on.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "base/compat.h"
#include "funcapi.h"
#include "ledger/instance.h"
#include "shared/protocol.h"
#include "base/shared_state.h"
#include "storage/fd.h"
#include "rights/tables.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(envrt_own_instance);

#define INSTANCE_FILE ENVRT_DIRECTORY "/instance"

/* What a copy of a file does not take along. */
typedef struct FileIdentity
{
	uint64 inode;
	int64 born_seconds; /* 0 where the file system does not say */
	uint32 born_nanoseconds;
} FileIdentity;

static void
file_identity(int fd, FileIdentity *identity)
{
	struct statx status;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &status) != 0)
		ereport(ERROR, (errcode_for_file_access(),
		                errmsg("could not stat file \"%s\": %m", INSTANCE_FILE)));
	memset(identity, 0, sizeof(FileIdentity));
	identity->inode = status.stx_ino;
	if (status.stx_mask & STATX_BTIME)
	{
		identity->born_seconds = status.stx_btime.tv_sec;
		identity->born_nanoseconds = status.stx_btime.tv_nsec;
	}
}

static char *
file_content(const pg_uuid_t *uuid, const FileIdentity *identity)
{
	return psprintf("%s " UINT64_FORMAT " " INT64_FORMAT ".%09u\n", uuid_text(uuid),
	                identity->inode, identity->born_seconds, identity->born_nanoseconds);
}

/* The uuid in the file, unless that is a copy; *exists says whether there is one. */
static bool
read_file(pg_uuid_t *uuid, bool *exists)
{
	char content[256];
	FileIdentity identity;
	ssize_t length;
	int fd = OpenTransientFile(INSTANCE_FILE, O_RDONLY | PG_BINARY);

	*exists = fd >= 0;
	if (fd < 0)
	{
		if (errno != ENOENT)
			ereport(ERROR, (errcode_for_file_access(),
			                errmsg("could not open file \"%s\": %m", INSTANCE_FILE)));
		return false;
	}
	file_identity(fd, &identity);
	length = read(fd, content, sizeof(content) - 1);
	CloseTransientFile(fd);
	if (length < 37)
		return false;
	content[length] = '\0';
	if (strspn(content, "0123456789abcdef-") != 36)
		return false;
	*uuid = *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(pnstrdup(content, 36))));
	return strcmp(content, file_content(uuid, &identity)) == 0;
}

static void
write_file(const pg_uuid_t *uuid)
{
	FileIdentity identity;
	char *content;
	int fd =
	    OpenTransientFilePerm(INSTANCE_FILE ".tmp", O_RDWR | O_CREAT | O_TRUNC | PG_BINARY, 0600);

	if (fd < 0)
		ereport(ERROR, (errcode_for_file_access(),
		                errmsg("could not create file \"%s\": %m", INSTANCE_FILE ".tmp")));
	file_identity(fd, &identity);
	content = file_content(uuid, &identity);
	errno = 0;
	if (write(fd, content, strlen(content)) != (ssize_t) strlen(content) || pg_fsync(fd) != 0)
		ereport(ERROR, (errcode_for_file_access(),
		                errmsg("could not write file \"%s\": %m", INSTANCE_FILE ".tmp")));
	CloseTransientFile(fd);
	(void) durable_rename(INSTANCE_FILE ".tmp", INSTANCE_FILE, ERROR);
}

void
instance_establish(void)
{
	pg_uuid_t uuid;
	bool exists;

	if (MakePGDirectory(ENVRT_DIRECTORY) < 0 && errno != EEXIST)
		ereport(ERROR, (errcode_for_file_access(),
		                errmsg("could not create directory \"%s\": %m", ENVRT_DIRECTORY)));
	/* A file left by a crash has an identity of its own, but may be a copied one. */
	(void) unlink(INSTANCE_FILE ".tmp");
	if (!read_file(&uuid, &exists))
	{
		if (exists)
			ereport(LOG, (errmsg("this data directory is a copy of another one"),
			              errdetail("The file \"%s\" was written somewhere else.", INSTANCE_FILE),
			              errhint("Provider leases of the original are left alone; "
			                      "envrt_claim_instance() says what this server is to them.")));
		uuid = *uuid_generate();
		write_file(&uuid);
	}
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->instance = uuid;
	shared_state->instance_known = true;
	LWLockRelease(shared_state->lock);
}

char *
instance_ledger_name(Oid database)
{
	pg_uuid_t uuid;
	bool known;

	if (shared_state == NULL)
		return NULL;
	LWLockAcquire(shared_state->lock, LW_SHARED);
	known = shared_state->instance_known;
	uuid = shared_state->instance;
	LWLockRelease(shared_state->lock);
	return known ? psprintf("%s:%u", uuid_text(&uuid), database) : NULL;
}

bool
instance_get(Instance *instance)
{
	bool known;

	if (shared_state == NULL)
		return false;
	LWLockAcquire(shared_state->lock, LW_SHARED);
	known = shared_state->instance_known;
	instance->uuid = shared_state->instance;
	LWLockRelease(shared_state->lock);
	instance->system_identifier = GetSystemIdentifier();
	instance->database = MyDatabaseId;
	instance->timeline = known && !RecoveryInProgress() ? compat_timeline() : 0;
	return known;
}

/*
 * envrt.own_instance()
 */
Datum
envrt_own_instance(PG_FUNCTION_ARGS)
{
	TupleDesc desc;
	Instance instance = {0};
	Datum values[4];
	bool nulls[4] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	BlessTupleDesc(desc);
	if (!instance_get(&instance))
		memset(nulls, true, sizeof(nulls));
	values[0] = Int64GetDatum((int64) instance.system_identifier);
	values[1] = ObjectIdGetDatum(instance.database);
	values[2] = Int64GetDatum(instance.timeline);
	values[3] = UUIDPGetDatum(&instance.uuid);
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

void
ledger_own_arguments(Datum *values)
{
	static Instance instance; /* the uuid has to stay where it is */

	if (!instance_get(&instance))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("the envrt launcher has not said yet which server this is"),
		                errhint("The server has just started: try again.")));
	values[0] = Int64GetDatum((int64) instance.system_identifier);
	values[1] = ObjectIdGetDatum(instance.database);
	values[2] = Int64GetDatum(instance.timeline);
	values[3] = UUIDPGetDatum(&instance.uuid);
}
