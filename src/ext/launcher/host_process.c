/*
 * host_process.c
 *		The launcher's care for the driver host: start, watch, replace.
 *
 * The driver host is started with a clean slate: between fork and exec the
 * child does nothing but reset signals, leave the session, and arrange five
 * descriptors (/dev/null twice, the log pipe as stderr, its end of the
 * control channel, the postmaster-death pipe); every other one is closed, and
 * of the server's environment nothing is passed on.
 *
 * States: stopped -> starting (until it answers the first configure: it
 * listens then) -> running -> stopped.  It is found dead by the end of its
 * control channel.  It is found hung when a call got no answer in time: then
 * it is pinged, and killed when it does not answer that either.  One that is
 * busy meanwhile (it runs, or waits for a disk) is not hung, and has longer.
 * There is no regular ping: an idle server stays idle.  One that is killed
 * and does not end is waited for without holding up anything else.
 *
 * It is started again at once when it had lived for a while, else with
 * growing delays.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "ledger/instance.h"
#include "shared/jsonrpc.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "environments/protected_paths.h"
#include "shared/protocol.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/fd.h"
#include "base/timer.h"
#include "launcher/host_process.h"
#include "utils/timestamp.h"

#define READY_TIMEOUT_MS 10000
#define PING_TIMEOUT_MS 2000
/* For one that is busy. */
#define BUSY_TIMEOUT_MS 30000
/* How long it may take to end in order. */
#define STOP_MS 2000
#define STOP_STEP_MS 10
/* How long a killed one is waited for, and how often it is looked at after that. */
#define KILL_MS 2000
#define UNENDING_STEP_MS 1000
#define LIVED_LONG_MS 10000
#define MAX_DELAY_MS 5000
#define MAX_CONTROL_LINE 65536
#define MAX_LOG_LINE 4096
#define MAX_SAID 32

static struct
{
	pid_t pid; /* 0: none */
	pgsocket control;
	int log;
	RpcReader *reader;
	RpcReader *log_reader;
	json_int_t last_id;
	bool ready;
	TimestampTz started;
	TimestampTz ready_deadline;
	TimestampTz ping_deadline; /* DT_NOEND: no ping in flight */
	TimestampTz pinged;
	uint64 pinged_cpu; /* what its loop had used by then */
	json_int_t ping_id;
	json_int_t configure_id;
	TimestampTz start_at;  /* while there is none */
	pid_t unending;        /* one that was killed and has not ended yet; 0: none */
	int failures;          /* in a row, each soon after the start */
	bool changed;          /* descriptors differ from the wait event set's */
	int watch;             /* inotify, of the socket's directory; -1: none */
	char last_reason[128]; /* that was logged in this row of failures */
	List *said;            /* what they wrote in it themselves, and was logged */
} host = {.control = PGINVALID_SOCKET, .log = -1, .watch = -1, .ping_deadline = DT_NOEND};

/* host_state in shared memory, and whoever waits for it. */
static void
host_process_publish(HostState state, const char *last_exit)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (state == HOST_STOPPED && shared_state->host_state != HOST_STOPPED)
		shared_state->host_restarts++;
	shared_state->host_state = state;
	shared_state->host_pid = host.pid;
	shared_state->host_since = GetCurrentTimestamp();
	if (state != HOST_RUNNING)
		shared_state->host_settings_since = 0;
	if (last_exit != NULL)
		strlcpy(shared_state->host_last_exit, last_exit, sizeof(shared_state->host_last_exit));
	/* Schedulers have calls to make. */
	if (state == HOST_RUNNING)
		for (int i = 0; i < shared_state->nslots; i++)
			if (shared_state->slots[i].latch != NULL)
				SetLatch(shared_state->slots[i].latch);
	LWLockRelease(shared_state->lock);
	ConditionVariableBroadcast(&shared_state->host_changed);
}

static void
host_process_make_directory(const char *path)
{
	if (mkdir(path, S_IRWXU) != 0 && errno != EEXIST)
		ereport(ERROR,
		        (errcode_for_file_access(), errmsg("could not create directory \"%s\": %m", path)));
}

/*
 * In the child, after fork: nothing here may allocate, lock or use stdio.
 */
