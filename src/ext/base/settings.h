/*
 * settings.h
 *		The settings envrt.*; see settings.c.
 */
#ifndef ENVRT_SETTINGS_H
#define ENVRT_SETTINGS_H

#include "postgres.h"

#include "nodes/pg_list.h"

extern char *envrt_runtime_api_candidates;
extern int envrt_api_probe_timeout;
extern int envrt_ssh_connect_timeout;
extern int envrt_ssh_command_timeout;
extern int envrt_ssh_idle_timeout;
extern int envrt_ssh_keepalive;
extern int envrt_ssh_sessions_per_host;
extern int envrt_max_calls;
extern int envrt_lease_default_ttl;
extern int envrt_provider_timeout;
extern int envrt_max_pull;
extern int envrt_execute_timeout;
extern int envrt_max_output;
extern int envrt_output_grace;
extern int envrt_max_execution_output;
extern int envrt_execution_retention;
extern int envrt_cleanup_attempts;
extern int envrt_reuse_wait_timeout;
extern int envrt_reuse_retry;
extern int envrt_reuse_idle_timeout;
extern bool envrt_act_after_promotion;
extern char *envrt_plugin_path;
extern char *envrt_sandbox_directory;
extern bool envrt_sandbox_on_data_filesystem;
extern int envrt_plugin_memory;
extern int envrt_plugin_concurrency;
extern int envrt_sandbox_memory;
extern int envrt_sandbox_processes;
extern char *envrt_allowed_hosts;
extern char *envrt_master_key_file;

extern void settings_define(void);

/* A comma-separated setting as a list of palloc'd strings, blanks removed. */
extern List *settings_list(const char *value);

#endif
