/* Runs _feeder.h without Python, over UDP on the loopback device: test_ring_sanitizers.py compiles it under the
   thread and address sanitizers and runs each scenario, the one argument, in a process of its own.

   Every payload is known from its number, and datagrams are looked at through the columns. Where none may be lost, the
   sender does not run ahead by more than the socket's buffer and the ring hold. */
#include "harness.h"

static int recvmmsg_or_fault(int fd, struct mmsghdr *msgvec, unsigned int vlen, int flags);
#define fastsock_recvmmsg recvmmsg_or_fault
#include "_feeder.h"
#undef fastsock_recvmmsg

#include <arpa/inet.h>
#include <dirent.h>

enum { VLEN_MOST = 16, SEGMENTS = 10, LENGTH_MOST = 6000, MESSAGE_MOST = SEGMENTS * LENGTH_MOST, TTL = 37 };

/* --- faults that the kernel has at times ------------------------------------------------------------------------ */

static int fault;               /* errno; 0 for none */
static uint32_t faults;         /* how many times */

static int recvmmsg_or_fault(int fd, struct mmsghdr *msgvec, unsigned int vlen, int flags)
{
    uint32_t left = __atomic_load_n(&faults, __ATOMIC_ACQUIRE);
    if (left == 0)
        return fastsock_recvmmsg(fd, msgvec, vlen, flags);
    errno = fault;
    __atomic_store_n(&faults, left - 1, __ATOMIC_RELEASE);
    return -1;
}

static void inject(int error, uint32_t times)
{
    fault = error;
    __atomic_store_n(&faults, times, __ATOMIC_RELEASE);
}

/* --- datagrams ---------------------------------------------------------------------------------------------------- */

enum kind {
    SHORT,          /* 8 to 57 bytes */
    MIXED,          /* empty ones among them, and up to 256 */
    GROUPS,         /* messages of SEGMENTS, or as many single ones */
};

static size_t length_of(enum kind kind, uint64_t number)
{
    const uint64_t group = number / SEGMENTS;
    static const size_t segment_sizes[] = {48, 1400, 0, LENGTH_MOST};
    size_t segment_size;
    switch (kind) {
    case SHORT:
        return 8 + number % 50;
    case MIXED:
        return number % 7 == 3 ? 0 : number * 37 % 257;
    default:
        segment_size = segment_sizes[group % 4];
        if (segment_size == 0)
            return number % SEGMENTS == 3 ? 0 : 8 + number * 37 % 300;
        segment_size -= group % 40;
        return number % SEGMENTS == SEGMENTS - 1 ? segment_size / 2 : segment_size;
    }
}

static int is_joined(enum kind kind, uint64_t number)
{
    return kind == GROUPS && number / SEGMENTS % 4 != 2;
}

static char byte_of(uint64_t number, size_t at)
{
    return (char)(at < 8 ? number >> 8 * at : number * 167 + at * 13);
}

static void write_payload(char *payload, uint64_t number, size_t length)
{
    for (size_t i = 0; i < length; i++)
        payload[i] = byte_of(number, i);
}

static uint64_t number_in(const char *payload)
{
    uint64_t number = 0;
    for (int i = 7; i >= 0; i--)
        number = number << 8 | (unsigned char)payload[i];
    return number;
}

/* --- sending ------------------------------------------------------------------------------------------------------ */

static int new_socket(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK(bind(fd, (struct sockaddr *)&any, sizeof(any)) == 0);
    return fd;
}

static struct sockaddr_in address_of(int fd)
{
    struct sockaddr_in address;
    socklen_t size = sizeof(address);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    return address;
}

static void set_option(int fd, int level, int option, int value)
{
    CHECK(setsockopt(fd, level, option, &value, sizeof(value)) == 0);
}

static int new_sender(int to)
{
    struct sockaddr_in peer = address_of(to);
    int fd = new_socket();
    CHECK(connect(fd, (struct sockaddr *)&peer, sizeof(peer)) == 0);
    set_option(fd, IPPROTO_IP, IP_TTL, TTL);
    return fd;
}

static void send_singly(int fd, enum kind kind, uint64_t first, unsigned count)
{
    static __thread char payloads[VLEN_MOST][LENGTH_MOST];
    struct mmsghdr msgvec[VLEN_MOST] = {0};
    struct iovec iov[VLEN_MOST];
    for (unsigned i = 0; i < count; i++) {
        size_t length = length_of(kind, first + i);
        write_payload(payloads[i], first + i, length);
        iov[i] = (struct iovec){payloads[i], length};
        msgvec[i].msg_hdr.msg_iov = &iov[i];
        msgvec[i].msg_hdr.msg_iovlen = 1;
    }
    for (unsigned sent = 0; sent < count;) {
        int rc = sendmmsg(fd, msgvec + sent, count - sent, 0);
        if (rc < 0 && (errno == EINTR || errno == ENOBUFS))
            continue;
        CHECK(rc > 0);
        sent += (unsigned)rc;
    }
}

