/*
 * allowed_hosts.c
 *		Where ssh may connect: envrt.allowed_hosts.
 *
 * An entry that is an address or a CIDR block is compared with the address
 * that is connected to, so that no name and no odd way to write an address
 * gets around it; any other entry is a pattern for the name in the config.  An
 * IPv4 address in IPv6 form (::ffff:10.0.0.1) is the IPv4 address.  An entry that
 * looks like a block but is none allows nothing.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "ssh/allowed_hosts.h"
#include "ssh/glob.h"
#include "base/log.h"
#include "base/memory.h"

typedef struct Entry
{
	char *pattern; /* NULL: the address below */
	int family;
	unsigned char address[16];
	int bits;
} Entry;

struct AllowedHosts
{
	size_t count;
	Entry *entries;
};

/* The family, and the bytes of an address in its simplest form. */
static int
plain_address(int family, const unsigned char *address, unsigned char *bytes)
{
	static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};

	if (family == AF_INET6 && memcmp(address, mapped, sizeof mapped) == 0)
	{
		memcpy(bytes, address + sizeof mapped, 4);
		return AF_INET;
	}
	memcpy(bytes, address, family == AF_INET ? 4 : 16);
	return family;
}

static bool
parse_address(const char *text, Entry *entry)
{
	const char *slash = strchr(text, '/');
	char *address = slash ? xstrndup(text, (size_t) (slash - text)) : xstrdup(text);
	unsigned char bytes[16];
	int written_family = 0;
	int most;
	char *end;
	long bits;

	if (inet_pton(AF_INET, address, bytes) == 1)
		written_family = AF_INET;
	else if (inet_pton(AF_INET6, address, bytes) == 1)
		written_family = AF_INET6;
	free(address);
	if (written_family == 0)
		return false;

	entry->family = plain_address(written_family, bytes, entry->address);
	most = written_family == AF_INET ? 32 : 128;
	bits = most;
	if (slash != NULL)
	{
		bits = strtol(slash + 1, &end, 10);
		if (slash[1] < '0' || slash[1] > '9' || *end != '\0' || bits > most)
			return false;
	}
	if (written_family != entry->family)
		bits = bits < 96 ? 0 : bits - 96;
	entry->bits = (int) bits;
	return true;
}

AllowedHosts *
allowed_hosts_new(const json_t *entries)
{
	AllowedHosts *allowed = xcalloc(1, sizeof *allowed);
	size_t index;
	json_t *value;

	allowed->entries = xcalloc(json_array_size(entries) + 1, sizeof *allowed->entries);
	json_array_foreach(entries, index, value)
	{
		Entry *entry = &allowed->entries[allowed->count];
		const char *text = json_string_value(value);

		/* Counted also when it can match nothing: a mistake must not open everything. */
		allowed->count++;
		if (text == NULL)
			entry->pattern = xstrdup("");
		else if (!parse_address(text, entry))
		{
			if (strchr(text, '/') != NULL)
				log_message(LOG_WARNING, "envrt.allowed_hosts: \"%s\" is no address block", text);
			entry->pattern = xstrdup(text);
		}
	}
	return allowed;
}

void
allowed_hosts_free(AllowedHosts *allowed)
{
	if (allowed == NULL)
		return;
	for (size_t i = 0; i < allowed->count; i++)
		free(allowed->entries[i].pattern);
	free(allowed->entries);
	free(allowed);
}

bool
allowed_hosts_name(const AllowedHosts *allowed, const char *name)
{
	if (allowed == NULL || allowed->count == 0)
		return true;
	for (size_t i = 0; i < allowed->count; i++)
		if (allowed->entries[i].pattern != NULL && glob_match(allowed->entries[i].pattern, name))
			return true;
	return false;
}

static bool
same_network(const unsigned char *left, const unsigned char *right, int bits)
{
	int bytes = bits / 8;
	unsigned char mask = (unsigned char) (0xff << (8 - bits % 8));

	if (memcmp(left, right, (size_t) bytes) != 0)
		return false;
	return bits % 8 == 0 || ((left[bytes] ^ right[bytes]) & mask) == 0;
}

bool
allowed_hosts_address(const AllowedHosts *allowed, const struct sockaddr *address)
{
	unsigned char bytes[16];
	int family;

	if (allowed == NULL || allowed->count == 0)
		return true;
	if (address->sa_family == AF_INET)
		family = plain_address(
		    AF_INET,
		    (const unsigned char *) &((const struct sockaddr_in *) (const void *) address)
		        ->sin_addr,
		    bytes);
	else if (address->sa_family == AF_INET6)
		family = plain_address(
		    AF_INET6,
		    (const unsigned char *) &((const struct sockaddr_in6 *) (const void *) address)
		        ->sin6_addr,
		    bytes);
	else
		return false;
	for (size_t i = 0; i < allowed->count; i++)
	{
		const Entry *entry = &allowed->entries[i];

		if (entry->pattern == NULL && entry->family == family &&
		    same_network(entry->address, bytes, entry->bits))
			return true;
	}
	return false;
}

bool
allowed_hosts_any_address(const AllowedHosts *allowed)
{
	if (allowed == NULL || allowed->count == 0)
		return true;
	for (size_t i = 0; i < allowed->count; i++)
		if (allowed->entries[i].pattern == NULL)
			return true;
	return false;
}
