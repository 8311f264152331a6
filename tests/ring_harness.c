/* Runs _ring.h without Python: test_ring_sanitizers.py compiles it under the thread and
   address sanitizers and runs each scenario, the one argument, in a process of its own.

   What a lease shows is plain memory, so that the thread sanitizer sees every missing order. A scenario waits
   with a deadline, and asserts no time. */
#include "harness.h"

#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

/* --- a ring whose slots hold a number and a pattern ---------------------------------------------------------- */

enum { WORDS = 4 };

static struct fastsock_ring *new_ring(int32_t blocks, int32_t capacity)
{
    size_t start = (fastsock_ring_size((size_t)blocks) + 63) & ~(size_t)63;
    size_t arena = (size_t)capacity * WORDS * sizeof(uint64_t);
    size_t size = start + (size_t)blocks * arena;
    struct fastsock_ring *ring = new_memory(size);
    ring->geometry = (struct fastsock_geometry){
        .mapping_size = size, .blocks_start = start, .block_size = arena, .arena_size = arena,
        .blocks = blocks, .capacity = capacity,
        .slot_size = WORDS * sizeof(uint64_t), .stride = WORDS * sizeof(uint64_t),
    };
    fastsock_ring_init(ring);
    return ring;
}

static uint64_t *slot_of(struct fastsock_ring *ring, uint32_t index, uint64_t at)
{
    char *arena = (char *)ring + ring->geometry.blocks_start + index * ring->geometry.block_size;
    return (uint64_t *)arena + at * WORDS;
}

static void write_slot(uint64_t *slot, uint64_t number)
{
    for (uint64_t word = 0; word < WORDS; word++)
        slot[word] = (number + 1) * UINT64_C(0x9e3779b97f4a7c15) + word;
}

static int slot_holds(const uint64_t *slot, uint64_t number)
{
    for (uint64_t word = 0; word < WORDS; word++)
        if (slot[word] != (number + 1) * UINT64_C(0x9e3779b97f4a7c15) + word)
            return 0;
    return 1;
}

static uint64_t slot_number(const uint64_t *slot)
{
    return slot[0] * UINT64_C(0xf1de83e19937733d) - 1;      /* by the inverse of the factor */
}

struct lease {
    uint32_t index;
    uint64_t from;
    uint64_t count;
    uint64_t first;     /* number */
};

static uint64_t take(struct fastsock_ring *ring, uint64_t most, struct lease *lease)
{
    lease->count = fastsock_ring_take(ring, most, &lease->index, &lease->from);
    return lease->count;
}

static void check_lease(struct fastsock_ring *ring, const struct lease *lease)
{
    CHECK(lease->index < (uint32_t)ring->geometry.blocks);
    CHECK(lease->from + lease->count <= (uint64_t)ring->geometry.capacity);
    for (uint64_t i = 0; i < lease->count; i++)
        if (!slot_holds(slot_of(ring, lease->index, lease->from + i), lease->first + i))
            FAIL("datagram %llu of block %u is not number %llu", (unsigned long long)(lease->from + i), lease->index,
                 (unsigned long long)(lease->first + i));
}

/* Nobody uses any block: each can be opened, once. */
static void check_all_free(struct fastsock_ring *ring)
{
    char seen[64] = {0};
    CHECK(fastsock_ring_empty(ring));
    for (int32_t i = 0; i < ring->geometry.blocks; i++) {
        int64_t index = fastsock_ring_open(ring);
        if (index < 0)
            FAIL("%d of %d blocks are lost", ring->geometry.blocks - i, ring->geometry.blocks);
        CHECK(!seen[index]++);
    }
    CHECK(fastsock_ring_open(ring) == -1);
}

/* Puts numbers in the ring, a few at a time, and waits where it is full. */
struct producer {
    struct fastsock_ring *ring;
    int eventfd;                /* -1 for no wake-ups */
    uint64_t total;
    uint32_t seed;
    int64_t block;
    uint64_t count;             /* datagrams there */
    uint64_t put;               /* numbers so far */
};

