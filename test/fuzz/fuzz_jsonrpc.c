/*
 * fuzz_jsonrpc.c
 *		Feeds arbitrary bytes in arbitrary pieces to the line reader and the parser.
 *
 * The first byte is the size of the pieces, the second the longest line.
 * Beyond what the sanitizers see: the lines must not depend on how the bytes
 * were cut, and a message that was understood must survive being written.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "jsonrpc.h"

extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_message(const char *line, size_t length)
{
	RpcMessage message;
	RpcMessage again;
	char *dumped;
	size_t dumped_length;

	rpc_parse(line, length, &message);
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
	uint64_t digest = 14695981039346656037u;
	RpcReadStatus status = RPC_READ_MORE;
	const char *line;
	size_t length;

	for (size_t i = 0; i < size && status == RPC_READ_MORE; i += piece)
	{
		if (rpc_reader_feed(reader, (const char *) data + i, size - i < piece ? size - i : piece) !=
		    RPC_READ_MORE)
			abort();
		while ((status = rpc_reader_next(reader, &line, &length)) == RPC_READ_LINE)
		{
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
