/*
 * sandbox_fixed_files.c
 *		What every sandbox gets that is always the same, as descriptors.
 *
 * Each is made once, as a file in memory, when it is first needed, and opened anew for each
 * sandbox: bwrap reads what it is given from where it stands.
 *
 * The first process's program comes with the host's own binary: the linker puts it there
 * (see the Makefile).  Where it has not, as in unit tests, there are no sandboxes.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sandbox/sandbox_fixed_files.h"
#include "sandbox/sandbox_seccomp.h"

extern const char _binary_sandbox_init_start[] __attribute__((weak));
extern const char _binary_sandbox_init_end[] __attribute__((weak));

static const char passwd[] = "root:x:0:0::/:/bin/sh\n"
                             "sandbox:x:1000:1000::/workspace:/bin/sh\n"
                             "nobody:x:65534:65534::/:/bin/sh\n";
static const char group[] = "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n";
static const char hosts[] = "127.0.0.1 localhost sandbox\n::1 localhost\n";

/* 0: not made yet, since it is not one of ours. */
static int files[SANDBOX_FILES];

static bool
sandbox_fixed_files_write_all(int fd, const void *content, size_t size)
{
	const char *next = content;

	while (size > 0)
	{
		ssize_t count = write(fd, next, size);

		if (count <= 0)
			return false;
		next += count;
		size -= (size_t) count;
	}
	return true;
}

int
sandbox_file_of(const char *name, const void *content, size_t size)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	if (fd >= 0 &&
	    (!sandbox_fixed_files_write_all(fd, content, size) || lseek(fd, 0, SEEK_SET) < 0))
	{
		close(fd);
		return -1;
	}
	return fd;
}

static int
make_filter(const char *name, bool (*write_filter)(int fd))
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	if (fd >= 0 && !write_filter(fd))
	{
		close(fd);
		return -1;
	}
	return fd;
}

const void *
sandbox_program(size_t *size)
{
	*size = (uintptr_t) _binary_sandbox_init_end - (uintptr_t) _binary_sandbox_init_start;
	return _binary_sandbox_init_start;
}

static int
make(SandboxFile file)
{
	const void *program;
	size_t size;

	switch (file)
	{
		case SANDBOX_FILE_INIT:
			program = sandbox_program(&size);
			return program != NULL ? sandbox_file_of("sandbox init", program, size) : -1;
		case SANDBOX_FILE_ALLOWED:
			return make_filter("sandbox allowed", sandbox_seccomp_write_allowed);
		case SANDBOX_FILE_REFUSED:
			return make_filter("sandbox refused", sandbox_seccomp_write_refused);
		case SANDBOX_FILE_PASSWD:
			return sandbox_file_of("sandbox passwd", passwd, strlen(passwd));
		case SANDBOX_FILE_GROUP:
			return sandbox_file_of("sandbox group", group, strlen(group));
		case SANDBOX_FILE_HOSTS:
			return sandbox_file_of("sandbox hosts", hosts, strlen(hosts));
		case SANDBOX_FILES:
			break;
	}
	return -1;
}

int
sandbox_file_open(SandboxFile file)
{
	char path[40];

	if (files[file] <= 0)
		files[file] = make(file);
	if (files[file] < 0)
		return -1;
	snprintf(path, sizeof path, "/proc/self/fd/%d", files[file]);
	return open(path, O_RDONLY | O_CLOEXEC);
}

void
sandbox_files_close(void)
{
	for (int i = 0; i < SANDBOX_FILES; i++)
	{
		if (files[i] > 0)
			close(files[i]);
		files[i] = 0;
	}
}
