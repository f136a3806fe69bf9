/*
 * file_transfer.c
 *		Files between the server and a lease's workspace: envrt_push_files and
 *		envrt_pull_files.
 *
 * The driver host moves them (src/host/transfer/transfer.c), and the caller waits: the call
 * ends with the statement, and has no time limit but that something has to move.  On the
 * server's side everything happens as the server's user, so it takes the rights that the server's
 * own functions for files take.  What the server itself consists of is named here, and left alone
 * there: an accident with a path must not read or overwrite the database.  It is no wall against
 * who has these rights: they have the server's own functions, too.
 */
#include "postgres.h"

#include <pwd.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "base/arguments.h"
#include "catalog/pg_authid.h"
#include "hostlink/blocking_calls.h"
#include "funcapi.h"
#include "base/json.h"
#include "leases/active_lease.h"
#include "miscadmin.h"
#include "environments/protected_paths.h"
#include "shared/protocol.h"
#include "environments/provider_lease.h"
#include "base/settings.h"
#include "storage/fd.h"
#include "rights/tables.h"
#include "utils/acl.h"

PG_FUNCTION_INFO_V1(envrt_push_files);
PG_FUNCTION_INFO_V1(envrt_pull_files);

/* The driver host ends what does not move; this is for the wait's arithmetic: 23 days. */
#define NO_LIMIT_MS 2000000000

static void
require_right(const ApiCall *call, bool push)
{
	Oid role = push ? ROLE_PG_READ_SERVER_FILES : ROLE_PG_WRITE_SERVER_FILES;

	if (!has_privs_of_role(call->caller, role))
		ereport(ERROR,
		        (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		         errmsg("permission denied to %s files of the server", push ? "read" : "write"),
		         errhint("It takes the privileges of the role %s.",
		                 push ? "pg_read_server_files" : "pg_write_server_files")));
}

/*
 * What is never transferred
 */

/* What the server runs, where its user could change it. */
static void
protect_program(json_t *list, const char *path)
{
	if (access(path, W_OK) == 0)
		protect_path(list, path);
}

/* Where settings are read from, if there is anything. */
static void
protect_included(json_t *list)
{
	char *folder = pstrdup(ConfigFileName != NULL ? ConfigFileName : "");

	get_parent_directory(folder);
	protect_path(list, psprintf("%s/conf.d", folder));
	protect_path(list, psprintf("%s/pg_hba.d", folder));
}

/* What its user's programs read: .ssh, .pgpass, .bashrc and the like. */
static json_t *
hidden_paths(void)
{
	json_t *list = json_array();
	const char *home = getenv("HOME");
	const struct passwd *user = getpwuid(geteuid());

	if (user != NULL)
		protect_path(list, user->pw_dir);
	if (home != NULL && (user == NULL || strcmp(home, user->pw_dir) != 0))
		protect_path(list, home);
	return list;
}

/* The data directory, what it links to, and what the settings name (a new reference). */
static json_t *
protected_paths(void)
{
	json_t *list = json_array();
	char *tablespaces = psprintf("%s/pg_tblspc", DataDir);
	DIR *directory = AllocateDir(tablespaces);
	struct dirent *entry;
	char *folder;

	protect_path(list, DataDir);
	protect_path(list, psprintf("%s/pg_wal", DataDir));
	while ((entry = ReadDirExtended(directory, tablespaces, DEBUG1)) != NULL)
		if (entry->d_name[0] != '.')
			protect_path(list, psprintf("%s/%s", tablespaces, entry->d_name));
	if (directory != NULL)
		FreeDir(directory);
	protect_settings(list);
	protect_included(list);
	protect_program(list, pkglib_path);
	folder = pstrdup(my_exec_path);
	get_parent_directory(folder);
	protect_program(list, folder);
	return list;
}

/*
 * The call
 */

static int
hint_transfers(void)
{
	return errhint("Files are moved to and from leases of ssh environments and of bubblewrap "
	               "sandboxes.");
}

