/*
 * settings.c
 *		The settings envrt.*
 *
 * Everything that bounds what envrt does to the outside is the
 * administrator's to decide, so these are PGC_SIGHUP: a session can't widen
 * where ssh may connect or how long a call may hang.  How long it wants to
 * wait for something that others hold is the session's own matter.  The driver host
 * gets the ones that concern it from the launcher, and the time limits with
 * each call from the backend.
 *
 * PostgreSQL gives a setting whose value it can't read its default, with a
 * warning, when the library that defines it is loaded.  Most of ours restrict
 * something, and a default that allows more than the administrator meant must not
 * come about by a slip; nor by a name that is none of ours.  So the server does
 * not start with such a value.  At a reload what was in force stays in force, as
 * for every setting.
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "utils/builtins.h"
#include "utils/guc.h"

#include "base/compat.h"
#include "shared/target.h"
#include "base/settings.h"

char *envrt_runtime_api_candidates = NULL;
int envrt_api_probe_timeout = 5000;
int envrt_ssh_connect_timeout = 10000;
int envrt_ssh_command_timeout = 15000;
int envrt_ssh_idle_timeout = 300000;
int envrt_ssh_keepalive = 15000;
int envrt_ssh_sessions_per_host = 4;
int envrt_max_calls = 1000;
int envrt_lease_default_ttl = 0;
int envrt_provider_timeout = 60000;
int envrt_max_pull = 10240;
int envrt_execute_timeout = 300000;
int envrt_max_output = 1024;
int envrt_output_grace = 2000;
int envrt_max_execution_output = 102400;
int envrt_execution_retention = 604800;
int envrt_cleanup_attempts = 10;
int envrt_reuse_wait_timeout = 0;
int envrt_reuse_retry = 60000;
int envrt_reuse_idle_timeout = 86400;
bool envrt_act_after_promotion = false;
char *envrt_plugin_path = NULL;
int envrt_plugin_memory = 2048;
int envrt_plugin_concurrency = 400;
char *envrt_sandbox_directory = NULL;
bool envrt_sandbox_on_data_filesystem = false;
int envrt_sandbox_memory = 1024;
int envrt_sandbox_processes = 256;
char *envrt_allowed_hosts = NULL;
char *envrt_master_key_file = NULL;

List *
settings_list(const char *value)
{
	List *list = NIL;
	char *copy = pstrdup(value);
	char *rest = NULL;

	for (char *item = strtok_r(copy, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest))
	{
		size_t length;

		while (isspace((unsigned char) *item))
			item++;
		length = strlen(item);
		while (length > 0 && isspace((unsigned char) item[length - 1]))
			item[--length] = '\0';
		if (length > 0)
			list = lappend(list, item);
	}
	return list;
}

static bool
check_runtime_api_candidates(char **newval, void **extra, GucSource source)
{
	ListCell *cell;

	foreach (cell, settings_list(*newval))
	{
		char origin[512];

		if (!api_origin(lfirst(cell), origin, sizeof(origin)))
		{
			GUC_check_errdetail("\"%s\" is not an http or https URL.", (char *) lfirst(cell));
			return false;
		}
	}
	return true;
}

/* It goes to the driver host in one message. */
#define MAX_LIST_LENGTH (32 * 1024)

/*
 * The driver host, which has the list, lets a bad entry allow nothing; better
 * to say so where it is written.
 */