/* Returns 0 where the ring is full. */
static int put_some(struct producer *p, uint64_t most)
{
    const uint64_t capacity = (uint64_t)p->ring->geometry.capacity;
    if (p->block < 0) {
        p->block = fastsock_ring_open(p->ring);
        p->count = 0;
    }
    if (p->block < 0)
        return 0;
    for (; most && p->count < capacity; most--)
        write_slot(slot_of(p->ring, (uint32_t)p->block, p->count++), p->put++);
    /* Seal at once, as the last are published, or afterwards; now and then one that is not full. */
    int seal = p->count == capacity || chance(&p->seed, 16) == 0;
    if (!seal || chance(&p->seed, 2))
        fastsock_ring_publish(p->ring, (uint32_t)p->block, p->count);
    if (seal) {
        dawdle(&p->seed, 2);
        fastsock_ring_seal(p->ring, (uint32_t)p->block, p->count);
        p->block = -1;
    }
    if (p->eventfd >= 0)
        fastsock_ring_notify(p->ring, p->eventfd);
    return 1;
}

static void finish(struct producer *p)
{
    if (p->block >= 0)
        fastsock_ring_seal(p->ring, (uint32_t)p->block, p->count);
    if (p->eventfd >= 0)
        fastsock_ring_end(p->ring, ETIMEDOUT, p->eventfd);
}

static void *produce(void *argument)
{
    struct producer *p = argument;
    while (p->put < p->total) {
        uint64_t most = 1 + chance(&p->seed, 5);
        if (most > p->total - p->put)
            most = p->total - p->put;
        AWAIT(put_some(p, most));
        dawdle(&p->seed, 3);
    }
    finish(p);
    return NULL;
}

/* --- leases end on other threads, out of order ---------------------------------------------------------------- */

struct releaser {
    struct fastsock_ring *ring;
    pthread_mutex_t lock;
    struct lease held[64];
    int count;
    int closed;
    uint32_t seed;
};

static int give(struct releaser *r, const struct lease *lease)
{
    pthread_mutex_lock(&r->lock);
    int room = r->count < 64;
    if (room)
        r->held[r->count++] = *lease;
    pthread_mutex_unlock(&r->lock);
    return room;
}

static void *release_any(void *argument)
{
    struct releaser *r = argument;
    for (int closed = 0, left = 1; !closed || left;) {
        struct lease lease = {.count = 0};
        dawdle(&r->seed, 4);
        pthread_mutex_lock(&r->lock);
        if (r->count) {
            int at = (int)chance(&r->seed, (uint32_t)r->count);
            lease = r->held[at];
            r->held[at] = r->held[--r->count];
        }
        closed = r->closed;
        left = r->count;
        pthread_mutex_unlock(&r->lock);
        if (lease.count) {
            if (chance(&r->seed, 2))        /* a bit too many, as reclaim may set, does no harm */
                fastsock_ring_offer(r->ring, lease.index);
            check_lease(r->ring, &lease);
            fastsock_ring_release(r->ring, lease.index);
        }
    }
    return NULL;
}

static void lease_out_of_order(int32_t blocks, int32_t capacity, uint64_t total)
{
    struct fastsock_ring *ring = new_ring(blocks, capacity);
    struct producer producer = {.ring = ring, .eventfd = -1, .total = total, .seed = 1, .block = -1};
    struct releaser releasers[2];
    pthread_t threads[3];
    uint32_t seed = 2;
    for (int i = 0; i < 2; i++) {
        releasers[i] = (struct releaser){.ring = ring, .lock = PTHREAD_MUTEX_INITIALIZER, .seed = (uint32_t)i + 3};
        threads[i] = spawn(release_any, &releasers[i]);
    }
    threads[2] = spawn(produce, &producer);
    for (uint64_t next = 0; next < total;) {
        struct lease lease = {.first = next};
        AWAIT(take(ring, 1 + chance(&seed, 9), &lease));
        check_lease(ring, &lease);
        next += lease.count;
        AWAIT(give(&releasers[chance(&seed, 2)], &lease));
    }
    join(threads[2]);
    for (int i = 0; i < 2; i++) {
        pthread_mutex_lock(&releasers[i].lock);
        releasers[i].closed = 1;
        pthread_mutex_unlock(&releasers[i].lock);
        join(threads[i]);
    }
    struct lease lease;
    CHECK(take(ring, 1, &lease) == 0);
    CHECK(ring->taken == total);
    check_all_free(ring);
}

