/*
 * glob.c
 *		Patterns for host names: "*", "?" and nothing else.
 *
 * fnmatch() would give "[" a meaning, which in known_hosts begins the name of
 * a host with a port.  The matcher remembers only the last "*", so its time is
 * at most pattern length times text length, whatever the pattern.
 */
#include <ctype.h>
#include <stddef.h>

#include "ssh/glob.h"

bool
glob_match(const char *pattern, const char *text)
{
	const char *star = NULL;
	const char *star_text = NULL;

	while (*text != '\0')
	{
		if (*pattern == '*')
		{
			star = ++pattern;
			star_text = text;
		}
		else if (*pattern == '?' ||
		         tolower((unsigned char) *pattern) == tolower((unsigned char) *text))
		{
			pattern++;
			text++;
		}
		else if (star != NULL)
		{
			pattern = star;
			text = ++star_text;
		}
		else
			return false;
	}
	while (*pattern == '*')
		pattern++;
	return *pattern == '\0';
}
