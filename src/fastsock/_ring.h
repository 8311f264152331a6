/* A ring of datagrams in shared memory, between one producer and one consumer at a time, in any processes.
   Plain C without a system call but the wake-up's write and read; tests/ring_harness.c runs it under the
   thread and address sanitizers. Imports only _compat.h. docs/design/receiver.md tells why it is as it is.

   The memory is a number of blocks, each an arena with columns beside it. The producer opens a block, fills
   it, publishes after each receive how many datagrams it holds, and seals it when there is no more room.
   Blocks are consumed in the order in which they were opened; the consumer takes what was published since it
   last looked, from one block at a time. What is taken is leased. A block is free again when it is sealed,
   consumed, and no lease of it is left; leases end in any order and on any thread. The first block that
   is free is filled next, so that no more of them come into the caches than are in use at a time. */
#ifndef FASTSOCK_RING_H
#define FASTSOCK_RING_H

#include "_compat.h"

#define FASTSOCK_RING_MAGIC UINT64_C(0x31676e69726b636f)   /* "ockring1": this layout */
#define FASTSOCK_LINE 64

/* Who needs a block. The rest of the word counts leases. */
#define FASTSOCK_FILLING UINT32_C(0x80000000)
#define FASTSOCK_UNREAD UINT32_C(0x40000000)
#define FASTSOCK_LEASES UINT32_C(0x3fffffff)

struct fastsock_block {
    _Alignas(FASTSOCK_LINE) uint64_t filled;    /* datagrams published, doubled; plus 1 once sealed */
    uint32_t users;                             /* FASTSOCK_FILLING | FASTSOCK_UNREAD | leases */
    uint64_t taken;                             /* datagrams; the consumer's */
};

/* Set once, before anybody else sees the ring. */
struct fastsock_geometry {
    uint64_t mapping_size;      /* of everything */
    uint64_t blocks_start;      /* from the ring to the first block's memory */
    uint64_t block_size;        /* from one block's memory to the next */
    uint64_t arena_size;        /* of each block */
    int32_t blocks;
    int32_t capacity;           /* datagrams of a block, for which there are columns */
    int32_t slot_size;          /* bytes that are kept of each datagram */
    int32_t stride;             /* from one slot to the next; 0 where datagrams lie densely */
    int32_t ancillary;          /* bits of _cmsg.Ancillary */
    int32_t family;
    int32_t name_room;          /* bytes of a peer's address that are kept; 0 for no addresses */
};

/* Since the start; written by the producer alone. */
struct fastsock_counts {
    uint64_t received;          /* datagrams put in the ring */
    uint64_t nbytes;            /* of their payloads, as kept */
    uint64_t ring_drops;        /* datagrams for which there was no room */
    uint64_t kernel_drops;      /* of the socket, as of the last tick */
    uint64_t truncated;
    uint64_t batches;           /* receives that brought any */
    uint64_t largest_batch;
    uint64_t high_water;        /* slots in use at most */
    uint64_t errors;            /* receives that failed, and the thread went on */
    uint64_t last_error;
};

struct fastsock_ring {
    uint64_t magic;
    struct fastsock_geometry geometry;
    int32_t producer_pid;

    _Alignas(FASTSOCK_LINE) uint64_t opened;            /* blocks, so far; the producer's */
    struct fastsock_counts counts;
    uint32_t ended;                                     /* no more will come */
    int32_t error;                                      /* and why: errno, or 0 for stop() */

    _Alignas(FASTSOCK_LINE) uint64_t consumed;          /* blocks, so far; the consumer's */
    uint64_t taken;                                     /* datagrams, so far */
    int32_t consumer_pid;                               /* for a message to whoever comes second */

    _Alignas(FASTSOCK_LINE) uint32_t signaled;          /* the eventfd was written since the consumer cleared it */
    _Alignas(FASTSOCK_LINE) struct fastsock_block block[];
    /* behind them: uint64_t free[], a bit for each block that nobody uses;
       uint32_t queue[blocks], the blocks in the order in which they were opened */
};

