/*
 * ssh_host_key.c
 *		Whether a server's host key is one that the environment's knownHosts has.
 *
 * known_hosts.c reads and compares; here its verdict becomes an error that says what the server's
 * key is and what to do.  An environment without strictHostKeyChecking takes any key but a revoked
 * one.
 */
#include <stdlib.h>

#include "ssh/ssh_host_key.h"
#include "ssh/ssh_session_parts.h"

static HostError *
ssh_host_key_error(SshSession *session, HostKeyVerdict verdict, const char *type,
                   const char *fingerprint)
{
	const char *target = session->target;
	const KnownHosts *known = session->known_hosts;
	HostError *error;
	char *types;

	switch (verdict)
	{
		case HOST_KEY_CHANGED:
			error = error_new("08004",
			                  "%s: the host key has changed: the server's %s key is not "
			                  "the one in knownHosts",
			                  target, type);
			error_detail(error, "The server's key is %s %s.", type, fingerprint);
			error_hint(error, "Somebody may be impersonating the host, or it was installed anew. "
			                  "Check its fingerprint by another way before you change knownHosts.");
			return error;
		case HOST_KEY_OTHER_TYPE:
			types = known_hosts_types(known);
			error = error_new("08004",
			                  "%s: the server's host key is of another type (%s) than the "
			                  "ones in knownHosts (%s)",
			                  target, type, types);
			error_detail(error, "The server's key is %s %s.", type, fingerprint);
			error_hint(error,
			           "Add the server's %s key to knownHosts, once you have checked its "
			           "fingerprint.",
			           type);
			free(types);
			return error;
		case HOST_KEY_REVOKED:
			error = error_new("08004", "%s: the host key is revoked in knownHosts", target);
			error_detail(error, "The server's key is %s %s.", type, fingerprint);
			error_hint(error, "Give the host a new key. A revoked one is never accepted.");
			return error;
		case HOST_KEY_ONLY_AUTHORITY:
			error = error_new("08004",
			                  "%s: knownHosts has only a @cert-authority line for this "
			                  "host, and envrt can't check host certificates",
			                  target);
			error_detail(error, "The server's key is %s %s.", type, fingerprint);
			error_hint(error, "Add the host's own key to knownHosts.");
			return error;
		case HOST_KEY_UNREADABLE:
			error =
			    error_new("08004", "%s: no line about this host in knownHosts can be read", target);
			break;
		default:
			if (known_hosts_without_port(known))
				error = error_new("08004",
				                  "%s: the host key is unknown: knownHosts has a line for "
				                  "the host, but not for port %d",
				                  target, session->destination->port);
			else
				error = error_new("08004",
				                  "%s: the host key is unknown: knownHosts has no line "
				                  "for this host",
				                  target);
	}
	error_detail(error, "The server's key is %s %s.", type, fingerprint);
	error_hint(error,
	           "If that is the host's fingerprint, add its line to the config's knownHosts, as "
	           "\"ssh-keyscan -p %d %s\" prints it.",
	           session->destination->port, session->destination->host);
	return error;
}

HostError *
ssh_host_key_check(SshSession *session)
{
	ssh_key key = NULL;
	unsigned char *hash = NULL;
	size_t length = 0;
	char *fingerprint = NULL;
	HostKeyVerdict verdict;
	HostError *error = NULL;

	if (ssh_get_server_publickey(session->ssh, &key) != SSH_OK)
		return ssh_session_error(session, "08004", "the host key can't be read");
	verdict = known_hosts_check(session->known_hosts, key);
	if (verdict != HOST_KEY_KNOWN && (session->destination->strict || verdict == HOST_KEY_REVOKED))
	{
		if (ssh_get_publickey_hash(key, SSH_PUBLICKEY_HASH_SHA256, &hash, &length) == SSH_OK)
			fingerprint = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, length);
		error = ssh_host_key_error(session, verdict, ssh_key_type_to_char(ssh_key_type(key)),
		                           fingerprint ? fingerprint : "?");
		ssh_clean_pubkey_hash(&hash);
		ssh_string_free_char(fingerprint);
	}
	ssh_key_free(key);
	return error;
}