/* One message that the kernel splits, and where the receiver has GRO does not. */
static void send_joined(int fd, enum kind kind, uint64_t first)
{
    static __thread char payload[MESSAGE_MOST];
    union { char room[CMSG_SPACE(sizeof(uint16_t))]; struct cmsghdr align; } control = {{0}};
    const uint16_t segment_size = (uint16_t)length_of(kind, first);
    size_t size = 0;
    for (uint64_t i = 0; i < SEGMENTS; i++) {
        size_t length = length_of(kind, first + i);
        write_payload(payload + size, first + i, length);
        size += length;
    }
    struct iovec iov = {payload, size};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
    cmsg->cmsg_level = FASTSOCK_SOL_UDP;
    cmsg->cmsg_type = UDP_SEGMENT;
    cmsg->cmsg_len = CMSG_LEN(sizeof(segment_size));
    memcpy(CMSG_DATA(cmsg), &segment_size, sizeof(segment_size));
    ssize_t rc;
    while ((rc = sendmsg(fd, &message, 0)) < 0 && (errno == EINTR || errno == ENOBUFS))
        ;
    CHECK(rc == (ssize_t)size);
}

/* Send the numbers from `first` on, up to `most` of them; returns how many. */
static uint64_t send_some(int fd, enum kind kind, uint64_t first, uint64_t most)
{
    if (is_joined(kind, first)) {
        send_joined(fd, kind, first);
        return SEGMENTS;
    }
    if (kind == GROUPS && most > SEGMENTS - first % SEGMENTS)
        most = SEGMENTS - first % SEGMENTS;
    if (most > VLEN_MOST)
        most = VLEN_MOST;
    send_singly(fd, kind, first, (unsigned)most);
    return most;
}

/* --- a receiver ----------------------------------------------------------------------------------------------------- */

struct setup {
    int32_t blocks;
    int32_t capacity;
    int32_t slot_size;
    unsigned vlen;
    int joined;
    int names;
    int ttl;                /* have it come as ancillary data */
    int64_t spin_ns;
    int64_t coalesce_ns;
    int rcvbuf;
};

static const struct setup SLOTS = {.blocks = 8, .capacity = 16, .slot_size = 256, .vlen = 8};
static const struct setup GRO = {.blocks = 6, .capacity = 400, .slot_size = LENGTH_MOST, .vlen = 4, .joined = 1};

struct found {
    int32_t segment_size;
    int32_t ttl;
};

struct receiver {
    struct setup setup;
    struct fastsock_feeder feeder;
    struct fastsock_ring *ring;
    int fd;
    int eventfd;
    /* The consumer's. */
    enum kind kind;
    int gaps;               /* some may be missing */
    uint64_t next;          /* number that comes next */
    uint64_t taken;         /* datagrams; others look at it */
    uint64_t truncated;
    uint64_t nbytes;
    uint32_t held[3];       /* leases, by their blocks */
    unsigned leases;
    uint32_t seed;
    uint16_t ports[3];      /* of the senders, where there are names; network byte order */
};

static int32_t decode(struct msghdr *msg, void *argument)
{
    struct found *found = argument;
    *found = (struct found){0, -1};
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        if (cmsg->cmsg_level == FASTSOCK_SOL_UDP && cmsg->cmsg_type == UDP_GRO)
            memcpy(&found->segment_size, CMSG_DATA(cmsg), sizeof(int));
        if (cmsg->cmsg_level == IPPROTO_IP && cmsg->cmsg_type == IP_TTL)
            memcpy(&found->ttl, CMSG_DATA(cmsg), sizeof(int));
    }
    return found->segment_size;
}

static void write_columns(void *columns, ptrdiff_t start, ptrdiff_t end, const void *found)
{
    for (; start < end; start++)
        ((int32_t *)columns)[start] = ((const struct found *)found)->ttl;
}

static size_t up(size_t size)
{
    return (size + 63) & ~(size_t)63;
}

static void place(struct receiver *r)
{
    const struct setup *setup = &r->setup;
    const size_t capacity = (size_t)setup->capacity;
    const int32_t name_room = setup->names ? (int32_t)sizeof(struct sockaddr_in) : 0;
    const size_t arena = up(setup->joined ? 4 * FASTSOCK_MESSAGE_ROOM : capacity * (size_t)setup->slot_size);
    const size_t sizes[] = {
        arena, up(capacity * 8), up(capacity * 4), up(capacity), up(capacity * 4),
        up(capacity * fastsock_name_stride(name_room)), up(capacity * 4),
    };
    size_t block_size = 0;
    for (size_t i = 0; i < 7; i++)
        block_size += sizes[i];
    const size_t start = up(fastsock_ring_size((size_t)setup->blocks));
    const size_t size = start + (size_t)setup->blocks * block_size;
    struct fastsock_view *views = calloc((size_t)setup->blocks, sizeof(*views));
    CHECK(views != NULL);
    r->ring = new_memory(size);
    r->ring->geometry = (struct fastsock_geometry){
        .mapping_size = size, .blocks_start = start, .block_size = block_size, .arena_size = arena,
        .blocks = setup->blocks, .capacity = setup->capacity, .slot_size = setup->slot_size,
        .stride = setup->joined ? 0 : setup->slot_size, .family = AF_INET, .name_room = name_room,
    };
    fastsock_ring_init(r->ring);
    for (int32_t i = 0; i < setup->blocks; i++) {
        char *at = (char *)r->ring + start + (size_t)i * block_size;
        views[i].arena = at;
        views[i].offsets = (int64_t *)(at += sizes[0]);
        views[i].lengths = (int32_t *)(at += sizes[1]);
        views[i].truncated = (uint8_t *)(at += sizes[2]);
        views[i].messages = (int32_t *)(at += sizes[3]);
        views[i].names = at += sizes[4];
        views[i].columns = at += sizes[5];
    }
    r->feeder.ring = r->ring;
    r->feeder.views = views;
}

