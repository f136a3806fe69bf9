/*
 * module.c
 *		The extension's entry point.
 *
 * Loaded from shared_preload_libraries, envrt reserves shared memory and
 * registers its launcher.  Loaded by a backend's first call of an envrt
 * function, it does without: local and fake environments and secrets work,
 * and what needs the driver host says how to get it.
 */
#include "postgres.h"

#include "fmgr.h"
#include "shared/jsonrpc.h"
#include "miscadmin.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "base/statement_log.h"
#include "launcher/database_ddl.h"
#include "launcher/launcher.h"
#include "ledger/requests.h"

#include <sodium.h>

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	if (sodium_init() < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not initialize libsodium")));
	rpc_protect_memory();
	settings_define();
	if (process_shared_preload_libraries_in_progress)
	{
		ledger_requests_reserve();
		shared_state_reserve();
		launcher_register();
		database_ddl_install_hooks();
		statement_log_install_hook();
	}
}
