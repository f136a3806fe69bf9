/*
 * server.c
 *		The unix socket, its clients, and the control channel.
 *
 * A connection is a libuv pipe and a line reader.  Its lines become calls
 * (call.c) for the drivers; the few methods of the host itself are answered
 * here.  What breaks the protocol, and a client that lets answers pile up,
 * ends the connection.  Its end, for whatever reason, cancels its calls.
 *
 * Nothing that one client sends keeps the loop from the others for long.  A
 * long line is parsed, and a long answer written down, by a thread of the pool;
 * a connection reads no further meanwhile, so its requests begin in the order in
 * which they came, and its answers stay in theirs.  When a turn of the loop has
 * done enough, lines that are left wait for the next one, where one connection
 * after the other gets on with at least one line.
 *
 * The control channel is a connection too, with its own methods; its end is
 * the end of the process.  It does not wait for the others.
 *
 * Secrets come in here: the receive buffer is shared by all connections and
 * zeroed after each read, the line reader and JSON zero their own memory, and
 * a line that goes out is zeroed when it has been written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#include "calls/call.h"
#include "server/driver_table.h"
#include "calls/execute_request.h"
#include "base/host_instance.h"
#include "base/latency.h"
#include "calls/lease_keys.h"
#include "base/log.h"
#include "server/long_execution.h"
#include "base/loop_turns.h"
#include "base/memory.h"
#include "base/message_io.h"
#include "plugins/operator_methods.h"
#include "plugins/plugin_registry.h"
#include "shared/protocol.h"
#include "sandbox/sandbox_lease.h"
#include "server/server.h"
#include "server/configure.h"
#include "ssh/ssh_pool.h"
#include "base/timer.h"
#include "transfer/transfer.h"

/* More answers than this waiting to be read, and the client is dropped. */
#define MAX_UNREAD ((size_t) ENVRT_MAX_LINE + 1024 * 1024)

typedef struct Connection Connection;

struct Connection
{
	uv_pipe_t pipe;
	Connection *next;
	Connection *previous;
	int users;     /* the pipe, and a thread that reads a line */
	LoopTurn turn; /* it has lines that no turn had time for */
	RpcReader *reader;
	MessageWriter *writer;
	pid_t peer;
	Timer *doom; /* runs when the connection is to be closed soon */
	bool control;
	bool parsing; /* a thread has a line of the reader's */
	bool reading;
	bool closing;
};

/* A client with more unread than this is behind, until it has no more than that. */
#define BEHIND ((size_t) 1024 * 1024)
#define CAUGHT_UP ((size_t) 256 * 1024)

static uv_pipe_t listener;
static bool listening;
static Connection *first_connection;
static char receive_buffer[65536];
static int64_t started_at;

/* Of several users the last one frees it. */
static void
connection_release(Connection *connection)
{
	if (--connection->users > 0)
		return;
	rpc_reader_free(connection->reader);
	free(connection);
}

static void
connection_closed(uv_handle_t *handle)
{
	connection_release(handle->data);
}

static void
connection_close(Connection *connection)
{
	if (connection->closing)
		return;
	connection->closing = true;
	timer_stop(&connection->doom);
	if (connection->control)
		_exit(0);
	loop_turn_forget(&connection->turn);
	message_writer_close(connection->writer);
	if (connection->previous != NULL)
		connection->previous->next = connection->next;
	else
		first_connection = connection->next;
	if (connection->next != NULL)
		connection->next->previous = connection->previous;
	uv_close((uv_handle_t *) &connection->pipe, connection_closed);
	calls_cancel(connection);
}

static void
close_doomed(void *data)
{
	connection_close(data);
}

/*
 * A send happens deep inside of whatever ended a call; to cancel other calls
 * from there would pull the ground from under it.  So not now, but next.
 */
static void
close_soon(Connection *connection)
{
	timer_start(&connection->doom, 0, close_doomed, connection);
}

/* Bytes that were sent and not read yet. */
static size_t
connection_unread(const Connection *connection)
{
	return message_writer_unsent(connection->writer);
}