/* Everything but the thread. */
static struct receiver *prepare(const struct setup *setup, enum kind kind)
{
    struct receiver *r = calloc(1, sizeof(*r));
    CHECK(r != NULL);
    *r = (struct receiver){.setup = *setup, .kind = kind, .seed = 1};
    place(r);
    r->fd = new_socket();
    if (setup->ttl)
        set_option(r->fd, IPPROTO_IP, IP_RECVTTL, 1);
    if (setup->joined && setsockopt(r->fd, FASTSOCK_SOL_UDP, UDP_GRO, &setup->joined, sizeof(setup->joined)) != 0)
        stop_with(CANNOT, "the kernel does not join datagrams");
    set_option(r->fd, SOL_SOCKET, SO_RCVBUF, setup->rcvbuf ? setup->rcvbuf : 1 << 20);
    struct fastsock_feeder *f = &r->feeder;
    f->fd = r->fd;
    f->eventfd = r->eventfd = new_eventfd();
    f->stop_fd = new_eventfd();
    f->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    CHECK(f->epoll_fd >= 0);
    f->vlen = setup->vlen;
    f->joined = setup->joined;
    f->cpu = -1;
    f->spin_ns = setup->spin_ns;
    f->coalesce_ns = setup->coalesce_ns;
    strcpy(f->name, "feeder");
    f->control_room = setup->joined || setup->ttl ? 64 : 0;
    f->decode = decode;
    f->write = write_columns;
    f->found = calloc(1, sizeof(struct found));
    f->msgvec = calloc(setup->vlen, sizeof(*f->msgvec));
    f->iov = calloc(setup->vlen, sizeof(*f->iov));
    f->controls = calloc(setup->vlen, 64);
    CHECK(f->found != NULL && f->msgvec != NULL && f->iov != NULL && f->controls != NULL);
    for (unsigned i = 0; i < setup->vlen; i++) {
        f->iov[i].iov_len = setup->joined ? (size_t)FASTSOCK_MESSAGE_ROOM : (size_t)setup->slot_size;
        f->msgvec[i].msg_hdr.msg_iov = &f->iov[i];
        if (f->control_room)
            f->msgvec[i].msg_hdr.msg_control = f->controls + i * f->control_room;
    }
    return r;
}

static struct receiver *new_receiver(const struct setup *setup, enum kind kind)
{
    struct receiver *r = prepare(setup, kind);
    CHECK(fastsock_feeder_start(&r->feeder) == 0);
    return r;
}

static void dispose(struct receiver *r)
{
    fastsock_feeder_stop(&r->feeder);
    CHECK(close(r->feeder.stop_fd) == 0 && close(r->feeder.epoll_fd) == 0 && close(r->eventfd) == 0);
    if (r->fd >= 0)
        CHECK(close(r->fd) == 0);
    CHECK(munmap(r->ring, r->ring->geometry.mapping_size) == 0);
    free((void *)(uintptr_t)r->feeder.views);
    free(r->feeder.found);
    free(r->feeder.msgvec);
    free(r->feeder.iov);
    free(r->feeder.controls);
    free(r);
}

static uint64_t counted(const uint64_t *value)
{
    return fastsock_load(value);
}

static uint64_t kernel_drops(int fd)
{
    uint32_t info[FASTSOCK_MEMINFO_VARS] = {0};
    socklen_t size = sizeof(info);
    if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &size) != 0)
        stop_with(CANNOT, "the kernel does not count a socket's drops");
    return info[FASTSOCK_MEMINFO_DROPS];
}

/* --- a consumer ----------------------------------------------------------------------------------------------------- */

