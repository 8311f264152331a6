/* What C reaches with the same kernel calls: the contestants that fastsock is held against.
 *
 * Each function moves exactly n datagrams through a blocking socket; it returns n, or
 * -errno. Compiled by native.py. Not thread-safe: the memory is static, as a C program
 * would set it up once. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

enum { VLEN = 64, SLOT_SIZE = 2048 };

static char arena[VLEN * SLOT_SIZE];
static struct sockaddr_storage names[VLEN];
static struct iovec iov[VLEN];
static struct mmsghdr msgvec[VLEN];
static int32_t lengths[VLEN];
static uint8_t truncated[VLEN];

static void prepare(char *start, size_t stride, size_t size, int named)
{
    memset(msgvec, 0, sizeof(msgvec));
    for (int i = 0; i < VLEN; i++) {
        iov[i].iov_base = start + (size_t)i * stride;
        iov[i].iov_len = size;
        msgvec[i].msg_hdr.msg_iov = &iov[i];
        msgvec[i].msg_hdr.msg_iovlen = 1;
        if (named)
            msgvec[i].msg_hdr.msg_name = &names[i];
    }
}

int c_recv(int fd, int n)
{
    for (int i = 0; i < n; i++)
        if (recv(fd, arena, SLOT_SIZE, 0) < 0)
            return -errno;
    return n;
}

static int drain(int fd, int n, int named, int columns)
{
    int done = 0;

    prepare(arena, SLOT_SIZE, SLOT_SIZE, named);
    while (done < n) {
        int want = n - done < VLEN ? n - done : VLEN;
        if (named)
            for (int i = 0; i < want; i++)
                msgvec[i].msg_hdr.msg_namelen = sizeof(names[i]);
        int got = recvmmsg(fd, msgvec, (unsigned)want, MSG_WAITFORONE, NULL);
        if (got < 0)
            return -errno;
        if (columns)
            for (int i = 0; i < got; i++) {
                lengths[i] = (int32_t)msgvec[i].msg_len;
                truncated[i] = (msgvec[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
            }
        done += got;
    }
    return done;
}

int c_recvmmsg(int fd, int n) { return drain(fd, n, 0, 0); }

int c_recvmmsg_named(int fd, int n) { return drain(fd, n, 1, 0); }

int c_recvmmsg_columns(int fd, int n) { return drain(fd, n, 0, 1); }

/* `payloads` holds VLEN payloads of `size` bytes, one after the other. */

int c_sendto(int fd, int n, char *payloads, int size, const void *addr, int addrlen)
{
    for (int i = 0; i < n; i++)
        if (sendto(fd, payloads + (size_t)(i % VLEN) * (size_t)size, (size_t)size, 0, addr, (socklen_t)addrlen) < 0)
            return -errno;
    return n;
}

int c_sendmmsg(int fd, int n, char *payloads, int size)
{
    int done = 0;

    prepare(payloads, (size_t)size, (size_t)size, 0);
    while (done < n) {
        int want = n - done < VLEN ? n - done : VLEN;
        int got = sendmmsg(fd, msgvec, (unsigned)want, 0);
        if (got < 0)
            return -errno;
        done += got;
    }
    return done;
}
