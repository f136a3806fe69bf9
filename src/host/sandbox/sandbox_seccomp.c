/*
 * sandbox_seccomp.c
 *		Which system calls a sandbox has.
 *
 * Two filters, of which the kernel takes the sterner answer:
 *
 *   allowed   a list of what programs need.  Anything else, be it dangerous or
 *             newer than this list, does not exist (ENOSYS): programs have ways to do
 *             without what an older kernel does not have.
 *   refused   uses of what is allowed that are refused (EPERM): more namespaces,
 *             typing into terminals, protocols that are not confined to the
 *             sandbox's own network, files that give away the user's rights,
 *             touching process 1, which watches the others, and larger pipes.
 *             Sizes of socket buffers are taken and ignored: programs don't expect
 *             that to fail.
 *
 * Not on the list, for the reader who misses them: ptrace and all that reads
 * another process; mounts; keys; bpf, perf, userfaultfd, io_uring; handles of
 * files; modules, kexec, swap, clocks; 32-bit calls; sync, which is the whole
 * machine's; openat2 and clone3, whose arguments no filter can see; and what takes memory
 * that is nobody's: memfd_create, System V messages and semaphores, asynchronous I/O.
 *
 * Values that the kernel takes as 32 bits are compared as such: the upper half is the
 * caller's to fill.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "sandbox/sandbox_seccomp.h"

#define LOW 0xffffffffULL

/* More in one shared segment is memory that is no process's. */
#define LARGEST_SEGMENT 65536

static const char *const allowed[] = {
    /* Files */
    "access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup",
    "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod",
    "fchmodat", "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock",
    "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd",
    "getdents", "getdents64", "getxattr", "inotify_add_watch", "inotify_init", "inotify_init1",
    "inotify_rm_watch", "ioctl", "lchown", "lgetxattr", "link", "linkat", "listxattr", "llistxattr",
    "lremovexattr", "lseek", "lsetxattr", "lstat", "mkdir", "mkdirat", "mknod", "mknodat",
    "newfstatat", "open", "openat", "pread64", "preadv", "preadv2", "pwrite64", "pwritev",
    "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "removexattr", "rename",
    "renameat", "renameat2", "rmdir", "sendfile", "setxattr", "splice", "stat", "statfs", "statx",
    "symlink", "symlinkat", "sync_file_range", "syncfs", "tee", "truncate", "umask", "unlink",
    "unlinkat", "utime", "utimensat", "utimes", "write", "writev",
    /* Waiting */
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "eventfd", "eventfd2", "pause", "pipe", "pipe2", "poll", "ppoll", "pselect6", "select",
    "signalfd", "signalfd4", "timerfd_create", "timerfd_gettime", "timerfd_settime",
    /* Sockets */
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen",
    "recvfrom", "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
    "socket", "socketpair",
    /* Memory */
    "brk", "get_mempolicy", "madvise", "membarrier", "mincore", "mlock", "mlock2", "mlockall",
    "mmap", "mprotect", "mremap", "msync", "munlock", "munlockall", "munmap", "pkey_alloc",
    "pkey_free", "pkey_mprotect", "shmat", "shmctl", "shmdt", "shmget",
    /* Processes and threads */
    "arch_prctl", "capget", "capset", "clone", "execve", "execveat", "exit", "exit_group", "fork",
    "futex", "futex_waitv", "get_robust_list", "get_thread_area", "getcpu", "getegid", "geteuid",
    "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getresgid",
    "getresuid", "getrlimit", "getrusage", "getsid", "gettid", "getuid", "ioprio_get", "ioprio_set",
    "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "pidfd_open",
    "pidfd_send_signal", "prctl", "prlimit64", "riscv_flush_icache", "rseq",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr",
    "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity",
    "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp",
    "set_robust_list", "set_thread_area", "set_tid_address", "setfsgid", "setfsuid", "setgid",
    "setgroups", "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid",
    "setrlimit", "setsid", "setuid", "swapcontext", "tgkill", "tkill", "vfork", "wait4", "waitid",
    /* Signals */
    "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
    "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sigaltstack",
    "sigreturn",
    /* Time */
    "alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "gettimeofday",
    "nanosleep", "setitimer", "time", "timer_create", "timer_delete", "timer_getoverrun",
    "timer_gettime", "timer_settime", "times",
    /* The rest */
    "getrandom", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend",
    "mq_unlink", "sysinfo", "uname"};

