/*
 * main.c
 *		envrt_driver_host: arguments, hardening, the lock, the event loop.
 *
 * The process in which all driver code runs.  It has no shared memory and no
 * database connection; it is one libuv loop in one thread (name lookups, which
 * block, go to libuv's threads).
 *
 * Its life: harden itself; enter its directory; take the lock, so that there
 * is one host per directory, waiting a moment for a predecessor that is about
 * to end; listen; serve.  It ends at once when the control channel or the
 * postmaster's death pipe ends, since then its server is gone, and in order at
 * SIGTERM: calls are cancelled and what they began is undone first.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include <libssh/libssh.h>
#include <sodium.h>

#include "transfer/files_process.h"
#include "shared/jsonrpc.h"
#include "base/latency.h"
#include "plugins/lease_queue.h"
#include "base/log.h"
#include "server/long_execution.h"
#include "base/loop_turns.h"
#include "plugins/plugin.h"
#include "plugins/plugin_metrics.h"
#include "plugins/plugin_state.h"
#include "plugins/plugin_registry.h"
#include "shared/protocol.h"
#include "sandbox/sandbox_cgroup.h"
#include "sandbox/sandbox_fixed_files.h"
#include "sandbox/sandbox_lease.h"
#include "sandbox/sandbox_directory.h"
#include "sandbox/sandbox_run.h"
#include "server/server.h"
#include "ssh/ssh_settings.h"
#include "ssh/ssh_execute.h"
#include "ssh/ssh_pool.h"
#include "base/timer.h"
#include "plugins/worker_supervisor.h"
#include "plugins/worker_process.h"

/* Lookups that hang occupy a thread each, and libuv gives them half of its threads. */
#define THREADS "128"

#define LOCK_WAIT_MS 2000
#define LARGE_BYTES (256 * 1024)
#define SHUTDOWN_MS 1000

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(SANITIZED)
#define SANITIZED 1
#endif

typedef struct Arguments
{
	const char *directory;
	int control_fd;
	int postmaster_fd;
} Arguments;

static uv_signal_t terminate;
static uv_poll_t postmaster;

static void __attribute__((noreturn)) usage(void)
{
	fprintf(stderr, "usage: envrt_driver_host --directory DIR [--control-fd N]"
	                " [--postmaster-fd N] [--plugin-path DIR]...\n"
	                "       [--sandbox-directory DIR]\n");
	exit(2);
}

static int
descriptor(const char *text)
{
	char *end;
	long fd = strtol(text, &end, 10);

	if (*text == '\0' || *end != '\0' || fd < 0 || fd > 1000000 || fcntl((int) fd, F_GETFD) < 0)
	{
		fprintf(stderr, "envrt_driver_host: \"%s\" is no open descriptor\n", text);
		exit(2);
	}
	return (int) fd;
}

static Arguments
parse_arguments(int argc, char **argv)
{
	static const struct option options[] = {{"directory", required_argument, NULL, 'd'},
	                                        {"control-fd", required_argument, NULL, 'c'},
	                                        {"postmaster-fd", required_argument, NULL, 'p'},
	                                        {"plugin-path", required_argument, NULL, 'l'},
	                                        {"sandbox-directory", required_argument, NULL, 's'},
	                                        {NULL, 0, NULL, 0}};
	Arguments arguments = {.control_fd = -1, .postmaster_fd = -1};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (option)
		{
			case 'd':
				arguments.directory = optarg;
				break;
			case 'c':
				arguments.control_fd = descriptor(optarg);
				break;
			case 'p':
				arguments.postmaster_fd = descriptor(optarg);
				break;
			case 'l':
				plugins_add_directory(optarg);
				break;
			case 's':
				sandbox_place_set_directory(optarg);
				break;
			default:
				usage();
		}
	}
	if (arguments.directory == NULL || optind != argc)
		usage();
	return arguments;
}

static void
harden(bool has_launcher)
{
	static const struct rlimit no_core = {0, 0};
	struct rlimit files;
	pid_t parent = getppid();
	int fd;

	umask(077);
	setrlimit(RLIMIT_CORE, &no_core);
	worker_process_note_file_limit();
	/* Two descriptors a session, one a client. */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	signal(SIGPIPE, SIG_IGN);

	/* While the process is dumpable: afterwards its /proc files belong to root. */
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
	{
		/* Best effort: without /proc the kernel chooses by size alone. */
		ssize_t written = write(fd, "1000", 4);

		(void) written;
		close(fd);
	}
#ifndef SANITIZED
	/* The leak checker attaches to its own process. */
	prctl(PR_SET_DUMPABLE, 0);
#endif
	if (has_launcher)
	{
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(0);
	}
}

/* The descriptor stays open, and so the lock held, until the process ends. */
static bool
take_lock(void)
{
	int fd = open(ENVRT_LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0)
	{
		log_message(LOG_WARNING, "could not open %s: %s", ENVRT_LOCK_NAME, strerror(errno));
		return false;
	}
	for (int waited = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; waited += 20)
	{
		static const struct timespec pause = {.tv_nsec = 20 * 1000000};

		if ((errno != EWOULDBLOCK && errno != EINTR) || waited >= LOCK_WAIT_MS)
		{
			log_message(LOG_WARNING, "another driver host holds %s: %s", ENVRT_LOCK_NAME,
			            strerror(errno));
			close(fd);
			return false;
		}
		nanosleep(&pause, NULL);
	}
	return true;
}

