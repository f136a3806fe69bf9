/*
 * client.c
 *		Whether the client of a backend that waits is still there.
 *
 * PostgreSQL looks at the client of a running statement by
 * client_connection_check_interval only, which is off unless somebody has set
 * it.  What a client has asked for must not go on for a day after the client
 * is gone, on the far side nor here: so each wait of ours looks each second.
 */
#include "postgres.h"

#include "base/client.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/timestamp.h"

/* Its header needs those of GSSAPI, which builds elsewhere need not have. */
extern bool pq_check_connection(void);

void
client_check(void)
{
	static TimestampTz last = 0;
	TimestampTz now;

	if (MyProcPort == NULL || whereToSendOutput != DestRemote)
	{
		CHECK_FOR_INTERRUPTS();
		return;
	}
	now = GetCurrentTimestamp();
	/* (Before it, where the clock has been set back.) */
	if (now < last || TimestampDifferenceExceeds(last, now, CLIENT_LOOK_MS))
	{
		last = now;
		if (!pq_check_connection())
			ClientConnectionLost = InterruptPending = true;
		/* It may have taken what somebody has set the latch for: whoever waits looks again. */
		SetLatch(MyLatch);
	}
	CHECK_FOR_INTERRUPTS();
}
