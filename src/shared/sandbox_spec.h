/*
 * sandbox_spec.h
 *		What the driver host and the first process of a sandbox tell each other.
 *
 * The first process gets a SandboxSpec on a descriptor, and what follows it:
 * strings, each with its NUL: the working directory, the arguments (the
 * command is the first), the environment.  Both are of one build, so the struct
 * is the format.
 *
 * Over the control socket, which keeps messages apart, the host sends single bytes and gets
 * SandboxReports.  The end of the socket is the end of the sandbox.
 */
#ifndef ENVRT_HOST_SANDBOX_SPEC_H
#define ENVRT_HOST_SANDBOX_SPEC_H

#include <stdint.h>

/* Descriptors of bwrap.  What the first process needs of them it takes, and closes all. */
#define SANDBOX_FD_ARGUMENTS 3
#define SANDBOX_FD_ALLOWED 4
#define SANDBOX_FD_REFUSED 5
#define SANDBOX_FD_INIT 6
#define SANDBOX_FD_SPEC 7
#define SANDBOX_FD_CONTROL 8
#define SANDBOX_FD_PASSWD 9
#define SANDBOX_FD_GROUP 10
#define SANDBOX_FD_HOSTS 11
#define SANDBOX_FD_COUNT 12

/* Where the first process's program is, in the sandbox. */
#define SANDBOX_INIT_PATH "/.envrt-init"

#define SANDBOX_WORKSPACE "/workspace"

/*
 * What the kernel keeps for open files and sockets is memory that is no process's: one of them
 * stands for so much of the memory limit.
 */
#define SANDBOX_OBJECT_BYTES ((uint64_t) 64 * 1024)
#define SANDBOX_LEAST_OBJECTS ((uint64_t) 1024)
#define SANDBOX_MAX_WATCHES ((uint64_t) 65536)

/* How much the workspace held, and what its file system had left then. */
typedef struct SandboxUsage
{
	uint64_t used;
	uint64_t room;
	uint64_t when_ms; /* by the monotonic clock; 0: never looked */
} SandboxUsage;

typedef struct SandboxSpec
{
	uint64_t memory_bytes;    /* of each process's data, and of all together */
	uint64_t all_bytes;       /* of all, with the files that are in memory: for the cgroup */
	uint64_t processes;       /* at once */
	uint64_t cpu_seconds;     /* of each process; 0: no limit */
	uint64_t file_bytes;      /* of each file */
	uint64_t workspace_bytes; /* of all files in the workspace */
	SandboxUsage usage;
	uint32_t argument_count;
	uint32_t variable_count;
} SandboxSpec;

/* Host to sandbox: start the command; SIGTERM for its process group. */
#define SANDBOX_GO 'G'
#define SANDBOX_TERMINATE 'T'

typedef enum
{
	SANDBOX_READY = 1,  /* the first: to start the command; the message tells the host who it is */
	SANDBOX_USAGE,      /* value: whether the workspace is full from the start */
	SANDBOX_NO_CWD,     /* errno */
	SANDBOX_NO_COMMAND, /* errno of execve */
	SANDBOX_NO_PROCESS, /* errno: something else before it */
	SANDBOX_EXITED,     /* exit code */
	SANDBOX_SIGNALLED,  /* signal */
	SANDBOX_MEMORY,     /* all was ended, since it used too much */
	SANDBOX_OBJECTS,    /* the same, of open files, sockets or epoll watches */
	SANDBOX_DISK        /* the same, of the workspace */
} SandboxReportKind;

typedef struct SandboxReport
{
	int32_t kind;
	int32_t value;
	SandboxUsage usage;
} SandboxReport;

#endif
