/*
 * ssh_key.c
 *		Private keys, and the certificates that may stand beside them.
 *
 * The text is what a person pasted: OpenSSH, PEM or PKCS#8, lines ended in any
 * way, perhaps with lines before and after.  Only the block between BEGIN and
 * END is handed to libssh, rewritten with plain newlines, and an Ed25519 key in PKCS#8 in
 * OpenSSH's format.  A line before or
 * after it that is an OpenSSH user certificate is bound to the key.  Nothing is ever
 * asked of a terminal: an encrypted key is refused.
 */
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "shared/private_key.h"
#include "base/memory.h"
#include "ssh/ssh_key.h"

static int
no_passphrase(const char *prompt, char *buffer, size_t length, int echo, int verify, void *data)
{
	(void) prompt;
	(void) buffer;
	(void) length;
	(void) echo;
	(void) verify;
	(void) data;
	return -1;
}

static HostError *
key_error(const char *problem)
{
	HostError *error = error_new("22023", "privateKey: %s", problem);

	error_hint(error,
	           "Use an unencrypted Ed25519, ECDSA or RSA private key in OpenSSH or PEM form, as "
	           "ssh-keygen -t ed25519 -N '' makes it.");
	return error;
}

/* The next line of *text, without its end and the blanks around it; false at the end. */
static bool
next_line(const char **text, const char **line, size_t *length)
{
	const char *start = *text;
	const char *end;

	if (*start == '\0')
		return false;
	end = start + strcspn(start, "\r\n");
	*text = end + strspn(end, "\r\n");
	start += strspn(start, " \t");
	while (end > start && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	*line = start;
	*length = end > start ? (size_t) (end - start) : 0;
	return true;
}

static bool
begins(const char *line, size_t length, const char *word)
{
	return length >= strlen(word) && strncmp(line, word, strlen(word)) == 0;
}

/* The key's block alone, and the first certificate line outside of it; both may be NULL. */
static void
take_apart(const char *text, char **block, char **certificate)
{
	/* Allocated once, so that no copy of the key is left behind by growing. */
	char *out = xcalloc(1, strlen(text) + 2);
	size_t used = 0;
	bool inside = false;
	const char *line;
	size_t length;

	*block = NULL;
	*certificate = NULL;
	while (next_line(&text, &line, &length))
	{
		/* An EC key may have its parameters before it, in a block of their own. */
		if (!inside && *block == NULL && begins(line, length, "-----BEGIN ") &&
		    memmem(line, length, "PRIVATE KEY-----", strlen("PRIVATE KEY-----")) != NULL)
			inside = true;
		if (inside)
		{
			memcpy(out + used, line, length);
			used += length;
			out[used++] = '\n';
			if (begins(line, length, "-----END "))
			{
				inside = false;
				*block = out;
			}
		}
		else if (*certificate == NULL && memchr(line, ' ', length) != NULL &&
		         memmem(line, (size_t) ((const char *) memchr(line, ' ', length) - line),
		                "-cert-v01@openssh.com", strlen("-cert-v01@openssh.com")) != NULL)
			*certificate = xstrndup(line, length);
	}
	if (*block == NULL)
		secret_free(out);
}

/*
 * Whether a certificate (in base64) certifies this key: its wire format holds
 * the fields of the public key, which follow the type in the key's own.
 */
static bool
certifies(const char *base64, const ssh_key key)
{
	size_t size = strlen(base64);
	unsigned char *certificate = xcalloc(1, size + 1);
	unsigned char public_key[4096];
	char *public_base64 = NULL;
	size_t certificate_length = 0;
	size_t length = 0;
	size_t type_length;
	bool found = false;

	if (ssh_pki_export_pubkey_base64(key, &public_base64) == SSH_OK &&
	    sodium_base642bin(certificate, size + 1, base64, size, NULL, &certificate_length, NULL,
	                      sodium_base64_VARIANT_ORIGINAL) == 0 &&
	    sodium_base642bin(public_key, sizeof public_key, public_base64, strlen(public_base64), NULL,
	                      &length, NULL, sodium_base64_VARIANT_ORIGINAL) == 0)
	{
		/* The type is short: its length is in the last of four bytes. */
		type_length = length > 4 ? 4 + (size_t) public_key[3] : length;
		found =
		    type_length < length && memmem(certificate, certificate_length,
		                                   public_key + type_length, length - type_length) != NULL;
	}
	ssh_string_free_char(public_base64);
	free(certificate);
	return found;
}

/* line: the type, the certificate in base64, perhaps a comment. */
static HostError *
bind_certificate(ssh_key key, char *line)
{
	char *rest = NULL;
	char *type_name = strtok_r(line, " \t", &rest);
	char *base64 = strtok_r(NULL, " \t", &rest);
	enum ssh_keytypes_e type = ssh_key_type_from_name(type_name);
	ssh_key certificate = NULL;
	HostError *error = NULL;

	if (base64 == NULL || type == SSH_KEYTYPE_UNKNOWN ||
	    ssh_pki_import_cert_base64(base64, type, &certificate) != SSH_OK)
		error = key_error("the certificate beside the key can't be read");
	else if (!certifies(base64, key))
		error = key_error("the certificate beside the key belongs to another key");
	else if (ssh_pki_copy_cert_to_privkey(certificate, key) != SSH_OK)
		error = key_error("the certificate beside the key can't be used with it");
	ssh_key_free(certificate);
	return error;
}

/*
 * Ed25519 in PKCS#8
 *
 * libssh reads these keys in OpenSSH's format only, so that is written.
 */

static void
append_number(Bytes *bytes, size_t number)
{
	unsigned char wire[4] = {(unsigned char) (number >> 24), (unsigned char) (number >> 16),
	                         (unsigned char) (number >> 8), (unsigned char) number};

	bytes_append(bytes, wire, sizeof wire);
}

static void
ssh_key_append_string(Bytes *bytes, const void *data, size_t length)
{
	append_number(bytes, length);
	bytes_append(bytes, data, length);
}

/* The block in OpenSSH's format, for the key that grows out of a seed. */
static char *
openssh_block(const unsigned char *seed)
{
	static const char type[] = "ssh-ed25519";
	unsigned char public_key[crypto_sign_PUBLICKEYBYTES];
	unsigned char secret_key[crypto_sign_SECRETKEYBYTES];
	char base64[1024];
	Bytes public_part = {0};
	/* Of their full sizes from the start: growing would leave copies behind. */
	Bytes private_part = {.data = xcalloc(1, 512), .allocated = 512};
	Bytes all = {.data = xcalloc(1, 512), .allocated = 512};
	char *block;

	crypto_sign_seed_keypair(public_key, secret_key, seed);
	ssh_key_append_string(&public_part, type, sizeof type - 1);
	ssh_key_append_string(&public_part, public_key, sizeof public_key);
	/* Two equal numbers show that it was decrypted rightly. */
	append_number(&private_part, 0);
	append_number(&private_part, 0);
	bytes_append(&private_part, public_part.data, public_part.length);
	ssh_key_append_string(&private_part, secret_key, sizeof secret_key);
	ssh_key_append_string(&private_part, "", 0);
	for (char pad = 1; private_part.length % 8 != 0; pad++)
		bytes_append(&private_part, &pad, 1);
	bytes_append(&all, "openssh-key-v1", sizeof "openssh-key-v1");
	ssh_key_append_string(&all, "none", 4);
	ssh_key_append_string(&all, "none", 4);
	ssh_key_append_string(&all, "", 0);
	append_number(&all, 1);
	ssh_key_append_string(&all, public_part.data, public_part.length);
	ssh_key_append_string(&all, private_part.data, private_part.length);
	sodium_bin2base64(base64, sizeof base64, (unsigned char *) all.data, all.length,
	                  sodium_base64_VARIANT_ORIGINAL);
	block = xformat("-----BEGIN OPENSSH PRIVATE KEY-----\n%s\n-----END OPENSSH PRIVATE KEY-----\n",
	                base64);
	sodium_memzero(secret_key, sizeof secret_key);
	sodium_memzero(base64, sizeof base64);
	sodium_memzero(private_part.data, private_part.allocated);
	sodium_memzero(all.data, all.allocated);
	bytes_free(&public_part);
	bytes_free(&private_part);
	bytes_free(&all);
	return block;
}

/* Such a key's block in OpenSSH's format; any other one as it is.  Takes it. */
static char *
without_pkcs8(char *block)
{
	/* The algorithm's name and, in two octet strings, the seed. */
	static const unsigned char before_seed[] = {0x06, 0x03, 0x2b, 0x65, 0x70,
	                                            0x04, 0x22, 0x04, 0x20};
	const char *body = strchr(block, '\n');
	const char *end = strstr(block, "-----END ");
	unsigned char bytes[256];
	size_t length = 0;
	const unsigned char *found = NULL;

	if (!begins(block, strlen(block), "-----BEGIN PRIVATE KEY-----") || end == NULL || body == NULL)
		return block;
	if (sodium_base642bin(bytes, sizeof bytes, body, (size_t) (end - body), "\n", &length, NULL,
	                      sodium_base64_VARIANT_ORIGINAL) == 0)
		found = memmem(bytes, length, before_seed, sizeof before_seed);
	if (found != NULL && bytes + length - found >= (ssize_t) (sizeof before_seed + 32))
	{
		secret_free(block);
		block = openssh_block(found + sizeof before_seed);
	}
	sodium_memzero(bytes, sizeof bytes);
	return block;
}

/*
 * Signing with a huge RSA key would hold up the loop for seconds.  The public
 * part of one with 8192 bits has 1400 characters.
 */
static bool
is_too_long(const ssh_key key)
{
	char *public_base64 = NULL;
	bool too_long =
	    ssh_pki_export_pubkey_base64(key, &public_base64) == SSH_OK && strlen(public_base64) > 1500;

	ssh_string_free_char(public_base64);
	return too_long;
}

ssh_key
ssh_key_from_text(const char *text, HostError **error)
{
	const char *problem = private_key_problem(text, strlen(text));
	ssh_key key = NULL;
	char *block;
	char *certificate;

	*error = NULL;
	if (problem != NULL)
	{
		*error = key_error(problem);
		return NULL;
	}
	take_apart(text, &block, &certificate);
	if (block != NULL)
		block = without_pkcs8(block);
	if (block == NULL ||
	    ssh_pki_import_privkey_base64(block, NULL, no_passphrase, NULL, &key) != SSH_OK)
		*error = key_error("the private key can't be read");
	else if (is_too_long(key))
		*error = key_error("the private key is longer than 8192 bits");
	else if (certificate != NULL)
		*error = bind_certificate(key, certificate);
	if (*error != NULL)
	{
		ssh_key_free(key);
		key = NULL;
	}
	secret_free(block);
	free(certificate);
	return key;
}