static const unsigned long personalities[] = {PER_LINUX, PER_LINUX32, ADDR_NO_RANDOMIZE, LOW};

static const unsigned long namespaces[] = {CLONE_NEWNS,    CLONE_NEWUTS, CLONE_NEWIPC,
                                           CLONE_NEWUSER,  CLONE_NEWPID, CLONE_NEWNET,
                                           CLONE_NEWCGROUP};

static const unsigned long families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};

/* A call, the place of an argument, and 32 bits that it must not have. */
typedef struct Refusal
{
	const char *name;
	unsigned place;
	unsigned long mask;
	unsigned long value;
} Refusal;

/* ioprio_set(2) has no header. */
#define IOPRIO_WHO_USER 3

static const Refusal refused[] = {
    {"ioctl", 1, LOW, TIOCSTI},
    {"ioctl", 1, LOW, TIOCLINUX},
    /* Memory that is no process's. */
    {"fcntl", 1, LOW, F_SETPIPE_SZ},
    /* Process 1, and all of the user's. */
    {"prlimit64", 0, LOW, 1},
    {"sched_setaffinity", 0, LOW, 1},
    {"sched_setattr", 0, LOW, 1},
    {"sched_setparam", 0, LOW, 1},
    {"sched_setscheduler", 0, LOW, 1},
    {"setpriority", 1, LOW, 1},
    {"setpriority", 0, LOW, PRIO_USER},
    {"ioprio_set", 1, LOW, 1},
    {"ioprio_set", 0, LOW, IOPRIO_WHO_USER},
    /* Set-user-ID and set-group-ID. */
    {"chmod", 1, S_ISUID, S_ISUID},
    {"chmod", 1, S_ISGID, S_ISGID},
    {"fchmod", 1, S_ISUID, S_ISUID},
    {"fchmod", 1, S_ISGID, S_ISGID},
    {"fchmodat", 2, S_ISUID, S_ISUID},
    {"fchmodat", 2, S_ISGID, S_ISGID},
    {"creat", 1, S_ISUID, S_ISUID},
    {"creat", 1, S_ISGID, S_ISGID},
    {"mknod", 1, S_ISUID, S_ISUID},
    {"mknod", 1, S_ISGID, S_ISGID},
    {"mknodat", 2, S_ISUID, S_ISUID},
    {"mknodat", 2, S_ISGID, S_ISGID},
};

/* Calls that the machine, or the library, does not know need no rule. */
static bool
sandbox_seccomp_add(scmp_filter_ctx filter, uint32_t action, const char *name, unsigned count,
                    const struct scmp_arg_cmp *conditions)
{
	int number = seccomp_syscall_resolve_name(name);

	return number == __NR_SCMP_ERROR || number < 0 ||
	       seccomp_rule_add_array(filter, action, number, count, conditions) == 0;
}

static scmp_filter_ctx
filter_new(uint32_t otherwise)
{
	scmp_filter_ctx filter = seccomp_init(otherwise);

	/* What is not of the machine's own kind of calls. */
	if (filter != NULL)
	{
		seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS));
		/* A binary tree. */
		seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	}
	return filter;
}

static bool
filter_write(scmp_filter_ctx filter, bool complete, int fd)
{
	bool written = complete && seccomp_export_bpf(filter, fd) == 0;

	seccomp_release(filter);
	return written;
}

bool
sandbox_seccomp_write_allowed(int fd)
{
	scmp_filter_ctx filter = filter_new(SCMP_ACT_ERRNO(ENOSYS));
	bool complete = filter != NULL;

	for (size_t i = 0; complete && i < sizeof allowed / sizeof allowed[0]; i++)
		complete = sandbox_seccomp_add(filter, SCMP_ACT_ALLOW, allowed[i], 0, NULL);
	for (size_t i = 0; complete && i < sizeof personalities / sizeof personalities[0]; i++)
		complete = sandbox_seccomp_add(filter, SCMP_ACT_ALLOW, "personality", 1,
		                               &(struct scmp_arg_cmp){0, SCMP_CMP_EQ, personalities[i], 0});
	return filter != NULL && filter_write(filter, complete, fd);
}

static bool
sandbox_seccomp_refuse(scmp_filter_ctx filter, const char *name, struct scmp_arg_cmp condition)
{
	return sandbox_seccomp_add(filter, SCMP_ACT_ERRNO(EPERM), name, 1, &condition);
}

