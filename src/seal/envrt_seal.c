/*
 * envrt_seal.c
 *		envrt-seal: seals a secret at a client, for envrt_create_sealed_secret() and
 *		envrt_rotate_sealed_secret().
 *
 * The value is read from a file or from standard input, never from the arguments, and
 * leaves as a box that the server's master key alone opens: crypto_box_seal over the JSON
 * {companyId, name, version, value}.  What it is sealed for is inside the box, so it is
 * of no use for anything else.
 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <jansson.h>
#include <sodium.h>

#define PROGRAM "envrt-seal"
/* As the server has them. */
#define MAX_VALUE (64 * 1024)
#define MAX_NAME 255
#define MAX_VERSION 2147483647L

typedef struct Options
{
	unsigned char key[crypto_box_PUBLICKEYBYTES];
	const char *company;
	const char *name;
	long version;
	const char *file; /* NULL: standard input */
} Options;

static const char help[] =
    PROGRAM " seals a secret, so that it passes through SQL and its logs unread.\n"
            "\n"
            "Usage:\n"
            "  " PROGRAM " --key=KEY --company=UUID --name=NAME [--version=N] [FILE]\n"
            "\n"
            "Options:\n"
            "  -k, --key=KEY       what envrt_sealing_key() returns on the server, in hexadecimal\n"
            "  -c, --company=UUID  the id of the company that the secret is for\n"
            "  -n, --name=NAME     the secret's name\n"
            "  -v, --version=N     1 (the default) for a new secret, the next version for a "
            "rotation\n"
            "  -h, --help          show this help, then exit\n"
            "\n"
            "The value is all of FILE, or of standard input: UTF-8 text of at most 65536 bytes.  "
            "The sealed\n"
            "value is written to standard output, as SQL takes it.  In psql:\n"
            "\n"
            "  SELECT envrt_sealing_key() AS key \\gset\n"
            "  \\set sealed `" PROGRAM " --key=:'key' --company=:'company' --name='deploy key' "
            "~/.ssh/id_ed25519`\n"
            "  SELECT envrt_create_sealed_secret(:'company', 'deploy key', :'sealed');\n";

__attribute__((noreturn, format(printf, 2, 3))) static void
fail(int status, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, PROGRAM ": ");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, "\n");
	if (status == 2)
		fprintf(stderr, "Try \"" PROGRAM " --help\" for more information.\n");
	exit(status);
}

static void
read_key(const char *text, unsigned char *key)
{
	size_t length;
	const char *end;

	/* As psql shows bytea. */
	if (strncmp(text, "\\x", 2) == 0)
		text += 2;
	if (sodium_hex2bin(key, crypto_box_PUBLICKEYBYTES, text, strlen(text), NULL, &length, &end) !=
	        0 ||
	    *end != '\0' || length != crypto_box_PUBLICKEYBYTES)
		fail(2, "the key must be %d hexadecimal digits, as envrt_sealing_key() returns them",
		     2 * crypto_box_PUBLICKEYBYTES);
}

static void
check_company(const char *text)
{
	for (int i = 0; i < 36; i++)
		if (i == 8 || i == 13 || i == 18 || i == 23
		        ? text[i] != '-'
		        : text[i] == '\0' || strchr("0123456789abcdefABCDEF", text[i]) == NULL)
			fail(2, "the company must be a UUID");
	if (text[36] != '\0')
		fail(2, "the company must be a UUID");
}

static long
read_version(const char *text)
{
	char *end;
	long version;

	errno = 0;
	version = strtol(text, &end, 10);
	if (errno != 0 || *text == '\0' || *end != '\0' || version < 1 || version > MAX_VERSION)
		fail(2, "the version must be a number from 1 to %ld", MAX_VERSION);
	return version;
}