static void leases(void)
{
    lease_out_of_order(8, 16, 20000);
}

static void one_block(void)
{
    lease_out_of_order(1, 3, 6000);
}

static void one_slot(void)
{
    lease_out_of_order(1, 1, 3000);
}

static void two_slots(void)
{
    lease_out_of_order(2, 1, 3000);
}

static void nothing_asked_for(void)
{
    struct fastsock_ring *ring = new_ring(2, 4);
    struct producer producer = {.ring = ring, .eventfd = -1, .seed = 1, .block = -1};
    struct lease lease = {.first = 0};
    CHECK(put_some(&producer, 2));
    CHECK(take(ring, 0, &lease) == 0);
    CHECK(take(ring, 4, &lease) == 2);
    check_lease(ring, &lease);
}

/* --- wake-ups --------------------------------------------------------------------------------------------------- */

/* Few at a time, and no more before those were taken: a wake-up that is lost is lost for good. */
static void *produce_in_step(void *argument)
{
    struct producer *p = argument;
    while (p->put < p->total) {
        for (uint32_t bursts = 1 + chance(&p->seed, 3); bursts; bursts--) {
            AWAIT(put_some(p, 1));
            for (volatile uint32_t left = chance(&p->seed, 300); left; left--)
                ;
        }
        AWAIT(fastsock_load(&p->ring->taken) == p->put);
        if (chance(&p->seed, 4) == 0)
            dawdle(&p->seed, 3);
    }
    finish(p);
    return NULL;
}

/* As a consumer does that waits: take all, clear, sleep. Returns at the end. */
static uint64_t consume_by_wakeups(struct fastsock_ring *ring, int eventfd, uint64_t next)
{
    uint64_t empty_wakeups = 0;
    for (;;) {
        int ended = (int)__atomic_load_n(&ring->ended, __ATOMIC_ACQUIRE);
        struct lease lease = {.first = next};
        if (take(ring, 3, &lease)) {
            check_lease(ring, &lease);
            next += lease.count;
            fastsock_ring_release(ring, lease.index);
            empty_wakeups = 0;
        } else if (ended) {
            CHECK(ring->error == ETIMEDOUT);
            return next;
        } else {
            CHECK(++empty_wakeups < 1000);      /* or it is awake all the time */
            fastsock_ring_clear(ring, eventfd);
            await_readable(eventfd, "something was put in the ring");
        }
    }
}

static void wakeups_of(int32_t blocks, int32_t capacity, uint64_t total)
{
    struct fastsock_ring *ring = new_ring(blocks, capacity);
    struct producer producer = {
        .ring = ring, .eventfd = new_eventfd(), .total = total, .seed = 5, .block = -1,
    };
    pthread_t thread = spawn(produce_in_step, &producer);
    CHECK(consume_by_wakeups(ring, producer.eventfd, 0) == producer.put);
    join(thread);
    /* The end stays readable. */
    fastsock_ring_clear(ring, producer.eventfd);
    await_readable(producer.eventfd, "the end");
    check_all_free(ring);
}

static void wakeups(void)
{
    wakeups_of(4, 4, 15000);
}

static void wakeups_one_slot(void)
{
    wakeups_of(1, 1, 6000);
}