/* In whole cache lines. */
static inline size_t fastsock_ring_free_words(size_t blocks)
{
    return (blocks + 511) / 512 * 8;
}

static inline size_t fastsock_ring_size(size_t blocks)
{
    return sizeof(struct fastsock_ring) + blocks * (sizeof(struct fastsock_block) + sizeof(uint32_t))
        + fastsock_ring_free_words(blocks) * sizeof(uint64_t);
}

static inline uint64_t *fastsock_ring_free(struct fastsock_ring *ring)
{
    return (uint64_t *)(ring->block + ring->geometry.blocks);
}

static inline uint32_t *fastsock_ring_queue(struct fastsock_ring *ring)
{
    return (uint32_t *)(fastsock_ring_free(ring) + fastsock_ring_free_words((size_t)ring->geometry.blocks));
}

static inline uint64_t fastsock_load(const uint64_t *value)
{
    return __atomic_load_n(value, __ATOMIC_RELAXED);
}

static inline uint64_t fastsock_load_acquire(const uint64_t *value)
{
    return __atomic_load_n(value, __ATOMIC_ACQUIRE);
}

/* For what one thread writes and others look at. */
static inline void fastsock_add(uint64_t *value, uint64_t more)
{
    __atomic_store_n(value, *value + more, __ATOMIC_RELAXED);
}

static inline void fastsock_raise(uint64_t *value, uint64_t seen)
{
    if (seen > *value)
        __atomic_store_n(value, seen, __ATOMIC_RELAXED);
}

/* --- free blocks ------------------------------------------------------------------------------------------ */

/* A block is free where it has no users; a bit says where to look. It is set after the last user has left, and
   cleared before the block is looked at: so no free block is without one, and a bit too many does no harm. */
static inline void fastsock_ring_offer(struct fastsock_ring *ring, uint32_t index)
{
    __atomic_fetch_or(&fastsock_ring_free(ring)[index / 64], UINT64_C(1) << index % 64, __ATOMIC_ACQ_REL);
}

/* The producer alone looks for one; -1 where there is none. */
static inline int64_t fastsock_ring_find(struct fastsock_ring *ring)
{
    uint64_t *words = fastsock_ring_free(ring);
    const size_t count = fastsock_ring_free_words((size_t)ring->geometry.blocks);
    for (size_t i = 0; i < count; i++) {
        uint64_t set;
        while ((set = __atomic_load_n(&words[i], __ATOMIC_RELAXED)) != 0) {
            int64_t index = (int64_t)i * 64 + __builtin_ctzll(set);
            __atomic_fetch_and(&words[i], ~(set & -set), __ATOMIC_ACQ_REL);
            if (__atomic_load_n(&ring->block[index].users, __ATOMIC_ACQUIRE) == 0)
                return index;
        }
    }
    return -1;
}

static inline void fastsock_ring_leave(struct fastsock_ring *ring, uint32_t index, uint32_t user)
{
    if (__atomic_sub_fetch(&ring->block[index].users, user, __ATOMIC_ACQ_REL) == 0)
        fastsock_ring_offer(ring, index);
}

/* Blocks that somebody uses. */
static inline uint64_t fastsock_ring_in_use(struct fastsock_ring *ring)
{
    const size_t count = fastsock_ring_free_words((size_t)ring->geometry.blocks);
    uint64_t used = (uint64_t)ring->geometry.blocks;
    for (size_t i = 0; i < count; i++)
        used -= (uint64_t)__builtin_popcountll(fastsock_load(&fastsock_ring_free(ring)[i]));
    return used;
}

/* --- the producer ---------------------------------------------------------------------------------------- */

/* The memory is zeroed, and its geometry set. */
static inline void fastsock_ring_init(struct fastsock_ring *ring)
{
    for (int32_t index = 0; index < ring->geometry.blocks; index++)
        fastsock_ring_offer(ring, (uint32_t)index);
    ring->magic = FASTSOCK_RING_MAGIC;
}

