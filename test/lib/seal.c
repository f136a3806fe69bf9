/*
 * seal.c
 *		Seals standard input to a public key, as a client of envrt would.
 *
 * Usage: seal HEX-KEY.  Reads the JSON {companyId, name, version, value} from standard input and
 * writes the sealed box in hexadecimal.  Nothing of the value is in the arguments.
 */
#include <stdio.h>
#include <string.h>

#include <sodium.h>

int
main(int argc, char **argv)
{
	static unsigned char plain[1 << 20];
	static unsigned char box[sizeof(plain) + crypto_box_SEALBYTES];
	unsigned char key[crypto_box_PUBLICKEYBYTES];
	size_t key_length;
	size_t length;

	if (sodium_init() < 0 || argc != 2 ||
	    sodium_hex2bin(key, sizeof(key), argv[1], strlen(argv[1]), NULL, &key_length, NULL) != 0 ||
	    key_length != sizeof(key))
	{
		fprintf(stderr, "usage: seal HEX-KEY <JSON\n");
		return 2;
	}
	length = fread(plain, 1, sizeof(plain), stdin);
	crypto_box_seal(box, plain, length, key);
	for (size_t i = 0; i < length + crypto_box_SEALBYTES; i++)
		printf("%02x", box[i]);
	putchar('\n');
	return 0;
}
