# The native thread that fills a ring from a socket.

from libc.stdint cimport int32_t, int64_t, uint32_t
from fastsock cimport _linux as c
from fastsock._ring cimport Ring, fastsock_ring, fastsock_view
from fastsock._socket cimport BaseSocket

cdef extern from "_feeder.h" nogil:
    struct fastsock_feeder:
        fastsock_ring *ring
        const fastsock_view *views
        int fd
        int eventfd
        int stop_fd
        int epoll_fd
        unsigned int vlen
        bint joined
        int cpu
        int priority
        int64_t spin_ns
        int64_t coalesce_ns
        char name[16]
        size_t control_room
        int32_t (*decode)(c.msghdr *msg, void *found) noexcept nogil
        void (*write)(void *columns, Py_ssize_t start, Py_ssize_t end, const void *found) noexcept nogil
        void *found
        c.mmsghdr *msgvec
        c.iovec *iov
        char *controls
        uint32_t stopped
        uint32_t drops_seen
    int fastsock_feeder_start(fastsock_feeder *f)
    void fastsock_feeder_ask_to_stop(fastsock_feeder *f)
    void fastsock_feeder_stop(fastsock_feeder *f)
    int fastsock_feeder_drive(fastsock_feeder *f, int64_t until_ns)


cdef class Feeder(Ring):
    cdef fastsock_feeder feeder
    cdef BaseSocket sock                    # a duplicate of our own
    cdef int epoch                          # the fork epoch in which the thread runs; 0 while there is none
    cdef object drops_before                # what the kernel had dropped before; None where it does not say

    cdef bint is_ours(self) noexcept
    cdef int close_descriptors(self) except -1
