/*
 * leak_watch.c
 *		Linked into a sanitized driver host that runs in a server.
 *
 * The server passes it no environment, reads only the start of what it says, and doesn't wait for
 * it to end, so findings go to files beside the program, and leaks are looked for all the time.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Declared here: not every compiler brings the header sanitizer/lsan_interface.h. */
extern int __lsan_do_recoverable_leak_check(void);

/* Called before the sanitizers' own versions of library functions work. */
static const char *
options(void)
{
	static const char before[] = "log_path=";
	static const char after[] = ".findings:print_stacktrace=1";
	static char text[4096];
	size_t length = sizeof(before) - 1;
	long added;

	memcpy(text, before, length);
	added = syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", text + length,
	                sizeof(text) - length - sizeof(after));
	if (added < 0)
		return "";
	memcpy(text + length + added, after, sizeof(after));
	return text;
}

const char *__asan_default_options(void);
const char *__ubsan_default_options(void);

const char *
__asan_default_options(void)
{
	return options();
}

const char *
__ubsan_default_options(void)
{
	return options();
}

static void *
watch(void *unused)
{
	(void) unused;
	do
	{
		sleep(1);
	}
	while (__lsan_do_recoverable_leak_check() == 0);
	return NULL;
}

static void __attribute__((constructor)) start_watch(void)
{
	sigset_t all, before;
	pthread_t thread;

	/* Signals are the program's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, watch, NULL) == 0)
		pthread_detach(thread);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}