static void check_datagram(struct receiver *r, uint32_t block, uint64_t row)
{
    const struct fastsock_view *view = &r->feeder.views[block];
    const char *payload = view->arena + view->offsets[row];
    const int32_t kept = view->lengths[row];
    CHECK(kept >= 0 && kept <= r->setup.slot_size);
    CHECK(view->offsets[row] + kept <= (int64_t)r->ring->geometry.arena_size);
    if (r->gaps && kept >= 8) {
        CHECK(number_in(payload) >= r->next);
        r->next = number_in(payload);
    }
    /* One without a number of its own, behind a gap: the next of its length. */
    if (r->gaps && kept < 8 && kept < r->setup.slot_size)
        while (length_of(r->kind, r->next) != (size_t)kept)
            r->next++;
    const uint64_t number = r->next++;
    const size_t length = length_of(r->kind, number);
    const size_t expected = length < (size_t)r->setup.slot_size ? length : (size_t)r->setup.slot_size;
    if ((size_t)kept != expected)
        FAIL("number %llu has %d bytes, not %zu", (unsigned long long)number, kept, expected);
    CHECK(view->truncated[row] == (expected < length));
    for (size_t i = 0; i < expected; i++)
        if (payload[i] != byte_of(number, i))
            FAIL("number %llu, byte %zu is %d", (unsigned long long)number, i, payload[i]);
    if (r->setup.ttl)
        CHECK(((int32_t *)view->columns)[row] == TTL);
    if (r->setup.names) {
        size_t message = r->setup.joined ? (size_t)view->messages[row] : row;
        const struct fastsock_name *name = (const struct fastsock_name *)(
            view->names + message * fastsock_name_stride(r->ring->geometry.name_room));
        struct sockaddr_in peer;
        CHECK(name->length == sizeof(peer));
        memcpy(&peer, name->address, sizeof(peer));
        CHECK(peer.sin_family == AF_INET && peer.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
        CHECK(peer.sin_port == r->ports[number / SEGMENTS % 3]);
    }
    r->truncated += expected < length;
    r->nbytes += expected;
}

static void release_one(struct receiver *r)
{
    unsigned which = chance(&r->seed, r->leases);
    fastsock_ring_release(r->ring, r->held[which]);
    r->held[which] = r->held[--r->leases];
}

static uint64_t take_some(struct receiver *r)
{
    uint32_t block;
    uint64_t from;
    if (r->leases == 3)
        release_one(r);
    uint64_t count = fastsock_ring_take(r->ring, 1 + chance(&r->seed, 40), &block, &from);
    if (count) {
        for (uint64_t i = 0; i < count; i++)
            check_datagram(r, block, from + i);
        r->held[r->leases++] = block;
        fastsock_add(&r->taken, count);
    }
    return count;
}

static int has_ended(struct receiver *r)
{
    return (int)__atomic_load_n(&r->ring->ended, __ATOMIC_ACQUIRE);
}

static void wait_for_more(struct receiver *r)
{
    while (r->leases)
        release_one(r);
    fastsock_ring_clear(r->ring, r->eventfd);
    await_readable(r->eventfd, "something was received");
}

/* Take until so many were taken, with the wake-ups of the eventfd. */
static void consume(struct receiver *r, uint64_t until)
{
    while (r->taken < until)
        if (!take_some(r)) {
            CHECK(!has_ended(r));
            wait_for_more(r);
        }
}

/* Take what there is until the end; returns why it ended. */
static int consume_the_rest(struct receiver *r)
{
    for (;;) {
        int ended = has_ended(r);
        if (take_some(r))
            continue;
        if (ended)
            return r->ring->error;
        wait_for_more(r);
    }
}

/* What the ring counted is what was taken, and nothing is left of it. */
static void check_counts(struct receiver *r)
{
    const struct fastsock_counts *counts = &r->ring->counts;
    const uint64_t slots = (uint64_t)r->setup.blocks * fastsock_block_slots(&r->ring->geometry);
    while (r->leases)
        release_one(r);
    CHECK(counts->received == r->taken && r->ring->taken == r->taken);
    CHECK(counts->nbytes == r->nbytes);
    CHECK(counts->truncated == r->truncated);
    CHECK(counts->batches <= counts->received && (counts->batches > 0) == (counts->received > 0));
    CHECK(counts->largest_batch <= counts->received && counts->high_water <= slots);
    CHECK((counts->high_water > 0) == (counts->nbytes > 0 || (counts->received > 0 && !r->setup.joined)));
    CHECK(fastsock_ring_in_use(r->ring) == 0);
    for (int32_t i = 0; i < r->setup.blocks; i++)
        CHECK(fastsock_ring_open(r->ring) >= 0);
}

/* --- a sender on a thread of its own ---------------------------------------------------------------------------------- */

struct sender {
    struct receiver *to;
    int fds[3];             /* by groups in turn */
    uint64_t total;
    uint64_t window;        /* it does not run ahead of `done` further; 0 for as fast as it goes */
    uint64_t (*done)(struct receiver *to);
    uint32_t stop;
    uint64_t sent;
};

static void *send_all(void *argument)
{
    struct sender *s = argument;
    while (s->sent < s->total && !__atomic_load_n(&s->stop, __ATOMIC_RELAXED)) {
        uint64_t most = s->total - s->sent;
        if (s->window) {
            uint64_t done;
            AWAIT(s->sent < (done = s->done(s->to)) + s->window);
            if (most > done + s->window - s->sent)
                most = done + s->window - s->sent;
        }
        int fd = s->fds[0];
        if (s->to->setup.names) {
            fd = s->fds[s->sent / SEGMENTS % 3];
            if (most > SEGMENTS - s->sent % SEGMENTS)
                most = SEGMENTS - s->sent % SEGMENTS;
        }
        fastsock_add(&s->sent, send_some(fd, s->to->kind, s->sent, most));
    }
    return NULL;
}

/* By the consumer. */
static uint64_t taken(struct receiver *r)
{
    return counted(&r->taken);
}

/* By the thread. */
static uint64_t received(struct receiver *r)
{
    return counted(&r->ring->counts.received) + counted(&r->ring->counts.ring_drops);
}

static struct sender sender_to(struct receiver *r, uint64_t total, uint64_t window)
{
    struct sender s = {.to = r, .total = total, .window = window, .done = taken};
    for (int i = 0; i < 3; i++) {
        s.fds[i] = new_sender(r->fd);
        r->ports[i] = address_of(s.fds[i]).sin_port;
    }
    return s;
}

/* --- nothing is lost -------------------------------------------------------------------------------------------------- */

static uint64_t window_of(enum kind kind)
{
    return kind == GROUPS ? 2 * SEGMENTS : 48;
}

/* Returns how many blocks were filled. */
static uint64_t carry(const struct setup *setup, enum kind kind, uint64_t total)
{
    struct receiver *r = new_receiver(setup, kind);
    struct sender s = sender_to(r, total, window_of(kind));
    pthread_t thread = spawn(send_all, &s);
    consume(r, total);
    join(thread);
    fastsock_feeder_stop(&r->feeder);
    CHECK(consume_the_rest(r) == 0);
    CHECK(r->taken == total && r->next == total);
    CHECK(r->ring->counts.ring_drops == 0 && r->ring->counts.kernel_drops == 0 && r->ring->counts.errors == 0);
    const uint64_t opened = r->ring->opened;
    check_counts(r);
    dispose(r);
    return opened;
}

static void slots(void)
{
    carry(&SLOTS, SHORT, 12000);
}

static void mixed(void)
{
    carry(&SLOTS, MIXED, 12000);
}

/* Where the consumer keeps up, blocks are not filled to the end. */
static void rotating(void)
{
    struct setup setup = SLOTS;
    setup.capacity = 4 * FASTSOCK_HOT_BYTES / setup.slot_size;
    CHECK(carry(&setup, MIXED, 12000) > 12000 / (uint64_t)setup.capacity + 2);
}

static void truncated(void)
{
    struct setup setup = SLOTS;
    setup.slot_size = 72;
    carry(&setup, MIXED, 6000);
}

static void names(void)
{
    struct setup setup = SLOTS;
    setup.names = 1;
    carry(&setup, MIXED, 6000);
}

static void ancillary(void)
{
    struct setup setup = SLOTS;
    setup.ttl = 1;
    carry(&setup, MIXED, 6000);
}

static void coalesce(void)
{
    struct setup setup = SLOTS;
    setup.coalesce_ns = 50000;
    carry(&setup, SHORT, 6000);
}

static void spin(void)
{
    struct setup setup = SLOTS;
    setup.spin_ns = 200000;
    carry(&setup, SHORT, 6000);
}

static void gro(void)
{
    carry(&GRO, GROUPS, 800 * SEGMENTS);
}

static void gro_truncated(void)
{
    struct setup setup = GRO;
    setup.slot_size = 1000;
    carry(&setup, GROUPS, 400 * SEGMENTS);
}

static void gro_names(void)
{
    struct setup setup = GRO;
    setup.names = 1;
    setup.ttl = 1;
    carry(&setup, GROUPS, 400 * SEGMENTS);
}

/* --- a full ring -------------------------------------------------------------------------------------------------------- */

static void fill_up(const struct setup *setup, enum kind kind, uint64_t total)
{
    struct receiver *r = new_receiver(setup, kind);
    struct sender s = sender_to(r, total, window_of(kind));
    r->gaps = 1;
    s.done = received;
    send_all(&s);
    AWAIT(received(r) >= total);
    CHECK(received(r) == total && kernel_drops(r->fd) == 0);
    const uint64_t before = counted(&r->ring->counts.received);
    CHECK(counted(&r->ring->counts.ring_drops) > 0 && before > 0);
    if (!setup->joined)
        CHECK(before == (uint64_t)setup->blocks * (uint64_t)setup->capacity);
    while (take_some(r))
        ;
    CHECK(r->taken == before);
    /* There is room again. */
    const uint64_t drops = total - before;
    while (r->leases)
        release_one(r);
    s.total += SEGMENTS;
    send_all(&s);
    consume(r, before + SEGMENTS);
    fastsock_feeder_stop(&r->feeder);
    CHECK(consume_the_rest(r) == 0 && r->taken == before + SEGMENTS);
    CHECK(r->ring->counts.ring_drops == drops && r->ring->counts.kernel_drops == 0);
    check_counts(r);
    dispose(r);
}

static void full(void)
{
    fill_up(&SLOTS, SHORT, 4000);
}

static void full_gro(void)
{
    fill_up(&GRO, GROUPS, 400 * SEGMENTS);
}

/* All that was put in the ring was taken, and still there is no room: the consumer has to hear of it. */
static void full_and_empty(void)
{
    struct setup setup = SLOTS;
    setup.blocks = 1;
    setup.capacity = 4;
    struct receiver *r = new_receiver(&setup, SHORT);
    struct sender s = sender_to(r, UINT64_MAX, 0);
    /* First step by step: what follows a block that was filled to the end finds it free. */
    for (s.total = 4; s.total <= 400; s.total += 4) {
        send_all(&s);
        consume(r, s.total);
        while (r->leases)
            release_one(r);
    }
    CHECK(r->ring->counts.ring_drops == 0 && r->next == 400);
    r->gaps = 1;
    s.total = UINT64_MAX;
    pthread_t thread = spawn(send_all, &s);
    consume(r, 2000);
    __atomic_store_n(&s.stop, 1, __ATOMIC_RELAXED);
    join(thread);
    fastsock_feeder_stop(&r->feeder);
    CHECK(consume_the_rest(r) == 0);
    const struct fastsock_counts *counts = &r->ring->counts;
    CHECK(counts->received + counts->ring_drops + counts->kernel_drops == s.sent);
    check_counts(r);
    dispose(r);
}

/* What the kernel drops is known while more comes than the thread can receive. */
static void kernel_drops_under_load(void)
{
    struct setup setup = SLOTS;
    setup.rcvbuf = 1;       /* the least there is */
    struct receiver *r = new_receiver(&setup, SHORT);
    struct sender s = sender_to(r, UINT64_MAX, 0);
    pthread_t thread = spawn(send_all, &s);
    AWAIT(counted(&r->ring->counts.kernel_drops) > 0);
    __atomic_store_n(&s.stop, 1, __ATOMIC_RELAXED);
    join(thread);
    AWAIT(received(r) + kernel_drops(r->fd) >= s.sent);
    fastsock_feeder_stop(&r->feeder);
    const struct fastsock_counts *counts = &r->ring->counts;
    CHECK(counts->received + counts->ring_drops + counts->kernel_drops == s.sent);
    CHECK(counts->kernel_drops == kernel_drops(r->fd));
    dispose(r);
}

/* --- a consumer that receives for itself --------------------------------------------------------------------------------- */

static void drive(void)
{
    const uint64_t total = 12000;
    struct setup setup = SLOTS;
    setup.spin_ns = 300000;
    struct receiver *r = new_receiver(&setup, MIXED);
    struct sender s = sender_to(r, total, window_of(MIXED));
    pthread_t thread = spawn(send_all, &s);
    while (r->taken < total) {
        CHECK(!has_ended(r));
        if (take_some(r))
            continue;
        while (r->leases)
            release_one(r);
        switch (chance(&r->seed, 40)) {
        case 0:             /* the thread's turn */
            wait_for_more(r);
            break;
        case 1:             /* busy with something else */
            usleep(400);
            break;
        default:
            fastsock_feeder_drive(&r->feeder, fastsock_now_ns() + chance(&r->seed, 200000));
        }
    }
    join(thread);
    CHECK(r->next == total && received(r) == total);
    CHECK(fastsock_feeder_drive(&r->feeder, fastsock_now_ns()) == 1);
    fastsock_feeder_stop(&r->feeder);
    CHECK(consume_the_rest(r) == 0);
    CHECK(fastsock_feeder_drive(&r->feeder, INT64_MAX) == 1);
    check_counts(r);
    dispose(r);
}

static void *drive_for_ever(void *argument)
{
    struct receiver *r = argument;
    fastsock_feeder_drive(&r->feeder, INT64_MAX);
    CHECK(take_some(r) == 0);
    return NULL;
}

static void stop_driven(void)
{
    struct setup setup = SLOTS;
    setup.spin_ns = 300000;
    for (int i = 0; i < 20; i++) {
        struct receiver *r = new_receiver(&setup, SHORT);
        pthread_t thread = spawn(drive_for_ever, r);
        if (i % 2)
            AWAIT(__atomic_load_n(&r->feeder.drives, __ATOMIC_RELAXED) > 0);
        fastsock_feeder_stop(&r->feeder);
        join(thread);
        CHECK(has_ended(r) && r->ring->error == 0);
        dispose(r);
    }
}

/* --- the end ---------------------------------------------------------------------------------------------------------------- */

static void *stop_it(void *argument)
{
    fastsock_feeder_stop(argument);
    return NULL;
}

static void stop_idle(void)
{
    struct setup setup = SLOTS;
    for (int i = 0; i < 12; i++) {
        setup.spin_ns = i % 3 == 1 ? INT64_C(1) << 40 : 0;
        setup.coalesce_ns = i % 3 == 2 ? INT64_C(1) << 40 : 0;
        struct receiver *r = new_receiver(&setup, SHORT);
        struct sender s = sender_to(r, 5, 0);
        if (i % 2)
            send_all(&s);       /* in the ring, or still in the socket */
        pthread_t thread = spawn(stop_it, &r->feeder);
        fastsock_feeder_stop(&r->feeder);
        join(thread);
        CHECK(consume_the_rest(r) == 0 && r->taken == s.sent);
        CHECK(consume_the_rest(r) == 0);
        check_counts(r);
        dispose(r);
        for (int sender = 0; sender < 3; sender++)
            CHECK(close(s.fds[sender]) == 0);
    }
}

static void stop_flooded(void)
{
    for (int i = 0; i < 6; i++) {
        struct receiver *r = new_receiver(i % 2 ? &GRO : &SLOTS, i % 2 ? GROUPS : SHORT);
        struct sender s = sender_to(r, UINT64_MAX, 0);
        r->gaps = 1;
        pthread_t thread = spawn(send_all, &s);
        consume(r, 500);
        pthread_t stopper = spawn(stop_it, &r->feeder);
        CHECK(consume_the_rest(r) == 0);
        join(stopper);
        __atomic_store_n(&s.stop, 1, __ATOMIC_RELAXED);
        join(thread);
        check_counts(r);
        /* The rest is in the socket. */
        uint64_t left = 0;
        char byte;
        union { char room[64]; struct cmsghdr align; } control;
        struct found found;
        for (;;) {
            struct iovec iov = {&byte, 1};
            struct msghdr message = {
                .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control),
            };
            ssize_t size = recvmsg(r->fd, &message, MSG_DONTWAIT | MSG_TRUNC);
            if (size < 0)
                break;
            int32_t segment_size = decode(&message, &found);
            left += segment_size ? ((uint64_t)size + (uint64_t)segment_size - 1) / (uint64_t)segment_size : 1;
        }
        CHECK(errno == EAGAIN);
        const uint64_t known = received(r) + kernel_drops(r->fd) + left;
        /* The kernel counts one drop for a message of joined datagrams. */
        const uint64_t unknown = i % 2 ? kernel_drops(r->fd) * (SEGMENTS - 1) : 0;
        if (known > s.sent || s.sent > known + unknown)
            FAIL("%llu of %llu sent", (unsigned long long)known, (unsigned long long)s.sent);
        dispose(r);
        for (int sender = 0; sender < 3; sender++)
            CHECK(close(s.fds[sender]) == 0);
    }
}