static void
exec_host(const char *program, int log_fd, int control_fd, int postmaster_fd)
{
	char *const arguments[] = {ENVRT_HOST_PROGRAM,
	                           "--directory",
	                           ENVRT_RUN_DIRECTORY,
	                           "--control-fd",
	                           "3",
	                           "--postmaster-fd",
	                           "4",
	                           NULL};
	char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8", NULL};
	int from[5];
	sigset_t none;

	for (int signal_number = 1; signal_number < NSIG; signal_number++)
		(void) signal(signal_number, SIG_DFL);
	sigemptyset(&none);
	(void) sigprocmask(SIG_SETMASK, &none, NULL);
	(void) setsid();

	/* First out of the way of the target numbers, then onto them. */
	from[0] = open("/dev/null", O_RDWR);
	from[1] = from[0];
	from[2] = log_fd;
	from[3] = control_fd;
	from[4] = postmaster_fd;
	for (int i = 0; i < (int) lengthof(from); i++)
		if ((from[i] = fcntl(from[i], F_DUPFD, 16)) < 0)
			_exit(126);
	for (int i = 0; i < (int) lengthof(from); i++)
		if (dup2(from[i], i) < 0)
			_exit(126);
#ifdef SYS_close_range
	if (syscall(SYS_close_range, 5U, ~0U, 0U) != 0)
#endif
		for (int fd = 5; fd < 65536; fd++)
			(void) close(fd);
	execve(program, arguments, environment);
	_exit(127);
}

static void
send_control(json_t *message)
{
	size_t length;
	char *line = rpc_dump_line(message, &length);

	json_decref(message);
	if (line == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	/*
	 * A few hundred bytes into an empty socket buffer; where they don't fit,
	 * the host has not read for long and the ping's deadline deals with it.
	 */
	if (send(host.control, line, length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		ereport(DEBUG1, (errmsg("could not write to the driver host: %m")));
	rpc_line_free(line, length);
}

void
host_process_configure(void)
{
	json_t *allowed;
	json_t *plugin_path;
	json_t *hidden;
	ListCell *cell;

	if (host.pid == 0)
		return;
	allowed = json_array();
	plugin_path = json_array();
	hidden = json_array();
	protect_settings(hidden);
	foreach (cell, settings_list(envrt_allowed_hosts))
	{
		json_t *entry = json_string(lfirst(cell));

		/* One that is no UTF-8 allows nothing: were it left out, an empty list would allow all. */
		json_array_append_new(allowed, entry != NULL ? entry : json_string(""));
	}
	foreach (cell, settings_list(envrt_plugin_path))
	{
		json_t *entry = json_string(lfirst(cell));

		if (entry != NULL)
			json_array_append_new(plugin_path, entry);
		else
			ereport(LOG, (errmsg("a folder in envrt.plugin_path is not UTF-8 and left out")));
	}
	host.configure_id = ++host.last_id;
	send_control(rpc_request(
	    host.configure_id, "configure",
	    json_pack("{s:i, s:i, s:i, s:i, s:o, s:o, s:s?, s:s, s:o, s:b, s:i, s:i, s:i, s:i}",
	              "sshIdleTimeoutMs", envrt_ssh_idle_timeout, "sshKeepaliveMs", envrt_ssh_keepalive,
	              "sshSessionsPerHost", envrt_ssh_sessions_per_host, "maxCalls", envrt_max_calls,
	              "allowedHosts", allowed, "pluginPath", plugin_path, "sandboxDirectory",
	              *envrt_sandbox_directory != '\0' ? envrt_sandbox_directory : NULL,
	              "dataDirectory", DataDir, "hiddenPaths", hidden, "sandboxOnDataFileSystem",
	              envrt_sandbox_on_data_filesystem, "sandboxMemoryMb", envrt_sandbox_memory,
	              "sandboxProcesses", envrt_sandbox_processes, "pluginMemoryMb",
	              envrt_plugin_memory, "pluginConcurrency", envrt_plugin_concurrency)));
}

/* What still runs for it is for nobody any more. */
void
host_process_database_gone(Oid database)
{
	if (host.pid == 0)
		return;
	send_control(rpc_request(++host.last_id, "databaseGone",
	                         json_pack("{s:I, s:s?}", "database", (json_int_t) database, "ledger",
	                                   instance_ledger_name(database))));
}

/*
 * Somebody may empty the directory that the driver host's socket is in: nobody could connect any
 * more, and it would not notice.
 */
static void
watch_socket(void)
{
	host.watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	if (host.watch < 0 || inotify_add_watch(host.watch, ENVRT_RUN_DIRECTORY,
	                                        IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF |
	                                            IN_MOVE_SELF | IN_ONLYDIR) < 0)
		ereport(LOG, (errmsg("could not watch directory \"%s\": %m", ENVRT_RUN_DIRECTORY)));
}

static bool
socket_is_gone(void)
{
	char events[4096];

	while (host.watch >= 0 && read(host.watch, events, sizeof(events)) > 0)
		;
	return host.ready && access(ENVRT_RUN_DIRECTORY "/" ENVRT_SOCKET_NAME, F_OK) != 0 &&
	       (errno == ENOENT || errno == ENOTDIR);
}

static void
host_process_start(void)
{
	char program[MAXPGPATH];
	int control[2];
	int log[2];
	pid_t pid;

	host_process_make_directory(ENVRT_DIRECTORY);
	host_process_make_directory(ENVRT_RUN_DIRECTORY);
	snprintf(program, sizeof(program), "%s/%s", pkglib_path, ENVRT_HOST_PROGRAM);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, control) != 0)
		ereport(ERROR, (errcode_for_socket_access(),
		                errmsg("could not make the driver host's control channel: %m")));
	if (pipe2(log, O_CLOEXEC | O_NONBLOCK) != 0)
	{
		close(control[0]);
		close(control[1]);
		ereport(ERROR, (errcode_for_file_access(),
		                errmsg("could not make the driver host's log pipe: %m")));
	}

	fflush(NULL);
	pid = fork();
	if (pid == 0)
		exec_host(program, log[1], control[1], postmaster_alive_fds[POSTMASTER_FD_WATCH]);
	close(control[1]);
	close(log[1]);
	if (pid < 0)
	{
		close(control[0]);
		close(log[0]);
		host.failures++;
		host.start_at = TimestampTzPlusMilliseconds(timer_now(), 1000);
		ereport(LOG, (errmsg("could not start the driver host: %m")));
		return;
	}
	host.pid = pid;
	host.control = control[0];
	host.log = log[0];
	host.reader = rpc_reader_new(MAX_CONTROL_LINE);
	host.log_reader = rpc_reader_new(MAX_LOG_LINE);
	host.ready = false;
	host.started = timer_now();
	watch_socket();
	host.ready_deadline = TimestampTzPlusMilliseconds(host.started, READY_TIMEOUT_MS);
	host.ping_deadline = DT_NOEND;
	host.changed = true;
	host_process_publish(HOST_STARTING, NULL);
	host_process_configure();
}

/* Whether one that failed to start before has said the same; else it is noted. */
static bool
was_said(const char *line, size_t length)
{
	MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);
	char *text = pnstrdup(line, length);
	ListCell *cell;

	foreach (cell, host.said)
		if (strcmp(lfirst(cell), text) == 0)
			break;
	if (cell != NULL || list_length(host.said) >= MAX_SAID)
		pfree(text);
	else
		host.said = lappend(host.said, text);
	MemoryContextSwitchTo(context);
	return cell != NULL;
}