/* One thread, every step in turn. */
static void wakeups_by_hand(void)
{
    struct fastsock_ring *ring = new_ring(2, 2);
    struct producer producer = {.ring = ring, .eventfd = new_eventfd(), .seed = 1, .block = -1};
    struct lease lease = {.first = 0};
    uint64_t seen;
    CHECK(fastsock_ring_empty(ring));
    fastsock_ring_clear(ring, producer.eventfd);
    CHECK(read(producer.eventfd, &seen, sizeof(seen)) < 0 && errno == EAGAIN);
    CHECK(put_some(&producer, 1) && put_some(&producer, 1) && put_some(&producer, 1));
    CHECK(!fastsock_ring_empty(ring));
    fastsock_ring_clear(ring, producer.eventfd);                /* something is there: readable again */
    CHECK(read(producer.eventfd, &seen, sizeof(seen)) == sizeof(seen) && seen == 1);
    fastsock_ring_clear(ring, producer.eventfd);
    CHECK(take(ring, 9, &lease) == 2 && take(ring, 9, &lease) == 1);
    CHECK(fastsock_ring_empty(ring));
    fastsock_ring_clear(ring, producer.eventfd);
    CHECK(read(producer.eventfd, &seen, sizeof(seen)) < 0 && errno == EAGAIN);
    /* Used up, and sealed afterwards: nothing to take, but a block to pass over. */
    fastsock_ring_seal(ring, (uint32_t)producer.block, producer.count);
    CHECK(!fastsock_ring_has_ended(ring));
    fastsock_ring_end(ring, EIO, producer.eventfd);
    CHECK(fastsock_ring_has_ended(ring) && !fastsock_ring_empty(ring));
    CHECK(take(ring, 9, &lease) == 0);
    CHECK(fastsock_ring_has_ended(ring) && fastsock_ring_empty(ring));
    for (int i = 0; i < 2; i++) {
        await_readable(producer.eventfd, "the end");
        fastsock_ring_clear(ring, producer.eventfd);
    }
    CHECK(ring->ended && ring->error == EIO);
}

/* --- a consumer that is gone ------------------------------------------------------------------------------------ */

struct generation {
    struct fastsock_ring *ring;
    uint64_t next;
    uint32_t seed;
};

/* Takes some, releases some of it, and leaves the rest leased. */
static void *live_briefly(void *argument)
{
    struct generation *g = argument;
    for (uint32_t left = chance(&g->seed, 12); left; left--) {
        struct lease lease = {.first = g->next};
        if (take(g->ring, 1 + chance(&g->seed, 6), &lease)) {
            check_lease(g->ring, &lease);
            g->next += lease.count;
            if (chance(&g->seed, 3))
                fastsock_ring_release(g->ring, lease.index);
        } else {
            sched_yield();
        }
    }
    return NULL;
}

static void reclaim(void)
{
    struct fastsock_ring *ring = new_ring(4, 4);
    struct producer producer = {.ring = ring, .eventfd = -1, .total = 2000, .seed = 6, .block = -1};
    struct generation generation = {.ring = ring, .seed = 7};
    int64_t until = now_ms() + DEADLINE_MS;
    pthread_t thread = spawn(produce, &producer);
    while (generation.next < producer.total) {
        CHECK(now_ms() < until);
        join(spawn(live_briefly, &generation));
        fastsock_ring_reclaim(ring);
    }
    CHECK(generation.next == producer.total);
    join(thread);
    check_all_free(ring);
}

static void reclaim_at_rest(void)
{
    struct fastsock_ring *ring = new_ring(3, 2);
    struct producer producer = {.ring = ring, .eventfd = -1, .seed = 8, .block = -1};
    struct lease lease = {.first = 0};
    while (put_some(&producer, 1))
        ;
    CHECK(producer.put >= 3);
    for (; take(ring, 1, &lease); lease.first++)
        check_lease(ring, &lease);
    CHECK(lease.first == producer.put && fastsock_ring_open(ring) == -1);
    fastsock_ring_reclaim(ring);
    fastsock_ring_reclaim(ring);
    check_all_free(ring);
}

/* --- processes --------------------------------------------------------------------------------------------------- */

/* A child that does not outlive this process. */
static pid_t fork_child(void)
{
    pid_t parent = getpid();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        if (getppid() != parent)
            _exit(1);
    }
    return child;
}

static void await_child(pid_t child)
{
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        FAIL("the child ended with status %#x", status);
}