static bool
check_allowed_hosts(char **newval, void **extra, GucSource source)
{
	ListCell *cell;

	if (strlen(*newval) > MAX_LIST_LENGTH)
	{
		GUC_check_errdetail("The list is longer than %d bytes.", MAX_LIST_LENGTH);
		return false;
	}
	for (const char *c = *newval; *c != '\0'; c++)
		if (IS_HIGHBIT_SET(*c))
		{
			GUC_check_errdetail("Give names with other letters in their ASCII form (xn--...).");
			return false;
		}
	if (**newval != '\0' && settings_list(*newval) == NIL)
	{
		GUC_check_errdetail("The list has no entry; it is empty for any host.");
		return false;
	}
	foreach (cell, settings_list(*newval))
	{
		char *entry = lfirst(cell);
		char *slash = strchr(entry, '/');
		unsigned char bytes[16];
		char *address = slash != NULL ? pnstrdup(entry, slash - entry) : entry;
		int bits = inet_pton(AF_INET, address, bytes) == 1    ? 32
		           : inet_pton(AF_INET6, address, bytes) == 1 ? 128
		                                                      : 0;

		if (slash != NULL && strstr(entry, "://") == NULL &&
		    (bits == 0 || slash[1] == '\0' || strlen(slash + 1) > 3 ||
		     strspn(slash + 1, "0123456789") != strlen(slash + 1) || atoi(slash + 1) > bits))
		{
			GUC_check_errdetail("\"%s\" is not a network, such as 10.0.0.0/8 or fd00::/8.", entry);
			return false;
		}
		if (bits == 0 && strpbrk(entry, ":/ \t@[]") != NULL)
		{
			GUC_check_errdetail(
			    "\"%s\" is neither a host name pattern nor an address; a port or URL "
			    "can't be given.",
			    entry);
			return false;
		}
	}
	return true;
}

static bool
check_plugin_path(char **newval, void **extra, GucSource source)
{
	ListCell *cell;

	if (strlen(*newval) > MAX_LIST_LENGTH)
	{
		GUC_check_errdetail("The list is longer than %d bytes.", MAX_LIST_LENGTH);
		return false;
	}
	foreach (cell, settings_list(*newval))
		if (!is_absolute_path((char *) lfirst(cell)))
		{
			GUC_check_errdetail("\"%s\" is not an absolute path.", (char *) lfirst(cell));
			return false;
		}
	return true;
}

static bool
check_sandbox_directory(char **newval, void **extra, GucSource source)
{
	if (**newval != '\0' && !is_absolute_path(*newval))
	{
		GUC_check_errdetail("\"%s\" is not an absolute path.", *newval);
		return false;
	}
	return true;
}

/* What is set already, when the library comes later than the value; NULL: nothing. */
static char *
given_value(const char *name)
{
	const char *value = GetConfigOption(name, true, false);

	return value != NULL ? pstrdup(value) : NULL;
}

/* The check that the definition has made of the value, as a fatal one. */
static void
require_readable(const char *name, char *value)
{
	if (value == NULL)
		return;
	(void) set_config_option(name, value, PGC_SIGHUP, PGC_S_FILE, GUC_ACTION_SET, false, FATAL,
	                         false);
	pfree(value);
}

/* So that it holds for each definition below. */
#define STRICTLY(define, name, ...)                                                                \
	do                                                                                             \
	{                                                                                              \
		char *given_ = given_value(name);                                                          \
		define(name, __VA_ARGS__);                                                                 \
		require_readable(name, given_);                                                            \
	}                                                                                              \
	while (0)
#define DefineCustomStringVariable(name, ...)                                                      \
	STRICTLY(DefineCustomStringVariable, name, __VA_ARGS__)
#define DefineCustomIntVariable(name, ...) STRICTLY(DefineCustomIntVariable, name, __VA_ARGS__)
#define DefineCustomBoolVariable(name, ...) STRICTLY(DefineCustomBoolVariable, name, __VA_ARGS__)
#define DefineCustomRealVariable(name, ...) STRICTLY(DefineCustomRealVariable, name, __VA_ARGS__)
#define DefineCustomEnumVariable(name, ...) STRICTLY(DefineCustomEnumVariable, name, __VA_ARGS__)

/* In a configuration file; a session that loads the library itself is only warned. */
static void
forbid_unknown_names(void)
{
	int count;
	struct config_generic **variables = compat_settings(&count);

	for (int i = 0; i < count; i++)
		if (variables[i]->flags & GUC_CUSTOM_PLACEHOLDER &&
		    strncmp(variables[i]->name, "envrt.", strlen("envrt.")) == 0)
			ereport(FATAL,
			        (errcode(ERRCODE_UNDEFINED_OBJECT),
			         errmsg("unrecognized configuration parameter \"%s\"", variables[i]->name),
			         errhint("Correct its name: what it was to restrict would not be.")));
}