/*
 * What the driver host wrote to stderr, a line a log entry; whether there may
 * be more.
 */
static bool
read_log(void)
{
	char buffer[4096];
	ssize_t n = host.log >= 0 ? read(host.log, buffer, sizeof(buffer)) : -1;
	const char *line;
	size_t length;

	if (n == 0)
	{
		/* It has closed its end, and would be readable for ever. */
		close(host.log);
		host.log = -1;
		host.changed = true;
	}
	if (n <= 0)
		return false;
	if (rpc_reader_feed(host.log_reader, buffer, n) == RPC_READ_TOO_LONG)
	{
		rpc_reader_free(host.log_reader);
		host.log_reader = rpc_reader_new(MAX_LOG_LINE);
		return true;
	}
	for (;;)
	{
		RpcReadStatus status = rpc_reader_next(host.log_reader, &line, &length);
		int level = LOG;

		if (status == RPC_READ_TOO_LONG)
		{
			rpc_reader_free(host.log_reader);
			host.log_reader = rpc_reader_new(MAX_LOG_LINE);
			return true;
		}
		if (status != RPC_READ_LINE)
			return true;
		if (length > 7 && memcmp(line, "DEBUG: ", 7) == 0)
			level = DEBUG1, line += 7, length -= 7;
		else if (length > 5 && memcmp(line, "LOG: ", 5) == 0)
			line += 5, length -= 5;
		else if (length > 9 && memcmp(line, "WARNING: ", 9) == 0)
			level = WARNING, line += 9, length -= 9;
		if (!host.ready && was_said(line, length))
			level = DEBUG1;
		ereport(level, (errmsg_internal("envrt driver host: %.*s", (int) length, line)));
	}
}

