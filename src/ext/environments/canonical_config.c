/*
 * canonical_config.c
 *		An environment's config in its canonical shape.
 *
 * shared/driver_config.c checks a config and fills in its defaults, for the driver host
 * as well; here its issues become errors, and what is stored keeps the numbers
 * that were given.
 */
#include "postgres.h"

#include "base/json.h"
#include "environments/builtin_providers.h"
#include "environments/canonical_config.h"
#include "shared/driver_config.h"
#include "utils/builtins.h"

static char *
issues_detail(const ConfigIssues *issues)
{
	json_t *list = json_guard(json_array());
	json_t *root;

	for (int i = 0; i < issues->count; i++)
	{
		const ConfigIssue *issue = &issues->issue[i];
		json_t *path = json_array();
		char *copy = pstrdup(issue->path);
		char *rest = NULL;

		for (char *key = strtok_r(copy, ".", &rest); key != NULL; key = strtok_r(NULL, ".", &rest))
			json_array_append_new(path, json_string(key));
		json_array_append_new(list,
		                      json_pack("{s:o, s:s}", "path", path, "message", issue->message));
	}
	root = json_guard(json_pack("{s:O}", "issues", list));
	return JsonbToCString(NULL, &jsonb_from_json(root)->root, 0);
}

json_t *
config_canonical_json(const char *driver, json_t *config)
{
	ConfigIssues *issues = palloc0(sizeof(ConfigIssues));
	json_t *canonical = config_normalize(text_to_utf8(driver), config, issues);
	char text[512];

	if (canonical == NULL && issues->count > 0)
	{
		config_issue_text(&issues->issue[0], text, sizeof(text));
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		                errmsg_internal("%s", text_from_utf8(text)),
		                errdetail_internal("%s", issues_detail(issues)),
		                strcmp(issues->issue[0].path, "driver") == 0
		                    ? errhint("The drivers are local, ssh, sandbox and plugin.")
		                    : 0));
	}
	return json_guard(canonical);
}

json_t *
config_canonical(const char *driver, Jsonb *config)
{
	/* Any object will do, also one that the JSON library would not read. */
	if (strcmp(driver, "local") == 0)
		return json_guard(json_object_new());
	return config_canonical_json(driver, json_from_jsonb(config));
}

char *
config_problem(const char *driver, Jsonb *config)
{
	ConfigIssues *issues = palloc0(sizeof(ConfigIssues));
	json_t *canonical = config_normalize(text_to_utf8(driver), json_from_jsonb(config), issues);
	char text[512];

	if (canonical == NULL && issues->count > 0)
	{
		config_issue_text(&issues->issue[0], text, sizeof(text));
		return text_from_utf8(text);
	}
	(void) json_guard(canonical);
	return NULL;
}

/* object || {key: value} */
static Jsonb *
with_member(Jsonb *object, const char *key, const JsonbValue *value)
{
	JsonbParseState *state = NULL;
	JsonbValue name = {.type = jbvString};
	JsonbValue copy = *value;

	name.val.string.val = unconstify(char *, key);
	name.val.string.len = strlen(key);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	pushJsonbValue(&state, WJB_KEY, &name);
	pushJsonbValue(&state, WJB_VALUE, &copy);
	return DatumGetJsonbP(DirectFunctionCall2(
	    jsonb_concat, JsonbPGetDatum(object),
	    JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)))));
}

/*
 * jsonb keeps numbers that the JSON library can't (1.10, 30 digits).  Where
 * something passes through unchanged it is stored as it was given, so that
 * nothing is rounded on the way.
 */
Jsonb *
config_stored(const char *driver, Jsonb *given, const json_t *canonical)
{
	static const char *const provider_keys[] = {"provider", "timeoutMs", "reuseLease"};
	JsonbValue value;
	json_t *known;
	const char *provider;

	if (!JB_ROOT_IS_OBJECT(given))
		return jsonb_from_json(canonical);
	if (strcmp(driver, "local") == 0)
		return given;
	if (strcmp(driver, "plugin") == 0 &&
	    getKeyJsonValueFromContainer(&given->root, "driverConfig", strlen("driverConfig"),
	                                 &value) != NULL)
		return with_member(jsonb_from_json(canonical), "driverConfig", &value);
	if (strcmp(driver, "sandbox") != 0)
		return jsonb_from_json(canonical);
	provider = json_string_value(json_object_get(canonical, "provider"));
	if (provider_is_builtin(provider))
		return jsonb_from_json(canonical);
	known = json_guard(json_object_new());
	for (int i = 0; i < (int) lengthof(provider_keys); i++)
	{
		json_t *member = json_object_get(canonical, provider_keys[i]);

		if (member != NULL)
			json_object_set(known, provider_keys[i], member);
	}
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(given),
	                                          JsonbPGetDatum(jsonb_from_json(known))));
}
