/*
 * transfer.h
 *		Transfers of files between the server and a workspace: what every driver's have in common.
 */
#ifndef ENVRT_HOST_TRANSFER_H
#define ENVRT_HOST_TRANSFER_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "calls/call.h"
#include "transfer/files_report.h"
#include "base/timer.h"

typedef struct TransferRequest
{
	bool push;              /* to the workspace; else from it */
	bool force;             /* also what is equal on both sides */
	char *local_path;       /* absolute */
	char *remote_path;      /* below the workspace; "": that itself */
	char *name;             /* the local path's last name */
	char *remote_name;      /* the remote path's */
	char **protected_paths; /* what is never transferred; up to NULL */
	char **hidden_paths;    /* in which nothing is that begins with a dot; up to NULL */
	uint64_t connect_ms;
	uint64_t stall_ms;  /* without progress */
	uint64_t max_bytes; /* that a pull may bring; 0: any number */
} TransferRequest;

/* From a call's params; NULL with *error set.  workspace: an absolute path. */
extern TransferRequest *transfer_request_new(const json_t *params, bool push, const char *workspace,
                                             HostError **error);

typedef struct Transfer
{
	struct Transfer *next;
	struct Transfer *previous;
	Call *call; /* NULL: the client is gone */
	char *driver;
	char *lease_id;
	pid_t client;
	TransferRequest *request;
	FilesReport local;  /* of our own end: what counts */
	FilesReport remote; /* of the other, where it is ours, too */
	Bytes notes;        /* lines for who has called, besides those of the reports */
	int64_t since;
	uint64_t moved_at;
	Timer *watch;
	bool stalled;
	/* Nothing has moved for too long: end it; transfer->stalled says so to transfer_error(). */
	void (*stop)(struct Transfer *transfer);
} Transfer;

/* Registers it, with what it is about.  Owns the request from here on. */
extern void transfer_begin(Transfer *transfer, Call *call, const char *driver, const json_t *params,
                           TransferRequest *request, void (*stop)(Transfer *transfer));

/* From now on something is to move; and something has. */
extern void transfer_watch(Transfer *transfer);
extern void transfer_moved(Transfer *transfer);

/* Says in the error's detail that it happened at the workspace's end. */
extern void transfer_error_in_workspace(HostError *error, const TransferRequest *request);

/* What went wrong, by what both ends have said; NULL: nothing. */
extern HostError *transfer_error(const Transfer *transfer, bool has_remote);

/* Answers the call, if it still is there, and clears all.  Takes the error. */
extern void transfer_end(Transfer *transfer, HostError *error);

/* For envrt/stats. */
extern json_t *transfers_describe(void);

#endif