static void
close_all(void)
{
	close(host.control);
	if (host.log >= 0)
		close(host.log);
	if (host.watch >= 0)
		close(host.watch);
	host.watch = -1;
	rpc_reader_free(host.reader);
	rpc_reader_free(host.log_reader);
	host.control = PGINVALID_SOCKET;
	host.log = -1;
	host.reader = host.log_reader = NULL;
	host.pid = 0;
	host.ready = false;
	host.ping_deadline = DT_NOEND;
	host.changed = true;
}

/* Whether one that is about to end has done so in its time. */
static bool
await_end(pid_t pid, int *status)
{
	for (int waited = 0; waited <= KILL_MS; waited += STOP_STEP_MS)
	{
		pid_t found = waitpid(pid, status, WNOHANG);

		if (found > 0 || (found < 0 && errno != EINTR))
			return true;
		pg_usleep(STOP_STEP_MS * 1000L);
	}
	return false;
}

/*
 * Whether one that was killed is still there, as while the kernel has it wait for a disk that
 * does not answer.  It holds the lock that another one needs.
 */
static bool
is_unending(TimestampTz now)
{
	int status;

	if (host.unending == 0)
		return false;
	if (waitpid(host.unending, &status, WNOHANG) == 0)
	{
		host.start_at = TimestampTzPlusMilliseconds(now, UNENDING_STEP_MS);
		return true;
	}
	ereport(LOG, (errmsg("envrt driver host (PID %d) has ended at last", (int) host.unending)));
	host.unending = 0;
	return false;
}

/* Take leave of a driver host that has ended, or end it; `reason` or its exit status says why. */
static void
bury(const char *reason)
{
	char why[128];
	int status = 0;
	pid_t pid = host.pid;
	bool ended;
	bool lived_long;

	/* Its control channel is closed, or it hangs: nothing is lost by a kill. */
	(void) kill(pid, SIGKILL);
	ended = await_end(pid, &status);
	while (read_log())
		;
	if (!ended)
		strlcpy(why, "It was killed, and has not ended yet.", sizeof(why));
	else if (reason != NULL)
		strlcpy(why, reason, sizeof(why));
	else if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		snprintf(why, sizeof(why), "The program %s could not be executed.", ENVRT_HOST_PROGRAM);
	else if (WIFEXITED(status))
		snprintf(why, sizeof(why), "It exited with status %d.", WEXITSTATUS(status));
	else
		snprintf(why, sizeof(why), "It was ended by signal %d.", WTERMSIG(status));
	close_all();
	host.unending = ended ? 0 : pid;

	lived_long = TimestampDifferenceExceeds(host.started, timer_now(), LIVED_LONG_MS);
	host.failures = lived_long ? 0 : host.failures + 1;
	if (lived_long)
	{
		list_free_deep(host.said);
		host.said = NIL;
	}
	host.start_at = timer_now();
	if (host.failures > 1)
		host.start_at = TimestampTzPlusMilliseconds(
		    host.start_at, Min(100 << Min(host.failures, 16), MAX_DELAY_MS));
	host_process_publish(HOST_STOPPED, why);
	if (!ended)
		ereport(LOG, (errmsg("envrt driver host (PID %d) was killed and has not ended within %d ms",
		                     (int) pid, KILL_MS),
		              reason != NULL ? errdetail_internal("%s", reason) : 0,
		              errhint("Another one is started when it has: look at what it waits for, a "
		                      "disk or a file server for example.")));
	/* One that can't start would fill the log: the view has how often. */
	else if (host.failures <= 1 || strcmp(why, host.last_reason) != 0)
		ereport(LOG, (errmsg("envrt driver host (PID %d) has ended", (int) pid),
		              errdetail_internal("%s", why)));
	strlcpy(host.last_reason, why, sizeof(host.last_reason));
}

/* Answers on the control channel. */
static bool
read_control(void)
{
	char buffer[4096];
	ssize_t n = recv(host.control, buffer, sizeof(buffer), MSG_DONTWAIT);
	const char *line;
	size_t length;
	RpcReadStatus status;

	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return true;
	if (n <= 0)
		return false;
	(void) rpc_reader_feed(host.reader, buffer, n);
	while ((status = rpc_reader_next(host.reader, &line, &length)) == RPC_READ_LINE)
	{
		RpcMessage message;

		rpc_parse(line, length, &message);
		if (message.kind == RPC_RESPONSE)
		{
			json_int_t id = json_integer_value(message.id);

			if (id == host.ping_id)
				host.ping_deadline = DT_NOEND;
			if (id == host.configure_id)
			{
				LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
				shared_state->host_settings_since = GetCurrentTimestamp();
				LWLockRelease(shared_state->lock);
			}
			if (!host.ready)
			{
				host.ready = true;
				host_process_publish(HOST_RUNNING, NULL);
				ereport(LOG, (errmsg("envrt driver host is running as PID %d", (int) host.pid)));
			}
		}
		rpc_message_clear(&message);
	}
	return status == RPC_READ_MORE;
}