static void
postmaster_died(uv_poll_t *handle, int status, int events)
{
	(void) handle;
	(void) status;
	(void) events;
	_exit(0);
}

static void
watch_postmaster(int fd)
{
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (uv_poll_init(uv_default_loop(), &postmaster, fd) < 0 ||
	    uv_poll_start(&postmaster, UV_READABLE | UV_DISCONNECT, postmaster_died) < 0)
	{
		log_message(LOG_WARNING, "could not watch the postmaster");
		_exit(1);
	}
}

static void
terminated(uv_signal_t *handle, int number)
{
	(void) number;
	uv_stop(handle->loop);
}

static void
main_close_handle(uv_handle_t *handle, void *unused)
{
	(void) unused;
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

static void
pause_briefly(void)
{
	static const struct timespec pause = {.tv_nsec = 2 * 1000000};

	nanosleep(&pause, NULL);
}

/* Whether anything is left of workers, sandboxes and what is written for them. */
static bool
busy(void)
{
	return plugins_exist() || worker_processes_exist() || files_processes_exist() ||
	       sandbox_runs_exist() || plugin_states_are_writing();
}

static void
run_until(uint64_t end)
{
	while (busy() && uv_run(uv_default_loop(), UV_RUN_NOWAIT) != 0 && now_ms() < end)
		pause_briefly();
}

/*
 * Ends everything in order.  A name lookup that hangs in its thread must not
 * hold the process up, so the loop is asked, not waited for.
 */
static void
shut_down(void)
{
	uint64_t begin = now_ms();
	uint64_t end = begin + SHUTDOWN_MS;

	server_close();
	long_executions_close();
	ssh_executions_kill();
	while (ssh_executions_exist() && uv_run(uv_default_loop(), UV_RUN_NOWAIT) != 0 &&
	       now_ms() + SHUTDOWN_MS / 2 < end)
		pause_briefly();
	ssh_executions_close();
	ssh_pool_close();
	lease_operations_close();
	plugins_close();
	plugin_metrics_forget(NULL);
	files_processes_kill();
	sandbox_runs_kill();
	/* Before their handles are closed, plugins must be freed and workers reaped: in order ... */
	run_until(begin + SHUTDOWN_MS / 2);
	/* ... then less so. */
	worker_processes_terminate();
	run_until(begin + SHUTDOWN_MS * 3 / 4);
	worker_processes_kill();
	end = begin + SHUTDOWN_MS * 3 / 2;
	run_until(end);
	plugin_states_close();
	allowed_hosts_free(ssh_settings.allowed_hosts);
	ssh_settings.allowed_hosts = NULL;
	sandbox_leases_close();
	latencies_close();
	sandbox_place_clear();
	sandbox_files_close();
	sandbox_cgroups_close();
	uv_walk(uv_default_loop(), main_close_handle, NULL);
	while (uv_run(uv_default_loop(), UV_RUN_NOWAIT) != 0 && now_ms() < end)
		pause_briefly();
	if (uv_loop_close(uv_default_loop()) < 0)
		_exit(0);
	ssh_finalize();
	uv_library_shutdown();
}

int
main(int argc, char **argv)
{
	Arguments arguments;

	if (argc > 1 && strcmp(argv[1], WORKER_SUPERVISOR_OPTION) == 0)
		worker_supervisor(argc, argv);
	/* What is large goes back to the system when it is freed, also when it has been large before.
	 */
	mallopt(M_MMAP_THRESHOLD, LARGE_BYTES);
	arguments = parse_arguments(argc, argv);
	harden(arguments.control_fd >= 0);
	setenv("UV_THREADPOOL_SIZE", THREADS, 1);
	rpc_protect_memory();
	if (sodium_init() < 0 || ssh_init() != SSH_OK)
	{
		log_message(LOG_WARNING, "could not start libsodium or libssh");
		return 1;
	}
	ssh_set_log_level(SSH_LOG_NOLOG);
	loop_turns_watch();

	if (chdir(arguments.directory) < 0)
	{
		log_message(LOG_WARNING, "could not enter %s: %s", arguments.directory, strerror(errno));
		return 1;
	}
	/* With a launcher, not before it has said what is allowed (server.c). */
	if (!take_lock() || (arguments.control_fd < 0 && !server_listen()))
		return 1;
	if (arguments.postmaster_fd >= 0)
		watch_postmaster(arguments.postmaster_fd);
	if (arguments.control_fd >= 0)
		server_control(arguments.control_fd);
	uv_signal_init(uv_default_loop(), &terminate);
	uv_signal_start(&terminate, terminated, SIGTERM);

	log_message(LOG_DEBUG, "driver host %d is ready", (int) getpid());
	uv_run(uv_default_loop(), UV_RUN_DEFAULT);
	shut_down();
	return 0;
}
