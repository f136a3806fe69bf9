/*
 * blocking_calls.c
 *		The backend's end of the protocol with the driver host (docs/protocol.md).
 *
 * A backend keeps one connection and has at most one call in flight on it.
 * A call has four phases: connect (or find the cached connection alive),
 * send, wait, take the answer.  Throughout it waits on the latch and the
 * socket, so that cancel, timeout and termination work at once, and looks each
 * second whether its client is there still.
 *
 * Whatever ends a call before its answer closes the connection: to the driver
 * host EOF means that everything begun over it is to be undone.  A process
 * that dies does the same without doing anything.  So a connection that is
 * open between calls is always in a clean state.
 *
 * A driver host that is just being (re)started is waited for, briefly.  One
 * that takes a call and does not answer within the call's limit and a margin
 * is reported to the launcher, which pings and replaces it.  A view that gets
 * no answer is merely empty: who looks at a driver host has no say in its end.
 */
#include "postgres.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/client.h"
#include "hostlink/call_size.h"
#include "hostlink/blocking_calls.h"
#include "base/json.h"
#include "shared/jsonrpc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "shared/protocol.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "base/timer.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* How long a driver host that is being started is waited for. */
#define START_WAIT_MS 5000
/* What a call may take beyond the limits that the driver host itself keeps. */
#define ANSWER_MARGIN_MS 1000

static pgsocket connection = PGINVALID_SOCKET;
static RpcReader *reader = NULL;
static json_int_t last_id = 0;

static void
blocking_calls_connection_close(void)
{
	if (connection != PGINVALID_SOCKET)
	{
		close(connection);
		connection = PGINVALID_SOCKET;
		ReleaseExternalFD();
	}
	if (reader != NULL)
	{
		rpc_reader_free(reader);
		reader = NULL;
	}
}

/* How an exchange with the driver host ended. */
typedef enum CallOutcome
{
	CALL_ANSWERED,
	CALL_LOST,     /* the connection ended */
	CALL_GARBLED,  /* what came is not the answer */
	CALL_NO_ANSWER /* nothing came in time */
} CallOutcome;

/* Milliseconds left until the deadline, at least 0. */
static long
time_left(TimestampTz deadline)
{
	return TimestampDifferenceMilliseconds(timer_now(), deadline);
}

/* Wait for the socket, the latch, the deadline, or a second: who waits looks again. */
static int
wait_for(int events, TimestampTz deadline)
{
	int rc =
	    WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT | events,
	                      connection, Min(time_left(deadline), CLIENT_LOOK_MS), PG_WAIT_EXTENSION);

	if (rc & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (!(rc & events))
		client_check();
	else
		CHECK_FOR_INTERRUPTS();
	return rc;
}

/* One try; the socket, or PGINVALID_SOCKET with errno. */
static pgsocket
blocking_calls_try_connect(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd;

	strlcpy(address.sun_path, ENVRT_RUN_DIRECTORY "/" ENVRT_SOCKET_NAME, sizeof(address.sun_path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return PGINVALID_SOCKET;
	if (connect(fd, (struct sockaddr *) &address, sizeof(address)) != 0)
	{
		int saved_errno = errno;

		close(fd);
		errno = saved_errno;
		return PGINVALID_SOCKET;
	}
	return fd;
}

static void
connection_open(void)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(timer_now(), START_WAIT_MS);

	if (shared_state == NULL)
		ereport_not_preloaded();
	if (!AcquireExternalFD())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
		                errmsg("out of file descriptors for the connection to the driver host")));

	PG_TRY();
	{
		ConditionVariablePrepareToSleep(&shared_state->host_changed);
		for (;;)
		{
			HostState state;
			pid_t launcher;
			char last_exit[sizeof(shared_state->host_last_exit)];

			LWLockAcquire(shared_state->lock, LW_SHARED);
			state = shared_state->host_state;
			launcher = shared_state->launcher_pid;
			strlcpy(last_exit, shared_state->host_last_exit, sizeof(last_exit));
			LWLockRelease(shared_state->lock);

			if (state == HOST_RUNNING)
			{
				connection = blocking_calls_try_connect();
				if (connection != PGINVALID_SOCKET)
					break;
				/* Just died, or its backlog is full: both pass. */
			}
			if (time_left(deadline) == 0)
				ereport(
				    ERROR,
				    (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				     errmsg("the driver host is not running"),
				     last_exit[0] != '\0' ? errdetail_internal("%s", last_exit) : 0,
				     launcher == 0
				         ? errhint("The envrt launcher is not running either: see the server log.")
				         : errhint("It is being restarted; the server log says why it ended.")));
			(void) ConditionVariableTimedSleep(&shared_state->host_changed,
			                                   Min(time_left(deadline), 50), PG_WAIT_EXTENSION);
			client_check();
		}
		ConditionVariableCancelSleep();
	}
	PG_CATCH();
	{
		ConditionVariableCancelSleep();
		ReleaseExternalFD();
		PG_RE_THROW();
	}
	PG_END_TRY();

	reader = rpc_reader_new(ENVRT_MAX_LINE);
	if (reader == NULL)
	{
		blocking_calls_connection_close();
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
}

