/* Round trips in C: what is left when no Python runs at either end. Built and called by questions/latency.py
 * and echo.py. Sockets are connected; `spinning` looks for datagrams without sleeping. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BUFSIZE = 2048, POLLS_PER_LOOK = 256 };

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Length, or -1 where nothing came in time: SO_RCVTIMEO bounds a receive that blocks. */
static ssize_t receive(int fd, void *buffer, int spinning, int64_t timeout_ns)
{
    int64_t end = 0;
    for (int polls = 1;; polls++) {
        ssize_t length = recv(fd, buffer, BUFSIZE, spinning ? MSG_DONTWAIT : 0);
        if (length >= 0)
            return length;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN || !spinning)
            return -1;
        if (timeout_ns && polls % POLLS_PER_LOOK == 0) {
            if (!end)
                end = now_ns() + timeout_ns;
            else if (now_ns() > end)
                return -1;
        }
    }
}

/* Answer until a datagram of one byte comes; how many, or -errno. */
int64_t echo_serve(int fd, int spinning)
{
    char buffer[BUFSIZE];
    for (int64_t served = 0;; served++) {
        ssize_t length = receive(fd, buffer, spinning, 0);
        if (length < 0)
            return -errno;
        if (length == 1)
            return served;
        if (send(fd, buffer, length, 0) < 0)
            return -errno;
    }
}

static void set_timeout(int fd, int64_t timeout_ns)
{
    struct timeval timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000 / 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}

/* A request as echo.py's request(0, size) makes it. */
static void fill(unsigned char *message, int size)
{
    memset(message, 0, size);
    message[9] = 3;
    message[10] = size >> 24, message[11] = size >> 16, message[12] = size >> 8, message[13] = size;
}

static int64_t trips(int near, int far, int spinning, int size, int64_t duration_ns, int64_t timeout_ns, int64_t most,
                     int64_t warm, int64_t *samples)
{
    unsigned char message[BUFSIZE], buffer[BUFSIZE];
    int64_t end = 0;

    fill(message, size);
    set_timeout(near, timeout_ns);
    if (far >= 0)
        set_timeout(far, timeout_ns);
    for (int64_t count = -warm;;) {
        int64_t begin = now_ns();
        if (!count)
            end = begin + duration_ns;
        int answered = send(near, message, size, 0) == size;
        if (answered && far >= 0) {
            ssize_t length = receive(far, buffer, spinning, timeout_ns);
            answered = length > 0 && send(far, buffer, length, 0) == length;
        }
        answered = answered && receive(near, buffer, spinning, timeout_ns) > 0;
        int64_t now = now_ns();
        if (!answered && count < 0)
            count = 0;
        if (count >= 0)
            samples[count] = now - begin;
        count++;
        if (!answered)
            return -count;
        if (count >= most || (now >= end && count > 0))
            return count;
    }
}

/* How many samples there are; negative where the last one had no answer. */
int64_t echo_trips(int fd, int spinning, int size, int64_t duration_ns, int64_t timeout_ns, int64_t most, int64_t warm,
                   int64_t *samples)
{
    return trips(fd, -1, spinning, size, duration_ns, timeout_ns, most, warm, samples);
}

/* The same where this thread is the other end too. */
int64_t echo_both(int near, int far, int size, int64_t duration_ns, int64_t timeout_ns, int64_t most, int64_t warm,
                  int64_t *samples)
{
    return trips(near, far, 0, size, duration_ns, timeout_ns, most, warm, samples);
}
