/*
 * worker_backoff.c
 *		When a worker that crashed may be started again.
 *
 * The n-th crash in a row costs 1 s * 2^(n-1), give or take a quarter, at most
 * five minutes.  But who lasted for a while before it crashed, and who crashed
 * for the first time, is back at once: that is what most crashes are, and
 * callers are waiting.  A row ends when a worker has lasted for a minute, or
 * when nobody has needed one for a minute after it was due.
 */
#include "base/worker_backoff.h"

#define FIRST_DELAY_MS 1000
#define MAX_DELAY_MS 300000
#define SHORT_LIFE_MS 10000
#define FORGIVEN_MS 60000

void
worker_backoff_started(WorkerBackoff *backoff, uint64_t now)
{
	if (backoff->crashes > 0 && now >= backoff->due_at + FORGIVEN_MS)
		backoff->crashes = 0;
	backoff->started_at = now;
}

void
worker_backoff_crashed(WorkerBackoff *backoff, uint64_t now, unsigned jitter)
{
	uint64_t lasted = now - backoff->started_at;
	uint64_t delay = FIRST_DELAY_MS;

	if (lasted >= FORGIVEN_MS)
		backoff->crashes = 0;
	backoff->crashes++;
	backoff->due_at = now;
	if (backoff->crashes == 1 || lasted >= SHORT_LIFE_MS)
		return;
	for (unsigned i = 1; i < backoff->crashes && delay < MAX_DELAY_MS; i++)
		delay *= 2;
	if (delay > MAX_DELAY_MS)
		delay = MAX_DELAY_MS;
	backoff->due_at = now + delay * 3 / 4 + delay * jitter / 2000;
}

uint64_t
worker_backoff_delay(const WorkerBackoff *backoff, uint64_t now)
{
	return now < backoff->due_at ? backoff->due_at - now : 0;
}