static void processes(void)
{
    struct fastsock_ring *ring = new_ring(4, 8);
    struct producer producer = {
        .ring = ring, .eventfd = new_eventfd(), .total = 6000, .seed = 9, .block = -1,
    };
    pid_t child = fork_child();
    if (child == 0)
        _exit(consume_by_wakeups(ring, producer.eventfd, 0) != producer.total);
    produce(&producer);
    await_child(child);
    check_all_free(ring);
}

/* What a consumer notes of its work, in shared memory. */
struct notes {
    uint64_t next;          /* the first number that it has not been given */
    uint64_t rounds;
    uint64_t put;           /* what a producer has published */
};

/* SIGKILL hits a consumer anywhere; the next one is given what follows. */
static void killed(void)
{
    struct fastsock_ring *ring = new_ring(4, 4);
    struct producer producer = {.ring = ring, .eventfd = new_eventfd(), .seed = 10, .block = -1};
    struct notes *notes = new_memory(sizeof(struct notes));
    for (int life = 0; life < 60; life++) {
        uint64_t rounds = fastsock_load(&notes->rounds) + chance(&producer.seed, 40);
        pid_t child = fork_child();
        if (child == 0) {
            struct lease lease;
            fastsock_ring_reclaim(ring);
            for (;;) {
                fastsock_ring_clear(ring, producer.eventfd);
                await_readable(producer.eventfd, "something was put in the ring");
                while (take(ring, 3, &lease)) {
                    lease.first = slot_number(slot_of(ring, lease.index, lease.from));
                    check_lease(ring, &lease);
                    /* What the last one took and could not note is lost with it, and no more. */
                    uint64_t next = fastsock_load(&notes->next);
                    if (lease.first < next || lease.first > next + 3)
                        FAIL("given number %llu, after %llu", (unsigned long long)lease.first, (unsigned long long)next);
                    __atomic_store_n(&notes->next, lease.first + lease.count, __ATOMIC_RELAXED);
                    __atomic_store_n(&notes->rounds, notes->rounds + 1, __ATOMIC_RELAXED);
                    fastsock_ring_release(ring, lease.index);
                }
            }
        }
        int64_t until = now_ms() + DEADLINE_MS;
        while (fastsock_load(&notes->rounds) < rounds + 3) {
            int status;
            put_some(&producer, 1 + chance(&producer.seed, 3));
            if (waitpid(child, &status, WNOHANG) == child)
                FAIL("the child ended with status %#x", status);
            CHECK(now_ms() < until);
        }
        CHECK(kill(child, SIGKILL) == 0);
        CHECK(waitpid(child, NULL, 0) == child);
    }
    fastsock_ring_reclaim(ring);
}

/* --- at every instruction ---------------------------------------------------------------------------------------- */

/* Run `work` in a child, instruction by instruction, and `check` a copy of the ring whenever something has changed. */
static void trace(struct fastsock_ring *ring, struct notes *notes, void (*work)(struct fastsock_ring *, struct notes *),
                  void (*check)(struct fastsock_ring *, const struct notes *))
{
    const size_t size = ring->geometry.mapping_size;
    struct fastsock_ring *copy = new_ring(ring->geometry.blocks, ring->geometry.capacity);
    char *before = malloc(size);
    struct notes noted = {0};
    int status;
    int states = 0;
    CHECK(before != NULL);
    pid_t child = fork_child();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(CANNOT);
        raise(SIGSTOP);
        work(ring, notes);
        raise(SIGSTOP);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == CANNOT)
        stop_with(CANNOT, "no process may be traced here");
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_EXITKILL) == 0);
    do {
        if (states == 0 || memcmp(&noted, notes, sizeof(noted)) != 0 || memcmp(before, ring, size) != 0) {
            states++;
            noted = *notes;
            memcpy(before, ring, size);
            memcpy(copy, ring, size);
            check(copy, &noted);
        }
        CHECK(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0);
        CHECK(waitpid(child, &status, 0) == child);
    } while (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(states > 10);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    free(before);
}

