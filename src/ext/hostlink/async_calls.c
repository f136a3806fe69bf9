/*
 * async_calls.c
 *		The scheduler's connection to the driver host.
 *
 * Unlike a backend's (blocking_calls.c) it has many calls in flight and never
 * waits: the scheduler's loop waits for its socket together with everything
 * else.  Answers come in any order and go to the callback of their call.
 *
 * The connection is opened as soon as there is a driver host, and begins with
 * envrt/hello, whose answer says which one it is.  When it is lost, each call
 * in flight is told so; what became of it is then for the caller to find out.
 * A call without an answer in time makes the driver host suspect: the
 * launcher pings it, and the connection is dropped.  A call that is too large
 * (call_size.c) would end the connection, with everybody's calls: it is not sent,
 * and answered with an error here.
 */
#include "postgres.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "hostlink/call_size.h"
#include "hostlink/async_calls.h"
#include "shared/jsonrpc.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "shared/protocol.h"
#include "base/shared_state.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "base/timer.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define HELLO_MS 5000
#define RECONNECT_MS 200

typedef struct ClientCall
{
	dlist_node node;
	json_int_t id;
	TimestampTz deadline;
	DriverAnswered answered;
	void *data;
	const char *problem; /* why it is not sent */
} ClientCall;

typedef struct ClientLine
{
	dlist_node node;
	char *line;
	size_t length;
	size_t sent;
} ClientLine;

static pgsocket connection = PGINVALID_SOCKET;
static RpcReader *reader = NULL;
static json_int_t last_id = 0;
static dlist_head calls = DLIST_STATIC_INIT(calls);
static dlist_head lines = DLIST_STATIC_INIT(lines);
/* Those that can't be sent: answered by ourselves. */
static dlist_head refused = DLIST_STATIC_INIT(refused);
static char instance[64] = "";
static TimestampTz connect_at = 0;
static bool delivered = false; /* in this tend */

static void
async_calls_connection_close(void)
{
	static const DriverAnswer lost = {NULL, NULL};

	if (connection == PGINVALID_SOCKET)
		return;
	close(connection);
	connection = PGINVALID_SOCKET;
	ReleaseExternalFD();
	rpc_reader_free(reader);
	reader = NULL;
	instance[0] = '\0';
	connect_at = TimestampTzPlusMilliseconds(timer_now(), RECONNECT_MS);
	while (!dlist_is_empty(&lines))
	{
		ClientLine *line = dlist_container(ClientLine, node, dlist_pop_head_node(&lines));

		rpc_line_free(line->line, line->length);
		pfree(line);
	}
	while (!dlist_is_empty(&calls))
	{
		ClientCall *call = dlist_container(ClientCall, node, dlist_pop_head_node(&calls));

		delivered = true;
		call->answered(call->data, &lost);
		pfree(call);
	}
}

static void
hello_answered(void *data, const DriverAnswer *answer)
{
	const char *name = json_string_value(json_object_get(answer->result, "instance"));

	if (name != NULL)
		strlcpy(instance, name, sizeof(instance));
}

static bool
enqueue(const char *method, json_t *params, int64 timeout_ms, DriverAnswered answered, void *data)
{
	json_t *request = rpc_request(++last_id, method, params);
	ClientCall *call;
	ClientLine *line;
	size_t length = 0;
	char *text = request != NULL ? rpc_dump_line(request, &length) : NULL;
	const char *problem = NULL;

	if (text != NULL)
		problem = call_size_problem(json_object_get(request, "params"), text, length);
	json_decref(request);
	if (text == NULL)
		return false;
	call = MemoryContextAllocZero(TopMemoryContext, sizeof(ClientCall));
	call->id = last_id;
	call->deadline = TimestampTzPlusMilliseconds(timer_now(), timeout_ms);
	call->answered = answered;
	call->data = data;
	call->problem = problem;
	if (problem != NULL)
	{
		rpc_line_free(text, length);
		dlist_push_tail(&refused, &call->node);
		return true;
	}
	dlist_push_tail(&calls, &call->node);
	line = MemoryContextAllocZero(TopMemoryContext, sizeof(ClientLine));
	line->line = text;
	line->length = length;
	dlist_push_tail(&lines, &line->node);
	return true;
}

static void
answer_refused(void)
{
	while (!dlist_is_empty(&refused))
	{
		ClientCall *call = dlist_container(ClientCall, node, dlist_pop_head_node(&refused));
		json_t *error =
		    json_pack("{s:s, s:{s:s, s:s, s:s}}", "message", CALL_TOO_LARGE_MESSAGE, "data",
		              "sqlstate", "54000", "detail", call->problem, "hint", CALL_TOO_LARGE_HINT);
		DriverAnswer answer = {NULL, error};

		delivered = true;
		call->answered(call->data, &answer);
		json_decref(error);
		pfree(call);
	}
}

