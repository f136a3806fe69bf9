/*
 * execution_reading.h
 *		Reads what an execution writes, and keeps it in its table; see execution_reading.c.
 */
#ifndef ENVRT_EXECUTION_READING_H
#define ENVRT_EXECUTION_READING_H

#include "postgres.h"

#include "scheduler/running_execution.h"

/* Asks the driver host for what comes next. */
extern void execution_read_on(Running *running);
/* Has the row say that the driver host has it; what can't be written now is before the next read.
 */
extern void execution_note_accepted(Running *running);
/* Finds in the table how far the output is kept. */
extern void execution_find_position(Running *running);
/* Does what the answer to the last call makes necessary. */
extern void execution_take_answer(Running *running);

#endif
