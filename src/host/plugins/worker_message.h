/*
 * worker_message.h
 *		What a line of a worker says, as a message; see worker_message.c.
 */
#ifndef ENVRT_HOST_WORKER_MESSAGE_H
#define ENVRT_HOST_WORKER_MESSAGE_H

#include "base/message_io.h"

/* Reads line->text into line->message, or says in line->problem why not, and whose it is. */
extern void worker_message_read_line(MessageLine *line);

#endif
