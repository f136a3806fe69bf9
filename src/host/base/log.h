/*
 * log.h
 *		Lines for the server log.
 */
#ifndef ENVRT_HOST_LOG_H
#define ENVRT_HOST_LOG_H

typedef enum
{
	LOG_DEBUG,
	LOG_LOG,
	LOG_WARNING
} LogLevel;

extern void log_message(LogLevel level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