static void
async_calls_try_connect(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bool running;
	pgsocket fd;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	running = shared_state->host_state == HOST_RUNNING;
	LWLockRelease(shared_state->lock);
	if (!running || timer_now() < connect_at || !AcquireExternalFD())
		return;
	strlcpy(address.sun_path, ENVRT_RUN_DIRECTORY "/" ENVRT_SOCKET_NAME, sizeof(address.sun_path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *) &address, sizeof(address)) != 0 ||
	    (reader = rpc_reader_new(ENVRT_MAX_LINE)) == NULL)
	{
		if (fd >= 0)
			close(fd);
		ReleaseExternalFD();
		connect_at = TimestampTzPlusMilliseconds(timer_now(), RECONNECT_MS);
		return;
	}
	connection = fd;
	(void) enqueue("envrt/hello", json_object_new(), HELLO_MS, hello_answered, NULL);
}

bool
driver_client_call(const char *method, json_t *params, int64 timeout_ms, DriverAnswered answered,
                   void *data)
{
	if (connection == PGINVALID_SOCKET)
	{
		json_decref(params);
		return false;
	}
	return enqueue(method, params, timeout_ms, answered, data);
}

static void
write_lines(void)
{
	while (connection != PGINVALID_SOCKET && !dlist_is_empty(&lines))
	{
		ClientLine *line = dlist_head_element(ClientLine, node, &lines);
		ssize_t n = send(connection, line->line + line->sent, line->length - line->sent,
		                 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (n < 0)
		{
			async_calls_connection_close();
			return;
		}
		line->sent += n;
		if (line->sent == line->length)
		{
			dlist_delete(&line->node);
			rpc_line_free(line->line, line->length);
			pfree(line);
		}
	}
}

/* False when it is no answer to a call of ours. */
static bool
async_calls_take_answer(const RpcMessage *message)
{
	dlist_iter iter;

	if (message->kind != RPC_RESPONSE || !json_is_integer(message->id))
		return false;
	dlist_foreach(iter, &calls)
	{
		ClientCall *call = dlist_container(ClientCall, node, iter.cur);
		DriverAnswer answer = {message->result, message->error};

		if (call->id != json_integer_value(message->id))
			continue;
		dlist_delete(&call->node);
		delivered = true;
		call->answered(call->data, &answer);
		pfree(call);
		return true;
	}
	return false;
}

/* False when the connection is of no use any more. */
static bool
take_lines(void)
{
	const char *text;
	size_t length;
	RpcReadStatus status;

	while ((status = rpc_reader_next(reader, &text, &length)) == RPC_READ_LINE)
	{
		RpcMessage message;
		bool ours;

		rpc_parse(text, length, &message);
		ours = async_calls_take_answer(&message);
		rpc_message_clear(&message);
		if (!ours)
			return false;
	}
	return status == RPC_READ_MORE;
}

static void
read_lines(void)
{
	char buffer[16384];

	while (connection != PGINVALID_SOCKET)
	{
		ssize_t n = recv(connection, buffer, sizeof(buffer), MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (n <= 0 || rpc_reader_feed(reader, buffer, n) == RPC_READ_TOO_LONG || !take_lines())
			async_calls_connection_close();
	}
}

static void
give_up_overdue(void)
{
	TimestampTz now = timer_now();
	dlist_iter iter;

	dlist_foreach(iter, &calls)
	{
		if (dlist_container(ClientCall, node, iter.cur)->deadline > now)
			continue;
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		shared_state->host_suspect = true;
		LWLockRelease(shared_state->lock);
		launcher_wake();
		async_calls_connection_close();
		return;
	}
}

bool
driver_client_tend(void)
{
	delivered = false;
	answer_refused();
	if (connection == PGINVALID_SOCKET)
		async_calls_try_connect();
	write_lines();
	read_lines();
	if (connection != PGINVALID_SOCKET)
		give_up_overdue();
	return delivered;
}

pgsocket
driver_client_socket(int *events)
{
	*events = WL_SOCKET_READABLE | (dlist_is_empty(&lines) ? 0 : WL_SOCKET_WRITEABLE);
	return connection;
}

TimestampTz
driver_client_deadline(void)
{
	TimestampTz deadline = DT_NOEND;
	dlist_iter iter;

	/* It runs and did not take us, so it is about to end or to be ready. */
	if (connection == PGINVALID_SOCKET)
	{
		LWLockAcquire(shared_state->lock, LW_SHARED);
		if (shared_state->host_state == HOST_RUNNING)
			deadline = Max(connect_at, timer_now() + 1000);
		LWLockRelease(shared_state->lock);
		return deadline;
	}
	dlist_foreach(iter, &calls)
	{
		deadline = Min(deadline, dlist_container(ClientCall, node, iter.cur)->deadline);
	}
	return deadline;
}

const char *
driver_client_instance(void)
{
	return instance[0] != '\0' ? instance : NULL;
}
