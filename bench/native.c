/* What C reaches with the same kernel calls: the contestants that fastsock is held against.
 *
 * Each function moves n datagrams through a blocking socket; it returns how many, or -errno.
 * That is n, but for GRO under a flood, where the last message may hold more. Compiled by native.py. Not thread-safe: the memory is static, as a C program
 * would set it up once. */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <time.h>

/* linux/udp.h, which does not go together with the C library's netinet/udp.h. */
enum { FS_UDP_SEGMENT = 103, FS_UDP_GRO = 104, MAX_PAYLOAD = 65507 };
enum { VLEN = 64, SLOT_SIZE = 2048 };
/* With GRO: not a multiple of a page apart, which would have them share one set of a cache. */
enum { GRO_VLEN = 8, GRO_SLOT_SIZE = 65535, GRO_STRIDE = 65536 + 64, MAX_SPLIT = GRO_SLOT_SIZE };

static char arena[VLEN * SLOT_SIZE];
static struct sockaddr_storage names[VLEN];
static struct iovec iov[VLEN];
static struct mmsghdr msgvec[VLEN];
static int32_t lengths[VLEN];
static uint8_t truncated[VLEN];
static int64_t timestamps_ns[VLEN];
static char gro_arena[GRO_VLEN * GRO_STRIDE];
static int64_t gro_offsets[GRO_VLEN * MAX_SPLIT];
static int32_t gro_lengths[GRO_VLEN * MAX_SPLIT];

union control {
    struct cmsghdr align;
    char room[64];
};
static union control controls[VLEN];

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

static int64_t timestamp_of(struct msghdr *hdr)
{
    struct timespec ts;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr); cmsg; cmsg = CMSG_NXTHDR(hdr, cmsg))
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SO_TIMESTAMPNS) {
            memcpy(&ts, CMSG_DATA(cmsg), sizeof(ts));
            return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
        }
    return 0;
}

int c_recvmmsg_timestamps(int fd, int n)
{
    int done = 0;

    prepare(arena, SLOT_SIZE, SLOT_SIZE, 1);
    while (done < n) {
        int want = n - done < VLEN ? n - done : VLEN;
        for (int i = 0; i < want; i++) {
            msgvec[i].msg_hdr.msg_namelen = sizeof(names[i]);
            msgvec[i].msg_hdr.msg_control = &controls[i];
            msgvec[i].msg_hdr.msg_controllen = sizeof(controls[i]);
        }
        int got = recvmmsg(fd, msgvec, (unsigned)want, MSG_WAITFORONE, NULL);
        if (got < 0)
            return -errno;
        for (int i = 0; i < got; i++) {
            lengths[i] = (int32_t)msgvec[i].msg_len;
            truncated[i] = (msgvec[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
            timestamps_ns[i] = timestamp_of(&msgvec[i].msg_hdr);
        }
        done += got;
    }
    return done;
}

static int segment_size_of(struct msghdr *hdr, int whole)
{
    int size;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr); cmsg; cmsg = CMSG_NXTHDR(hdr, cmsg))
        if (cmsg->cmsg_level == IPPROTO_UDP && cmsg->cmsg_type == FS_UDP_GRO) {
            memcpy(&size, CMSG_DATA(cmsg), sizeof(size));
            if (size > 0)
                return size;
        }
    return whole;
}

/* `messages` is how many the n datagrams come in. */
static int drain_gro(int fd, int n, int messages, int columns)
{
    int done = 0;

    prepare(gro_arena, GRO_STRIDE, GRO_SLOT_SIZE, 0);
    while (done < n) {
        int want = messages < 1 ? 1 : messages < GRO_VLEN ? messages : GRO_VLEN;
        int filled = 0;
        for (int i = 0; i < want; i++) {
            msgvec[i].msg_hdr.msg_control = &controls[i];
            msgvec[i].msg_hdr.msg_controllen = sizeof(controls[i]);
        }
        int got = recvmmsg(fd, msgvec, (unsigned)want, MSG_WAITFORONE, NULL);
        if (got < 0)
            return -errno;
        messages -= got;
        for (int i = 0; i < got; i++) {
            int whole = (int)msgvec[i].msg_len;
            int size = segment_size_of(&msgvec[i].msg_hdr, whole);
            if (!columns || whole == 0) {
                filled += whole ? (whole + size - 1) / size : 1;
                continue;
            }
            for (int at = 0; at < whole; at += size) {
                gro_offsets[filled] = (int64_t)i * GRO_STRIDE + at;
                gro_lengths[filled] = whole - at < size ? whole - at : size;
                filled++;
            }
        }
        done += filled;
    }
    return done;
}

