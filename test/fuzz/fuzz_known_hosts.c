/*
 * fuzz_known_hosts.c
 *		The known_hosts matcher, with any text, host and port.
 *
 * The first line of the input is "host port"; the rest is the text.  Whatever
 * that says, a key with a @revoked line of its own at the end is revoked, and
 * the algorithms are never without the ones we can check.
 *
 * fuzz: src/host/ssh/known_hosts.c src/host/ssh/glob.c src/host/base/memory.c src/host/base/log.c
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libssh/libssh.h>

#include "ssh/known_hosts.h"
#include "base/memory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static ssh_key key;
static char *key_line;

static void
make_key(void)
{
	char *base64 = NULL;

	ssh_init();
	ssh_set_log_level(SSH_LOG_NOLOG);
	if (ssh_pki_generate(SSH_KEYTYPE_ED25519, 0, &key) != SSH_OK ||
	    ssh_pki_export_pubkey_base64(key, &base64) != SSH_OK)
		abort();
	key_line = xformat("\n@revoked * ssh-ed25519 %s\n", base64);
	ssh_string_free_char(base64);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *input = xstrndup((const char *) data, size);
	char *text = strchr(input, '\n');
	int port = 22;
	char *space;
	char *revoking;
	char *list;
	KnownHosts *known;
	HostKeyVerdict plain;

	if (key == NULL)
		make_key();
	if (text != NULL)
	{
		*text++ = '\0';
		space = strchr(input, ' ');
		if (space != NULL)
		{
			*space = '\0';
			port = atoi(space + 1) & 0xffff;
		}
		known = known_hosts_parse(text, input, port);
		plain = known_hosts_check(known, key);
		list = known_hosts_algorithms(known);
		if (strstr(list, "ssh-ed25519") == NULL || strstr(list, "rsa-sha2-512") == NULL)
			abort();
		free(list);
		free(known_hosts_types(known));
		known_hosts_free(known);
		revoking = xformat("%s%s", text, key_line);
		known = known_hosts_parse(revoking, input, port);
		if (known_hosts_check(known, key) != HOST_KEY_REVOKED || plain == HOST_KEY_KNOWN)
			abort();
		known_hosts_free(known);
		free(revoking);
	}
	free(input);
	return 0;
}
