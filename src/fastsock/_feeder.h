/* The native thread that empties a datagram socket into a ring. It never touches a Python object.
   Plain C over _ring.h; what the kernel says of a datagram beyond its bytes is read by functions that the
   owner hands in. tests/feeder_harness.c runs it under the thread and address sanitizers.

   The thread waits in epoll, edge-triggered, because an error queue that nobody reads keeps a socket ready
   for ever. Receives are MSG_DONTWAIT; a short one has emptied the queue. Without room in the ring it goes on
   to receive, and discards, so that every datagram is counted where it was dropped. */
#ifndef FASTSOCK_FEEDER_H
#define FASTSOCK_FEEDER_H

#include "_ring.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>

enum {
    FASTSOCK_MESSAGE_ROOM = 65600,      /* what a message of joined datagrams may fill; not a multiple of a page */
    FASTSOCK_SEGMENTS = 128,            /* datagrams in one (linux/udp.h, UDP_MAX_SEGMENTS) */
    FASTSOCK_HOT_BYTES = 131072,        /* of a block, after which another that is in the caches is better */
    FASTSOCK_LONG_MESSAGE = 8192,       /* cheaper to receive one by one than to move */
    FASTSOCK_NOTIFY_EVERY = 4,          /* receives without a pause: a wake-up costs a microsecond */
    FASTSOCK_TICK_MS = 1000,
    FASTSOCK_NOTE_NS = 100000000,       /* between two looks how much the kernel dropped, at least */
    FASTSOCK_BUSY_ROUNDS = 64,          /* receives between two looks at the clock, while there is always more */
    FASTSOCK_LEAST_TRUESIZE = 256,      /* what any queued message counts for in a receive buffer, at least */
    FASTSOCK_FAILURES = 1000,           /* in a row, after which the thread gives up */
    FASTSOCK_FAILURES_AT_ONCE = 10,     /* before it waits between them: a lack of memory takes a while to pass */
    FASTSOCK_FAILED_NS = 1000000,
    FASTSOCK_PARKED_NS = 250000         /* between two looks whether the consumer still drives */
};

/* Where a block's memory lies, in this process. */
struct fastsock_view {
    char *arena;
    int64_t *offsets;
    int32_t *lengths;
    uint8_t *truncated;
    int32_t *messages;                  /* with GRO, and written for the sake of names */
    char *names;                        /* a struct fastsock_name per message, or NULL */
    void *columns;                      /* for `write` */
};

struct fastsock_name {
    uint32_t length;
    char address[];
};

/* Slots of a block. Where datagrams lie densely, one more message has room behind them. */
static inline uint64_t fastsock_block_slots(const struct fastsock_geometry *geometry)
{
    return geometry->stride ? (uint64_t)geometry->capacity
        : (geometry->arena_size - FASTSOCK_MESSAGE_ROOM) / (uint64_t)geometry->slot_size;
}

static inline size_t fastsock_name_stride(int32_t name_room)
{
    return (sizeof(struct fastsock_name) + (size_t)name_room + 7) & ~(size_t)7;
}

struct fastsock_feeder {
    /* Set by the owner before the start. */
    struct fastsock_ring *ring;
    const struct fastsock_view *views;
    int fd;
    int eventfd;                        /* the ring's */
    int stop_fd;
    int epoll_fd;
    unsigned vlen;
    int joined;                         /* UDP GRO is on */
    int cpu;                            /* -1 for any */
    int priority;                       /* of SCHED_FIFO; 0 for none */
    int64_t spin_ns;
    int64_t coalesce_ns;
    char name[16];
    size_t control_room;                /* 0 where no ancillary data is asked for */
    int32_t (*decode)(struct msghdr *msg, void *found);         /* returns the segment size, or 0 */
    void (*write)(void *columns, ptrdiff_t start, ptrdiff_t end, const void *found);
    void *found;                        /* what decode fills and write reads */
    struct mmsghdr *msgvec;             /* vlen of each */
    struct iovec *iov;
    char *controls;