static void
server_written(void *owner, int status)
{
	Connection *connection = owner;

	if (status < 0)
		connection_close(connection);
	else if (connection_unread(connection) <= CAUGHT_UP)
		calls_tell_room(connection);
}

static void
server_unwritable(void *owner)
{
	close_soon(owner);
}

/* An answer that no line can hold costs its call, and not the connection. */
static json_t *
shorter(const json_t *message, size_t length)
{
	HostError *error = error_new("38000", "the driver's answer is too long");
	json_t *instead;

	error_detail(error, "It has %zu bytes as JSON, of at most %d.", length, ENVRT_MAX_LINE);
	instead = error_response(json_incref(json_object_get(message, "id")), error);
	error_free(error);
	return instead;
}

/* Takes the message, and drops a client that does not read. */
static void
connection_send(Connection *connection, json_t *message)
{
	if (message == NULL || connection->closing)
	{
		json_decref(message);
		return;
	}
	message_writer_send(connection->writer, message);
	if (connection_unread(connection) > MAX_UNREAD)
	{
		log_message(LOG_WARNING, "client %d does not read its answers: dropped",
		            (int) connection->peer);
		close_soon(connection);
	}
}

static bool
notify(void *data, const char *method, json_t *params)
{
	Connection *connection = data;
	json_t *message = json_object();

	json_object_set_new(message, "jsonrpc", json_string("2.0"));
	json_object_set_new(message, "method", json_string(method));
	json_object_set_new(message, "params", params);
	connection_send(connection, message);
	return connection_unread(connection) <= BEHIND;
}

static void
end(void *data, const json_t *id, json_t *result, HostError *error)
{
	json_t *own_id = json_incref((json_t *) id);

	connection_send(data, error ? error_response(own_id, error) : rpc_response(own_id, result));
	error_free(error);
}

static CallOrigin
origin(Connection *connection, const RpcMessage *message)
{
	static const CallSink sink = {.notify = notify, .end = end, .measured = true};

	return (CallOrigin){&sink, connection, connection->peer, message->id};
}

/* Takes the error. */
static void
server_refuse(Connection *connection, json_t *id, HostError *error)
{
	connection_send(connection, error_response(json_incref(id), error));
	error_free(error);
}

static void
server_fail(Connection *connection, json_t *id, int code, HostError *error)
{
	error->code = code;
	server_refuse(connection, id, error);
}

static json_int_t
resident_bytes(void)
{
	size_t bytes = 0;

	uv_resident_set_memory(&bytes);
	return (json_int_t) bytes;
}

static json_t *
stats(const json_t *params)
{
	json_t *host = json_object();
	json_t *result = json_object();

	json_object_set_new(host, "pid", json_integer(getpid()));
	json_object_set_new(host, "startedAt", json_integer(started_at));
	json_object_set_new(host, "calls", json_integer(calls_total()));
	json_object_set_new(host, "activeCalls", json_integer((json_int_t) calls_active()));
	json_object_set_new(host, "rssBytes", json_integer(resident_bytes()));
	json_object_set_new(host, "leaseKeys", json_integer((json_int_t) lease_keys_count()));
	json_object_set_new(host, "loop",
	                    loop_turns_describe(json_is_true(json_object_get(params, "resetLoop"))));
	json_object_set_new(result, "host", host);
	json_object_set_new(result, "calls", calls_describe());
	json_object_set_new(result, "latency", latencies_describe());
	json_object_set_new(result, "sshSessions", ssh_pool_describe());
	json_object_set_new(result, "plugins", plugins_describe());
	json_object_set_new(result, "sandboxes", sandbox_leases_describe());
	json_object_set_new(result, "executions", long_executions_describe());
	json_object_set_new(result, "transfers", transfers_describe());
	return result;
}

static json_t *
hello(void)
{
	json_t *result = json_object();

	json_object_set_new(result, "instance", json_string(host_instance()));
	json_object_set_new(result, "pid", json_integer(getpid()));
	json_object_set_new(result, "startedAt", json_integer(started_at));
	return result;
}

