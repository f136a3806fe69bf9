/*
 * fuzz_jsonrpc.c
 *		Feeds arbitrary bytes in arbitrary pieces to the line reader and the parser.
 *
 * The first byte is the size of the pieces, the second the longest line, and
 * odd when longer ones are skipped.
 * Beyond what the sanitizers see: the lines must not depend on how the bytes
 * were cut, a message that was understood must survive being written, a line
 * that can't be used must say of whom it is what a message would, and what was
 * mended must not need it again.
 *
 * fuzz: src/host/base/json_mend.c src/host/base/memory.c src/host/base/log.c
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_mend.h"
#include "shared/jsonrpc.h"

extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What JSON parsers agree on, the scanner must see as well. */
static void
check_identity(const char *line, size_t length, const RpcMessage *message)
{
	RpcIdentity identity;
	char *dumped = NULL;
	size_t dumped_length = 0;

	rpc_identify(line, length, &identity);
	rpc_identity_clear(&identity);
	if (message->kind == RPC_INVALID)
		return;
	/* Written anew, no key is hidden by an escape. */
	dumped = rpc_dump_line(message->root, &dumped_length);
	rpc_identify(dumped, dumped_length - 1, &identity);
	if (!identity.is_message || identity.has_method != (message->method != NULL))
		abort();
	if (message->id != NULL && !json_is_null(message->id) &&
	    json_dumpb(message->id, NULL, 0, JSON_ENCODE_ANY) < RPC_IDENTITY_MAX_ID &&
	    !json_equal(identity.id, message->id))
		abort();
	rpc_identity_clear(&identity);
	rpc_line_free(dumped, dumped_length);
}

static void
check_mending(const char *line, size_t length, const json_t *root)
{
	Bytes once = {0};
	Bytes twice = {0};
	json_t *again;

	json_mend(&once, line, length);
	if (once.length > 24 * length + 24)
		abort();
	json_mend(&twice, once.data, once.length);
	if (twice.length != once.length || memcmp(twice.data, once.data, once.length) != 0)
		abort();
	/* What could be read means the same. */
	again = root != NULL ? json_loadb(once.data, once.length, JSON_ALLOW_NUL, NULL) : NULL;
	if (root != NULL && !json_equal(root, again))
		abort();
	json_decref(again);
	bytes_free(&once);
	bytes_free(&twice);
}

static void
check_message(const char *line, size_t length)
{
	RpcMessage message;
	RpcMessage again;
	char *dumped;
	size_t dumped_length;

	rpc_parse(line, length, &message);
	check_identity(line, length, &message);
	check_mending(line, length, message.root);
	if (message.kind == RPC_INVALID)
	{
		if (message.error_text[0] == '\0')
			abort();
	}
	else
	{
		if ((message.kind == RPC_NOTIFICATION) != (message.id == NULL))
			abort();
		if (message.kind == RPC_RESPONSE && (message.result == NULL) == (message.error == NULL))
			abort();
		dumped = rpc_dump_line(message.root, &dumped_length);
		if (dumped == NULL || memchr(dumped, '\n', dumped_length) != dumped + dumped_length - 1)
			abort();
		rpc_parse(dumped, dumped_length - 1, &again);
		if (again.kind != message.kind)
			abort();
		rpc_message_clear(&again);
		rpc_line_free(dumped, dumped_length);
	}
	rpc_message_clear(&message);
}

/* A digest of all lines and of how it ended. */
static uint64_t
read_all(const uint8_t *data, size_t size, size_t piece, size_t max_line, int check)
{
	RpcReader *reader = rpc_reader_new(max_line);
	RpcIdentity identity;
	uint64_t digest = 14695981039346656037u;
	RpcReadStatus status = RPC_READ_MORE;
	const char *line;
	size_t length;

	if (max_line % 8 == 4)
		rpc_reader_skip_long(reader);
	for (size_t i = 0; i < size && status == RPC_READ_MORE; i += piece)
	{
		if (rpc_reader_feed(reader, (const char *) data + i, size - i < piece ? size - i : piece) !=
		    RPC_READ_MORE)
			abort();
		while ((status = rpc_reader_next(reader, &line, &length)) == RPC_READ_LINE ||
		       status == RPC_READ_SKIPPED)
		{
			if (status == RPC_READ_SKIPPED)
			{
				rpc_reader_skipped(reader, &identity);
				digest = (digest ^ identity.length ^ (identity.id != NULL)) * 1099511628211u;
				rpc_identity_clear(&identity);
				continue;
			}
			if (length == 0 || length >= max_line || memchr(line, '\n', length) != NULL)
				abort();
			for (size_t j = 0; j < length; j++)
				digest = (digest ^ (uint8_t) line[j]) * 1099511628211u;
			digest = (digest ^ '\n') * 1099511628211u;
			if (check)
				check_message(line, length);
		}
	}
	rpc_reader_free(reader);
	return digest ^ (uint64_t) status;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t piece;
	size_t max_line;

	rpc_protect_memory();
	if (size < 3)
		return 0;
	piece = data[0] == 0 ? 1 : data[0];
	max_line = data[1] < 2 ? 1 << 20 : (size_t) data[1] * 4;
	data += 2;
	size -= 2;
	if (read_all(data, size, piece, max_line, 1) != read_all(data, size, size, max_line, 0))
		abort();
	return 0;
}
