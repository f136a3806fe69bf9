/*
 * fair_share.h
 *		How many of a number of places one company may have.
 */
#ifndef ENVRT_FAIR_SHARE_H
#define ENVRT_FAIR_SHARE_H

#include <stdbool.h>
#include <stddef.h>

/* A company may have that many times as many places as it leaves free. */
#define FAIR_SHARE_OF_FREE 3

/*
 * Whether a company that has `own` of the places may have one more, when `taken`
 * of `all` are taken.  The first of a company it gets if there is any.  More it
 * gets only where enough stay free: alone it comes to three quarters, and the
 * more companies want many, the less each of them has, and the less they have
 * together, so that whoever comes finds a place.
 */
static inline bool
fair_share_allows(size_t own, size_t taken, size_t all)
{
	if (taken >= all)
		return false;
	return own == 0 || own < FAIR_SHARE_OF_FREE * (all - taken - 1);
}

#endif
