/*
 * fuzz_config.c
 *		Arbitrary configs, keys and URLs: no crash, and what comes out is canonical.
 *
 * The first byte chooses the driver, or the reader of private keys or of
 * origins.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shared/driver_config.h"
#include "shared/private_key.h"
#include "shared/target.h"

extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_config(const char *driver, const char *text, size_t length)
{
	json_t *config = json_loadb(text, length, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
	json_t *result;
	json_t *again;
	ConfigIssues issues;

	if (config == NULL)
		return;
	result = config_normalize(driver, config, &issues);
	if (result != NULL)
	{
		if (issues.count != 0)
			abort();
		/* The canonical shape is its own canonical shape. */
		again = config_normalize(driver, result, &issues);
		if (again == NULL || !json_equal(result, again))
			abort();
		json_decref(again);
		json_decref(result);
	}
	else
	{
		if (issues.count < 1 || issues.count > CONFIG_MAX_ISSUES)
			abort();
		for (int i = 0; i < issues.count; i++)
		{
			char line[400];
			json_t *string;

			config_issue_text(&issues.issue[i], line, sizeof(line));
			/* It goes into an error message: it must be text. */
			string = json_string(line);
			if (string == NULL || line[0] == '\0')
				abort();
			json_decref(string);
		}
	}
	json_decref(config);
}

static void
check_origin(const char *text, size_t length)
{
	char *url = malloc(length + 1);
	char origin[300];
	char again[300];

	memcpy(url, text, length);
	url[length] = '\0';
	if (api_origin(url, origin, sizeof(origin)))
	{
		if (strpbrk(origin, " '\"\\$`;&|<>(){}*?!#\n\r\t") != NULL)
			abort();
		if (!api_origin(origin, again, sizeof(again)) || strcmp(origin, again) != 0)
			abort();
	}
	free(url);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const drivers[] = {"ssh", "sandbox", "plugin", "local", "other"};
	const char *text;

	if (size < 1)
		return 0;
	text = (const char *) data + 1;
	switch (data[0] % 8)
	{
		case 5:
			(void) private_key_problem(text, size - 1);
			break;
		case 6:
			check_origin(text, size - 1);
			break;
		case 7:
			check_config("ssh", text, size - 1);
			break;
		default:
			check_config(drivers[data[0] % 8], text, size - 1);
	}
	return 0;
}
