/*
 * sandbox_lease.h
 *		The leases of sandboxes: what is done to them, and what runs in them.
 */
#ifndef ENVRT_HOST_SANDBOX_LEASE_H
#define ENVRT_HOST_SANDBOX_LEASE_H

#include <stdbool.h>

#include <jansson.h>

#include "calls/call.h"
#include "sandbox/sandbox_config.h"
#include "shared/sandbox_spec.h"

typedef enum
{
	SANDBOX_ACQUIRE,
	SANDBOX_RESUME,
	SANDBOX_RELEASE,
	SANDBOX_DESTROY
} SandboxLeaseAct;

/*
 * Owns the call from here on; NULL: nobody asks.  id: a uuid; config: NULL but for makers;
 * ledger: whose an acquire makes it, or NULL.
 */
extern void sandbox_lease_start(Call *call, SandboxLeaseAct act, const char *id, bool keep,
                                const SandboxConfig *config, const char *ledger);

/* Destroys all of that ledger, which is no more. */
extern void sandbox_leases_drop(const char *ledger);

/* The leases of these ids, a list, that exist; NULL: all.  Owns the call. */
extern void sandbox_leases_list(Call *call, const json_t *ids);

/* Something that runs in a lease, and is killed when the lease ends. */
typedef struct SandboxMember SandboxMember;

struct SandboxMember
{
	SandboxMember *next;
	SandboxMember *previous;
	struct SandboxLease *lease;
	/* The lease is over: end at once, and leave. */
	void (*evict)(SandboxMember *member);
};

/* NULL, or why not. */
extern HostError *sandbox_lease_join(SandboxMember *member, const char *id, const char *image);
extern void sandbox_lease_leave(SandboxMember *member);

/* A member has seen the folder.  *usage: what is known of it. */
extern void sandbox_lease_exists(const SandboxMember *member, SandboxUsage *usage);
extern void sandbox_lease_measured(const SandboxMember *member, const SandboxUsage *usage);

/* The result of an acquire, as far as the id says it. */
extern json_t *sandbox_lease_result(const char *id, const char *image);

/* For envrt/stats. */
extern json_t *sandbox_leases_describe(void);

/* Forgets them all; nothing runs any more. */
extern void sandbox_leases_close(void);

#endif