void
settings_define(void)
{
	DefineCustomStringVariable(
	    "envrt.runtime_api_candidates",
	    "URLs of the control plane's API that a remote side may reach.",
	    "Comma-separated; an ssh acquire tries them from the remote side, in order. "
	    "Empty: no discovery.",
	    &envrt_runtime_api_candidates, "", PGC_SIGHUP, GUC_LIST_INPUT, check_runtime_api_candidates,
	    NULL, NULL);
	DefineCustomIntVariable("envrt.api_probe_timeout", "Time limit for trying one API candidate.",
	                        NULL, &envrt_api_probe_timeout, 5000, 100, 60 * 1000, PGC_SIGHUP,
	                        GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.ssh_connect_timeout",
	    "Time limit for name resolution, connection, key exchange and login over ssh.", NULL,
	    &envrt_ssh_connect_timeout, 10000, 10, 10 * 60 * 1000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL,
	    NULL);
	DefineCustomIntVariable("envrt.ssh_command_timeout",
	                        "Time limit for preparing the remote workspace over ssh.", NULL,
	                        &envrt_ssh_command_timeout, 15000, 10, 10 * 60 * 1000, PGC_SIGHUP,
	                        GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("envrt.ssh_idle_timeout",
	                        "How long an unused ssh session is kept open.", NULL,
	                        &envrt_ssh_idle_timeout, 300000, 0, 24 * 60 * 60 * 1000, PGC_SIGHUP,
	                        GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.ssh_keepalive",
	    "How long an ssh session with work may be silent before it is asked.",
	    "Its connection is lost when it is silent three times as long after that. 0: it is not "
	    "asked.",
	    &envrt_ssh_keepalive, 15000, 0, 60 * 60 * 1000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("envrt.ssh_sessions_per_host",
	                        "Most ssh sessions at once for one company, host, user and key.", NULL,
	                        &envrt_ssh_sessions_per_host, 4, 1, 64, PGC_SIGHUP, 0, NULL, NULL,
	                        NULL);
	DefineCustomIntVariable("envrt.max_calls", "Most driver calls in flight at once on the server.",
	                        NULL, &envrt_max_calls, 1000, 1, 100000, PGC_SIGHUP, 0, NULL, NULL,
	                        NULL);
	DefineCustomIntVariable(
	    "envrt.lease_default_ttl", "How long a lease lives when acquire is not told.",
	    "0: for ever. It is counted from the acquire, and envrt_renew_lease moves it.",
	    &envrt_lease_default_ttl, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomStringVariable(
	    "envrt.allowed_hosts", "Where ssh may connect.",
	    "Comma-separated host name patterns, addresses and networks (CIDR). Empty: anywhere.",
	    &envrt_allowed_hosts, "", PGC_SIGHUP, GUC_LIST_INPUT, check_allowed_hosts, NULL, NULL);
	DefineCustomStringVariable(
	    "envrt.master_key_file", "The file with the key that secrets are encrypted under.",
	    "Made at first use if it does not exist. A relative path is within the data directory. "
	    "Empty: pg_envrt/master.key in the data directory.",
	    &envrt_master_key_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.provider_timeout",
	    "Time limit for a provider to make, resume, release or destroy a provider lease.", NULL,
	    &envrt_provider_timeout, 60000, 10, 60 * 60 * 1000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL,
	    NULL);
	DefineCustomIntVariable(
	    "envrt.max_pull", "How much a transfer from a workspace may bring to the server.",
	    "It counts what comes, and a block of 4 kB for each file. 0: no limit.", &envrt_max_pull,
	    10240, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.execute_timeout",
	    "Time limit for a command that is given none by its caller or its environment.", NULL,
	    &envrt_execute_timeout, 300000, 1, 24 * 60 * 60 * 1000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL,
	    NULL);
	DefineCustomIntVariable(
	    "envrt.max_output", "How much of a command's stdout, and of its stderr, is kept.",
	    "Of more than that the first and the last half are kept, and the result's metadata says "
	    "what is missing.",
	    &envrt_max_output, 1024, 1, 4096, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.output_grace",
	    "How long processes that a command leaves behind in a sandbox may hold its output open.",
	    "They are killed after that time, or when the output is at its end.", &envrt_output_grace,
	    2000, 0, 60000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.max_execution_output",
	    "How much of what a started execution writes is kept in the table.",
	    "What comes beyond it is dropped, and the execution's metadata says so.",
	    &envrt_max_execution_output, 102400, 1, INT_MAX, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("envrt.execution_retention",
	                        "How long executions that have ended, and their output, are kept.",
	                        "0: for ever.", &envrt_execution_retention, 604800, 0, INT_MAX,
	                        PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("envrt.cleanup_attempts",
	                        "How often a cleanup is tried before it counts as failed.",
	                        "Attempts are apart by a second at first and by five minutes at last. "
	                        "envrt_retry_cleanup() tries again.",
	                        &envrt_cleanup_attempts, 10, 1, 1000, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.reuse_wait_timeout",
	    "How long an acquire waits for a reusable provider lease that another lease holds.",
	    "0: it fails at once (55P03).", &envrt_reuse_wait_timeout, 0, 0, 24 * 60 * 60 * 1000,
	    PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.reuse_retry",
	    "How long an acquire tries to resume a reusable provider lease before it fails.",
	    "The provider lease is kept. 0: it is tried once.", &envrt_reuse_retry, 60000, 0,
	    24 * 60 * 60 * 1000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("envrt.reuse_idle_timeout",
	                        "How long a provider lease is kept for reuse before it is destroyed.",
	                        "0: for ever.", &envrt_reuse_idle_timeout, 86400, 0, INT_MAX,
	                        PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomBoolVariable(
	    "envrt.act_after_promotion",
	    "After a promotion, look after the provider leases of the previous primary.",
	    "For clusters with synchronous replication, whose previous primary is stopped for sure. "
	    "Otherwise envrt_claim_instance() says what the promoted server is.",
	    &envrt_act_after_promotion, false, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable(
	    "envrt.plugin_path", "Where plugins are installed.",
	    "Comma-separated absolute paths of folders that hold a folder for each plugin. Empty: no "
	    "plugins.",
	    &envrt_plugin_path, "", PGC_SIGHUP, GUC_LIST_INPUT | GUC_SUPERUSER_ONLY, check_plugin_path,
	    NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.plugin_memory",
	    "Memory that a plugin's worker and all that it has started may have in use together.",
	    "The largest of these processes is killed when it is more. Zero means no limit. Workers "
	    "that run keep the limit that they were started with.",
	    &envrt_plugin_memory, 2048, 0, 1048576, PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.plugin_concurrency",
	    "How many commands a plugin's worker is given at once, and as many other requests.",
	    "Others wait for their turn, which goes around by company; three quarters are one "
	    "company's at most.",
	    &envrt_plugin_concurrency, 400, 1, 100000, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable(
	    "envrt.sandbox_directory", "Where bubblewrap sandboxes have their images and workspaces.",
	    "An absolute path on another file system than the data directory's. Empty: no sandboxes.",
	    &envrt_sandbox_directory, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, check_sandbox_directory, NULL,
	    NULL);
	DefineCustomBoolVariable(
	    "envrt.sandbox_on_data_filesystem",
	    "Accepts a sandbox directory on the data directory's file system.",
	    "What a sandbox writes can then fill the disk that the database needs.",
	    &envrt_sandbox_on_data_filesystem, false, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("envrt.sandbox_memory",
	                        "Memory of a bubblewrap sandbox whose environment says no memoryMb.",
	                        NULL, &envrt_sandbox_memory, 1024, 16, 1048576, PGC_SIGHUP, GUC_UNIT_MB,
	                        NULL, NULL, NULL);
	DefineCustomIntVariable(
	    "envrt.sandbox_processes",
	    "How many processes a bubblewrap sandbox may have whose environment says no maxProcesses.",
	    NULL, &envrt_sandbox_processes, 256, 1, 32768, PGC_SIGHUP, 0, NULL, NULL, NULL);
	if (process_shared_preload_libraries_in_progress)
		forbid_unknown_names();
	MarkGUCPrefixReserved("envrt");
}
