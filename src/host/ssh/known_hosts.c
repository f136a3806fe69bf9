/*
 * known_hosts.c
 *		Whether a host key is the one that known_hosts says.
 *
 * The text comes from an environment's config and is never written to a file.
 * It is read once per connection, keeping only the lines about the host:
 *
 *		[@revoked|@cert-authority] names type base64 [comment]
 *
 * names is a list of patterns with "*" and "?", where one with "!" before it
 * that matches rules the whole line out, or one hashed name ("|1|...").  A
 * host on another port than 22 is named "[host]:port"; one on port 22 may be.
 * (OpenSSH, when it finds no line with the port, takes one without.  This
 * doesn't, but says so.)  libssh decodes keys and hashed names, but its own
 * matcher is not used: it ignores "!" once another pattern has matched, and
 * knows no markers.
 *
 * libssh can't check host certificates, so @cert-authority lines only serve to
 * say so.  Lines that can't be read are skipped, as every SSH client does,
 * but remembered for the message.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ssh/glob.h"
#include "ssh/known_hosts.h"
#include "base/memory.h"

typedef enum
{
	MARKER_NONE,
	MARKER_REVOKED,
	MARKER_AUTHORITY,
	MARKER_OTHER
} Marker;

typedef struct KnownHost
{
	struct KnownHost *next;
	Marker marker;
	ssh_key key; /* NULL for MARKER_AUTHORITY */
} KnownHost;

struct KnownHosts
{
	KnownHost *entries;
	bool unreadable;
	bool revoked_unreadable; /* a @revoked line about this host */
	bool without_port;
};

/* The next word of *text, cut off in place; NULL at the end. */
static char *
next_word(char **text)
{
	char *word = *text + strspn(*text, " \t\r");
	size_t length = strcspn(word, " \t\r");

	if (length == 0)
		return NULL;
	*text = word + length;
	if (**text != '\0')
		*(*text)++ = '\0';
	return word;
}

/* libssh matches a hashed name only as part of a whole line; any key will do for that. */
static bool
hashed_name_matches(const char *hashed, const char *name)
{
	static const char key[] =
	    " ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
	struct ssh_knownhosts_entry *entry = NULL;
	char *line = xformat("%s%s", hashed, key);
	bool matches = ssh_known_hosts_parse_line(name, line, &entry) == SSH_OK;

	if (entry != NULL)
		ssh_knownhosts_entry_free(entry);
	free(line);
	return matches;
}

#define MAX_PATTERN 1024

/* Whether a list of names is about a host that has these (one or two) names. */
static bool
names_match(const char *names, const char *first, const char *second)
{
	char *copy;
	char *rest = NULL;
	bool matches = false;

	if (names[0] == '|')
		return hashed_name_matches(names, first) ||
		       (second != NULL && hashed_name_matches(names, second));
	copy = xstrdup(names);
	for (char *name = strtok_r(copy, ",", &rest); name != NULL; name = strtok_r(NULL, ",", &rest))
	{
		bool negated = name[0] == '!';
		const char *pattern = name + (negated ? 1 : 0);

		/* No host name is that long, and matching costs the product of the lengths. */
		if (strlen(pattern) > MAX_PATTERN)
			continue;
		if (!glob_match(pattern, first) && (second == NULL || !glob_match(pattern, second)))
			continue;
		matches = !negated;
		if (negated)
			break;
	}
	free(copy);
	return matches;
}

static Marker
parse_marker(const char *word)
{
	if (word[0] != '@')
		return MARKER_NONE;
	if (strcmp(word, "@revoked") == 0)
		return MARKER_REVOKED;
	if (strcmp(word, "@cert-authority") == 0)
		return MARKER_AUTHORITY;
	return MARKER_OTHER;
}

/* Cuts the line into words. */
static void
parse_line(KnownHosts *known, char *line, const char *host, const char *host_port, int port)
{
	char *word = next_word(&line);
	char *type_name;
	char *base64;
	ssh_key key = NULL;
	Marker marker;
	KnownHost *entry;

	if (word == NULL || word[0] == '#')
		return;
	marker = parse_marker(word);
	if (marker != MARKER_NONE)
		word = next_word(&line);
	type_name = next_word(&line);
	base64 = next_word(&line);
	if (word == NULL || base64 == NULL || marker == MARKER_OTHER)
		return;
	if (!names_match(word, host_port, port == 22 ? host : NULL))
	{
		if (port != 22 && marker == MARKER_NONE && names_match(word, host, NULL))
			known->without_port = true;
		return;
	}
	if (marker != MARKER_AUTHORITY &&
	    (ssh_key_type_from_name(type_name) == SSH_KEYTYPE_UNKNOWN ||
	     ssh_pki_import_pubkey_base64(base64, ssh_key_type_from_name(type_name), &key) != SSH_OK))
	{
		known->unreadable = true;
		known->revoked_unreadable |= marker == MARKER_REVOKED;
		return;
	}
	entry = xcalloc(1, sizeof *entry);
	entry->marker = marker;
	entry->key = key;
	entry->next = known->entries;
	known->entries = entry;
}