/* Without the sanitizer's knowing, which reports it as the race that it is. */
static void close_under(struct receiver *r)
{
    CHECK(syscall(SYS_close, r->fd) == 0);
    r->fd = -1;
}

static void closed_with(int64_t spin_ns)
{
    struct setup setup = SLOTS;
    setup.spin_ns = spin_ns;
    struct receiver *r = new_receiver(&setup, SHORT);
    struct sender s = sender_to(r, 5, 0);
    send_all(&s);
    consume(r, 5);
    close_under(r);
    CHECK(consume_the_rest(r) == EBADF);
    CHECK(r->taken == 5 && r->ring->counts.errors == 1 && r->ring->counts.last_error == EBADF);
    check_counts(r);
    dispose(r);
}

static void closed_asleep(void)
{
    closed_with(0);
}

static void closed_spinning(void)
{
    closed_with(INT64_C(1) << 40);
}

/* A consumer that asks again and again has the thread end. */
static void closed_driven(void)
{
    struct setup setup = SLOTS;
    setup.spin_ns = INT64_C(1) << 40;
    struct receiver *r = new_receiver(&setup, SHORT);
    AWAIT(fastsock_feeder_drive(&r->feeder, fastsock_now_ns() + 1000000) == 1 && r->feeder.drives > 0);
    close_under(r);
    int64_t until = now_ms() + DEADLINE_MS;
    while (!has_ended(r)) {
        CHECK(now_ms() < until && take_some(r) == 0);
        fastsock_feeder_drive(&r->feeder, fastsock_now_ns() + 100000);
    }
    CHECK(r->ring->error == EBADF && r->ring->counts.errors == 1);
    dispose(r);
}

