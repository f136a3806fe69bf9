/*
 * protocol.h
 *		What the extension and the driver host must agree on.
 *
 * The protocol itself is described in docs/protocol.md.
 */
#ifndef ENVRT_PROTOCOL_H
#define ENVRT_PROTOCOL_H

/* Relative to the data directory, the working directory of both sides. */
#define ENVRT_DIRECTORY "pg_envrt"
/*
 * pg_rewind and pg_basebackup stumble over a socket, and leave out what is in
 * this directory of the server's; it is the owner's alone as all of them are.
 */
#define ENVRT_RUN_DIRECTORY "pg_stat_tmp"
#define ENVRT_SOCKET_NAME "envrt_host.sock"
#define ENVRT_LOCK_NAME "envrt_host.lock"
#define ENVRT_HOST_PROGRAM "envrt_driver_host"

/* The longest line either side accepts, its newline included. */
#define ENVRT_MAX_LINE (16 * 1024 * 1024)

/*
 * What a call may consist of, whatever its length.  A value costs the reader far more than the
 * bytes that it is written with.
 */
#define ENVRT_MAX_VALUES 20000
#define ENVRT_MAX_DEPTH 100
/* Of a command. */
#define ENVRT_MAX_ARGUMENTS 10000
#define ENVRT_MAX_VARIABLES 1000
#define ENVRT_MAX_WORD_BYTES (2 * 1024 * 1024)

/* What the host calls its own version, to plugins. */
#define ENVRT_HOST_VERSION "0.1"

/* Error codes of the plugin protocol. */
#define RPC_PARSE_ERROR (-32700)
#define RPC_INVALID_REQUEST (-32600)
#define RPC_METHOD_NOT_FOUND (-32601)
#define RPC_INVALID_PARAMS (-32602)
#define RPC_INTERNAL_ERROR (-32603)
#define RPC_WORKER_UNAVAILABLE (-32000)
#define RPC_CAPABILITY_DENIED (-32001)
#define RPC_WORKER_ERROR (-32002)
#define RPC_TIMEOUT (-32003)
#define RPC_METHOD_NOT_IMPLEMENTED (-32004)

/* The longest leaseId. */
#define ENVRT_MAX_LEASE_ID 200

/* The SQLSTATEs that an error's data.sqlstate may carry. */
#define ENVRT_SQLSTATES                                                                            \
	{                                                                                              \
		"08001", "08004", "08006", "22023", "28000", "38000", "42501", "42704", "53100", "53400",  \
		    "54000", "55000", "57014", "58030", "58P01"                                            \
	}

#endif
