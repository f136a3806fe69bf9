/*
 * message_io.c
 *		Messages to and from the event loop, the large ones by threads.
 *
 * To parse a message of megabytes, or to write it down as JSON, takes longer
 * than others should wait for the loop.  So a thread of libuv's pool does it for
 * messages over LARGE bytes, and gives back what they take of memory as well.
 *
 * What is to be written keeps its order: messages wait for one before them that
 * a thread has.  A writer lives as long as its owner, the threads and libuv's
 * requests that use it.  Whoever reads takes nothing else of a stream while a
 * thread has a line of it, so that lines keep their order, too.
 */
#include <stdlib.h>

#include "base/memory.h"
#include "base/message_io.h"
#include "shared/protocol.h"

#define LARGE ((size_t) 16 * 1024)

/* Threads hold references to values that the loop holds as well. */
#if !JSON_HAVE_ATOMIC_BUILTINS && !JSON_HAVE_SYNC_BUILTINS
#error "jansson counts references without atomic operations here"
#endif

/*
 * Writing
 */

typedef struct Write
{
	uv_write_t request;
	uv_work_t work;
	struct Write *next;
	MessageWriter *writer;
	json_t *message; /* NULL: it has been written down */
	char *line;      /* NULL then: it can't be */
	size_t length;
	size_t bytes; /* about as many, while it waits */
} Write;

struct MessageWriter
{
	uv_stream_t *stream;
	const MessageWriterEvents *events;
	void *owner; /* NULL: closed */
	int users;
	Write *first; /* of those that libuv has not */
	Write *last;
	size_t waiting_bytes; /* of them */
};

static void
write_free(Write *write)
{
	json_decref(write->message);
	rpc_line_free(write->line, write->length);
	free(write);
}

static void
release(MessageWriter *writer)
{
	if (--writer->users == 0)
		free(writer);
}

MessageWriter *
message_writer_new(uv_stream_t *stream, const MessageWriterEvents *events, void *owner)
{
	MessageWriter *writer = xcalloc(1, sizeof *writer);

	writer->stream = stream;
	writer->events = events;
	writer->owner = owner;
	writer->users = 1;
	return writer;
}

void
message_writer_close(MessageWriter *writer)
{
	Write *next;

	for (Write *write = writer->first; write != NULL; write = next)
	{
		next = write->next;
		/* One that a thread has is freed when the thread gives it back. */
		if (write->message == NULL)
			write_free(write);
	}
	writer->first = writer->last = NULL;
	writer->owner = NULL;
	release(writer);
}

size_t
message_writer_unsent(const MessageWriter *writer)
{
	return uv_stream_get_write_queue_size(writer->stream) + writer->waiting_bytes;
}

static void
write_done(uv_write_t *request, int status)
{
	Write *write = request->data;
	MessageWriter *writer = write->writer;

	write_free(write);
	if (writer->owner != NULL)
		writer->events->written(writer->owner, status);
	release(writer);
}

/* Gives libuv what is written down, in its order. */
static void
write_on(MessageWriter *writer)
{
	Write *write;

	while ((write = writer->first) != NULL && write->message == NULL)
	{
		uv_buf_t buffer = uv_buf_init(write->line, (unsigned) write->length);
		bool closing = uv_is_closing((uv_handle_t *) writer->stream);

		writer->first = write->next;
		if (write->next == NULL)
			writer->last = NULL;
		writer->waiting_bytes -= write->bytes;
		write->request.data = write;
		if (!closing && write->line != NULL &&
		    uv_write(&write->request, writer->stream, &buffer, 1, write_done) == 0)
		{
			writer->users++;
			continue;
		}
		write_free(write);
		if (!closing)
		{
			writer->events->failed(writer->owner);
			return;
		}
	}
}

static void
write_down(Write *write)
{
	const MessageWriterEvents *events = write->writer->events;

	write->line = rpc_dump_line(write->message, &write->length);
	if (write->line != NULL && write->length > ENVRT_MAX_LINE && events->instead != NULL)
	{
		json_t *instead = events->instead(write->message, write->length);

		rpc_line_free(write->line, write->length);
		write->line = rpc_dump_line(instead, &write->length);
		json_decref(instead);
	}
	json_decref(write->message);
}

/* Runs in a thread. */
static void
write_down_there(uv_work_t *work)
{
	write_down(work->data);
}

static void
written_down(uv_work_t *work, int status)
{
	Write *write = work->data;
	MessageWriter *writer = write->writer;

	(void) status;
	write->message = NULL;
	if (writer->owner != NULL)
		write_on(writer);
	else
		write_free(write);
	release(writer);
}

void
message_writer_send(MessageWriter *writer, json_t *message)
{
	Write *write = xcalloc(1, sizeof *write);

	write->writer = writer;
	write->message = message;
	write->bytes = rpc_size(message, LARGE);
	write->work.data = write;
	if (write->bytes > LARGE)
	{
		writer->users++;
		/* It fails only for want of a function. */
		(void) uv_queue_work(uv_default_loop(), &write->work, write_down_there, written_down);
	}
	else
	{
		write_down(write);
		write->message = NULL;
	}
	writer->waiting_bytes += write->bytes;
	if (writer->last != NULL)
		writer->last->next = write;
	else
		writer->first = write;
	writer->last = write;
	write_on(writer);
}

/*
 * Reading
 */

typedef struct Reading
{
	uv_work_t work;
	MessageLine line;
	char *memory; /* that the line is in */
	size_t size;
	MessageRead read;
	MessageTake take;
	void *owner;
} Reading;

/* Runs in a thread. */
static void
read_there(uv_work_t *work)
{
	Reading *reading = work->data;

	reading->read(&reading->line);
}

/* Runs in a thread. */
static void
forget_there(uv_work_t *work)
{
	Reading *reading = work->data;

	rpc_message_clear(&reading->line.message);
	rpc_line_free(reading->memory, reading->size);
}

static void
forgotten(uv_work_t *work, int status)
{
	(void) status;
	free(work->data);
}

static void
message_io_read_done(uv_work_t *work, int status)
{
	Reading *reading = work->data;

	(void) status;
	reading->take(reading->owner, &reading->line);
	(void) uv_queue_work(uv_default_loop(), work, forget_there, forgotten);
}

bool
message_read(RpcReader *reader, const char *text, size_t length, MessageRead read, MessageTake take,
             void *owner)
{
	Reading *reading;
	MessageLine line = {.text = text, .length = length};

	if (length > LARGE)
	{
		reading = xcalloc(1, sizeof *reading);
		reading->memory = rpc_reader_detach(reader, &reading->size);
		if (reading->memory != NULL)
		{
			reading->line = line;
			reading->read = read;
			reading->take = take;
			reading->owner = owner;
			reading->work.data = reading;
			(void) uv_queue_work(uv_default_loop(), &reading->work, read_there,
			                     message_io_read_done);
			return true;
		}
		free(reading);
	}
	read(&line);
	take(owner, &line);
	rpc_message_clear(&line.message);
	return false;
}
