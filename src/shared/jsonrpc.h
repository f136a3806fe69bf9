/*
 * jsonrpc.h
 *		Newline-delimited JSON-RPC 2.0: the line splitter and message classes.
 *
 * Nothing here throws, longjmps or blocks; the caller owns all I/O.  Input is
 * hostile: every length is capped and every message is checked.
 */
#ifndef ENVRT_JSONRPC_H
#define ENVRT_JSONRPC_H

#include <stdbool.h>
#include <stddef.h>

#include "shared/json_library.h"
#include "shared/rpc_identity.h"

/*
 * Make jansson zero every block that it frees, since messages carry secrets.
 * Blocks stay plain malloc blocks, so that a process in which somebody else
 * uses jansson as well is not disturbed.  Idempotent.
 */
extern void rpc_protect_memory(void);

/* Splits a byte stream into lines of at most max_line bytes. */
typedef struct RpcReader RpcReader;

typedef enum
{
	RPC_READ_LINE,     /* a line is at *line, valid until the next call */
	RPC_READ_MORE,     /* feed more bytes */
	RPC_READ_SKIPPED,  /* a line over the limit has been read past; its beginning is at *line */
	RPC_READ_TOO_LONG, /* the line is over the limit; the stream is lost */
	RPC_READ_NO_MEMORY /* out of memory; the stream is lost */
} RpcReadStatus;

extern RpcReader *rpc_reader_new(size_t max_line);

/*
 * A line that is too long does not lose the stream: it is read to its end without
 * being kept, and then there is RPC_READ_SKIPPED, after which rpc_reader_skipped()
 * says whose it was, until the next call.
 */
extern void rpc_reader_skip_long(RpcReader *reader);
extern void rpc_reader_skipped(const RpcReader *reader, RpcIdentity *identity);
extern void rpc_reader_free(RpcReader *reader); /* zeroes what it held */
extern RpcReadStatus rpc_reader_feed(RpcReader *reader, const char *bytes, size_t length);

/*
 * Takes the next line, without its newline and a carriage return before it;
 * blank lines are skipped.  Consumed bytes are zeroed by the next call.
 */
extern RpcReadStatus rpc_reader_next(RpcReader *reader, const char **line, size_t *length);

/*
 * Takes the line that rpc_reader_next() gave last out of the reader, with the
 * memory that it is in: free with rpc_line_free (of *size bytes).  NULL: there
 * was no memory for what follows the line.
 */
extern char *rpc_reader_detach(RpcReader *reader, size_t *size);

typedef enum
{
	RPC_REQUEST,      /* method and id */
	RPC_NOTIFICATION, /* method, no id key */
	RPC_RESPONSE,     /* id, and result or error */
	RPC_INVALID       /* anything else; error_text says why */
} RpcKind;

typedef struct RpcMessage
{
	RpcKind kind;
	json_t *root;       /* owned; the members below are borrowed from it */
	json_t *id;         /* request, response */
	const char *method; /* request, notification */
	json_t *params;     /* NULL when absent */
	json_t *result;     /* response; NULL when it is an error */
	json_t *error;      /* response; an object, or NULL */
	char error_text[160];
} RpcMessage;

/*
 * rpc_line_problem
 *		What is wrong with the size of a line's JSON; NULL: nothing.
 *
 * Counts without parsing, in time and memory that the line's length bounds:
 * both sides ask it before they spend more.  A line that passes has at most
 * ENVRT_MAX_VALUES values and is nested at most ENVRT_MAX_DEPTH deep.
 */
extern const char *rpc_line_problem(const char *line, size_t length);

extern void rpc_parse(const char *line, size_t length, RpcMessage *message);
extern void rpc_message_clear(RpcMessage *message);

/*
 * Builders.  All return a new reference, or NULL when out of memory; they
 * steal the json_t arguments, also on failure.  A NULL argument counts as out
 * of memory while it was built, so calls can be nested; only an error's data
 * may be NULL for none.
 */
extern json_t *rpc_request(json_int_t id, const char *method, json_t *params);
extern json_t *rpc_response(json_t *id, json_t *result);
extern json_t *rpc_error(json_t *id, int code, const char *message, json_t *data);

/* About the bytes that a value has as JSON; what is beyond `limit` is not counted. */
extern size_t rpc_size(const json_t *value, size_t limit);

/* A message as one line with its newline; free with rpc_line_free. */
extern char *rpc_dump_line(const json_t *message, size_t *length);
extern void rpc_line_free(char *line, size_t length); /* zeroes it first */

#endif
