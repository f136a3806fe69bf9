/*
 * shift_clock.c
 *		A clock that a test can set, for a server that is started with this library preloaded.
 *
 * The time of day is shifted by the number of seconds in the file ENVRT_CLOCK_SHIFT, a long.  A
 * timerfd is the fifo ENVRT_CLOCK_SET: what is written there is what the kernel says when somebody
 * sets the machine's clock, which no test may do.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static const volatile long *
shift(void)
{
	static const volatile long none = 0;
	static const volatile long *seconds;

	if (seconds == NULL)
	{
		int fd = open(getenv("ENVRT_CLOCK_SHIFT"), O_RDONLY);
		void *page = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);

		seconds = page == MAP_FAILED ? &none : page;
		close(fd);
	}
	return seconds;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int) syscall(SYS_clock_gettime, clock, now);

	if (clock == CLOCK_REALTIME)
		now->tv_sec += *shift();
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec exact;

	(void) zone;
	clock_gettime(CLOCK_REALTIME, &exact);
	now->tv_sec = exact.tv_sec;
	now->tv_usec = exact.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *now)
{
	struct timespec exact;

	clock_gettime(CLOCK_REALTIME, &exact);
	if (now != NULL)
		*now = exact.tv_sec;
	return exact.tv_sec;
}

int
timerfd_create(clockid_t clock, int flags)
{
	(void) clock;
	(void) flags;
	/* For writing as well, or it would be at its end when nobody writes. */
	return open(getenv("ENVRT_CLOCK_SET"), O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

int
timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
{
	(void) fd;
	(void) flags;
	(void) new;
	(void) old;
	return 0;
}