static void take_and_release(struct fastsock_ring *ring, struct notes *notes)
{
    struct lease lease[2] = {{.first = 0}, {.first = 0}};
    for (int i = 0; take(ring, 2, &lease[i & 1]); i++) {
        __atomic_store_n(&notes->next, notes->next + lease[i & 1].count, __ATOMIC_RELAXED);
        if (i)
            fastsock_ring_release(ring, lease[(i - 1) & 1].index);
    }
}

/* Takes all there is, and nothing twice, where the last consumer was given what is before `next`. */
static uint64_t take_over(struct fastsock_ring *ring, uint64_t next)
{
    struct lease lease;
    for (int given = 0; take(ring, 9, &lease); given = 1, next = lease.first + lease.count) {
        lease.first = slot_number(slot_of(ring, lease.index, lease.from));
        check_lease(ring, &lease);
        /* What it took, and could not note, is lost with it. */
        if (given ? lease.first != next : lease.first < next || lease.first > next + 2)
            FAIL("given number %llu, after %llu", (unsigned long long)lease.first, (unsigned long long)next);
        fastsock_ring_release(ring, lease.index);
    }
    return next;
}

static void check_successor(struct fastsock_ring *ring, const struct notes *notes)
{
    fastsock_ring_reclaim(ring);
    uint64_t next = take_over(ring, notes->next);
    CHECK(next <= notes->put && notes->put <= next + 2);
    check_all_free(ring);
}

static void killed_anywhere(void)
{
    struct fastsock_ring *ring = new_ring(2, 2);
    struct producer producer = {.ring = ring, .eventfd = -1, .seed = 11, .block = -1};
    struct notes *notes = new_memory(sizeof(struct notes));
    while (producer.put < 3)            /* a block and a bit */
        CHECK(put_some(&producer, 1));
    finish(&producer);
    notes->put = producer.put;
    trace(ring, notes, take_and_release, check_successor);
    CHECK(notes->next == producer.put);
}

static void open_and_fill(struct fastsock_ring *ring, struct notes *notes)
{
    struct producer producer = {.ring = ring, .eventfd = -1, .seed = 12, .block = -1};
    for (int i = 0; i < 3; i++) {
        CHECK(put_some(&producer, 1));
        __atomic_store_n(&notes->put, producer.put, __ATOMIC_RELAXED);
    }
}

/* A consumer may come at any time: it finds what was noted, if not one more, and takes no block away. */
static void check_newcomer(struct fastsock_ring *ring, const struct notes *notes)
{
    uint32_t users[2] = {ring->block[0].users, ring->block[1].users};
    fastsock_ring_reclaim(ring);
    for (int i = 0; i < 2; i++)
        CHECK(ring->block[i].users == users[i]);
    uint64_t next = take_over(ring, 0);
    CHECK(notes->put <= next && next <= notes->put + 1);
}

static void joined_anywhere(void)
{
    /* The block that was passed over last is the one that is opened next. */
    struct fastsock_ring *ring = new_ring(2, 2);
    struct producer producer = {.ring = ring, .eventfd = -1, .seed = 13, .block = -1};
    CHECK(put_some(&producer, 1));
    finish(&producer);
    CHECK(take_over(ring, 0) == 1 && ring->consumed == 1);
    trace(ring, new_memory(sizeof(struct notes)), open_and_fill, check_newcomer);
}

/* --- which ------------------------------------------------------------------------------------------------------ */

static const struct scenario scenarios[] = {
    {"leases", leases},
    {"one-block", one_block},
    {"one-slot", one_slot},
    {"two-slots", two_slots},
    {"nothing-asked-for", nothing_asked_for},
    {"wakeups", wakeups},
    {"wakeups-one-slot", wakeups_one_slot},
    {"wakeups-by-hand", wakeups_by_hand},
    {"reclaim", reclaim},
    {"reclaim-at-rest", reclaim_at_rest},
    {"processes", processes},
    {"killed", killed},
    {"killed-anywhere", killed_anywhere},
    {"joined-anywhere", joined_anywhere},
};

int main(int argc, char **argv)
{
    return RUN_SCENARIO(argc, argv, scenarios);
}
