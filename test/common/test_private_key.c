/*
 * test_private_key.c
 *		What is said about private keys, with keys made by ssh-keygen for this run.
 */
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <sodium.h>

#include "shared/private_key.h"
#include "tap.h"

static char directory[200];

/* Runs a shell command in the temporary directory; dies when it fails. */
static void
shell(const char *command)
{
	char line[1000];

	snprintf(line, sizeof(line), "cd '%s' && { %s; } >output 2>&1", directory, command);
	if (system(line) != 0)
	{
		printf("Bail out! failed: %s\n", command);
		snprintf(line, sizeof(line), "sed 's/^/# /' '%s'/output; rm -rf '%s'", directory,
		         directory);
		if (system(line) != 0)
			printf("# could not clean up\n");
		exit(1);
	}
}

/* A file of the temporary directory, behind some text. */
static char *
slurp(const char *before, const char *name, size_t *length)
{
	char path[300];
	char *text = malloc(65536);
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "r");
	strcpy(text, before);
	*length = strlen(before);
	if (file != NULL)
	{
		*length += fread(text + *length, 1, 65536 - *length, file);
		fclose(file);
	}
	return text;
}

static void
expect(const char *text, size_t length, const char *word, const char *name)
{
	/* A copy of exactly that size, so that the sanitizer sees a read beyond it. */
	char *copy = malloc(length > 0 ? length : 1);
	const char *problem;

	memcpy(copy, text, length);
	problem = private_key_problem(copy, length);
	if (!ok(word == NULL ? problem == NULL : problem != NULL && strstr(problem, word) != NULL, "%s",
	        name))
		printf("#      got: %s\n# expected: %s\n", problem ? problem : "no problem",
		       word ? word : "no problem");
	free(copy);
}

static void
expect_text(const char *text, const char *word, const char *name)
{
	expect(text, strlen(text), word, name);
}

static void
expect_file(const char *file, const char *word, const char *name)
{
	size_t length;
	char *text = slurp("", file, &length);

	expect(text, length, word, name);
	free(text);
}

/* An OpenSSH header that says what we like. */
static void
expect_header(const char *cipher, uint32_t cipher_length, const char *type, const char *word,
              const char *name)
{
	unsigned char bytes[400] = "openssh-key-v1";
	char base64[600];
	char text[800];
	size_t n = 15;
	const char *const strings[] = {cipher, "none", "", NULL};

	for (int i = 0; strings[i] != NULL; i++)
	{
		uint32_t length = (uint32_t) strlen(strings[i]);
		uint32_t said = i == 0 && cipher_length > 0 ? cipher_length : length;

		bytes[n++] = (unsigned char) (said >> 24);
		bytes[n++] = (unsigned char) (said >> 16);
		bytes[n++] = (unsigned char) (said >> 8);
		bytes[n++] = (unsigned char) said;
		memcpy(bytes + n, strings[i], length);
		n += length;
	}
	n += 7; /* the count and the length of the public key: anything */
	bytes[n++] = 0;
	n += 3;
	bytes[n++] = (unsigned char) strlen(type);
	memcpy(bytes + n, type, strlen(type));
	n += strlen(type) + 20;
	sodium_bin2base64(base64, sizeof(base64), bytes, n, sodium_base64_VARIANT_ORIGINAL);
	snprintf(text, sizeof(text),
	         "-----BEGIN OPENSSH PRIVATE KEY-----\n%s\n-----END OPENSSH PRIVATE KEY-----\n",
	         base64);
	expect_text(text, word, name);
}