KnownHosts *
known_hosts_parse(const char *text, const char *host, int port)
{
	KnownHosts *known = xcalloc(1, sizeof *known);
	char *name = xstrdup(host);
	char *host_port;

	/* Hashes are of the name in lower case. */
	for (char *c = name; *c != '\0'; c++)
		*c = (char) tolower((unsigned char) *c);
	host_port = xformat("[%s]:%d", name, port);
	while (text != NULL && *text != '\0')
	{
		size_t length = strcspn(text, "\n");
		char *line = xstrndup(text, length);

		parse_line(known, line, name, host_port, port);
		free(line);
		text += length;
		if (*text == '\n')
			text++;
	}
	free(name);
	free(host_port);
	return known;
}

void
known_hosts_free(KnownHosts *known)
{
	KnownHost *next;

	if (known == NULL)
		return;
	for (KnownHost *entry = known->entries; entry != NULL; entry = next)
	{
		next = entry->next;
		ssh_key_free(entry->key);
		free(entry);
	}
	free(known);
}

/* The type as known_hosts lines and people name it, ECDSA with its curve. */
static const char *
type_name(const ssh_key key)
{
	return ssh_key_type_to_char(ssh_key_type(key));
}

HostKeyVerdict
known_hosts_check(const KnownHosts *known, const ssh_key key)
{
	HostKeyVerdict verdict = known->unreadable ? HOST_KEY_UNREADABLE : HOST_KEY_UNKNOWN;
	bool found = false;

	/* It may be this very key that it is about. */
	if (known->revoked_unreadable)
		return HOST_KEY_REVOKED;
	for (const KnownHost *entry = known->entries; entry != NULL; entry = entry->next)
	{
		if (entry->marker == MARKER_AUTHORITY)
		{
			if (verdict == HOST_KEY_UNKNOWN || verdict == HOST_KEY_UNREADABLE)
				verdict = HOST_KEY_ONLY_AUTHORITY;
		}
		else if (ssh_key_cmp(entry->key, key, SSH_KEY_CMP_PUBLIC) == 0)
		{
			if (entry->marker == MARKER_REVOKED)
				return HOST_KEY_REVOKED;
			found = true;
		}
		else if (entry->marker == MARKER_REVOKED)
			continue;
		else if (strcmp(type_name(entry->key), type_name(key)) == 0)
			verdict = HOST_KEY_CHANGED;
		else if (verdict != HOST_KEY_CHANGED)
			verdict = HOST_KEY_OTHER_TYPE;
	}
	return found ? HOST_KEY_KNOWN : verdict;
}

char *
known_hosts_algorithms(const KnownHosts *known)
{
	/* Signatures with SHA-1 (ssh-rsa, ssh-dss) are not in it. */
	static const struct
	{
		const char *type;
		const char *algorithms;
	} all[] = {{"ssh-ed25519", "ssh-ed25519"},
	           {"ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"},
	           {"ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"},
	           {"ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521"},
	           {"ssh-rsa", "rsa-sha2-512,rsa-sha2-256"}};
	Bytes list = {0};

	for (int known_first = 1; known_first >= 0; known_first--)
	{
		for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
		{
			bool is_known = false;

			for (const KnownHost *entry = known->entries; entry != NULL; entry = entry->next)
				if (entry->marker == MARKER_NONE && strcmp(type_name(entry->key), all[i].type) == 0)
					is_known = true;
			if (is_known != (known_first == 1))
				continue;
			if (list.length > 0)
				bytes_append_text(&list, ",");
			bytes_append_text(&list, all[i].algorithms);
		}
	}
	return list.data;
}

char *
known_hosts_types(const KnownHosts *known)
{
	Bytes list = {0};

	bytes_append(&list, "", 0);
	for (const KnownHost *entry = known->entries; entry != NULL; entry = entry->next)
	{
		if (entry->marker != MARKER_NONE)
			continue;
		if (list.length > 0)
			bytes_append_text(&list, ", ");
		bytes_append_text(&list, type_name(entry->key));
	}
	return list.data;
}

bool
known_hosts_without_port(const KnownHosts *known)
{
	return known->without_port;
}