static void glued_with(int ttl)
{
    struct setup setup = SLOTS;
    setup.ttl = ttl;
    setup.slot_size = 2048;
    struct receiver *r = new_receiver(&setup, GROUPS);
    int sender = new_sender(r->fd);
    const int on = 1;
    if (setsockopt(r->fd, FASTSOCK_SOL_UDP, UDP_GRO, &on, sizeof(on)) != 0)
        stop_with(CANNOT, "the kernel does not join datagrams");
    send_singly(sender, SHORT, 0, 3);       /* these come alone */
    r->kind = SHORT;
    consume(r, 3);
    send_joined(sender, GROUPS, 0);
    CHECK(consume_the_rest(r) == EIO);
    CHECK(r->taken == 3);
    check_counts(r);
    dispose(r);
}

static void glued(void)
{
    glued_with(0);
}

static void glued_with_ancillary(void)
{
    glued_with(1);
}

/* Whether the thread sleeps in the kernel. */
static int is_asleep(void)
{
    char path[64], line[256];
    DIR *tasks = opendir("/proc/self/task");
    int state = 0;
    CHECK(tasks != NULL);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        snprintf(path, sizeof(path), "/proc/self/task/%.20s/stat", task->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL)
            continue;
        char *at = fgets(line, sizeof(line), file) ? strstr(line, "(feeder) ") : NULL;
        if (at)
            state = at[9];
        CHECK(fclose(file) == 0);
    }
    CHECK(closedir(tasks) == 0 && state != 0);
    return state == 'S';
}