    /* The thread. */
    pthread_t thread;
    sem_t ready;
    int start_error;
    pthread_mutex_t joining;
    int running;                        /* the owner's, under that lock: to be joined */
    uint32_t stop;

    /* Who receives: the thread, or in spin mode a consumer that waits. */
    uint32_t role;                      /* 1 while somebody does */
    uint32_t drives;                    /* how often a consumer took over */
    uint32_t stopped;                   /* the thread has made its last receive */

    /* Where the next datagram goes; belongs to whoever has the role. */
    int64_t block;                      /* -1 for none */
    int32_t count;                      /* datagrams there */
    int32_t messages;
    size_t used;                        /* bytes of the arena, where datagrams lie densely */
    size_t message_size;                /* of the last receive, on average */
    int unannounced;                    /* receives since the consumer was told */
    int failures;
    int glued;                          /* joined datagrams came, which there were not to be */
    int64_t noted_ns;                   /* when the kernel's drops were */
    int driven_error;                   /* what ended a consumer's receive: the thread ends for it too */
    uint32_t drops_seen;
};

static inline int64_t fastsock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void fastsock_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

/* Datagrams that may be queued now, at most; what comes later in a flood is not for stop() to wait for. */
static inline uint64_t fastsock_feeder_queued(const struct fastsock_feeder *f)
{
    uint32_t info[FASTSOCK_MEMINFO_VARS] = {0};
    socklen_t size = sizeof(info);
    int value = 0;
    if (getsockopt(f->fd, SOL_SOCKET, SO_MEMINFO, info, &size) != 0) {
        size = sizeof(value);           /* before Linux 4.12: as if the buffer were full */
        (void)getsockopt(f->fd, SOL_SOCKET, SO_RCVBUF, &value, &size);
        info[0] = (uint32_t)value;
    }
    return ((uint64_t)info[0] / FASTSOCK_LEAST_TRUESIZE + 1) * (f->joined ? FASTSOCK_SEGMENTS : 1);
}

static inline uint64_t fastsock_feeder_seen(const struct fastsock_feeder *f)
{
    return fastsock_load(&f->ring->counts.received) + fastsock_load(&f->ring->counts.ring_drops);
}

/* Sleep for so long, or until stop(). */
static inline void fastsock_feeder_sleep(struct fastsock_feeder *f, int64_t ns)
{
    struct pollfd poll = {.fd = f->stop_fd, .events = POLLIN};
    struct timespec left = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    (void)ppoll(&poll, 1, &left, NULL);
}

/* --- one receive ------------------------------------------------------------------------------------------ */

static inline void fastsock_feeder_seal(struct fastsock_feeder *f)
{
    if (f->block >= 0)
        fastsock_ring_seal(f->ring, (uint32_t)f->block, (uint64_t)f->count);
    f->block = -1;
}

/* How many messages have room in the present block. */
static inline unsigned fastsock_feeder_room(const struct fastsock_feeder *f)
{
    const struct fastsock_geometry *geometry = &f->ring->geometry;
    size_t room = (size_t)(geometry->capacity - f->count);
    if (f->joined) {
        size_t bytes = (geometry->arena_size - f->used) / FASTSOCK_MESSAGE_ROOM;
        room /= FASTSOCK_SEGMENTS;
        if (bytes < room)
            room = bytes;
        if (f->message_size >= FASTSOCK_LONG_MESSAGE && room > 1)
            room = 1;
    }
    return room < f->vlen ? (unsigned)room : f->vlen;
}

/* Whether to leave the rest of the present block: a consumer that keeps up gives blocks back that are in the
   caches still, and memory that is not costs half as much again. Not where blocks get scarce. */