int
main(void)
{
	const char *tmp = getenv("TMPDIR");
	size_t length;
	char *text;
	char *pem;
	bool all;

	snprintf(directory, sizeof(directory), "%s/envrt_key_XXXXXX", tmp && *tmp ? tmp : "/tmp");
	if (mkdtemp(directory) == NULL)
	{
		printf("Bail out! no temporary directory\n");
		return 1;
	}
	shell("ssh-keygen -q -N '' -t ed25519 -f ed25519");
	shell("ssh-keygen -q -N '' -t ecdsa -b 256 -f ecdsa256");
	shell("ssh-keygen -q -N '' -t ecdsa -b 384 -f ecdsa384");
	shell("ssh-keygen -q -N '' -t ecdsa -b 521 -f ecdsa521");
	shell("ssh-keygen -q -N '' -t rsa -b 2048 -f rsa");
	shell("cp rsa rsa_pem && ssh-keygen -q -p -P '' -N '' -m PEM -f rsa_pem");
	shell("cp rsa rsa_pkcs8 && ssh-keygen -q -p -P '' -N '' -m PKCS8 -f rsa_pkcs8");
	shell("cp ecdsa256 ecdsa_pem && ssh-keygen -q -p -P '' -N '' -m PEM -f ecdsa_pem");
	shell("cp ed25519 encrypted && ssh-keygen -q -p -P '' -N secret -f encrypted");
	shell("cp rsa encrypted_pem && ssh-keygen -q -p -P '' -N secret -m PEM -f encrypted_pem");
	shell("cp rsa encrypted_pkcs8 && ssh-keygen -q -p -P '' -N secret -m PKCS8 -f encrypted_pkcs8");
	shell("ssh-keygen -e -m PKCS8 -f rsa.pub >rsa_public_pem");
	shell("ssh-keygen -e -m RFC4716 -f rsa.pub >rsa_public_rfc4716");
	shell("ssh-keygen -q -s rsa -I test -n user ed25519.pub && cat ed25519 ed25519-cert.pub >both");
	shell("cat ed25519-cert.pub ed25519 >both_reversed");
	shell("sed 's/$/\\r/' ed25519 >crlf");

	shell("openssl genpkey -algorithm ed25519 -out ed25519_pkcs8");
	shell("openssl ecparam -name prime256v1 -genkey -out ec_parameters");
	shell("openssl genpkey -algorithm ec -pkeyopt ec_paramgen_curve:P-521 -out ec_pkcs8");
	shell("openssl genpkey -algorithm x25519 -out x25519_pkcs8");
	shell("openssl genpkey -algorithm ed448 -out ed448_pkcs8");
	shell("openssl ecparam -name secp256k1 -genkey -noout -out secp256k1");
	shell(
	    "openssl genpkey -algorithm ec -pkeyopt ec_paramgen_curve:secp256k1 -out secp256k1_pkcs8");
	shell("{ printf '\\357\\273\\277'; cat ed25519; } >byte_order_mark");
	shell("{ printf '\"'; cat ed25519; printf '\"'; } >quotes");
	shell("tr '\\n' ' ' <ed25519 >one_line");
	shell("tr -d '\\n' <ed25519 >one_line_without_blanks");
	shell("sed 's/$/\\\\n/' ed25519 | tr -d '\\n' >one_line_escaped");
	shell("sed 's/^/> /' ed25519 >quoted_mail");
	shell("sed 's/^/  /' rsa_pem >indented");
	shell("sed '3d' rsa_pem >line_lost");
	shell("sed '3s/./!/' rsa_pem >line_damaged");

	expect_file("ed25519", NULL, "an Ed25519 key");
	expect_file("ed25519_pkcs8", NULL, "an Ed25519 key as PKCS#8");
	expect_file("ec_parameters", NULL, "an ECDSA key behind its parameters");
	expect_file("ec_pkcs8", NULL, "an ECDSA key as PKCS#8");
	expect_file("indented", NULL, "a key whose lines are indented");
	expect_file("x25519_pkcs8", "not supported", "a key for no signatures");
	expect_file("ed448_pkcs8", "not supported", "an Ed448 key");
	expect_file("secp256k1", "not supported", "a key of another curve");
	expect_file("secp256k1_pkcs8", "not supported", "... as PKCS#8");
	expect_file("byte_order_mark", "byte order mark", "a key behind a byte order mark");
	expect_file("quotes", "quotes", "a key in quotes");
	expect_file("one_line", "line breaks", "a key on one line");
	expect_file("one_line_without_blanks", "line breaks", "... without blanks");
	expect_file("one_line_escaped", "line breaks", "... with line breaks as they are in JSON");
	expect_file("quoted_mail", "line", "a key that was quoted in a mail");
	expect_file("line_lost", "damaged", "a key that has lost a line");
	expect_file("line_damaged", "damaged", "a key with a character that is none");
	expect_file("ecdsa256", NULL, "an ECDSA key of 256 bits");
	expect_file("ecdsa384", NULL, "an ECDSA key of 384 bits");
	expect_file("ecdsa521", NULL, "an ECDSA key of 521 bits");
	expect_file("rsa", NULL, "an RSA key");
	expect_file("rsa_pem", NULL, "an RSA key as PEM");
	expect_file("rsa_pkcs8", NULL, "an RSA key as PKCS#8");
	expect_file("ecdsa_pem", NULL, "an ECDSA key as PEM");
	expect_file("both", NULL, "a key with its certificate");
	expect_file("both_reversed", NULL, "a key behind its certificate");
	expect_file("crlf", NULL, "a key with DOS line ends");
	text = slurp("\n\n  ", "ed25519", &length);
	expect(text, length, NULL, "a key behind blank lines");
	expect(text, length - 10, "incomplete", "a key whose last bytes are missing");
	expect(text, length / 2, "incomplete", "half a key");
	free(text);

	expect_file("encrypted", "passphrase", "an encrypted OpenSSH key");
	expect_file("encrypted_pem", "passphrase", "an encrypted PEM key");
	expect_file("encrypted_pkcs8", "passphrase", "an encrypted PKCS#8 key");
	expect_file("ed25519.pub", "public key", "a public key");
	expect_file("ecdsa256.pub", "public key", "a public ECDSA key");
	expect_file("rsa_public_pem", "public key", "a public key as PEM");
	expect_file("rsa_public_rfc4716", "public key", "a public key as RFC 4716");
	expect_file("ed25519-cert.pub", "public key", "a certificate alone");
	expect_text("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n", "PuTTY", "a PuTTY key");
	expect_text("", "empty", "nothing");
	expect_text(" \n\t\r\n", "empty", "blanks");
	expect_text("hello", "no private key", "some word");
	expect_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no private key",
	            "an X.509 certificate");
	expect_text("-----BEGIN RSA PRIVATE KEY-----\n\n-----END RSA PRIVATE KEY-----\n", "damaged",
	            "empty armour");
	expect_text("-----BEGIN OPENSSH PRIVATE KEY-----\n\n-----END OPENSSH PRIVATE KEY-----\n",
	            "damaged", "empty OpenSSH armour");
	expect_text("-----BEGIN OPENSSH PRIVATE KEY-----\n!!!!\n-----END OPENSSH PRIVATE KEY-----\n",
	            "damaged", "no base64");
	expect_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
	            "damaged", "no OpenSSH header");
	expect_text("-----BEGIN DSA PRIVATE KEY-----\nAAAA\n-----END DSA PRIVATE KEY-----\n",
	            "not supported", "a DSA key as PEM");
	expect_text("-----BEGIN XYZ PRIVATE KEY-----\nAAAA\n-----END XYZ PRIVATE KEY-----\n",
	            "not supported", "a key of a kind unheard of");
	expect("-----BEGIN OPENSSH PRIVATE KEY-----\n\0", 37, "not text", "a NUL");

	expect_header("none", 0, "ssh-ed25519", NULL, "a header made by hand");
	expect_header("none", 0, "ssh-dss", "not supported", "a DSA key");
	expect_header("none", 0, "sk-ssh-ed25519@openssh.com", "hardware", "a key on a token");
	expect_header("aes256-ctr", 0, "ssh-ed25519", "passphrase", "an encrypted header");
	expect_header("none", 0xffffffff, "ssh-ed25519", "damaged", "a length that is a lie");

	/* Every start of every key is refused, and read within its bounds. */
	all = true;
	text = slurp("", "encrypted", &length);
	for (size_t i = 0; i < length - 40; i++)
	{
		pem = malloc(i + 1);
		memcpy(pem, text, i);
		all &= private_key_problem(pem, i) != NULL;
		free(pem);
	}
	ok(all, "no start of an encrypted key passes");
	free(text);

	shell("cd / && rm -rf \"$OLDPWD\" && mkdir \"$OLDPWD\"");
	rmdir(directory);
	return done_testing();
}