/* ICMP errors end nothing, however many there are. */
static void refused(void)
{
    struct receiver *r = new_receiver(&SLOTS, SHORT);
    struct sender s = sender_to(r, 3, 0);
    struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_port = htons(1), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    set_option(r->fd, IPPROTO_IP, IP_RECVERR, 1);
    const int64_t until = now_ms() + DEADLINE_MS;
    while (counted(&r->ring->counts.errors) < FASTSOCK_FAILURES + 50) {
        char byte;
        struct iovec iov = {&byte, 1};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
        const uint64_t before = counted(&r->ring->counts.errors);
        CHECK(now_ms() < until && !has_ended(r));
        CHECK(sendto(r->fd, &byte, 0, 0, (struct sockaddr *)&nobody, sizeof(nobody)) == 0 || errno == ECONNREFUSED);
        /* The thread is to meet it, and not the next send. There may be none: the kernel limits how many it answers. */
        for (unsigned tries = 0; tries < 40 && counted(&r->ring->counts.errors) == before; tries++)
            pause_a_little(tries);
        while (recvmsg(r->fd, &message, MSG_ERRQUEUE) >= 0)
            ;
    }
    CHECK(counted(&r->ring->counts.last_error) == ECONNREFUSED);
    /* One that nobody fetches leaves the socket ready, and the thread asleep. */
    const uint64_t before = counted(&r->ring->counts.errors);
    AWAIT(sendto(r->fd, "", 0, 0, (struct sockaddr *)&nobody, sizeof(nobody)) < 0
          || counted(&r->ring->counts.errors) > before);
    AWAIT(is_asleep());
    send_all(&s);
    consume(r, 3);
    dispose(r);
}

