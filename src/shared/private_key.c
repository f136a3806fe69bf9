/*
 * private_key.c
 *		Says what is wrong with a private key before anybody tries to use it.
 *
 * A key that can't be used should be refused when it is stored, by whoever
 * has it in hand, with a sentence that says what to do.  So this looks at the
 * text only: its armour, for OpenSSH's own format the unencrypted header, which names the
 * cipher and the type of the key, and for the others the names of the algorithm and the curve.
 * Whether the key is sound is libssh's business when it is used.
 *
 * Lines outside of the armour are ignored: a user certificate may stand
 * beside its key.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <sodium.h>

#include "shared/private_key.h"

/* The OpenSSH header, up to the type of the key, is far shorter than this. */
#define HEADER_BYTES 256

/* An RSA key of 8192 bits and its certificate have 11 kB. */
#define MAX_LENGTH (16 * 1024)

static const char *const problem_long =
    "the text is longer than 16 kB, and no private key that can be used is that long";
static const char *const problem_empty = "the private key is empty";
static const char *const problem_none =
    "the text holds no private key; expected one that starts with "
    "\"-----BEGIN OPENSSH PRIVATE KEY-----\" or another PEM format";
static const char *const problem_binary =
    "the private key is not text; expected OpenSSH or PEM format";
static const char *const problem_public =
    "the text is a public key; give the private key, the file without \".pub\"";
static const char *const problem_putty = "the private key is in PuTTY's format; convert it: "
                                         "puttygen FILE.ppk -O private-openssh -o FILE";
static const char *const problem_encrypted =
    "the private key is encrypted with a passphrase; give a copy without one, "
    "made by: ssh-keygen -p -N '' -f COPY";
static const char *const problem_cut =
    "the private key is incomplete: its \"-----END ...\" line is missing";
static const char *const problem_damaged = "the private key is damaged: it can't be decoded";
static const char *const problem_type =
    "the private key's type is not supported; use Ed25519, ECDSA or RSA";
static const char *const problem_mark =
    "the private key begins with a byte order mark; give it without one, as text in UTF-8 or ASCII";
static const char *const problem_quotes =
    "there are quotes around the private key; give it without them";
static const char *const problem_one_line =
    "the private key has lost its line breaks; give the file as it is, its \"-----BEGIN ...\" and "
    "\"-----END ...\" on lines of their own";
static const char *const problem_hardware =
    "the private key is bound to a hardware token; use one that is not";

