/*
 * target.c
 *		How places are written: the origin of a URL, the name of an SSH login.
 *
 * An origin goes into a command line on somebody else's machine and into
 * metadata that agents follow, so only what is certainly an origin passes:
 * names of letters, digits, dots, hyphens and underscores, and IPv6 addresses
 * in their canonical form.  International names must come in their ASCII form.
 * Path, query, fragment, user and password are dropped.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "shared/target.h"

/* The longest name that DNS knows. */
#define MAX_HOST 253

static bool
target_is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

/* A host name or an IPv4 address, in lower case.  False when it is neither. */
static bool
copy_name(const char *text, size_t length, char *host)
{
	bool alphanumeric = false;

	if (length == 0 || length > MAX_HOST)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		char c = text[i];

		if (c >= 'A' && c <= 'Z')
			c = (char) (c - 'A' + 'a');
		if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
			alphanumeric = true;
		else if (c != '.' && c != '-' && c != '_')
			return false;
		host[i] = c;
	}
	host[length] = '\0';
	/* curl would take a leading hyphen for an option where a URL is not expected. */
	return alphanumeric && host[0] != '-' && host[0] != '.';
}

/* What stands between the brackets, in the canonical form and with brackets. */
static bool
copy_ipv6(const char *text, size_t length, char *host)
{
	char address[INET6_ADDRSTRLEN];
	struct in6_addr binary;

	if (length == 0 || length >= sizeof(address))
		return false;
	memcpy(address, text, length);
	address[length] = '\0';
	if (strlen(address) != length || inet_pton(AF_INET6, address, &binary) != 1)
		return false;
	if (inet_ntop(AF_INET6, &binary, address, sizeof(address)) == NULL)
		return false;
	snprintf(host, MAX_HOST + 1, "[%s]", address);
	return true;
}

/* The default port of the URL's scheme, which *url is moved beyond; 0: neither http nor https. */
static int
skip_scheme(const char **url, const char **scheme)
{
	if (strncasecmp(*url, "http://", 7) == 0)
	{
		*scheme = "http";
		*url += 7;
		return 80;
	}
	if (strncasecmp(*url, "https://", 8) == 0)
	{
		*scheme = "https";
		*url += 8;
		return 443;
	}
	return 0;
}

/* Moves both ends to host and port, without the user, the path and what follows. */
static void
find_authority(const char **url, const char **end)
{
	/* The authority ends at the path; browsers and curl take a backslash for a slash. */
	for (const char *p = *url; p < *end; p++)
	{
		if (*p == '/' || *p == '?' || *p == '#' || *p == '\\')
		{
			*end = p;
			break;
		}
	}
	for (const char *p = *end; p > *url; p--)
	{
		if (p[-1] == '@')
		{
			*url = p;
			break;
		}
	}
}

/* Copies the host; returns where it ends, or NULL when it is none. */
static const char *
read_host(const char *text, const char *end, char *host)
{
	const char *host_end;

	if (text < end && *text == '[')
	{
		host_end = memchr(text, ']', (size_t) (end - text));
		if (host_end == NULL || !copy_ipv6(text + 1, (size_t) (host_end - text - 1), host))
			return NULL;
		return host_end + 1;
	}
	host_end = memchr(text, ':', (size_t) (end - text));
	if (host_end == NULL)
		host_end = end;
	return copy_name(text, (size_t) (host_end - text), host) ? host_end : NULL;
}

/* What stands after the host as a port; 0 when it is none. */
static int
read_port(const char *text, const char *end, int otherwise)
{
	int port = 0;

	/* "http://host:" has the default port; port 0 can't be reached. */
	if (text == end || (*text == ':' && text + 1 == end))
		return otherwise;
	if (*text != ':')
		return 0;
	for (const char *p = text + 1; p < end; p++)
	{
		if (*p < '0' || *p > '9')
			return 0;
		port = port * 10 + (*p - '0');
		if (port > 65535)
			return 0;
	}
	return port;
}

bool
api_origin(const char *url, char *origin, size_t size)
{
	const char *scheme;
	const char *end = url + strlen(url);
	const char *host_end;
	char host[MAX_HOST + 1];
	int default_port;
	int port;
	int written;

	while (url < end && target_is_space(*url))
		url++;
	while (end > url && target_is_space(end[-1]))
		end--;
	for (const char *p = url; p < end; p++)
	{
		if ((unsigned char) *p <= ' ' || *p == 127)
			return false;
	}
	default_port = skip_scheme(&url, &scheme);
	if (default_port == 0)
		return false;
	find_authority(&url, &end);
	host_end = read_host(url, end, host);
	if (host_end == NULL)
		return false;
	port = read_port(host_end, end, default_port);
	if (port == 0)
		return false;
	if (port == default_port)
		written = snprintf(origin, size, "%s://%s", scheme, host);
	else
		written = snprintf(origin, size, "%s://%s:%d", scheme, host, port);
	return written >= 0 && (size_t) written < size;
}

void
ssh_target(const char *username, const char *host, int port, char *buffer, size_t size)
{
	const char *format = "%s@%s:%d";

	if (strchr(host, ':') != NULL && host[0] != '[')
		format = "%s@[%s]:%d";
	snprintf(buffer, size, format, username, host, port);
}
