/* What C reaches with the same kernel calls: the contestants that fastsock is held against.
 *
 * Each function moves n datagrams through a blocking socket; it returns how many, or -errno.
 * That is n, but for GRO under a flood, where the last message may hold more. Compiled by native.py. Not
 * thread-safe: the memory is static, as a C program would set it up once. */

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
enum { VLEN = 64, MAX_VLEN = 1024, ARENA_SIZE = 4 << 20 };
/* With GRO: not a multiple of a page apart, which would have them share one set of a cache. */
enum { GRO_VLEN = 8, GRO_SLOT_SIZE = 65535, GRO_STRIDE = 65536 + 64, MAX_SPLIT = GRO_SLOT_SIZE };

static char arena[ARENA_SIZE];
static struct sockaddr_storage names[MAX_VLEN];
static struct iovec iov[MAX_VLEN];
static struct mmsghdr msgvec[MAX_VLEN];
static int32_t lengths[MAX_VLEN];
static uint8_t truncated[MAX_VLEN];
static int64_t timestamps_ns[MAX_VLEN];
static char gro_arena[GRO_VLEN * GRO_STRIDE];
static int64_t gro_offsets[GRO_VLEN * MAX_SPLIT];
static int32_t gro_lengths[GRO_VLEN * MAX_SPLIT];

union control {
    struct cmsghdr align;
    char room[64];
};
static union control controls[MAX_VLEN];

static void prepare(int vlen, char *start, size_t stride, size_t size, int named)
{
    memset(msgvec, 0, (size_t)vlen * sizeof(*msgvec));
    for (int i = 0; i < vlen; i++) {
        iov[i].iov_base = start + (size_t)i * stride;
        iov[i].iov_len = size;
        msgvec[i].msg_hdr.msg_iov = &iov[i];
        msgvec[i].msg_hdr.msg_iovlen = 1;
        if (named)
            msgvec[i].msg_hdr.msg_name = &names[i];
    }
}

int c_recv(int fd, int n, int slot_size)
{
    for (int i = 0; i < n; i++)
        if (recv(fd, arena, (size_t)slot_size, 0) < 0)
            return -errno;
    return n;
}

static int drain(int fd, int n, int slot_size, int vlen, int named, int columns)
{
    int done = 0;

    if (vlen < 1 || vlen > MAX_VLEN || slot_size < 1 || slot_size > ARENA_SIZE / vlen)
        return -EINVAL;
    prepare(vlen, arena, (size_t)slot_size, (size_t)slot_size, named);
    while (done < n) {
        int want = n - done < vlen ? n - done : vlen;
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

int c_recvmmsg(int fd, int n, int slot_size, int vlen) { return drain(fd, n, slot_size, vlen, 0, 0); }

int c_recvmmsg_named(int fd, int n, int slot_size, int vlen) { return drain(fd, n, slot_size, vlen, 1, 0); }

int c_recvmmsg_columns(int fd, int n, int slot_size, int vlen) { return drain(fd, n, slot_size, vlen, 0, 1); }

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

int c_recvmmsg_timestamps(int fd, int n, int slot_size)
{
    int done = 0;

    if (slot_size < 1 || slot_size > ARENA_SIZE / VLEN)
        return -EINVAL;
    prepare(VLEN, arena, (size_t)slot_size, (size_t)slot_size, 1);
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

    prepare(GRO_VLEN, gro_arena, GRO_STRIDE, GRO_SLOT_SIZE, 0);
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

/* `payloads` holds VLEN payloads of `size` bytes, one after the other. Without an address: to the connected peer. */

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

    prepare(VLEN, payloads, (size_t)size, (size_t)size, 0);
    while (done < n) {
        int want = n - done < VLEN ? n - done : VLEN;
        int got = sendmmsg(fd, msgvec, (unsigned)want, 0);
        if (got < 0)
            return -errno;
        done += got;
    }
    return done;
}

/* To each of `peers` in turn, going on where the last call ended. */
int c_sendmmsg_to(int fd, int n, char *payloads, int size, struct sockaddr_in *peers, int count)
{
    static int next;
    int done = 0;

    prepare(VLEN, payloads, (size_t)size, (size_t)size, 0);
    while (done < n) {
        int want = n - done < VLEN ? n - done : VLEN;
        for (int i = 0; i < want; i++) {
            msgvec[i].msg_hdr.msg_name = &peers[(next + i) % count];
            msgvec[i].msg_hdr.msg_namelen = sizeof(*peers);
        }
        int got = sendmmsg(fd, msgvec, (unsigned)want, 0);
        if (got < 0)
            return -errno;
        next = (next + got) % count;
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

/* n datagrams from the sockets of an epoll descriptor, which tells of each its number. */
int c_epoll_drain(int fd, int n, int slot_size)
{
    static struct epoll_event events[1023];
    int done = 0;

    if (slot_size < 1 || slot_size > ARENA_SIZE / VLEN)
        return -EINVAL;
    prepare(VLEN, arena, (size_t)slot_size, (size_t)slot_size, 0);
    while (done < n) {
        int count = epoll_wait(fd, events, 1023, 1000);
        if (count <= 0)
            return count < 0 ? -errno : -ETIMEDOUT;
        for (int i = 0; i < count; i++) {
            int got = recvmmsg(events[i].data.fd, msgvec, VLEN, MSG_DONTWAIT, NULL);
            if (got < 0 && errno != EAGAIN)
                return -errno;
            done += got < 0 ? 0 : got;
        }
    }
    return done;
}