static const char *
company_of(const RpcMessage *message)
{
	return json_string_value(json_object_get(message->params, "companyId"));
}

static void
dispatch_driver(Connection *connection, const RpcMessage *message)
{
	DriverChoice choice;
	HostError *error = driver_choose(message->method, message->params, &choice);
	CallOrigin from = origin(connection, message);
	Call *call;

	if (error != NULL)
		server_refuse(connection, message->id, error);
	else if ((call = call_begin(&from, message->method, choice.key, company_of(message), &error)) ==
	         NULL)
	{
		/* Whoever keeps a book of leases wants to know that this one was not begun. */
		if (strcmp(message->method, "environmentAcquireLease") == 0)
			error->outcome = OUTCOME_ABSENT;
		server_refuse(connection, message->id, error);
	}
	else
		driver_start(&choice, call, message->params);
}

/* What is said about an execution that is known by its id alone. */
static void
dispatch_execution(Connection *connection, const RpcMessage *message)
{
	const char *verb = message->method + strlen(LONG_EXECUTION_PREFIX);
	HostError *error;

	if (strcmp(verb, "Read") == 0)
	{
		CallOrigin from = origin(connection, message);

		long_execution_read(call_begin_waiting(&from, message->method), message->params);
		return;
	}
	if (strcmp(verb, "Start") == 0)
		error = long_execution_start(message->params);
	else if (strcmp(verb, "Cancel") == 0)
		error = long_execution_cancel(message->params);
	else if (strcmp(verb, "Forget") == 0)
		error = long_execution_forget(message->params);
	else
	{
		error = error_new("42704", "the driver host has no method %s", message->method);
		error->code = RPC_METHOD_NOT_FOUND;
	}
	if (error != NULL)
		server_refuse(connection, message->id, error);
	else
		connection_send(connection, rpc_response(json_incref(message->id), json_null()));
}

static void
dispatch_plugins(Connection *connection, const RpcMessage *message)
{
	HostError *refusal;
	CallOrigin from = origin(connection, message);
	Call *call = call_begin(&from, message->method, NULL, company_of(message), &refusal);

	if (call == NULL)
		server_refuse(connection, message->id, refusal);
	else
		plugin_methods_start(call, message->method, message->params);
}

/* A call that is over, or never was, is as good as cancelled. */
static void
server_cancel(Connection *connection, const RpcMessage *message)
{
	const json_t *id = json_object_get(message->params, "id");

	if (!json_is_integer(id) && !json_is_string(id))
	{
		server_fail(connection, message->id, RPC_INVALID_PARAMS,
		            error_new("22023", "envrt/cancel: id must be that of a call"));
		return;
	}
	calls_cancel_one(connection, id);
	connection_send(connection, rpc_response(json_incref(message->id), json_null()));
}

static void
dispatch(Connection *connection, const RpcMessage *message)
{
	json_t *id = message->id;
	const char *method = message->method;

	if (strcmp(method, "envrt/ping") == 0)
		connection_send(connection, rpc_response(json_incref(id), json_null()));
	else if (connection->control && strcmp(method, "configure") == 0)
	{
		settings_configure(message->params);
		/* The first answer says that we listen, and no call comes before the settings. */
		if (!listening && !server_listen())
			exit(1);
		connection_send(connection, rpc_response(json_incref(id), json_true()));
	}
	else if (connection->control && strcmp(method, "databaseGone") == 0)
	{
		const char *ledger = json_string_value(json_object_get(message->params, "ledger"));

		long_executions_drop(json_integer_value(json_object_get(message->params, "database")));
		if (ledger != NULL)
			sandbox_leases_drop(ledger);
		connection_send(connection, rpc_response(json_incref(id), json_null()));
	}
	else if (connection->control)
		server_fail(connection, id, RPC_METHOD_NOT_FOUND,
		            error_new("42704", "the control channel has no method %s", method));
	else if (strcmp(method, "envrt/hello") == 0)
		connection_send(connection, rpc_response(json_incref(id), hello()));
	else if (strcmp(method, "envrt/stats") == 0)
		connection_send(connection, rpc_response(json_incref(id), stats(message->params)));
	else if (strcmp(method, "envrt/cancel") == 0)
		server_cancel(connection, message);
	else if (plugin_methods_has(method))
		dispatch_plugins(connection, message);
	else if (strncmp(method, "environment", strlen("environment")) == 0)
		dispatch_driver(connection, message);
	else if (strncmp(method, LONG_EXECUTION_PREFIX, strlen(LONG_EXECUTION_PREFIX)) == 0)
		dispatch_execution(connection, message);
	else
		server_fail(connection, id, RPC_METHOD_NOT_FOUND,
		            error_new("42704", "the driver host has no method %s", method));
}

