/*
 * sandbox_cgroup.h
 *		Limits for all processes of a sandbox together, where that is possible.
 */
#ifndef ENVRT_HOST_SANDBOX_CGROUP_H
#define ENVRT_HOST_SANDBOX_CGROUP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct SandboxCgroup SandboxCgroup;

/*
 * Where cgroups for sandboxes can be made, found out anew.  mounts: where a
 * version 2 hierarchy may be; own: the text of /proc/self/cgroup.  False:
 * nowhere.
 */
extern bool sandbox_cgroups_find(const char *const *mounts, const char *own);

/* A cgroup with these limits, and the process in it; NULL: that is not possible. */
extern SandboxCgroup *sandbox_cgroup_new(pid_t pid, uint64_t memory_bytes, uint64_t processes);

/* Whether a process in it was killed for its memory. */
extern bool sandbox_cgroup_ran_out_of_memory(const SandboxCgroup *cgroup);

/* All processes have ended: removes it.  NULL is fine. */
extern void sandbox_cgroup_free(SandboxCgroup *cgroup);

extern void sandbox_cgroups_close(void);

#endif
