/*
 * secret_fields.c
 *		Which strings of a config are secrets, by the plugin's JSON schema.
 *
 * A plugin's configSchema marks a field as "format": "secret-ref".  Config and schema are walked
 * together: properties, patternProperties, additionalProperties, unevaluatedProperties, and items,
 * prefixItems, additionalItems, unevaluatedItems and contains lead down; the schemas of allOf,
 * anyOf, oneOf, if, then, else, dependentSchemas and dependencies, and what a $ref within the
 * document refers to, are about the same value.  Rather too much is a secret than too little: it
 * is not asked which branch of an anyOf applies, nor which names a pattern means.
 *
 * The schema is the plugin's, so the walk is bounded.  Where it would end
 * early there may be secrets that were not seen: that is an error.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "secrets/secret_fields.h"

#define MAX_DEPTH 64
#define MAX_STEPS 100000

typedef struct Walk
{
	json_t *root;
	SecretFieldVisitor visitor;
	void *data;
	int steps;
} Walk;

static json_t *secret_fields_walk(Walk *walk, json_t *schema, json_t *value, const char *path,
                                  int depth);

/* Of a JSON pointer: ~1 is a slash and ~0 a tilde. */
static void
unescape(char *name)
{
	char *to = name;

	for (const char *from = name; *from != '\0'; from++)
	{
		*to = *from;
		if (from[0] == '~' && (from[1] == '0' || from[1] == '1'))
			*to = *++from == '0' ? '~' : '/';
		to++;
	}
	*to = '\0';
}

/* What "#/$defs/key" refers to, or NULL. */
static json_t *
follow(const Walk *walk, const char *reference)
{
	json_t *schema = walk->root;
	char *copy;
	char *rest = NULL;

	if (reference[0] != '#')
		return NULL;
	copy = pstrdup(reference + 1);
	for (char *name = strtok_r(copy, "/", &rest); name != NULL; name = strtok_r(NULL, "/", &rest))
	{
		unescape(name);
		schema = json_is_array(schema) ? json_array_get(schema, strtoul(name, NULL, 10))
		                               : json_object_get(schema, name);
	}
	return schema;
}

static char *
below(const char *path, const char *name)
{
	return path[0] == '\0' ? pstrdup(name) : psprintf("%s.%s", path, name);
}

static void
visit_members(Walk *walk, const json_t *schema, json_t *object, const char *path, int depth)
{
	json_t *properties = json_object_get(schema, "properties");
	json_t *patterns = json_object_get(schema, "patternProperties");
	json_t *others = json_object_get(schema, "additionalProperties");
	json_t *unevaluated = json_object_get(schema, "unevaluatedProperties");
	const char *pattern;
	json_t *of_pattern;
	const char *key;
	json_t *member;
	void *next;

	if (properties == NULL && patterns == NULL && others == NULL && unevaluated == NULL)
		return;
	json_object_foreach_safe(object, next, key, member)
	{
		json_t *of_member = json_object_get(properties, key);
		json_t *other = secret_fields_walk(walk, of_member != NULL ? of_member : others, member,
		                                   below(path, key), depth + 1);

		json_object_foreach(patterns, pattern, of_pattern)
		{
			if (other == NULL)
				other = secret_fields_walk(walk, of_pattern, member, below(path, key), depth + 1);
		}
		if (other == NULL && of_member == NULL)
			other = secret_fields_walk(walk, unevaluated, member, below(path, key), depth + 1);
		if (other != NULL)
			json_object_set(object, key, other);
	}
}

static void
visit_elements(Walk *walk, const json_t *schema, json_t *array, const char *path, int depth)
{
	static const char *const others[] = {"items", "additionalItems", "unevaluatedItems"};
	json_t *items = json_object_get(schema, "items");
	json_t *tuple = json_is_array(items) ? items : json_object_get(schema, "prefixItems");
	json_t *contains = json_object_get(schema, "contains");
	size_t index;
	json_t *element;

	json_array_foreach(array, index, element)
	{
		const char *element_path = below(path, psprintf("%zu", index));
		json_t *of_element = json_array_get(tuple, index);
		json_t *other = secret_fields_walk(walk, of_element, element, element_path, depth + 1);

		for (int i = 0; of_element == NULL && other == NULL && i < (int) lengthof(others); i++)
			other = secret_fields_walk(walk, json_object_get(schema, others[i]), element,
			                           element_path, depth + 1);
		if (other == NULL)
			other = secret_fields_walk(walk, contains, element, element_path, depth + 1);
		if (other != NULL)
			json_array_set(array, index, other);
	}
}

/* What is to stand in the value's place, or NULL. */
static json_t *
secret_fields_walk(Walk *walk, json_t *schema, json_t *value, const char *path, int depth)
{
	static const char *const lists[] = {"allOf", "anyOf", "oneOf"};
	static const char *const singles[] = {"if", "then", "else"};
	static const char *const maps[] = {"dependentSchemas", "dependencies"};
	const char *format = json_string_value(json_object_get(schema, "format"));
	const char *reference = json_string_value(json_object_get(schema, "$ref"));
	json_t *other = NULL;

	if (!json_is_object(schema))
		return NULL;
	if (depth > MAX_DEPTH || walk->steps++ > MAX_STEPS)
		ereport(ERROR,
		        (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
		         errmsg("the plugin's configSchema is too deep or too large to find secrets by"),
		         errhint("Its author should write it without schemas that refer to themselves.")));
	CHECK_FOR_INTERRUPTS();
	if (format != NULL && strcmp(format, "secret-ref") == 0 && json_is_string(value))
		return walk->visitor(walk->data, path, value);
	if (json_is_object(value))
		visit_members(walk, schema, value, path, depth);
	else if (json_is_array(value))
		visit_elements(walk, schema, value, path, depth);
	for (int i = 0; other == NULL && i < (int) lengthof(lists); i++)
	{
		json_t *list = json_object_get(schema, lists[i]);

		for (size_t j = 0; other == NULL && j < json_array_size(list); j++)
			other = secret_fields_walk(walk, json_array_get(list, j), value, path, depth + 1);
	}
	for (int i = 0; other == NULL && i < (int) lengthof(singles); i++)
		other =
		    secret_fields_walk(walk, json_object_get(schema, singles[i]), value, path, depth + 1);
	for (int i = 0; i < (int) lengthof(maps); i++)
	{
		const char *key;
		json_t *member;

		json_object_foreach(json_object_get(schema, maps[i]), key, member)
		{
			if (other == NULL)
				other = secret_fields_walk(walk, member, value, path, depth + 1);
		}
	}
	if (other == NULL && reference != NULL)
		other = secret_fields_walk(walk, follow(walk, reference), value, path, depth + 1);
	return other;
}

void
secret_fields_visit(json_t *schema, json_t *config, SecretFieldVisitor visitor, void *data)
{
	Walk walk = {.root = schema, .visitor = visitor, .data = data};

	if (json_is_object(config))
		(void) secret_fields_walk(&walk, schema, config, "", 0);
}