static inline int fastsock_feeder_rotates(const struct fastsock_feeder *f)
{
    const struct fastsock_geometry *geometry = &f->ring->geometry;
    size_t used = f->joined ? f->used : (size_t)f->count * (size_t)geometry->stride;
    return used >= FASTSOCK_HOT_BYTES
        && fastsock_load(&f->ring->block[f->block].taken) == (uint64_t)f->count
        && fastsock_ring_in_use(f->ring) < (uint64_t)geometry->blocks / 2;
}

/* Room for the next receive; 0 where the ring is full. */
static inline unsigned fastsock_feeder_place(struct fastsock_feeder *f)
{
    unsigned room = f->block >= 0 && !fastsock_feeder_rotates(f) ? fastsock_feeder_room(f) : 0;
    if (room)
        return room;
    fastsock_feeder_seal(f);
    f->block = fastsock_ring_open(f->ring);
    f->count = f->messages = 0;
    f->used = 0;
    return f->block >= 0 ? fastsock_feeder_room(f) : 0;
}

/* Headers for `room` messages; none of the payload is kept where the ring is full. */
static inline void fastsock_feeder_prepare(struct fastsock_feeder *f, unsigned room, int full)
{
    const struct fastsock_geometry *geometry = &f->ring->geometry;
    const struct fastsock_view *view = full ? NULL : &f->views[f->block];
    size_t stride = f->joined ? FASTSOCK_MESSAGE_ROOM : (size_t)geometry->stride;
    size_t name_stride = fastsock_name_stride(geometry->name_room);
    char *at = full ? NULL : view->arena + (f->joined ? f->used : (size_t)f->count * stride);
    for (unsigned i = 0; i < room; i++) {
        struct msghdr *hdr = &f->msgvec[i].msg_hdr;
        f->iov[i].iov_base = at;
        hdr->msg_iovlen = !full;
        hdr->msg_controllen = f->control_room;
        hdr->msg_name = NULL;
        hdr->msg_namelen = 0;
        if (full)
            continue;
        at += stride;
        if (geometry->name_room) {
            hdr->msg_name = ((struct fastsock_name *)(view->names + (size_t)(f->messages + (int)i) * name_stride))->address;
            hdr->msg_namelen = (socklen_t)geometry->name_room;
        }
    }
}

