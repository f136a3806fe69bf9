/*
 * rpc_identity.h
 *		Whose a line is that can't be used as a message.
 */
#ifndef ENVRT_RPC_IDENTITY_H
#define ENVRT_RPC_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>

#include "shared/json_library.h"

/* The longest id, as JSON. */
#define RPC_IDENTITY_MAX_ID 256

typedef struct RpcIdentity
{
	bool is_message; /* it begins as an object, and says "jsonrpc": "2.0" */
	bool has_method;
	json_t
	    *id; /* an integer or a string, owned; NULL: none, more than one, or none that is right */
	size_t length; /* of the line */
} RpcIdentity;

/*
 * Looks at the bytes of one line, in any pieces, and keeps nothing of them but
 * the members of the outermost object that it needs.  All zero at first.
 */
typedef struct RpcScanner
{
	size_t length;
	unsigned depth;
	bool begun;
	bool is_object;
	bool in_text;
	bool escaped;
	bool in_key;   /* the text is a key of the outermost object */
	bool in_value; /* what follows is a value of it */
	bool keeps;    /* ... which is kept */
	bool over;     /* the outermost object has ended */
	char key[8];
	size_t key_length;
	char value[RPC_IDENTITY_MAX_ID];
	size_t value_length;
	bool value_is_nested;
	bool has_version;
	bool has_method;
	unsigned ids;
	char id[RPC_IDENTITY_MAX_ID];
	size_t id_length;
} RpcScanner;

extern void rpc_scan(RpcScanner *scanner, const char *bytes, size_t length);
extern void rpc_scan_end(const RpcScanner *scanner, RpcIdentity *identity);

/* The same for a line that is there as a whole. */
extern void rpc_identify(const char *line, size_t length, RpcIdentity *identity);
extern void rpc_identity_clear(RpcIdentity *identity);

#endif