static void
read_options(int argc, char **argv, Options *options)
{
	static const struct option known[] = {
	    {"key", required_argument, NULL, 'k'},  {"company", required_argument, NULL, 'c'},
	    {"name", required_argument, NULL, 'n'}, {"version", required_argument, NULL, 'v'},
	    {"help", no_argument, NULL, 'h'},       {NULL, 0, NULL, 0}};
	const char *key = NULL;
	int option;

	memset(options, 0, sizeof(Options));
	options->version = 1;
	while ((option = getopt_long(argc, argv, "k:c:n:v:h", known, NULL)) != -1)
		switch (option)
		{
			case 'k':
				key = optarg;
				break;
			case 'c':
				options->company = optarg;
				break;
			case 'n':
				options->name = optarg;
				break;
			case 'v':
				options->version = read_version(optarg);
				break;
			case 'h':
				fputs(help, stdout);
				exit(fflush(stdout) == 0 ? 0 : 1);
			default:
				fail(2, "the options are not right");
		}
	if (key == NULL || options->company == NULL || options->name == NULL)
		fail(2, "--key, --company and --name must be given");
	if (argc - optind > 1)
		fail(2, "there must be one file at most");
	if (optind < argc && strcmp(argv[optind], "-") != 0)
		options->file = argv[optind];
	read_key(key, options->key);
	check_company(options->company);
	if (options->name[strspn(options->name, " \t\r\n")] == '\0' || strlen(options->name) > MAX_NAME)
		fail(2, "the name must have from 1 to %d bytes", MAX_NAME);
}

/* Returns its length. */
static size_t
read_value(const char *file, char *value)
{
	FILE *stream = stdin;
	const char *what = file != NULL ? file : "standard input";
	size_t length;

	if (file != NULL && (stream = fopen(file, "rb")) == NULL)
		fail(1, "could not open \"%s\": %s", file, strerror(errno));
	/* What has been read stays nowhere else. */
	setvbuf(stream, NULL, _IONBF, 0);
	length = fread(value, 1, MAX_VALUE + 1, stream);
	if (ferror(stream))
		fail(1, "could not read %s: %s", what, strerror(errno));
	if (file != NULL)
		fclose(stream);
	if (length == 0)
		fail(1, "there is no value in %s", what);
	if (length > MAX_VALUE)
		fail(1, "the value in %s must not be longer than %d bytes", what, MAX_VALUE);
	if (memchr(value, '\0', length) != NULL)
		fail(1, "the value in %s must be text without zero bytes", what);
	return length;
}

int
main(int argc, char **argv)
{
	static char value[MAX_VALUE + 1];
	static const struct rlimit no_core = {0, 0};
	Options options;
	size_t length;
	json_t *string;
	json_t *content;
	char *plain;
	size_t plain_length;
	unsigned char *box;

	if (sodium_init() < 0)
		fail(1, "could not initialize libsodium");
	setrlimit(RLIMIT_CORE, &no_core);
	read_options(argc, argv, &options);
	length = read_value(options.file, value);
	string = json_stringn(value, length);
	if (string == NULL)
		fail(1, "the value must be UTF-8 text");
	content = json_pack("{s:s, s:s, s:I, s:o}", "companyId", options.company, "name", options.name,
	                    "version", (json_int_t) options.version, "value", string);
	if (content == NULL)
		fail(2, "the name must be UTF-8 text");
	plain = json_dumps(content, JSON_COMPACT);
	if (plain == NULL)
		fail(1, "out of memory");
	plain_length = strlen(plain);
	box = malloc(crypto_box_SEALBYTES + plain_length);
	if (box == NULL)
		fail(1, "out of memory");
	if (crypto_box_seal(box, (const unsigned char *) plain, plain_length, options.key) != 0)
		fail(2, "nothing can be sealed to this key");
	fputs("\\x", stdout);
	for (size_t i = 0; i < crypto_box_SEALBYTES + plain_length; i++)
		printf("%02x", box[i]);
	putchar('\n');
	if (fflush(stdout) != 0 || ferror(stdout))
		fail(1, "could not write: %s", strerror(errno));
	return 0;
}
