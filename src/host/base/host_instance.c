/*
 * host_instance.c
 *		Which life of the driver host this is.
 *
 * What the host knows of leases dies with it.  A client that notes this name
 * beside what it asked for can tell later whether "never heard of it" means
 * that it was never asked, or that another host was.
 */
#include <sodium.h>

#include "base/host_instance.h"

const char *
host_instance(void)
{
	static char name[33];

	if (name[0] == '\0')
	{
		unsigned char random[16];

		randombytes_buf(random, sizeof random);
		sodium_bin2hex(name, sizeof name, random, sizeof random);
	}
	return name;
}