static bool
private_key_is_blank(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The first place of needle at or after text, before end. */
static const char *
find(const char *text, const char *end, const char *needle)
{
	if (text >= end)
		return NULL;
	return memmem(text, (size_t) (end - text), needle, strlen(needle));
}

static bool
starts_with(const char *text, const char *end, const char *prefix)
{
	size_t length = strlen(prefix);

	return (size_t) (end - text) >= length && memcmp(text, prefix, length) == 0;
}

/* The next length-prefixed string of an SSH wire format; false when it is not all there. */
static bool
wire_string(const unsigned char **bytes, const unsigned char *end, const char **string,
            size_t *length)
{
	const unsigned char *p = *bytes;
	size_t size;

	if (end - p < 4)
		return false;
	size = (size_t) p[0] << 24 | (size_t) p[1] << 16 | (size_t) p[2] << 8 | (size_t) p[3];
	p += 4;
	if (size > (size_t) (end - p))
		return false;
	*string = (const char *) p;
	*length = size;
	*bytes = p + size;
	return true;
}

static bool
string_is(const char *string, size_t length, const char *expected)
{
	return length == strlen(expected) && memcmp(string, expected, length) == 0;
}

/* The header of OpenSSH's format: magic, cipher, kdf, kdf options, count, public key. */
static const char *
header_problem(const unsigned char *bytes, size_t length)
{
	static const char magic[] = "openssh-key-v1"; /* its NUL belongs to it */
	static const char *const types[] = {"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256",
	                                    "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"};
	const unsigned char *p = bytes;
	const unsigned char *end = bytes + length;
	const char *string;
	size_t size;

	if (length < sizeof(magic) || memcmp(p, magic, sizeof(magic)) != 0)
		return problem_damaged;
	p += sizeof(magic);
	if (!wire_string(&p, end, &string, &size))
		return problem_damaged;
	if (!string_is(string, size, "none"))
		return problem_encrypted;
	if (!wire_string(&p, end, &string, &size) || !wire_string(&p, end, &string, &size))
		return problem_damaged;
	/* Skip the count and the length of the public key, which starts with its type. */
	if (end - p < 8)
		return problem_damaged;
	p += 8;
	if (!wire_string(&p, end, &string, &size))
		return problem_damaged;
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
	{
		if (string_is(string, size, types[i]))
			return NULL;
	}
	if (size > 3 && memcmp(string, "sk-", 3) == 0)
		return problem_hardware;
	return problem_type;
}

/* Decodes the start of the base64 between the armour's lines. */
static const char *
openssh_problem(const char *body, const char *end)
{
	unsigned char bytes[HEADER_BYTES];
	char base64[HEADER_BYTES / 3 * 4];
	size_t digits = 0;
	size_t length = 0;
	const char *problem;

	for (const char *p = body; p < end && digits < sizeof(base64); p++)
	{
		if (!private_key_is_blank(*p))
			base64[digits++] = *p;
	}
	digits -= digits % 4;
	if (sodium_base642bin(bytes, sizeof(bytes), base64, digits, NULL, &length, NULL,
	                      sodium_base64_VARIANT_ORIGINAL) != 0)
		problem = problem_damaged;
	else
		problem = header_problem(bytes, length);
	/* Of an Ed25519 key, the secret half starts within these bytes. */
	sodium_memzero(bytes, sizeof(bytes));
	sodium_memzero(base64, sizeof(base64));
	return problem;
}

static bool
has_bytes(const unsigned char *bytes, size_t length, const void *part, size_t part_length)
{
	return memmem(bytes, length, part, part_length) != NULL;
}

/* PKCS#1, SEC1 and PKCS#8: one sequence, of its whole length, that names what libssh knows. */
static const char *
sequence_problem(const char *label, const unsigned char *bytes, size_t length)
{
	static const unsigned char rsa[] = {0x06, 0x09, 0x2a, 0x86, 0x48, 0x86,
	                                    0xf7, 0x0d, 0x01, 0x01, 0x01};
	static const unsigned char ed25519[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
	static const unsigned char p256[] = {0x06, 0x08, 0x2a, 0x86, 0x48,
	                                     0xce, 0x3d, 0x03, 0x01, 0x07};
	static const unsigned char p384[] = {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22};
	static const unsigned char p521[] = {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23};
	/* The algorithm stands at the beginning; only the curve of a SEC1 key comes last. */
	size_t head = length < 64 ? length : 64;
	size_t said;
	size_t skip = 2;

	if (length < 2 || bytes[0] != 0x30)
		return problem_damaged;
	said = bytes[1];
	if (said > 0x80)
	{
		skip += said - 0x80;
		if (said > 0x84 || skip > length)
			return problem_damaged;
		said = 0;
		for (size_t i = 2; i < skip; i++)
			said = said << 8 | bytes[i];
	}
	if (said != length - skip)
		return problem_damaged;
	if (label[0] == 'R')
		return NULL;
	if (label[0] == 'E')
		head = length;
	else if (has_bytes(bytes, head, rsa, sizeof rsa) ||
	         has_bytes(bytes, head, ed25519, sizeof ed25519))
		return NULL;
	return has_bytes(bytes, head, p256, sizeof p256) || has_bytes(bytes, head, p384, sizeof p384) ||
	               has_bytes(bytes, head, p521, sizeof p521)
	           ? NULL
	           : problem_type;
}

static const char *
der_problem(const char *label, const char *body, const char *end)
{
	unsigned char bytes[MAX_LENGTH];
	size_t length = 0;
	const char *problem;

	if (sodium_base642bin(bytes, sizeof(bytes), body, (size_t) (end - body), " \t\r\n\v\f", &length,
	                      NULL, sodium_base64_VARIANT_ORIGINAL) != 0)
		problem = problem_damaged;
	else
		problem = sequence_problem(label, bytes, length);
	sodium_memzero(bytes, sizeof(bytes));
	return problem;
}

/* The armour says "BEGIN <label>PRIVATE KEY-----"; body is what follows, end where END stands. */
static const char *
armoured_problem(const char *label, const char *body, const char *end)
{
	if (starts_with(label, end, "OPENSSH "))
		return openssh_problem(body, end);
	if (starts_with(label, end, "ENCRYPTED "))
		return problem_encrypted;
	if (starts_with(label, end, "DSA "))
		return problem_type;
	if (find(body, end, "Proc-Type:") != NULL && find(body, end, "ENCRYPTED") != NULL)
		return problem_encrypted;
	if (!starts_with(label, end, "RSA ") && !starts_with(label, end, "EC ") &&
	    !starts_with(label, end, "PRIVATE KEY-----"))
		return problem_type;
	return der_problem(label, body, end);
}

/* The text's line breaks are gone, or are written as backslash and n. */
static bool
is_one_line(const char *text, const char *begin, const char *body, const char *armour_end)
{
	const char *line = begin;

	while (line > text && line[-1] != '\n' && line[-1] != '\r' && private_key_is_blank(line[-1]))
		line--;
	while (body < armour_end && (*body == ' ' || *body == '\t'))
		body++;
	return (line > text && line[-1] != '\n' && line[-1] != '\r') ||
	       (body < armour_end && *body != '\n' && *body != '\r') ||
	       (armour_end[-1] != '\n' && armour_end[-1] != '\r' &&
	        !private_key_is_blank(armour_end[-1]));
}

const char *
private_key_problem(const char *text, size_t length)
{
	static const char tail[] = "PRIVATE KEY-----";
	const char *end = text + length;
	const char *begin;

	while (text < end && private_key_is_blank(*text))
		text++;
	if (text == end)
		return problem_empty;
	if (end - text > MAX_LENGTH)
		return problem_long;
	if (memchr(text, '\0', (size_t) (end - text)) != NULL)
		return problem_binary;
	if (starts_with(text, end, "PuTTY-User-Key-File-"))
		return problem_putty;
	if (starts_with(text, end, "\xef\xbb\xbf"))
		return problem_mark;
	if (*text == '"' || *text == '\'')
		return problem_quotes;

	for (begin = find(text, end, "-----BEGIN "); begin != NULL;
	     begin = find(begin, end, "-----BEGIN "))
	{
		const char *label = begin + strlen("-----BEGIN ");
		const char *line_end = label;
		const char *body;
		const char *armour_end;

		while (line_end < end && *line_end != '\n' && *line_end != '\r')
			line_end++;
		body = find(label, line_end, tail);
		begin = label;
		if (body == NULL)
			continue;
		body += sizeof(tail) - 1;
		armour_end = find(body, end, "-----END ");
		if (armour_end == NULL || find(armour_end, end, tail) == NULL)
			return problem_cut;
		if (is_one_line(text, label - strlen("-----BEGIN "), body, armour_end))
			return problem_one_line;
		return armoured_problem(label, body, armour_end);
	}

	if (find(text, end, "PUBLIC KEY") != NULL || starts_with(text, end, "ssh-") ||
	    starts_with(text, end, "ecdsa-sha2-") || starts_with(text, end, "sk-"))
		return problem_public;
	return problem_none;
}