/* What `received` messages without joined datagrams brought: a slot each. */
static inline uint64_t fastsock_feeder_fill_slots(struct fastsock_feeder *f, int received)
{
    const struct fastsock_view *view = &f->views[f->block];
    const uint32_t slot_size = (uint32_t)f->ring->geometry.slot_size;
    uint64_t nbytes = 0;
    uint64_t cut = 0;
    if (f->control_room)
        for (int i = 0; i < received; i++) {
            if (f->decode(&f->msgvec[i].msg_hdr, f->found) != 0)
                f->glued = 1;
            f->write(view->columns, f->count + i, f->count + i + 1, f->found);
        }
    if (f->glued)
        return 0;
    for (int i = 0; i < received; i++) {
        uint32_t size = f->msgvec[i].msg_len;
        uint8_t truncated = (f->msgvec[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
        size = size < slot_size ? size : slot_size;
        view->lengths[f->count + i] = (int32_t)size;
        view->truncated[f->count + i] = truncated;
        nbytes += size;
        cut += truncated;
    }
    f->count += received;
    fastsock_add(&f->ring->counts.truncated, cut);
    return nbytes;
}

/* Rows for `rows` datagrams of `length` bytes each, `step` apart: loops that a compiler makes vectors of. */
static inline void fastsock_feeder_fill_rows(const struct fastsock_view *view, int32_t first, int32_t rows, int64_t at,
                                             int64_t step, int32_t length, uint8_t truncated)
{
    int64_t *offsets = view->offsets + first;
    int32_t *lengths = view->lengths + first;
    for (int32_t i = 0; i < rows; i++)
        offsets[i] = at + i * step;
    for (int32_t i = 0; i < rows; i++)
        lengths[i] = length;
    memset(view->truncated + first, truncated, (size_t)rows);
}

/* The same for messages of joined datagrams, which come to lie side by side, as do the messages. */
static inline uint64_t fastsock_feeder_fill_segments(struct fastsock_feeder *f, int received)
{
    const struct fastsock_geometry *geometry = &f->ring->geometry;
    const struct fastsock_view *view = &f->views[f->block];
    const size_t slot_size = (size_t)geometry->slot_size;
    size_t whole = 0;
    uint64_t nbytes = 0;
    uint64_t cut = 0;
    int32_t count = f->count;
    for (int i = 0; i < received; i++) {
        struct msghdr *hdr = &f->msgvec[i].msg_hdr;
        size_t size = f->msgvec[i].msg_len;
        size_t segment = (size_t)f->decode(hdr, f->found);
        int32_t first = count;
        if (size > FASTSOCK_MESSAGE_ROOM)
            size = FASTSOCK_MESSAGE_ROOM;
        if (segment == 0 || segment > size)
            segment = size;
        if (view->arena + f->used != f->iov[i].iov_base)
            memmove(view->arena + f->used, f->iov[i].iov_base, size);
        /* The last may be shorter; it may be all there is, and empty. The kernel joins no more than there is
           room for: what else came would be an endless message. */
        size_t full = segment ? (size - 1) / segment : 0;
        if (full >= FASTSOCK_SEGMENTS)
            full = FASTSOCK_SEGMENTS - 1;
        size_t kept = segment < slot_size ? segment : slot_size;
        size_t last = size - full * segment < segment ? size - full * segment : segment;
        size_t last_kept = last < slot_size ? last : slot_size;
        int last_cut = last_kept < last || (hdr->msg_flags & MSG_TRUNC) != 0;
        fastsock_feeder_fill_rows(view, count, (int32_t)full, (int64_t)f->used, (int64_t)segment, (int32_t)kept, kept < segment);
        count += (int32_t)full;
        fastsock_feeder_fill_rows(view, count, 1, (int64_t)(f->used + full * segment), 0, (int32_t)last_kept, (uint8_t)last_cut);
        count++;
        nbytes += full * kept + last_kept;
        cut += (kept < segment ? full : 0) + (uint64_t)last_cut;
        if (geometry->name_room)
            for (int32_t row = first; row < count; row++)
                view->messages[row] = f->messages + i;
        f->write(view->columns, first, count, f->found);
        f->used += size;
        whole += size;
    }
    f->count = count;
    f->message_size = whole / (size_t)received;
    fastsock_add(&f->ring->counts.truncated, cut);
    return nbytes;
}

static inline void fastsock_feeder_fill(struct fastsock_feeder *f, int received)
{
    struct fastsock_ring *ring = f->ring;
    const int32_t before = f->count;
    if (ring->geometry.name_room) {
        size_t stride = fastsock_name_stride(ring->geometry.name_room);
        for (int i = 0; i < received; i++) {
            struct fastsock_name *name = (struct fastsock_name *)(f->views[f->block].names + (size_t)(f->messages + i) * stride);
            socklen_t length = f->msgvec[i].msg_hdr.msg_namelen;
            name->length = length < (socklen_t)ring->geometry.name_room ? length : (uint32_t)ring->geometry.name_room;
        }
    }
    uint64_t nbytes = f->joined ? fastsock_feeder_fill_segments(f, received) : fastsock_feeder_fill_slots(f, received);
    if (f->glued)
        return;
    f->messages += received;
    uint64_t came = (uint64_t)(f->count - before);
    /* Whole blocks, but for the present one. */
    uint64_t block_slots = fastsock_block_slots(&ring->geometry);
    uint64_t slots = ring->geometry.stride ? (uint64_t)f->count
        : (f->used + (size_t)ring->geometry.slot_size - 1) / (size_t)ring->geometry.slot_size;
    if (slots > block_slots)
        slots = block_slots;
    uint64_t blocks = fastsock_ring_in_use(ring);
    fastsock_raise(&ring->counts.high_water, (blocks ? blocks - 1 : 0) * block_slots + slots);
    fastsock_add(&ring->counts.received, came);
    fastsock_add(&ring->counts.nbytes, nbytes);
    fastsock_add(&ring->counts.batches, 1);
    fastsock_raise(&ring->counts.largest_batch, came);
    /* A block without room is sealed at once: a consumer that took all of it, and waits, has passed it over then. Else
       where there is no other it would wait for what there is no room for. */
    if (fastsock_feeder_room(f))
        fastsock_ring_publish(ring, (uint32_t)f->block, (uint64_t)f->count);
    else
        fastsock_feeder_seal(f);
}

static inline void fastsock_feeder_discard(struct fastsock_feeder *f, int received)
{
    uint64_t lost = 0;
    for (int i = 0; i < received; i++) {
        size_t size = f->msgvec[i].msg_len;     /* of the whole message: MSG_TRUNC was asked for */
        size_t segment = f->joined ? (size_t)f->decode(&f->msgvec[i].msg_hdr, f->found) : 0;
        lost += segment && segment < size ? (size + segment - 1) / segment : 1;
    }
    fastsock_add(&f->ring->counts.ring_drops, lost);
}

/* Whether the thread can go on after an error of the socket. ICMP errors, and what a device reports, come once. */
static inline int fastsock_feeder_survives(int error)
{
    switch (error) {
    case EBADF: case ENOTSOCK: case EINVAL: case EFAULT: case EOPNOTSUPP: case ENOTCONN: case EIO:
        return 0;
    default:
        return 1;
    }
}

/* UDP GRO was turned on behind the thread's back: joined datagrams came, in a slot for one. Without room for
   ancillary data the kernel says so by MSG_CTRUNC; else fill_slots sees it. */
static inline int fastsock_feeder_glued(const struct fastsock_feeder *f, int received)
{
    int on = 0;
    socklen_t size = sizeof(on);
    if (f->joined || f->control_room)
        return 0;
    for (int i = 0; i < received; i++)
        if (f->msgvec[i].msg_hdr.msg_flags & MSG_CTRUNC)
            return getsockopt(f->fd, FASTSOCK_SOL_UDP, UDP_GRO, &on, &size) == 0 && on;
    return 0;
}

/* Tell the consumer of what was published: at the end of a burst, or in the midst of one that does not end. */
static inline void fastsock_feeder_announce(struct fastsock_feeder *f)
{
    if (f->unannounced)
        fastsock_ring_notify(f->ring, f->eventfd);
    f->unannounced = 0;
}

/* Receive once; the caller has the role. Returns 1 where more may be queued, 0 where nothing is, -errno for the end. */
static inline int fastsock_feeder_receive(struct fastsock_feeder *f)
{
    unsigned room = fastsock_feeder_place(f);
    int full = room == 0;
    if (full) {
        const struct fastsock_geometry *geometry = &f->ring->geometry;
        fastsock_raise(&f->ring->counts.high_water, (uint64_t)geometry->blocks * fastsock_block_slots(geometry));
        room = f->vlen;
    }
    fastsock_feeder_prepare(f, room, full);
    int received = fastsock_recvmmsg(f->fd, f->msgvec, room, MSG_DONTWAIT | (full ? MSG_TRUNC : 0));
    if (received <= 0) {
        int error = received < 0 ? errno : EAGAIN;
        fastsock_feeder_announce(f);
        if (error == EAGAIN) {
            f->failures = 0;
            return 0;
        }
        if (error == EINTR || error == FASTSOCK_ERESTARTSYS)
            return 1;
        fastsock_add(&f->ring->counts.errors, 1);
        __atomic_store_n(&f->ring->counts.last_error, (uint64_t)error, __ATOMIC_RELAXED);
        if (!fastsock_feeder_survives(error) || ++f->failures >= FASTSOCK_FAILURES)
            return -error;
        if (f->failures > FASTSOCK_FAILURES_AT_ONCE)
            fastsock_feeder_sleep(f, FASTSOCK_FAILED_NS);
        return 1;
    }
    f->failures = 0;
    if (fastsock_feeder_glued(f, received))
        return -EIO;
    if (full) {
        fastsock_feeder_discard(f, received);
    } else {
        fastsock_feeder_fill(f, received);
        if (f->glued)
            return -EIO;
        f->unannounced++;
    }
    if (full || received < (int)room || f->unannounced >= FASTSOCK_NOTIFY_EVERY)
        fastsock_feeder_announce(f);
    return received == (int)room;
}

/* --- the thread --------------------------------------------------------------------------------------------- */

static inline int fastsock_feeder_acquire(struct fastsock_feeder *f)
{
    return __atomic_load_n(&f->role, __ATOMIC_RELAXED) == 0 && __atomic_exchange_n(&f->role, 1, __ATOMIC_ACQUIRE) == 0;
}

static inline void fastsock_feeder_release(struct fastsock_feeder *f)
{
    __atomic_store_n(&f->role, 0, __ATOMIC_RELEASE);
}

static inline int fastsock_feeder_stopping(struct fastsock_feeder *f)
{
    return __atomic_load_n(&f->stop, __ATOMIC_ACQUIRE) != 0;
}

/* Let the ring say what the kernel dropped, to processes that have no socket to ask. */
static inline void fastsock_feeder_note_drops(struct fastsock_feeder *f)
{
    uint32_t info[FASTSOCK_MEMINFO_VARS];
    socklen_t size = sizeof(info);
    if (getsockopt(f->fd, SOL_SOCKET, SO_MEMINFO, info, &size) != 0
        || size <= FASTSOCK_MEMINFO_DROPS * sizeof(info[0]))
        return;
    fastsock_add(&f->ring->counts.kernel_drops, info[FASTSOCK_MEMINFO_DROPS] - f->drops_seen);
    f->drops_seen = info[FASTSOCK_MEMINFO_DROPS];
}

static inline void fastsock_feeder_tick(struct fastsock_feeder *f, int64_t now)
{
    if (now - f->noted_ns < FASTSOCK_NOTE_NS)
        return;
    f->noted_ns = now;
    fastsock_feeder_note_drops(f);
}

/* In spin mode: stay away while a consumer that waits receives for itself. */
static inline void fastsock_feeder_park(struct fastsock_feeder *f)
{
    uint32_t seen;
    if (!fastsock_ring_empty(f->ring))          /* of a burst there may be what nobody was told of */
        fastsock_ring_notify(f->ring, f->eventfd);
    do {
        seen = __atomic_load_n(&f->drives, __ATOMIC_RELAXED);
        fastsock_feeder_sleep(f, FASTSOCK_PARKED_NS);
        fastsock_feeder_tick(f, fastsock_now_ns());
    } while (!fastsock_feeder_stopping(f)
             && (__atomic_load_n(&f->role, __ATOMIC_RELAXED) || seen != __atomic_load_n(&f->drives, __ATOMIC_RELAXED)));
}

/* Wait for a datagram. */
static inline void fastsock_feeder_wait(struct fastsock_feeder *f)
{
    struct epoll_event events[2];
    (void)epoll_wait(f->epoll_fd, events, 2, FASTSOCK_TICK_MS);
    if (f->coalesce_ns)
        fastsock_feeder_sleep(f, f->coalesce_ns);
}

/* Receive until stop() or an error, which is returned. It ends with the role: nobody receives any more. */
static inline int fastsock_feeder_run(struct fastsock_feeder *f)
{
    int64_t idle_since = fastsock_now_ns();
    uint32_t drives = 0;
    unsigned busy = 0;
    int rc = 0;
    f->noted_ns = idle_since;
    while (!fastsock_feeder_stopping(f)) {
        uint32_t driven = __atomic_load_n(&f->drives, __ATOMIC_RELAXED);
        if (driven != drives || !fastsock_feeder_acquire(f)) {
            drives = driven;
            fastsock_feeder_park(f);
            drives = __atomic_load_n(&f->drives, __ATOMIC_RELAXED);
            continue;
        }
        uint64_t before = f->ring->counts.batches;
        rc = f->driven_error ? f->driven_error : fastsock_feeder_receive(f);
        int some = f->ring->counts.batches != before;
        if (rc < 0)
            return -rc;
        fastsock_feeder_release(f);
        if (rc > 0 && ++busy % FASTSOCK_BUSY_ROUNDS)
            continue;
        int64_t now = fastsock_now_ns();
        fastsock_feeder_tick(f, now);
        if (rc > 0)
            continue;
        if (f->spin_ns) {
            if (some)
                idle_since = now;
            if (now - idle_since < f->spin_ns) {
                fastsock_relax();
                continue;
            }
        }
        fastsock_feeder_wait(f);
        if (f->spin_ns)
            idle_since = fastsock_now_ns();
    }
    while (!fastsock_feeder_acquire(f))         /* a consumer lets go at once */
        sched_yield();
    rc = f->driven_error;
    const uint64_t last = fastsock_feeder_seen(f) + fastsock_feeder_queued(f);
    while (rc >= 0 && fastsock_feeder_seen(f) < last) {
        rc = fastsock_feeder_receive(f);
        if (rc == 0)
            break;
    }
    return rc < 0 ? -rc : 0;
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23          /* Linux 5.14 */
#endif

/* Have all the memory there is to be, from the node of the CPU that fills it: no fault comes later. */
static inline int fastsock_feeder_populate(struct fastsock_feeder *f)
{
    const struct fastsock_geometry *geometry = &f->ring->geometry;
    if (madvise(f->ring, geometry->mapping_size, MADV_POPULATE_WRITE) != 0) {
        if (errno != EINVAL)
            return errno == EFAULT ? ENOMEM : errno;
        for (size_t at = 0; at < geometry->mapping_size; at += 4096) {
            volatile char *byte = (volatile char *)f->ring + at;
            *byte = *byte;
        }
    }
    if (geometry->stride)
        for (int32_t i = 0; i < geometry->blocks; i++)
            for (int32_t row = 0; row < geometry->capacity; row++)
                f->views[i].offsets[row] = (int64_t)row * geometry->stride;
    return 0;
}

static inline int fastsock_feeder_settle(struct fastsock_feeder *f)
{
    if (f->cpu >= 0) {
        const size_t cpus = (size_t)f->cpu + 1;
        cpu_set_t *set = CPU_ALLOC(cpus);
        size_t size = CPU_ALLOC_SIZE(cpus);
        if (set == NULL)
            return ENOMEM;
        CPU_ZERO_S(size, set);
        CPU_SET_S(f->cpu, size, set);
        int error = pthread_setaffinity_np(pthread_self(), size, set);
        CPU_FREE(set);
        if (error)
            return error;
    }
    if (f->priority) {
        struct sched_param param = {.sched_priority = f->priority};
        int error = pthread_setschedparam(pthread_self(), SCHED_FIFO, &param);
        if (error)
            return error;
    }
    return fastsock_feeder_populate(f);
}

static inline void *fastsock_feeder_main(void *argument)
{
    struct fastsock_feeder *f = argument;
    (void)pthread_setname_np(pthread_self(), f->name);
    f->start_error = fastsock_feeder_settle(f);
    int failed = f->start_error;
    sem_post(&f->ready);
    if (failed)
        return NULL;
    int error = fastsock_feeder_run(f);
    fastsock_feeder_note_drops(f);
    fastsock_feeder_seal(f);
    __atomic_store_n(&f->stopped, 1, __ATOMIC_RELEASE);
    fastsock_feeder_release(f);
    fastsock_ring_end(f->ring, error, f->eventfd);
    return NULL;
}

/* --- the owner ------------------------------------------------------------------------------------------------ */

/* Start the thread; returns 0 or an errno. It takes no signal: those are for Python. */
static inline int fastsock_feeder_start(struct fastsock_feeder *f)
{
    sigset_t all, before;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    f->block = -1;
    pthread_mutex_init(&f->joining, NULL);
    if (epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, f->fd, &event) != 0)
        return errno;
    event.events = EPOLLIN;
    if (epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, f->stop_fd, &event) != 0)
        return errno;
    if (sem_init(&f->ready, 0, 0) != 0)
        return errno;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&f->thread, NULL, fastsock_feeder_main, f);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error) {
        while (sem_wait(&f->ready) != 0)
            ;           /* EINTR */
        error = f->start_error;
        f->running = !error;
        if (error)
            pthread_join(f->thread, NULL);
    }
    sem_destroy(&f->ready);
    return error;
}

