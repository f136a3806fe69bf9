/*
 * ssh_settings.c
 *		The settings of connections by ssh, as the launcher tells them.
 *
 * A key that is missing or absurd leaves the setting as it is: the launcher
 * has checked what a person wrote.  An allowedHosts that is no list must not
 * open every host, so it is said.
 */
#include "base/log.h"
#include "ssh/ssh_settings.h"

SshSettings ssh_settings = {
    .idle_timeout_ms = 60000, .keepalive_ms = 15000, .sessions_per_host = 4};

void
ssh_settings_configure(const json_t *params)
{
	const json_t *idle = json_object_get(params, "sshIdleTimeoutMs");
	const json_t *keepalive = json_object_get(params, "sshKeepaliveMs");
	const json_t *sessions = json_object_get(params, "sshSessionsPerHost");
	const json_t *hosts = json_object_get(params, "allowedHosts");

	if (json_is_integer(idle) && json_integer_value(idle) >= 0)
		ssh_settings.idle_timeout_ms = (uint64_t) json_integer_value(idle);
	if (json_is_integer(keepalive) && json_integer_value(keepalive) >= 0)
		ssh_settings.keepalive_ms = (uint64_t) json_integer_value(keepalive);
	if (json_is_integer(sessions) && json_integer_value(sessions) > 0 &&
	    json_integer_value(sessions) <= 1000)
		ssh_settings.sessions_per_host = (unsigned) json_integer_value(sessions);
	if (json_is_array(hosts))
	{
		allowed_hosts_free(ssh_settings.allowed_hosts);
		ssh_settings.allowed_hosts = allowed_hosts_new(hosts);
	}
	else if (hosts != NULL && !json_is_null(hosts))
		log_message(LOG_WARNING, "configure: allowedHosts is no list, left as it was");
}