/* A block to fill, or -1 where all are in use. */
static inline int64_t fastsock_ring_open(struct fastsock_ring *ring)
{
    int64_t index = fastsock_ring_find(ring);
    if (index < 0)
        return -1;
    struct fastsock_block *block = &ring->block[index];
    __atomic_store_n(&block->filled, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&block->taken, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&block->users, FASTSOCK_FILLING | FASTSOCK_UNREAD, __ATOMIC_RELAXED);
    /* At most as many blocks are queued as there are: the place was read by the consumer long ago. */
    uint32_t *place = &fastsock_ring_queue(ring)[ring->opened % (uint64_t)ring->geometry.blocks];
    __atomic_store_n(place, (uint32_t)index, __ATOMIC_RELAXED);
    __atomic_store_n(&ring->opened, ring->opened + 1, __ATOMIC_RELEASE);
    return index;
}

/* The first `count` datagrams of an open block are there. */
static inline void fastsock_ring_publish(struct fastsock_ring *ring, uint32_t index, uint64_t count)
{
    __atomic_store_n(&ring->block[index].filled, count << 1, __ATOMIC_RELEASE);
}

/* The same, and no more will come: the block is the consumer's. */
static inline void fastsock_ring_seal(struct fastsock_ring *ring, uint32_t index, uint64_t count)
{
    __atomic_store_n(&ring->block[index].filled, count << 1 | 1, __ATOMIC_RELEASE);
    fastsock_ring_leave(ring, index, FASTSOCK_FILLING);
}

/* Wake the consumer. Both sides exchange one flag, so that whoever comes second sees what the first did:
   either the consumer finds what was published, or the producer writes. */
static inline int fastsock_ring_notify(struct fastsock_ring *ring, int eventfd)
{
    const uint64_t one = 1;
    if (__atomic_exchange_n(&ring->signaled, 1, __ATOMIC_ACQ_REL) != 0)
        return 0;
    return write(eventfd, &one, sizeof(one)) < 0 ? -1 : 0;
}

static inline void fastsock_ring_end(struct fastsock_ring *ring, int error, int eventfd)
{
    ring->error = error;
    __atomic_store_n(&ring->ended, 1, __ATOMIC_RELEASE);
    fastsock_ring_notify(ring, eventfd);
}

/* --- the consumer ---------------------------------------------------------------------------------------- */

/* Lease up to `most` datagrams of one block: `from` and up in block `index`. Returns how many, or 0.
   A consumer that is killed anywhere in it leaves nothing that the next one is given twice. */
static inline uint64_t fastsock_ring_take(struct fastsock_ring *ring, uint64_t most, uint32_t *index, uint64_t *from)
{
    while (ring->consumed != __atomic_load_n(&ring->opened, __ATOMIC_ACQUIRE)) {
        uint32_t at = fastsock_ring_queue(ring)[ring->consumed % (uint64_t)ring->geometry.blocks];
        struct fastsock_block *block = &ring->block[at];
        uint64_t filled = __atomic_load_n(&block->filled, __ATOMIC_ACQUIRE);
        uint64_t taken = block->taken;
        uint64_t count = (filled >> 1) - taken;
        if (count > most)
            count = most;
        int used_up = filled & 1 && taken + count == filled >> 1;
        if (count) {
            __atomic_add_fetch(&block->users, 1, __ATOMIC_RELAXED);
            __atomic_store_n(&block->taken, taken + count, __ATOMIC_RELAXED);
            /* Released, so that who sees it sees the producer's counts of what was taken. */
            __atomic_store_n(&ring->taken, ring->taken + count, __ATOMIC_RELEASE);
        }
        if (used_up) {
            __atomic_store_n(&ring->consumed, ring->consumed + 1, __ATOMIC_RELAXED);
            fastsock_ring_leave(ring, at, FASTSOCK_UNREAD);
        }
        if (count) {
            *index = at;
            *from = taken;
            return count;
        }
        if (!used_up)
            return 0;
    }
    return 0;
}

