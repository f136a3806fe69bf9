/*
 * main.c
 *		envrt_files: one end of a transfer of files, a short-lived process of its own.
 *
 *		envrt_files pack|unpack|list|choose [--below DIR] [--protect PATH]...
 *			[--protect-hidden PATH]... [--name NAME] [--seal NAME] [--known] [--force]
 *			[--from-workspace SOURCE] [--max-bytes N] [--parent PID] PATH
 *
 * The driver host starts one on the server's own file system, and for a sandbox another one
 * inside of it; the archive goes from one's stdout to the other's stdin, or by way of the
 * driver host and ssh to a tar.  How it goes is said on stderr (files_protocol.h).
 *
 * Nothing in it lasts, so nothing of what a hostile archive or tree can do does: its memory
 * and descriptors are limited, a crash is an error of this transfer, and when the
 * driver host dies, it ends.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files/pack.h"
#include "files/unpack.h"
#include "files/already_there.h"
#include "files/path_guard.h"
#include "files/report.h"

#define MEMORY ((rlim_t) 256 * 1024 * 1024)
/* One for each directory on the way down, and some. */
#define OPEN_FILES 1024

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#endif

static void
bind_to_parent(const char *parent)
{
	/* Not SIGKILL: a temporary name is to be removed. */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != (pid_t) strtol(parent, NULL, 10))
		exit(1);
}

static void
terminated(int number)
{
	(void) number;
	files_abandon();
	_exit(1);
}

/* What the driver host may have left open. */
static void
close_others(void)
{
	if (syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0) == 0)
		return;
	for (int fd = STDERR_FILENO + 1; fd < 65536; fd++)
		close(fd);
}

static void
set_limits(void)
{
	static const struct rlimit no_core = {0, 0};
	struct rlimit files;

	setrlimit(RLIMIT_CORE, &no_core);
#ifndef SANITIZED
	{
		static const struct rlimit memory = {MEMORY, MEMORY};

		setrlimit(RLIMIT_AS, &memory);
	}
#endif
	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		files.rlim_cur = files.rlim_max < OPEN_FILES ? files.rlim_max : OPEN_FILES;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	umask(022);
	signal(SIGPIPE, SIG_IGN);
	/* A file that is too large is an error like any other. */
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGTERM, terminated);
}

static void __attribute__((noreturn)) usage(void)
{
	fail_state("22023", "usage: envrt_files pack|unpack|list|choose [options] PATH");
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {{"below", required_argument, NULL, 'b'},
	                                        {"protect", required_argument, NULL, 'p'},
	                                        {"protect-hidden", required_argument, NULL, 'h'},
	                                        {"name", required_argument, NULL, 'n'},
	                                        {"seal", required_argument, NULL, 's'},
	                                        {"known", no_argument, NULL, 'k'},
	                                        {"force", no_argument, NULL, 'f'},
	                                        {"from-workspace", required_argument, NULL, 'w'},
	                                        {"parent", required_argument, NULL, 'P'},
	                                        {"max-bytes", required_argument, NULL, 'm'},
	                                        {NULL, 0, NULL, 0}};
	const char *name = "file";
	const char *seal = NULL;
	const char *source = NULL;
	int option;

	close_others();
	set_limits();
	if (argc < 2)
		usage();
	while ((option = getopt_long(argc - 1, argv + 1, "", options, NULL)) != -1)
	{
		switch (option)
		{
			case 'b':
				place_set_base(optarg);
				break;
			case 'p':
				place_protect(optarg);
				break;
			case 'h':
				place_protect_hidden(optarg);
				break;
			case 'n':
				name = optarg;
				break;
			case 's':
				seal = optarg;
				break;
			case 'k':
				files_know();
				break;
			case 'f':
				known_force();
				break;
			case 'w':
				source = optarg;
				break;
			case 'm':
				files_limit(strtoull(optarg, NULL, 10));
				break;
			case 'P':
				bind_to_parent(optarg);
				break;
			default:
				usage();
		}
	}
	if (optind != argc - 2)
		usage();
	if (strcmp(argv[1], "pack") == 0)
		files_pack(argv[argc - 1], name, seal);
	else if (strcmp(argv[1], "unpack") == 0)
		files_unpack(argv[argc - 1], source);
	else if (strcmp(argv[1], "list") == 0)
		files_list(argv[argc - 1]);
	else if (strcmp(argv[1], "choose") == 0)
		known_choose(argv[argc - 1]);
	else
		usage();
	return 0;
}