static inline void fastsock_feeder_ask_to_stop(struct fastsock_feeder *f)
{
    const uint64_t one = 1;
    __atomic_store_n(&f->stop, 1, __ATOMIC_RELEASE);
    /* Under the lock, so that stop_fd is there as long as the thread is. Who has the lock asks, or has asked. */
    if (pthread_mutex_trylock(&f->joining) == 0) {
        ssize_t rc = f->running ? write(f->stop_fd, &one, sizeof(one)) : 0;
        (void)rc;       /* it fails only where it was written before */
        pthread_mutex_unlock(&f->joining);
    }
}

/* Have the thread end, and wait until it has; any number of times, on any thread. Nobody writes stop_fd then. */
static inline void fastsock_feeder_stop(struct fastsock_feeder *f)
{
    const uint64_t one = 1;
    __atomic_store_n(&f->stop, 1, __ATOMIC_RELEASE);
    pthread_mutex_lock(&f->joining);
    if (f->running) {
        ssize_t rc = write(f->stop_fd, &one, sizeof(one));
        (void)rc;
        pthread_join(f->thread, NULL);
    }
    f->running = 0;
    pthread_mutex_unlock(&f->joining);
}

/* --- in spin mode: a consumer that waits receives for itself, on its own thread ---------------------------------- */