static bool
refuse_namespaces(scmp_filter_ctx filter)
{
#if defined(__s390__) || defined(__s390x__)
	unsigned place = 1;
#else
	unsigned place = 0;
#endif

	for (size_t i = 0; i < sizeof namespaces / sizeof namespaces[0]; i++)
		if (!sandbox_seccomp_refuse(
		        filter, "clone",
		        (struct scmp_arg_cmp){place, SCMP_CMP_MASKED_EQ, namespaces[i], namespaces[i]}))
			return false;
	return true;
}

static bool
is_family(unsigned long number)
{
	for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
		if (families[i] == number)
			return true;
	return false;
}

static bool
refuse_families(scmp_filter_ctx filter, const char *name)
{
	for (unsigned long family = 0; family <= AF_MAX; family++)
		if (!is_family(family) &&
		    !sandbox_seccomp_refuse(filter, name,
		                            (struct scmp_arg_cmp){0, SCMP_CMP_MASKED_EQ, LOW, family}))
			return false;
	return sandbox_seccomp_refuse(filter, name, (struct scmp_arg_cmp){0, SCMP_CMP_GT, AF_MAX, 0});
}

/* Of netlink, what tells the addresses. */
static bool
refuse_netlink(scmp_filter_ctx filter)
{
	struct scmp_arg_cmp conditions[] = {{0, SCMP_CMP_MASKED_EQ, LOW, AF_NETLINK},
	                                    {2, SCMP_CMP_NE, 0, 0}};

	return sandbox_seccomp_add(filter, SCMP_ACT_ERRNO(EPERM), "socket", 2, conditions);
}

/* open(O_CREAT) with a mode that chmod is refused. */
static bool
refuse_open(scmp_filter_ctx filter, const char *name, unsigned place, unsigned long create,
            unsigned long bit)
{
	struct scmp_arg_cmp conditions[] = {{place, SCMP_CMP_MASKED_EQ, create, create},
	                                    {place + 1, SCMP_CMP_MASKED_EQ, bit, bit}};

	return sandbox_seccomp_add(filter, SCMP_ACT_ERRNO(EPERM), name, 2, conditions);
}

static bool
ignore_buffer_sizes(scmp_filter_ctx filter)
{
	static const unsigned long options[] = {SO_SNDBUF, SO_RCVBUF, SO_SNDBUFFORCE, SO_RCVBUFFORCE};

	for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
	{
		struct scmp_arg_cmp conditions[] = {{1, SCMP_CMP_MASKED_EQ, LOW, SOL_SOCKET},
		                                    {2, SCMP_CMP_MASKED_EQ, LOW, options[i]}};

		if (!sandbox_seccomp_add(filter, SCMP_ACT_ERRNO(0), "setsockopt", 2, conditions))
			return false;
	}
	return true;
}

bool
sandbox_seccomp_write_refused(int fd)
{
	static const unsigned long creates[] = {O_CREAT, O_TMPFILE & ~O_DIRECTORY};
	static const unsigned long bits[] = {S_ISUID, S_ISGID};
	scmp_filter_ctx filter = filter_new(SCMP_ACT_ALLOW);
	bool complete = filter != NULL;

	for (size_t i = 0; complete && i < sizeof refused / sizeof refused[0]; i++)
		complete =
		    sandbox_seccomp_refuse(filter, refused[i].name,
		                           (struct scmp_arg_cmp){refused[i].place, SCMP_CMP_MASKED_EQ,
		                                                 refused[i].mask, refused[i].value});
	for (size_t i = 0; complete && i < 4; i++)
		complete = refuse_open(filter, "open", 1, creates[i / 2], bits[i % 2]) &&
		           refuse_open(filter, "openat", 2, creates[i / 2], bits[i % 2]);
	complete = complete && refuse_namespaces(filter) && refuse_families(filter, "socket") &&
	           refuse_families(filter, "socketpair") && refuse_netlink(filter) &&
	           ignore_buffer_sizes(filter) &&
	           sandbox_seccomp_refuse(filter, "shmget",
	                                  (struct scmp_arg_cmp){1, SCMP_CMP_GT, LARGEST_SEGMENT, 0});
	return filter != NULL && filter_write(filter, complete, fd);
}
