/*
 * sandbox_cgroup.c
 *		Limits for all processes of a sandbox together, where that is possible.
 *
 * In the cgroup hierarchy of version 2 a service manager can delegate a part of the
 * tree to a user.  A cgroup that has processes can't have children with
 * controllers, so the host's own cgroup is of no use; its parent is, when it is
 * delegated and all of the server is in children of it.  There each sandbox gets a
 * child, `envrt-PID-N`, with limits of memory and of processes, before its command
 * is started.
 *
 * Where that can't be, and nothing is said about it, there are the limits that every
 * sandbox has (src/sandbox_init).  Which of both it is is found out when the first
 * sandbox is made.  What a host that was killed has left is empty, since its
 * sandboxes died with it, and is removed then.
 *
 * These are files of the kernel's: nothing here waits for a disk.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "sandbox/sandbox_cgroup.h"

#define PREFIX "envrt-"

struct SandboxCgroup
{
	char *name;
	int fd;
};

/* The parent of all; -1: none. */
static int parent = -1;
static bool looked;

static bool
write_text(int directory, const char *name, const char *text)
{
	int fd = openat(directory, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
	ssize_t length = (ssize_t) strlen(text);
	bool written = fd >= 0 && write(fd, text, (size_t) length) == length;

	if (fd >= 0)
		close(fd);
	return written;
}

static bool
write_number(int directory, const char *name, uint64_t number)
{
	char text[24];

	snprintf(text, sizeof text, "%llu", (unsigned long long) number);
	return write_text(directory, name, text);
}

static bool
read_text(int directory, const char *name, char *text, size_t size)
{
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	ssize_t length = fd >= 0 ? read(fd, text, size - 1) : -1;

	if (fd >= 0)
		close(fd);
	text[length > 0 ? length : 0] = '\0';
	return length >= 0;
}

/* Whether a list of words, with spaces between them, has this one. */
static bool
has_word(const char *list, const char *word)
{
	size_t length = strlen(word);

	for (const char *at = list; (at = strstr(at, word)) != NULL; at += length)
		if ((at == list || at[-1] == ' ') &&
		    (at[length] == '\0' || at[length] == ' ' || at[length] == '\n'))
			return true;
	return false;
}

/*
 * The parent
 */

/* The path of the cgroup above our own, below a mount of the hierarchy; NULL: none. */
static char *
parent_path(const char *mount, const char *own)
{
	const char *line = own;
	const char *path;
	const char *end;

	while (strncmp(line, "0::", 3) != 0)
	{
		line = strchr(line, '\n');
		if (line == NULL)
			return NULL;
		line++;
	}
	path = line + 3;
	end = path + strcspn(path, "\n");
	while (end > path && *end != '/')
		end--;
	/* The root has no parent, and what is directly below it is the machine's. */
	return end > path ? xformat("%s%.*s", mount, (int) (end - path), path) : NULL;
}

/* Children of it can have both limits. */
static bool
is_delegated(int directory)
{
	char words[1024];

	if (!read_text(directory, "cgroup.controllers", words, sizeof words) ||
	    !has_word(words, "memory") || !has_word(words, "pids"))
		return false;
	if (!write_text(directory, "cgroup.subtree_control", "+memory +pids"))
		return false;
	return read_text(directory, "cgroup.subtree_control", words, sizeof words) &&
	       has_word(words, "memory") && has_word(words, "pids");
}

static void
remove_left(int directory)
{
	int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = copy >= 0 ? fdopendir(copy) : NULL;
	const struct dirent *entry;

	if (list == NULL && copy >= 0)
		close(copy);
	/* One with processes can't be removed. */
	while (list != NULL && (entry = readdir(list)) != NULL)
		if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) == 0)
			unlinkat(directory, entry->d_name, AT_REMOVEDIR);
	if (list != NULL)
		closedir(list);
}

bool
sandbox_cgroups_find(const char *const *mounts, const char *own)
{
	sandbox_cgroups_close();
	looked = true;
	for (; *mounts != NULL && parent < 0; mounts++)
	{
		char *path = parent_path(*mounts, own);
		int fd = path ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

		if (fd >= 0 && is_delegated(fd))
		{
			parent = fd;
			remove_left(fd);
			log_message(LOG_DEBUG, "sandboxes have cgroups below %s", path);
		}
		else if (fd >= 0)
			close(fd);
		free(path);
	}
	return parent >= 0;
}

static void
sandbox_cgroup_look(void)
{
	static const char *const mounts[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified", NULL};
	char own[PATH_MAX + 256];

	if (read_text(AT_FDCWD, "/proc/self/cgroup", own, sizeof own))
		sandbox_cgroups_find(mounts, own);
	looked = true;
}

/*
 * A sandbox's own
 */

SandboxCgroup *
sandbox_cgroup_new(pid_t pid, uint64_t memory_bytes, uint64_t processes)
{
	static unsigned long count;
	SandboxCgroup *cgroup;

	if (!looked)
		sandbox_cgroup_look();
	if (parent < 0)
		return NULL;
	cgroup = xcalloc(1, sizeof *cgroup);
	cgroup->name = xformat(PREFIX "%d-%lu", (int) getpid(), ++count);
	cgroup->fd = -1;
	if (mkdirat(parent, cgroup->name, 0755) == 0)
		cgroup->fd = openat(parent, cgroup->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	/* bwrap's part of it, process 1, is in there as well. */
	if (cgroup->fd >= 0 && write_number(cgroup->fd, "memory.max", memory_bytes) &&
	    write_number(cgroup->fd, "pids.max", processes + 1) &&
	    write_number(cgroup->fd, "cgroup.procs", (uint64_t) pid))
	{
		/* Not every kernel has these. */
		write_text(cgroup->fd, "memory.swap.max", "0");
		write_text(cgroup->fd, "memory.oom.group", "1");
		return cgroup;
	}
	log_message(LOG_DEBUG, "could not make a sandbox's cgroup: %s", strerror(errno));
	sandbox_cgroup_free(cgroup);
	return NULL;
}

bool
sandbox_cgroup_ran_out_of_memory(const SandboxCgroup *cgroup)
{
	char events[1024];
	const char *line;

	if (cgroup == NULL || !read_text(cgroup->fd, "memory.events", events, sizeof events))
		return false;
	line = strstr(events, "oom_kill ");
	return line != NULL && strtoul(line + strlen("oom_kill "), NULL, 10) > 0;
}

void
sandbox_cgroup_free(SandboxCgroup *cgroup)
{
	if (cgroup == NULL)
		return;
	if (cgroup->fd >= 0)
		close(cgroup->fd);
	if (parent >= 0)
		unlinkat(parent, cgroup->name, AT_REMOVEDIR);
	free(cgroup->name);
	free(cgroup);
}

void
sandbox_cgroups_close(void)
{
	if (parent >= 0)
		close(parent);
	parent = -1;
	looked = false;
}
