/*
 * message_io.h
 *		Messages to and from the event loop, the large ones by threads.
 */
#ifndef ENVRT_HOST_MESSAGE_IO_H
#define ENVRT_HOST_MESSAGE_IO_H

#include <stdbool.h>
#include <stddef.h>

#include <uv.h>

#include "shared/jsonrpc.h"

/* Writes messages to a stream, in their order. */
typedef struct MessageWriter MessageWriter;

typedef struct MessageWriterEvents
{
	/* A message has left us, or is lost with the stream: status < 0. */
	void (*written)(void *owner, int status);

	/* A message could not be written at all. */
	void (*failed)(void *owner);

	/* What is written instead of a message of more than ENVRT_MAX_LINE bytes; NULL: itself. */
	json_t *(*instead)(const json_t *message, size_t length);
} MessageWriterEvents;

extern MessageWriter *message_writer_new(uv_stream_t *stream, const MessageWriterEvents *events,
                                         void *owner);

/* Takes the message, which nobody changes any more. */
extern void message_writer_send(MessageWriter *writer, json_t *message);

/* How many bytes have not left us; about as many for what is not written down yet. */
extern size_t message_writer_unsent(const MessageWriter *writer);

/* Drops what can be dropped.  No event comes any more; the stream is closed by its owner. */
extern void message_writer_close(MessageWriter *writer);

/* A line, and what it says. */
typedef struct MessageLine
{
	const char *text;
	size_t length;
	RpcMessage message;
	const char *problem;  /* why it can't be used, or NULL */
	RpcIdentity identity; /* of one that can't */
} MessageLine;

/* Fills in what the line says; of a large one in a thread. */
typedef void (*MessageRead)(MessageLine *line);

/* Takes what the line says; it is gone afterwards, but for an identity. */
typedef void (*MessageTake)(void *owner, MessageLine *line);

/*
 * Has the line that the reader gave last read and taken.  True: a thread has it,
 * and it will be taken from the event loop.
 */
extern bool message_read(RpcReader *reader, const char *text, size_t length, MessageRead read,
                         MessageTake take, void *owner);

#endif
