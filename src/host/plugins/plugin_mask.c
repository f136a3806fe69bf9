/*
 * plugin_mask.c
 *		What a plugin hides in all that its worker says.
 *
 * The worker is told secrets with its requests, and may say them again in what becomes an error, a
 * line of the log or a metric.  So the plugin's mask (secret_mask.c) learns of each request:
 *
 *   - the secrets that came with it, in the name of its company: all that are in use stay;
 *   - what a command is given (its environment, its input, its arguments), of which any text may be
 *     a secret.
 *
 * Commands bring more than there is room for in the end, so they have an account of their own:
 * they push each other out, also while they run, and no secret.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"
#include "plugins/plugin_mask.h"
#include "plugins/plugin_parts.h"

/*
 * Of what a command is given this is remembered, to be masked: what is shorter is in any text, and
 * more would take too long.
 */
#define MIN_WORD 8
#define MAX_WORDS 128
#define MAX_WORD ((size_t) 64 * 1024)
#define MAX_WORDS_BYTES (4 * MAX_WORD)

/* *left: how many bytes they may still have. */
static void
plugin_mask_add_word(json_t *words, size_t *left, json_t *value)
{
	size_t most = *left < MAX_WORD ? *left : MAX_WORD;
	size_t length = json_string_length(value) < most ? json_string_length(value) : most;
	char name[24];

	if (length < MIN_WORD || json_object_size(words) >= MAX_WORDS)
		return;
	*left -= length;
	snprintf(name, sizeof name, "%zu", json_object_size(words));
	if (length == json_string_length(value))
		json_object_set(words, name, value);
	else
		json_object_set_new(words, name, json_stringn_nocheck(json_string_value(value), length));
}

/* Only environmentExecute has any.  The likeliest secrets come first, since there may be many. */
json_t *
plugin_mask_words(const json_t *params)
{
	json_t *words = json_object();
	size_t left = MAX_WORDS_BYTES;
	const char *name;
	size_t index;
	json_t *value;

	json_object_foreach(json_object_get(params, "env"), name, value)
	{
		plugin_mask_add_word(words, &left, value);
	}
	plugin_mask_add_word(words, &left, json_object_get(params, "stdin"));
	json_array_foreach(json_object_get(params, "args"), index, value)
	{
		plugin_mask_add_word(words, &left, value);
	}
	return words;
}

void
plugin_mask_learn_words(const PluginRequest *request)
{
	const char *company = json_string_value(request->company);
	char *account;

	if (json_object_size(request->words) == 0)
		return;
	account = xformat("commands of %s", company ? company : "nobody");
	secret_mask_learn(request->plugin->mask, account, request->words);
	free(account);
}

void
plugin_mask_learn(const PluginRequest *request)
{
	Plugin *plugin = request->plugin;

	secret_mask_learn(plugin->mask, json_string_value(request->company), request->secrets);
	plugin_mask_learn_words(request);
	if (plugin->said_full || !secret_mask_is_full(plugin->mask))
		return;
	plugin->said_full = true;
	log_message(LOG_WARNING,
	            "plugin \"%s\": its worker was told too many secrets: all that it says is hidden "
	            "until it is restarted",
	            plugin->manifest->id);
}

void
plugin_mask_make_room(void *owner)
{
	Plugin *plugin = owner;
	const struct PluginRequestList *lists[] = {&plugin->waiting, &plugin->sent};

	if (plugin->process != NULL)
		worker_process_mask_stderr(plugin->process, secret_mask_apply, plugin->mask);
	for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
		for (const PluginRequest *request = TAILQ_FIRST(lists[i]); request != NULL;
		     request = TAILQ_NEXT(request, link))
			secret_mask_learn(plugin->mask, json_string_value(request->company), request->secrets);
}
