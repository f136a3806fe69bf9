/*
 * files_protocol.h
 *		What the driver host and envrt_files (src/files) tell each other.
 *
 * The host gives arguments; the program says on stderr, a line each:
 *
 *   P files bytes       so much so far, at most ten times a second
 *   D files bytes       done, with so much
 *   E sqlstate text     failed
 *   S sqlstate text     failed, most likely since the other end has
 *   N text              what who has called is to know besides
 */
#ifndef ENVRT_HOST_FILES_PROTOCOL_H
#define ENVRT_HOST_FILES_PROTOCOL_H

/* It is installed beside the driver host. */
#define FILES_PROGRAM "envrt_files"

#define FILES_PROGRESS 'P'
#define FILES_DONE 'D'
#define FILES_ERROR 'E'
#define FILES_SECOND 'S'
#define FILES_NOTE 'N'

/* A line is no longer. */
#define FILES_MAX_LINE 8192

/* What starts so in a name is a transfer's own, and is never transferred. */
#define FILES_TEMPORARY ".envrt-transfer-"

/* What is older (in seconds) was left by one that was killed. */
#define FILES_LEFTOVER_AGE 86400

/* A seal's name ends so, by what was packed. */
#define FILES_SEAL_DIRECTORY ".directory"
#define FILES_SEAL_FILE ".file"

#endif