int c_gro(int fd, int n, int messages) { return drain_gro(fd, n, messages, 0); }

int c_gro_columns(int fd, int n, int messages) { return drain_gro(fd, n, messages, 1); }

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

static void ask_for_segments(struct msghdr *hdr, union control *control, int size)
{
    uint16_t segment_size = (uint16_t)size;

    memset(control, 0, sizeof(*control));
    hdr->msg_control = control;
    hdr->msg_controllen = CMSG_SPACE(sizeof(segment_size));
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr);
    cmsg->cmsg_level = IPPROTO_UDP;
    cmsg->cmsg_type = FS_UDP_SEGMENT;
    cmsg->cmsg_len = CMSG_LEN(sizeof(segment_size));
    memcpy(CMSG_DATA(cmsg), &segment_size, sizeof(segment_size));
}

/* VLEN payloads in as few messages as may be; `gather`: from an iovec each. Returns how many. */
static int prepare_gso(char *payloads, int size, int gather)
{
    static struct iovec pieces[VLEN];
    int most = MAX_PAYLOAD / size < VLEN ? MAX_PAYLOAD / size : VLEN;
    int messages = 0;

    if (most < 1)
        most = 1;
    memset(msgvec, 0, sizeof(msgvec));
    for (int i = 0; i < VLEN; i++) {
        pieces[i].iov_base = payloads + (size_t)i * (size_t)size;
        pieces[i].iov_len = (size_t)size;
    }
    for (int i = 0; i < VLEN; i += most) {
        struct msghdr *hdr = &msgvec[messages].msg_hdr;
        int count = VLEN - i < most ? VLEN - i : most;
        if (gather) {
            hdr->msg_iov = &pieces[i];
            hdr->msg_iovlen = (size_t)count;
        } else {
            iov[messages].iov_base = payloads + (size_t)i * (size_t)size;
            iov[messages].iov_len = (size_t)count * (size_t)size;
            hdr->msg_iov = &iov[messages];
            hdr->msg_iovlen = 1;
        }
        if (count > 1)
            ask_for_segments(hdr, &controls[messages], size);
        messages++;
    }
    return messages;
}

static int send_gso(int fd, int n, char *payloads, int size, int gather)
{
    int messages = prepare_gso(payloads, size, gather);

    for (int done = 0; done < n; done += VLEN)
        for (int sent = 0; sent < messages;) {
            int got = sendmmsg(fd, msgvec + sent, (unsigned)(messages - sent), 0);
            if (got < 0)
                return -errno;
            sent += got;
        }
    return n;
}

int c_gso(int fd, int n, char *payloads, int size) { return send_gso(fd, n, payloads, size, 0); }

int c_gso_gather(int fd, int n, char *payloads, int size) { return send_gso(fd, n, payloads, size, 1); }

/* Send for ever, VLEN * VLEN datagrams to a call; *sent counts what the kernel took. */
int c_flood(int fd, char *payloads, int size, volatile int64_t *sent)
{
    int messages = prepare_gso(payloads, size, 0);
    int calls = VLEN / messages;

    for (int call = 1; call < calls; call++)
        memcpy(&msgvec[call * messages], msgvec, (size_t)messages * sizeof(*msgvec));
    pid_t parent = getppid();
    while (getppid() == parent)
        for (int at = 0; at < calls * messages;) {
            int got = sendmmsg(fd, msgvec + at, (unsigned)(calls * messages - at), 0);
            if (got < 0 && errno != ENOBUFS)
                return -errno;
            if (got > 0) {
                at += got;
                *sent += (int64_t)got * VLEN / messages;
            }
        }
    return 0;
}

/* n events, as many at a time as are ready. */
int c_epoll_wait(int fd, int n)
{
    static struct epoll_event events[1023];
    int done = 0;

    while (done < n) {
        int count = epoll_wait(fd, events, 1023, 0);
        if (count <= 0)
            return count < 0 ? -errno : -ETIMEDOUT;
        done += count;
    }
    return done;
}
