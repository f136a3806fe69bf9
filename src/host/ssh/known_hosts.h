/*
 * known_hosts.h
 *		Whether a host key is the one that known_hosts says.
 */
#ifndef ENVRT_HOST_KNOWN_HOSTS_H
#define ENVRT_HOST_KNOWN_HOSTS_H

#include <stdbool.h>

#include <libssh/libssh.h>

#define KNOWN_HOSTS_MAX_BYTES (1024 * 1024)

/* The lines of a known_hosts text that are about one host and port. */
typedef struct KnownHosts KnownHosts;

typedef enum
{
	HOST_KEY_KNOWN,
	HOST_KEY_UNKNOWN,        /* no line about this host */
	HOST_KEY_CHANGED,        /* a line has another key of the same type */
	HOST_KEY_OTHER_TYPE,     /* the lines have keys of other types only */
	HOST_KEY_REVOKED,        /* a @revoked line has this very key */
	HOST_KEY_ONLY_AUTHORITY, /* only @cert-authority lines are about this host */
	HOST_KEY_UNREADABLE      /* the lines about this host hold nothing that can be read */
} HostKeyVerdict;

/* text may be NULL.  The host is as in the config, without brackets. */
extern KnownHosts *known_hosts_parse(const char *text, const char *host, int port);
extern void known_hosts_free(KnownHosts *known);

/* A revoked key is revoked however lenient the caller is with the other verdicts. */
extern HostKeyVerdict known_hosts_check(const KnownHosts *known, const ssh_key key);

/*
 * The host key algorithms to offer, those of known keys first, so that a
 * server with several keys shows one that can be checked.  To be freed.
 */
extern char *known_hosts_algorithms(const KnownHosts *known);

/* The types of the keys known for the host, for a message; to be freed. */
extern char *known_hosts_types(const KnownHosts *known);

/* Whether there are lines for this host's name, but without the port. */
extern bool known_hosts_without_port(const KnownHosts *known);

#endif
