/*
 * json.h
 *		Between jsonb and the JSON library; see json.c.
 */
#ifndef ENVRT_JSON_H
#define ENVRT_JSON_H

#include "postgres.h"

#include "shared/json_library.h"

#include "utils/jsonb.h"

/* json_t objects live until the memory context they were guarded in ends. */
extern json_t *json_guard(json_t *json);

extern json_t *json_from_jsonb(Jsonb *jsonb);
extern Jsonb *jsonb_from_json(const json_t *json);

/* Text in UTF-8, as JSON needs it, and back: a question mark for what the encoding has not. */
extern char *text_to_utf8(const char *text);
extern char *text_from_utf8(const char *text);

/* A string member of a jsonb object in the database's encoding, or NULL. */
extern char *jsonb_string_member(Jsonb *jsonb, const char *key);

/* Builds jsonb objects without a detour through text. */
typedef struct JsonbObject
{
	JsonbParseState *state;
} JsonbObject;

extern void jsonb_object_begin(JsonbObject *object);
extern void jsonb_object_string(JsonbObject *object, const char *key, const char *value);
extern void jsonb_object_jsonb(JsonbObject *object, const char *key, Jsonb *value);
extern void jsonb_object_bool(JsonbObject *object, const char *key, bool value);
extern Jsonb *jsonb_object_end(JsonbObject *object);

#endif