/* ERROR for a lease whose driver moves no files. */
static void
require_transfers(const CalledLease *lease)
{
	if (strcmp(lease->driver, "ssh") == 0 || called_lease_is_bubblewrap(lease))
		return;
	if (called_lease_is_fake(lease))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
		                errmsg("Sandbox driver does not support file transfer for provider "
		                       "\"fake\"."),
		                hint_transfers()));
	if (strcmp(lease->driver, "sandbox") == 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
		                errmsg("Sandbox provider \"%s\" does not support file transfer.",
		                       lease->provider != NULL ? lease->provider : ""),
		                hint_transfers()));
	ereport(ERROR,
	        (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
	         errmsg("Environment driver \"%s\" does not support file transfer.", lease->driver),
	         hint_transfers()));
}

static json_t *
transfer_params(const ApiCall *call, const CalledLease *lease, const char *local_path,
                const char *remote_path, bool force)
{
	json_t *params;
	json_t *lease_json;

	require_transfers(lease);
	params = called_lease_params(call, lease, "file transfer");
	lease_json = called_lease_json(lease, params);
	json_object_set_new(lease_json, "id", json_string(uuid_text(lease->id)));
	json_object_set_new(params, "lease", lease_json);
	json_object_set_new(params, "localPath", json_string(text_to_utf8(local_path)));
	if (remote_path != NULL)
		json_object_set_new(params, "remotePath", json_string(text_to_utf8(remote_path)));
	json_object_set_new(params, "protectedPaths", protected_paths());
	json_object_set_new(params, "hiddenPaths", hidden_paths());
	json_object_set_new(params, "force", json_boolean(force));
	json_object_set_new(params, "limits",
	                    json_pack("{s:i, s:i, s:I}", "connectMs", envrt_ssh_connect_timeout,
	                              "stallMs", envrt_provider_timeout, "maxBytes",
	                              (json_int_t) envrt_max_pull * 1024 * 1024));
	return params;
}

static Datum
transfer(FunctionCallInfo fcinfo, const char *function, bool push)
{
	pg_uuid_t *lease_id = uuid_argument(fcinfo, 0, "lease_id");
	char *local_path = text_argument(fcinfo, 1, "local_path");
	char *remote_path = optional_text_argument(fcinfo, 2);
	bool force = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	CalledLease lease;
	ApiCall call;
	TupleDesc desc;
	Datum values[2];
	bool nulls[2] = {false};
	json_t *error;
	json_t *result;
	json_t *notice;
	size_t index;
	Datum row;

	if (!is_absolute_path(local_path))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg("local_path must be an absolute path")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	api_enter(&call, function);
	require_right(&call, push);
	called_lease_load(&call, lease_id, &lease);
	result = provider_call(push ? "environmentPushFiles" : "environmentPullFiles",
	                       transfer_params(&call, &lease, local_path, remote_path, force),
	                       NO_LIMIT_MS, &error);
	if (error != NULL)
		driver_host_raise(error);
	json_array_foreach(json_object_get(result, "notices"), index, notice)
	    ereport(NOTICE, (errmsg("%s", text_from_utf8(json_string_value(notice)))));
	values[0] = Int64GetDatum(json_integer_value(json_object_get(result, "files")));
	values[1] = Int64GetDatum(json_integer_value(json_object_get(result, "bytes")));
	BlessTupleDesc(desc);
	row = HeapTupleHeaderGetDatum(SPI_returntuple(heap_form_tuple(desc, values, nulls), desc));
	api_leave(&call);
	return row;
}

/*
 * envrt_push_files(lease_id, local_path, remote_path, force)
 */
Datum
envrt_push_files(PG_FUNCTION_ARGS)
{
	return transfer(fcinfo, "envrt_push_files()", true);
}

/*
 * envrt_pull_files(lease_id, local_path, remote_path, force)
 */
Datum
envrt_pull_files(PG_FUNCTION_ARGS)
{
	return transfer(fcinfo, "envrt_pull_files()", false);
}
