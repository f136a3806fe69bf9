/*
 * protected_paths.c
 *		What belongs to the server and is no tenant's: the files and folders that its
 *		settings name.
 *
 * The one list of them, for all who keep something away from them: transfers of files
 * neither read nor write these, and sandboxes do not see them.  A setting that names a
 * secret, or what the server runs, belongs in here.  The data directory and what it links
 * to are not in the list: the driver host knows the directory, and looks at it itself.
 */
#include "postgres.h"

#include "base/json.h"
#include "miscadmin.h"
#include "environments/protected_paths.h"
#include "base/settings.h"
#include "utils/guc.h"
#include "utils/varlena.h"

/* The server's own; a relative one is in the data directory. */
static const char *const files[] = {"config_file", "hba_file", "ident_file", "ssl_key_file",
                                    "krb_server_keyfile"};

void
protect_path(json_t *list, const char *path)
{
	if (path != NULL && path[0] == '/')
		json_array_append_new(list, json_string(text_to_utf8(path)));
}

/* The directories of a setting that is a list of them. */
static void
protect_list(json_t *list, const char *setting)
{
	char *copy = pstrdup(setting != NULL ? setting : "");
	List *paths = NIL;
	ListCell *cell;

	if (SplitDirectoriesString(copy, ',', &paths))
		foreach (cell, paths)
			protect_path(list, lfirst(cell));
}

void
protect_settings(json_t *list)
{
	protect_path(list, envrt_sandbox_directory);
	protect_path(list, envrt_master_key_file);
	protect_list(list, envrt_plugin_path);
	for (int i = 0; i < (int) lengthof(files); i++)
	{
		const char *path = GetConfigOption(files[i], true, false);

		/* One that names its kind before the file. */
		if (path != NULL && strncmp(path, "FILE:", 5) == 0)
			path += 5;
		protect_path(list, path);
	}
}