static void
take_message(Connection *connection, RpcMessage *message)
{
	if (message->kind == RPC_REQUEST)
		dispatch(connection, message);
	else if (message->kind != RPC_NOTIFICATION)
	{
		log_message(LOG_WARNING, "client %d broke the protocol: %s", (int) connection->peer,
		            message->kind == RPC_INVALID ? message->error_text : "an answer to no request");
		connection_close(connection);
	}
}

static void
server_read_line(MessageLine *line)
{
	RpcMessage *message = &line->message;

	line->problem = rpc_line_problem(line->text, line->length);
	if (line->problem != NULL)
	{
		message->kind = RPC_INVALID;
		snprintf(message->error_text, sizeof message->error_text, "%s", line->problem);
		return;
	}
	rpc_parse(line->text, line->length, message);
	/* Plugins have their input as text. */
	if (driver_is_own(message->params))
		execute_request_prepare(message->params);
}

static void serve_lines(Connection *connection, bool in_turn);

static void
server_take_line(void *owner, MessageLine *line)
{
	Connection *connection = owner;
	bool elsewhere = connection->parsing;

	connection->parsing = false;
	if (!connection->closing)
		take_message(connection, &line->message);
	if (!elsewhere)
		return;
	if (!connection->closing)
		serve_lines(connection, false);
	connection_release(connection);
}

static void
handle_line(Connection *connection, const char *line, size_t length)
{
	if (!message_read(connection->reader, line, length, server_read_line, server_take_line,
	                  connection))
		return;
	connection->parsing = true;
	connection->users++;
}

static void server_read_on(Connection *connection, bool on);

/*
 * Takes lines until there is none, or the turn has done enough; `in_turn`: one
 * in any case.  Nothing more is read while there are lines.
 */
static void
serve_lines(Connection *connection, bool in_turn)
{
	const char *line;
	size_t length;

	while (!connection->closing && !connection->parsing)
	{
		RpcReadStatus status;

		if (!in_turn && !connection->control && loop_turn_is_long())
		{
			server_read_on(connection, false);
			loop_turn_wait(&connection->turn);
			return;
		}
		in_turn = false;
		status = rpc_reader_next(connection->reader, &line, &length);
		if (status == RPC_READ_LINE)
			handle_line(connection, line, length);
		else if (status == RPC_READ_MORE)
		{
			server_read_on(connection, true);
			return;
		}
		else
		{
			log_message(LOG_WARNING, "client %d broke the protocol: line too long",
			            (int) connection->peer);
			connection_close(connection);
		}
	}
	if (!connection->closing)
		server_read_on(connection, false);
}

static void
serve_turn(void *data, bool first)
{
	serve_lines(data, first);
}

static void
server_lend_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
	(void) handle;
	(void) suggested;
	*buffer = uv_buf_init(receive_buffer, sizeof receive_buffer);
}

static void
server_data_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
	Connection *connection = stream->data;

	if (count == 0)
		return;
	if (count < 0)
	{
		connection_close(connection);
		return;
	}
	(void) rpc_reader_feed(connection->reader, buffer->base, (size_t) count);
	explicit_bzero(buffer->base, (size_t) count);
	serve_lines(connection, false);
}

