/*
 * sandbox_baseline.c
 *		What bwrap costs without anything around it: the yardstick for commands in sandboxes.
 *
 * Usage: sandbox_baseline SANDBOX-DIRECTORY LEASE ROUNDS
 *
 * Runs `true` in the lease's workspace by plain bwrap, with the arguments that the driver host
 * gives it, made by the host's own code; but what bwrap executes is /usr/bin/true and not
 * the host's first process.  Prints the arguments, each in a line that begins with "bwrap ",
 * and then each time in microseconds, "plain N" a line.
 */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sandbox/sandbox_fixed_files.h"
#include "sandbox/sandbox_directory.h"
#include "sandbox/sandbox_file_system.h"
#include "sandbox/sandbox_run.h"
#include "shared/sandbox_spec.h"

/* What the default memoryMb comes to. */
#define TMP_BYTES ((uint64_t) 512 << 20)
#define SHM_BYTES ((uint64_t) 256 << 20)

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(1);
}

static long
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

static void
print_arguments(const Bytes *arguments)
{
	for (size_t at = 0; at < arguments->length; at += strlen(arguments->data + at) + 1)
		printf("bwrap %s\n", arguments->data + at);
}

static void
run(const Bytes *arguments)
{
	static const struct
	{
		int fd;
		SandboxFile file;
	} same[] = {
	    {SANDBOX_FD_ALLOWED, SANDBOX_FILE_ALLOWED}, {SANDBOX_FD_REFUSED, SANDBOX_FILE_REFUSED},
	    {SANDBOX_FD_PASSWD, SANDBOX_FILE_PASSWD},   {SANDBOX_FD_GROUP, SANDBOX_FILE_GROUP},
	    {SANDBOX_FD_HOSTS, SANDBOX_FILE_HOSTS},     {SANDBOX_FD_INIT, SANDBOX_FILE_INIT}};
	char *const words[] = {"bwrap", "--args", "3", "/usr/bin/true", NULL};
	char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", NULL};
	int fds[sizeof same / sizeof same[0] + 1];
	size_t count = 0;
	posix_spawn_file_actions_t actions;
	pid_t pid;
	int status;

	posix_spawn_file_actions_init(&actions);
	fds[count] = sandbox_file_of("arguments", arguments->data, arguments->length);
	posix_spawn_file_actions_adddup2(&actions, fds[count++], SANDBOX_FD_ARGUMENTS);
	for (size_t i = 0; i < sizeof same / sizeof same[0]; i++)
	{
		fds[count] = sandbox_file_open(same[i].file);
		posix_spawn_file_actions_adddup2(&actions, fds[count++], same[i].fd);
	}
	if (posix_spawnp(&pid, "bwrap", &actions, NULL, words, environment) != 0 ||
	    waitpid(pid, &status, 0) != pid || status != 0)
		fail("bwrap", "did not run true");
	posix_spawn_file_actions_destroy(&actions);
	while (count > 0)
		close(fds[--count]);
}

int
main(int argc, char **argv)
{
	const SandboxSizes sizes = {.tmp = TMP_BYTES, .shm = SHM_BYTES};
	SandboxPlace *place;
	HostError *error;
	Bytes root = {0};
	Bytes arguments = {0};
	int fd;

	if (argc != 4)
		fail("usage", "sandbox_baseline SANDBOX-DIRECTORY LEASE ROUNDS");
	/* Out of the way of the numbers that bwrap gets. */
	while ((fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && fd < SANDBOX_FD_COUNT)
		;
	sandbox_place_set_directory(argv[1]);
	place = sandbox_place_now();
	error = sandbox_place_open(place, &fd);
	if (error == NULL)
		error = sandbox_root_arguments(place, fd, NULL, argv[2], &sizes, &root);
	if (error != NULL)
		fail("sandbox", error->message);
	sandbox_run_arguments(&root, &arguments);
	print_arguments(&arguments);
	for (int i = atoi(argv[3]); i >= 0; i--)
	{
		long start = now_us();

		run(&arguments);
		/* The first one fills caches. */
		if (i < atoi(argv[3]))
			printf("plain %ld\n", now_us() - start);
	}
	return 0;
}
