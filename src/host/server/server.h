/*
 * server.h
 *		The unix socket, its clients, and the control channel.
 */
#ifndef ENVRT_HOST_SERVER_H
#define ENVRT_HOST_SERVER_H

#include <stdbool.h>

#include <jansson.h>

typedef struct Connection Connection;

/* Listens on ENVRT_SOCKET_NAME in the working directory; false with a message logged. */
extern bool server_listen(void);

/* Serves the launcher on this descriptor; its end ends the process. */
extern void server_control(int fd);

/* Sends a message (and frees it), or drops a client that does not read. */
extern void connection_send(Connection *connection, json_t *message);

/* Bytes that were sent and not read yet. */
extern size_t connection_unread(const Connection *connection);

/* Stops listening and drops every client, their calls cancelled. */
extern void server_close(void);

#endif
