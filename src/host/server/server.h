/*
 * server.h
 *		The unix socket, its clients, and the control channel.
 */
#ifndef ENVRT_HOST_SERVER_H
#define ENVRT_HOST_SERVER_H

#include <stdbool.h>

/* Listens on ENVRT_SOCKET_NAME in the working directory; false with a message logged. */
extern bool server_listen(void);

/* Serves the launcher on this descriptor; its end ends the process. */
extern void server_control(int fd);

/* Stops listening and drops every client, their calls cancelled. */
extern void server_close(void);

#endif