/* What passes is survived, and what does not ends the thread. */
static void failing(void)
{
    static const int passing[] = {EINTR, FASTSOCK_ERESTARTSYS, ENOMEM, ENOBUFS, EPERM, ENETDOWN, EHOSTUNREACH};
    struct receiver *r = new_receiver(&SLOTS, SHORT);
    struct sender s = sender_to(r, 0, 0);
    uint64_t errors = 0;
    for (size_t i = 0; i < sizeof(passing) / sizeof(passing[0]); i++) {
        inject(passing[i], 20);
        s.total += 5;
        send_all(&s);
        consume(r, s.total);
        errors += i < 2 ? 0 : 20;
        CHECK(counted(&r->ring->counts.errors) == errors);
    }
    CHECK(r->ring->counts.last_error == EHOSTUNREACH && r->next == s.total);
    inject(ENOMEM, UINT32_MAX);
    send_all(&(struct sender){.to = r, .fds = {s.fds[0]}, .total = 1});
    CHECK(consume_the_rest(r) == ENOMEM);
    CHECK(r->ring->counts.errors == errors + FASTSOCK_FAILURES);
    dispose(r);
}

static void start_fails(void)
{
    struct receiver *r = prepare(&SLOTS, SHORT);
    struct sender s = sender_to(r, 3, 0);
    /* No such CPU. */
    r->feeder.cpu = CPU_SETSIZE - 1;
    CHECK(fastsock_feeder_start(&r->feeder) == EINVAL);
    CHECK(!r->feeder.running && !has_ended(r));
    CHECK(epoll_ctl(r->feeder.epoll_fd, EPOLL_CTL_DEL, r->feeder.fd, NULL) == 0);
    CHECK(epoll_ctl(r->feeder.epoll_fd, EPOLL_CTL_DEL, r->feeder.stop_fd, NULL) == 0);
    r->feeder.cpu = -1;
    /* No room for a stack. */
    pthread_attr_t attributes;
    size_t size;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_getstacksize(&attributes, &size) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, (size_t)1 << 46) == 0);
    CHECK(pthread_setattr_default_np(&attributes) == 0);
    CHECK(fastsock_feeder_start(&r->feeder) == EAGAIN);
    CHECK(!r->feeder.running && !has_ended(r));
    CHECK(pthread_attr_setstacksize(&attributes, size) == 0);
    CHECK(pthread_setattr_default_np(&attributes) == 0);
    CHECK(epoll_ctl(r->feeder.epoll_fd, EPOLL_CTL_DEL, r->feeder.fd, NULL) == 0);
    CHECK(epoll_ctl(r->feeder.epoll_fd, EPOLL_CTL_DEL, r->feeder.stop_fd, NULL) == 0);
    /* What epoll does not take. */
    r->feeder.fd = -1;
    CHECK(fastsock_feeder_start(&r->feeder) == EBADF);
    r->feeder.fd = r->fd;
    CHECK(fastsock_feeder_start(&r->feeder) == 0);
    send_all(&s);
    consume(r, 3);
    dispose(r);
}

static volatile sig_atomic_t signals;
static pthread_t main_thread;

static void on_signal(int number)
{
    (void)number;
    if (!pthread_equal(pthread_self(), main_thread))
        _exit(3);
    signals++;
}

/* Signals are for the other threads. */
static void signaled(void)
{
    sigset_t mask;
    struct receiver *r = new_receiver(&SLOTS, SHORT);
    main_thread = pthread_self();
    CHECK(signal(SIGUSR1, on_signal) != SIG_ERR);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &mask, NULL) == 0);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    dispose(r);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &mask, NULL) == 0);
    CHECK(signals == 1);
}

/* --- which ------------------------------------------------------------------------------------------------------ */

static const struct scenario scenarios[] = {
    {"slots", slots},
    {"mixed", mixed},
    {"rotating", rotating},
    {"truncated", truncated},
    {"names", names},
    {"ancillary", ancillary},
    {"coalesce", coalesce},
    {"spin", spin},
    {"gro", gro},
    {"gro-truncated", gro_truncated},
    {"gro-names", gro_names},
    {"full", full},
    {"full-gro", full_gro},
    {"full-and-empty", full_and_empty},
    {"kernel-drops", kernel_drops_under_load},
    {"drive", drive},
    {"stop-driven", stop_driven},
    {"stop-idle", stop_idle},
    {"stop-flooded", stop_flooded},
    {"closed-asleep", closed_asleep},
    {"closed-spinning", closed_spinning},
    {"closed-driven", closed_driven},
    {"glued", glued},
    {"glued-with-ancillary", glued_with_ancillary},
    {"refused", refused},
    {"failing", failing},
    {"start-fails", start_fails},
    {"signaled", signaled},
};

int main(int argc, char **argv)
{
    return RUN_SCENARIO(argc, argv, scenarios);
}
