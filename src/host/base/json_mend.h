/*
 * json_mend.h
 *		JSON as workers write it, made JSON that jansson reads.
 */
#ifndef ENVRT_HOST_JSON_MEND_H
#define ENVRT_HOST_JSON_MEND_H

#include "base/memory.h"

/*
 * Appends the text to *mended, with what jansson refuses and others write made
 * the nearest that it takes:
 *
 *   half of a surrogate pair (\ud83d alone), bytes that are no UTF-8    U+FFFD
 *   a control character in a string                                    escaped
 *   an integer beyond 64 bits                                           a real
 *   a real, or an infinity, beyond a double                  the largest double
 *   NaN                                                                    null
 *
 * What is no JSON beyond that stays what it is.  Zero *mended before it is freed.
 */
extern void json_mend(Bytes *mended, const char *text, size_t length);

#endif