/* Receive until something is in the ring or `until_ns` has passed. Returns 1 where the thread has to be waited for. */
static inline int fastsock_feeder_drive(struct fastsock_feeder *f, int64_t until_ns)
{
    while (fastsock_ring_empty(f->ring)) {
        if (__atomic_load_n(&f->stopped, __ATOMIC_ACQUIRE) || fastsock_feeder_stopping(f))
            return 1;
        if (fastsock_feeder_acquire(f)) {
            /* Once the thread has stopped, the ring has ended. */
            int over = (int)__atomic_load_n(&f->stopped, __ATOMIC_ACQUIRE) || f->driven_error;
            if (!over)      /* or it keeps the thread from ending */
                __atomic_store_n(&f->drives, f->drives + 1, __ATOMIC_RELAXED);
            while (!over && fastsock_ring_empty(f->ring)) {
                int rc = fastsock_feeder_receive(f);
                f->driven_error = rc < 0 ? rc : 0;
                over = rc < 0 || fastsock_feeder_stopping(f) || fastsock_now_ns() >= until_ns;
            }
            fastsock_feeder_release(f);
            if (over)
                return fastsock_ring_empty(f->ring);
        }
        if (fastsock_now_ns() >= until_ns)
            return 1;
        fastsock_relax();
    }
    return 0;
}

#endif