/* Whether there is nothing to take, nor a block to pass over. */
static inline int fastsock_ring_empty(struct fastsock_ring *ring)
{
    uint64_t consumed = fastsock_load(&ring->consumed);
    uint64_t opened = __atomic_load_n(&ring->opened, __ATOMIC_ACQUIRE);
    if (consumed == opened)
        return 1;
    uint32_t at = __atomic_load_n(&fastsock_ring_queue(ring)[consumed % (uint64_t)ring->geometry.blocks], __ATOMIC_RELAXED);
    const struct fastsock_block *block = &ring->block[at];
    return __atomic_load_n(&block->filled, __ATOMIC_ACQUIRE) == fastsock_load(&block->taken) << 1;
}

/* Whether nothing is there to take, and nothing more will come. Blocks to pass over may be. */
static inline int fastsock_ring_has_ended(struct fastsock_ring *ring)
{
    if (!__atomic_load_n(&ring->ended, __ATOMIC_ACQUIRE))
        return 0;
    const uint64_t opened = __atomic_load_n(&ring->opened, __ATOMIC_ACQUIRE);
    for (uint64_t i = fastsock_load(&ring->consumed); i != opened; i++) {
        uint32_t at = __atomic_load_n(&fastsock_ring_queue(ring)[i % (uint64_t)ring->geometry.blocks], __ATOMIC_RELAXED);
        const struct fastsock_block *block = &ring->block[at];
        if (__atomic_load_n(&block->filled, __ATOMIC_ACQUIRE) >> 1 != fastsock_load(&block->taken))
            return 0;
    }
    return 1;
}

/* End a lease: what was taken may be overwritten. */
static inline void fastsock_ring_release(struct fastsock_ring *ring, uint32_t index)
{
    fastsock_ring_leave(ring, index, 1);
}

/* Make the eventfd unreadable until the next notify; readable again where something is there already. */
static inline void fastsock_ring_clear(struct fastsock_ring *ring, int eventfd)
{
    uint64_t seen;
    if (read(eventfd, &seen, sizeof(seen)) < 0)
        seen = 0;       /* EAGAIN: it was clear */
    __atomic_exchange_n(&ring->signaled, 0, __ATOMIC_ACQ_REL);
    if (!fastsock_ring_empty(ring) || __atomic_load_n(&ring->ended, __ATOMIC_ACQUIRE))
        fastsock_ring_notify(ring, eventfd);
}

/* Whether a block is between the consumer and the producer. */
static inline int fastsock_ring_is_queued(struct fastsock_ring *ring, uint32_t index)
{
    const uint64_t opened = __atomic_load_n(&ring->opened, __ATOMIC_ACQUIRE);
    for (uint64_t i = ring->consumed; i != opened; i++)
        if (__atomic_load_n(&fastsock_ring_queue(ring)[i % (uint64_t)ring->geometry.blocks], __ATOMIC_RELAXED) == index)
            return 1;
    return 0;
}

/* End the leases of a consumer that is gone; the caller is the next. */
static inline void fastsock_ring_reclaim(struct fastsock_ring *ring)
{
    for (int32_t index = 0; index < ring->geometry.blocks; index++) {
        uint32_t users = __atomic_load_n(&ring->block[index].users, __ATOMIC_ACQUIRE);
        if (users & FASTSOCK_LEASES)
            fastsock_ring_leave(ring, (uint32_t)index, users & FASTSOCK_LEASES);
        else if (users == 0)
            fastsock_ring_offer(ring, (uint32_t)index);     /* it was killed before it could */
    }
    /* Or between the two steps of passing a block over, which then was the last. One that is being opened is filling. */
    if (ring->consumed) {
        const uint64_t place = (ring->consumed - 1) % (uint64_t)ring->geometry.blocks;
        uint32_t last = __atomic_load_n(&fastsock_ring_queue(ring)[place], __ATOMIC_RELAXED);
        uint32_t users = __atomic_load_n(&ring->block[last].users, __ATOMIC_ACQUIRE);
        if ((users & (FASTSOCK_FILLING | FASTSOCK_UNREAD)) == FASTSOCK_UNREAD && !fastsock_ring_is_queued(ring, last))
            fastsock_ring_leave(ring, last, FASTSOCK_UNREAD);
    }
}

#endif
