# Rings in shared memory, from the consumer's side.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from fastsock._columns cimport Columns
from fastsock._datagrams cimport DatagramBatch
from fastsock._sockaddr cimport AddressCache
from fastsock._sys cimport Handle

cdef extern from "_ring.h" nogil:
    enum:
        FASTSOCK_RING_MAGIC
    struct fastsock_geometry:
        uint64_t mapping_size
        uint64_t blocks_start
        uint64_t block_size
        uint64_t arena_size
        int32_t blocks
        int32_t capacity
        int32_t slot_size
        int32_t stride
        int32_t ancillary
        int32_t family
        int32_t name_room
    struct fastsock_counts:
        uint64_t received
        uint64_t nbytes
        uint64_t ring_drops
        uint64_t kernel_drops
        uint64_t truncated
        uint64_t batches
        uint64_t largest_batch
        uint64_t high_water
        uint64_t errors
        uint64_t last_error
    struct fastsock_ring:
        uint64_t magic
        fastsock_geometry geometry
        fastsock_counts counts
        int32_t producer_pid
        int32_t consumer_pid
        int32_t error
        uint64_t taken
    size_t fastsock_ring_size(size_t blocks)
    uint64_t fastsock_load(const uint64_t *value)
    uint64_t fastsock_load_acquire(const uint64_t *value)
    void fastsock_ring_init(fastsock_ring *ring)
    uint64_t fastsock_ring_take(fastsock_ring *ring, uint64_t most, uint32_t *index, uint64_t *start)
    bint fastsock_ring_empty(fastsock_ring *ring)
    bint fastsock_ring_has_ended(fastsock_ring *ring)
    void fastsock_ring_release(fastsock_ring *ring, uint32_t index)
    void fastsock_ring_clear(fastsock_ring *ring, int eventfd)
    void fastsock_ring_reclaim(fastsock_ring *ring)

cdef extern from "_feeder.h" nogil:
    enum:
        FASTSOCK_MESSAGE_ROOM
        FASTSOCK_SEGMENTS
    struct fastsock_view:
        char *arena
        int64_t *offsets
        int32_t *lengths
        uint8_t *truncated
        int32_t *messages
        char *names
        void *columns
    struct fastsock_name:
        uint32_t length
        char *address
    size_t fastsock_name_stride(int32_t name_room)
    uint64_t fastsock_block_slots(const fastsock_geometry *geometry)


# The memory of a ring in this process, which goes when nobody uses it any more.
cdef class Mapping:
    cdef int memfd
    cdef fastsock_ring *ring
    cdef size_t size
    cdef fastsock_view *views               # one for each block, as the columns
    cdef Columns *columns
    cdef AddressCache peers
    cdef uint64_t peers_busy                # ownership: see _compat.h
    cdef object inode                       # of the memory, once claimed
    cdef int claimed_epoch                  # the fork epoch in which this process became the consumer; 0 for never

    @staticmethod
    cdef Mapping create(fastsock_geometry *geometry)

    @staticmethod
    cdef Mapping attach(int memfd)
    cdef int map(self, size_t size) except -1
    cdef int place_blocks(self) except -1
    cdef int claim(self) except -1


# What was taken: its memory is not written before this is gone.
cdef class Lease:
    cdef Mapping mapping
    cdef uint32_t block
    cdef int epoch                          # the fork epoch in which it was taken; 0 before


cdef class RingBatch(DatagramBatch):
    cdef Lease lease                        # None once released
    cdef Mapping mapping
    cdef uint32_t block
    cdef Py_ssize_t first                   # where in the block it begins, which without GRO is its message

    @staticmethod
    cdef RingBatch make(Mapping mapping)
    cdef int show(self, uint32_t block, Py_ssize_t start, Py_ssize_t count) except -1


cdef class Ring:
    cdef Mapping mapping
    cdef Handle event                       # an eventfd, readable while there is something to take
    cdef int64_t spin_ns
    cdef bint watched                       # somebody may be polling the eventfd
    cdef bint closed_                       # take no more
    cdef object final                       # the counts when it was closed
    cdef bint finished                      # and nothing writes the eventfd any more
    cdef int waiters

    cdef Mapping open_mapping(self)
    cdef int clear(self, Mapping mapping) except -1
    cdef RingBatch take_now(self, uint64_t most)
    cdef int spin(self, int64_t until_ns) except -1
    cdef int let_go(self) except -1
    cdef int raise_end(self, Mapping mapping) except -1
    cdef object count(self, Mapping mapping)
    cdef object kernel_drops(self, Mapping mapping)

cdef fastsock_geometry plan(
    Py_ssize_t slots, Py_ssize_t slot_size, int ancillary, int family, bint addresses
) except *