/* The cached connection is of use unless its driver host has gone meanwhile. */
static bool
connection_alive(void)
{
	char byte;

	if (connection == PGINVALID_SOCKET)
		return false;
	return recv(connection, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
	       (errno == EAGAIN || errno == EWOULDBLOCK);
}

static CallOutcome
send_bytes(const char *line, size_t length, TimestampTz deadline)
{
	size_t sent = 0;

	while (sent < length)
	{
		ssize_t n = send(connection, line + sent, length - sent, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0)
			sent += n;
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
		{
			if (time_left(deadline) == 0)
				return CALL_NO_ANSWER;
			(void) wait_for(WL_SOCKET_WRITEABLE, deadline);
		}
		else if (errno != EINTR)
			return CALL_LOST;
	}
	return CALL_ANSWERED;
}

/* The line carries secrets: it is zeroed, whatever happens. */
static CallOutcome
send_request(const json_t *request, TimestampTz deadline)
{
	size_t length;
	char *line = rpc_dump_line(request, &length);
	const char *problem;
	volatile CallOutcome outcome = CALL_LOST;

	if (line == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	problem = call_size_problem(json_object_get(request, "params"), line, length);
	if (problem != NULL)
	{
		rpc_line_free(line, length);
		call_size_report(problem);
	}
	PG_TRY();
	{
		outcome = send_bytes(line, length, deadline);
	}
	PG_FINALLY();
	{
		rpc_line_free(line, length);
	}
	PG_END_TRY();
	return outcome;
}

/* ERROR with what the driver says: only states and texts that it may give. */
void
driver_host_raise(const json_t *error)
{
	static const char *const allowed[] = ENVRT_SQLSTATES;
	const json_t *data = json_object_get(error, "data");
	const char *message = json_string_value(json_object_get(error, "message"));
	const char *state = json_string_value(json_object_get(data, "sqlstate"));
	const char *detail = json_string_value(json_object_get(data, "detail"));
	const char *hint = json_string_value(json_object_get(data, "hint"));
	int code = ERRCODE_EXTERNAL_ROUTINE_EXCEPTION;

	for (int i = 0; state != NULL && i < (int) lengthof(allowed); i++)
		if (strcmp(state, allowed[i]) == 0)
			code = MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
	if (code == ERRCODE_UNDEFINED_OBJECT && hint == NULL &&
	    json_integer_value(json_object_get(error, "code")) == RPC_METHOD_NOT_FOUND)
		hint = PLUGINS_HINT;
	ereport(ERROR,
	        (errcode(code),
	         errmsg_internal("%s", message != NULL ? text_from_utf8(message) : "the driver failed"),
	         detail != NULL ? errdetail_internal("%s", text_from_utf8(detail)) : 0,
	         hint != NULL ? errhint("%s", text_from_utf8(hint)) : 0));
}

/* Read until the answer is there; *answer is guarded. */
static CallOutcome
blocking_calls_await_answer(json_int_t id, TimestampTz deadline, json_t **answer)
{
	for (;;)
	{
		char buffer[8192];
		const char *line;
		size_t length;
		ssize_t n;
		RpcReadStatus status = rpc_reader_next(reader, &line, &length);

		if (status == RPC_READ_LINE)
		{
			RpcMessage message;

			rpc_parse(line, length, &message);
			if (message.kind == RPC_RESPONSE && json_is_integer(message.id) &&
			    json_integer_value(message.id) == id)
			{
				*answer = json_guard(message.root);
				return CALL_ANSWERED;
			}
			rpc_message_clear(&message);
			return CALL_GARBLED;
		}
		if (status != RPC_READ_MORE)
			return CALL_GARBLED;

		n = recv(connection, buffer, sizeof(buffer), MSG_DONTWAIT);
		if (n > 0)
		{
			status = rpc_reader_feed(reader, buffer, n);
			if (status == RPC_READ_TOO_LONG || status == RPC_READ_NO_MEMORY)
				return CALL_GARBLED;
		}
		else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		{
			if (time_left(deadline) == 0)
				return CALL_NO_ANSWER;
			(void) wait_for(WL_SOCKET_READABLE, deadline);
		}
		else if (n == 0 || errno != EINTR)
			return CALL_LOST;
	}
}

json_t *
host_call_limits(void)
{
	return json_pack("{s:i, s:i, s:i}", "connectMs", envrt_ssh_connect_timeout, "commandMs",
	                 envrt_ssh_command_timeout, "apiProbeMs", envrt_api_probe_timeout);
}

/*
 * One request and its answer over the connection, which is open.  Afterwards
 * it is open and clean, or closed.  `suspect`: without an answer the launcher is to look after
 * the driver host.
 */
static CallOutcome
exchange(const char *method, json_t *params, int64 timeout_ms, bool suspect, json_t **answer)
{
	json_int_t id = ++last_id;
	json_t *request = json_guard(rpc_request(id, method, json_incref(params)));
	TimestampTz deadline = TimestampTzPlusMilliseconds(timer_now(), timeout_ms + ANSWER_MARGIN_MS);
	volatile CallOutcome outcome = CALL_LOST;

	PG_TRY();
	{
		outcome = send_request(request, deadline);
		if (outcome == CALL_ANSWERED)
			outcome = blocking_calls_await_answer(id, deadline, answer);
	}
	PG_CATCH();
	{
		blocking_calls_connection_close();
		PG_RE_THROW();
	}
	PG_END_TRY();

	if (outcome != CALL_ANSWERED)
		blocking_calls_connection_close();
	if (outcome == CALL_NO_ANSWER && suspect)
	{
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		shared_state->host_suspect = true;
		LWLockRelease(shared_state->lock);
		launcher_wake();
	}
	return outcome;
}

void
driver_host_connect(void)
{
	forbid_in_scheduler();
	if (connection_alive())
		return;
	blocking_calls_connection_close();
	connection_open();
}

json_t *
driver_host_try(const char *method, json_t *params, int64 timeout_ms, json_t **error)
{
	json_t *answer = NULL;

	driver_host_connect();
	switch (exchange(method, params, timeout_ms, true, &answer))
	{
		case CALL_ANSWERED:
			break;
		case CALL_LOST:
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
			                errmsg("the connection to the driver host was lost"),
			                errdetail("It ended during the call."),
			                errhint("The call was undone; try again. The server log says why the "
			                        "driver host ended.")));
			break;
		case CALL_GARBLED:
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
			                errmsg("the connection to the driver host was lost"),
			                errdetail("It sent something that is not the answer.")));
			break;
		case CALL_NO_ANSWER:
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
			                errmsg("the driver host did not answer within the call's time limit"),
			                errdetail("It is being checked, and replaced if it hangs."),
			                errhint("Try again.")));
			break;
	}
	*error = json_object_get(answer, "error");
	return json_object_get(answer, "result");
}

json_t *
driver_host_call(const char *method, json_t *params, int64 timeout_ms)
{
	json_t *error;
	json_t *result = driver_host_try(method, params, timeout_ms, &error);

	if (error != NULL)
		driver_host_raise(error);
	return result;
}

json_t *
driver_host_ask(const char *method, int64 timeout_ms)
{
	json_t *answer = NULL;

	if (shared_state == NULL)
		return NULL;
	if (!connection_alive())
	{
		blocking_calls_connection_close();
		if (!AcquireExternalFD())
			return NULL;
		connection = blocking_calls_try_connect();
		if (connection != PGINVALID_SOCKET)
			reader = rpc_reader_new(ENVRT_MAX_LINE);
		else
			ReleaseExternalFD();
		if (reader == NULL)
		{
			blocking_calls_connection_close();
			return NULL;
		}
	}
	if (exchange(method, json_guard(json_object_new()), timeout_ms, false, &answer) !=
	    CALL_ANSWERED)
		return NULL;
	return json_object_get(answer, "result");
}