static void
server_read_on(Connection *connection, bool on)
{
	if (connection->reading == on)
		return;
	connection->reading = on;
	if (!on)
		uv_read_stop((uv_stream_t *) &connection->pipe);
	else if (uv_read_start((uv_stream_t *) &connection->pipe, server_lend_buffer,
	                       server_data_read) < 0)
		connection_close(connection);
}

static Connection *
connection_new(void)
{
	static const MessageWriterEvents events = {
	    .written = server_written,
	    .failed = server_unwritable,
	    .instead = shorter,
	};
	Connection *connection = xcalloc(1, sizeof *connection);

	connection->reader = rpc_reader_new(ENVRT_MAX_LINE);
	connection->writer = message_writer_new((uv_stream_t *) &connection->pipe, &events, connection);
	connection->turn = (LoopTurn){.serve = serve_turn, .data = connection};
	uv_pipe_init(uv_default_loop(), &connection->pipe, 0);
	connection->pipe.data = connection;
	connection->users = 1;
	connection->next = first_connection;
	if (first_connection != NULL)
		first_connection->previous = connection;
	first_connection = connection;
	return connection;
}

static void
connection_read(Connection *connection)
{
	if (connection->reader == NULL)
		connection_close(connection);
	else
		server_read_on(connection, true);
}

/* Whether the peer runs as our own user; others have no business here. */
static bool
check_peer(Connection *connection)
{
	struct ucred peer;
	socklen_t length = sizeof peer;
	uv_os_fd_t fd;

	if (uv_fileno((uv_handle_t *) &connection->pipe, &fd) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0 || peer.uid != geteuid())
		return false;
	connection->peer = peer.pid;
	return true;
}

static void
client_came(uv_stream_t *server, int status)
{
	Connection *connection;

	if (status < 0)
		return;
	connection = connection_new();
	if (uv_accept(server, (uv_stream_t *) &connection->pipe) < 0 || !check_peer(connection))
	{
		connection_close(connection);
		return;
	}
	connection_read(connection);
}

bool
server_listen(void)
{
	/* Bound under another name and then renamed: what a dead predecessor left is replaced. */
	static const char temporary[] = ENVRT_SOCKET_NAME ".new";
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	memcpy(address.sun_path, temporary, sizeof temporary);
	if (fd < 0 || (unlink(temporary) < 0 && errno != ENOENT) ||
	    bind(fd, (struct sockaddr *) &address, sizeof address) < 0 || listen(fd, SOMAXCONN) < 0 ||
	    rename(temporary, ENVRT_SOCKET_NAME) < 0)
	{
		log_message(LOG_WARNING, "could not listen on %s: %s", ENVRT_SOCKET_NAME, strerror(errno));
		if (fd >= 0)
			close(fd);
		return false;
	}
	started_at = epoch_ms();
	uv_pipe_init(uv_default_loop(), &listener, 0);
	if (uv_pipe_open(&listener, fd) < 0 ||
	    uv_listen((uv_stream_t *) &listener, SOMAXCONN, client_came) < 0)
	{
		log_message(LOG_WARNING, "could not serve %s", ENVRT_SOCKET_NAME);
		return false;
	}
	listening = true;
	return true;
}

void
server_control(int fd)
{
	Connection *connection = connection_new();

	connection->control = true;
	connection->peer = getppid();
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (uv_pipe_open(&connection->pipe, fd) < 0)
	{
		log_message(LOG_WARNING, "the control channel is unusable");
		_exit(1);
	}
	connection_read(connection);
}

void
server_close(void)
{
	Connection *next;

	if (listening)
	{
		uv_close((uv_handle_t *) &listener, NULL);
		unlink(ENVRT_SOCKET_NAME);
		listening = false;
	}
	for (Connection *connection = first_connection; connection != NULL; connection = next)
	{
		next = connection->next;
		if (connection->control)
		{
			/* Its end would end the process before the rest is undone. */
			connection->control = false;
		}
		connection_close(connection);
		next = first_connection;
	}
}
