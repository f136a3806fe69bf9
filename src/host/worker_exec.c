/*
 * worker_exec.c
 *		The host's binary as the first program of a plugin worker's process.
 *
 * A worker must not outlive its host, whatever ends the host, and must inherit
 * nothing of it but three pipes.  The first needs a system call in the new
 * process before its program starts, which no spawn function offers, and the
 * second is best done where no other thread can open descriptors any more.  So
 * the host starts itself in this mode, in which it becomes the worker:
 *
 *   1. ask the kernel for SIGKILL at the parent's death, then look whether the
 *      parent has died before that;
 *   2. close every descriptor but 0, 1 and 2; default signals, none blocked;
 *      the number of open files that the host itself was started with (core
 *      dumps stay off);
 *   3. execute the program.  The working directory, the session and the
 *      environment are already its own.
 *
 * What goes wrong is said on stderr, which the host keeps for its messages.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "worker_exec.h"

#define FIRST_TO_CLOSE 3

static void
close_others(void)
{
#ifdef SYS_close_range
	if (syscall(SYS_close_range, FIRST_TO_CLOSE, ~0U, 0) == 0)
		return;
#endif
	/* A kernel before 5.9. */
	{
		long last = sysconf(_SC_OPEN_MAX);

		for (int fd = FIRST_TO_CLOSE; fd < (last > 0 ? last : 65536); fd++)
			close(fd);
	}
}

static void
reset_signals(void)
{
	sigset_t none;

	/* Those that can't be changed fail, and need not be. */
	for (int number = 1; number <= SIGRTMAX; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void
limit_files(const char *text)
{
	rlim_t wanted = (rlim_t) strtoull(text, NULL, 10);
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) != 0 || wanted == 0 || wanted > files.rlim_max)
		return;
	files.rlim_cur = wanted;
	setrlimit(RLIMIT_NOFILE, &files);
}

void
worker_exec(int argc, char **argv)
{
	if (argc < 5)
		_exit(2);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != (pid_t) strtol(argv[2], NULL, 10))
		_exit(1);
	close_others();
	reset_signals();
	limit_files(argv[3]);
	execvp(argv[4], argv + 4);
	fprintf(stderr, "could not execute %s: %s\n", argv[4], strerror(errno));
	_exit(127);
}