/* Called when one of its descriptors is readable. */
void
host_process_read(void)
{
	if (host.pid == 0)
		return;
	(void) read_log();
	if (!read_control())
		bury(NULL);
	else if (socket_is_gone())
		bury("Its socket file was removed.");
}

/*
 * Clock ticks that the driver host's main thread, which is its loop, has used;
 * *waits_for_machine: it would run if the machine let it.
 */
static uint64
loop_cpu(bool *waits_for_machine)
{
	char path[64];
	char stat[512];
	char state = '\0';
	unsigned long user = 0;
	unsigned long system = 0;
	const char *end;
	ssize_t n = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", (int) host.pid, (int) host.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
	{
		n = read(fd, stat, sizeof(stat) - 1);
		close(fd);
	}
	stat[Max(n, 0)] = '\0';
	/* Its name, in parentheses, may have any. */
	end = strrchr(stat, ')');
	if (end != NULL)
		(void) sscanf(end + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &state, &user,
		              &system);
	*waits_for_machine = state == 'R' || state == 'D';
	return (uint64) user + system;
}

static void
ping(TimestampTz now)
{
	bool waits;

	host.ping_id = ++host.last_id;
	host.ping_deadline = TimestampTzPlusMilliseconds(now, PING_TIMEOUT_MS);
	host.pinged = now;
	host.pinged_cpu = loop_cpu(&waits);
	send_control(rpc_request(host.ping_id, "envrt/ping", json_object_new()));
}

/* The ping is not answered in time: whether it is to have longer. */
static bool
is_busy(TimestampTz now)
{
	bool waits;
	uint64 cpu = loop_cpu(&waits);

	if ((!waits && cpu == host.pinged_cpu) ||
	    now >= TimestampTzPlusMilliseconds(host.pinged, BUSY_TIMEOUT_MS))
		return false;
	host.pinged_cpu = cpu;
	host.ping_deadline = TimestampTzPlusMilliseconds(now, PING_TIMEOUT_MS);
	return true;
}

/*
 * Do what is due; when to come again, DT_NOEND for not before something
 * happens.
 */
TimestampTz
host_process_tend(void)
{
	TimestampTz now = timer_now();
	bool suspect;

	if (host.pid == 0 && now >= host.start_at && !is_unending(now))
		host_process_start();
	if (host.pid == 0)
		return host.start_at;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	suspect = shared_state->host_suspect;
	shared_state->host_suspect = false;
	LWLockRelease(shared_state->lock);

	if (!host.ready)
	{
		if (now < host.ready_deadline)
			return host.ready_deadline;
		bury("It did not get ready in time.");
		return host.start_at;
	}
	if (host.ping_deadline == DT_NOEND && suspect)
		ping(now);
	if (now >= host.ping_deadline && !is_busy(now))
	{
		bury("It did not answer any more.");
		return host.start_at;
	}
	return host.ping_deadline;
}

bool
host_process_take_change(void)
{
	bool changed = host.changed;

	host.changed = false;
	return changed;
}

void
host_process_add_events(WaitEventSet *events)
{
	if (host.pid == 0)
		return;
	AddWaitEventToSet(events, WL_SOCKET_READABLE, host.control, NULL, NULL);
	if (host.log >= 0)
		AddWaitEventToSet(events, WL_SOCKET_READABLE, host.log, NULL, NULL);
	if (host.watch >= 0)
		AddWaitEventToSet(events, WL_SOCKET_READABLE, host.watch, NULL, NULL);
}

/* At the launcher's end. */
void
host_process_stop(const char *reason)
{
	siginfo_t about = {0};

	if (host.pid == 0)
		return;
	/* It has workers to take leave of; it is left to be waited for. */
	(void) kill(host.pid, SIGTERM);
	for (int waited = 0; waited < STOP_MS; waited += STOP_STEP_MS)
	{
		if (waitid(P_PID, (id_t) host.pid, &about, WEXITED | WNOHANG | WNOWAIT) < 0 ||
		    about.si_pid != 0)
			break;
		pg_usleep(STOP_STEP_MS * 1000L);
	}
	bury(reason);
}
