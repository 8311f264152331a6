# What sendmmsg is handed: messages packed from datagrams, and the caller's buffers. Pure.

from libc.stdint cimport int32_t, uint16_t, uint64_t
from fastsock cimport _linux as c

cdef enum:
    MAX_PAYLOAD = 65507                     # of one UDP message over IPv4, joined or not
    CONTROL_ROOM = 256                      # bytes of ancillary data that one datagram may carry


# Datagrams to be sent, as columns. One with a segment size is cut into several by the kernel.
cdef struct Outgoing:
    c.iovec *iov
    c.sockaddr_storage *names               # NULL: all to the connected peer
    c.socklen_t *namelens                   # 0: to the connected peer
    bint one_peer                           # all to names[0]
    char *controls                          # NULL, or CONTROL_ROOM bytes for each
    uint16_t *controllens
    uint16_t *segment_sizes                 # NULL, or for each: 0 for an ordinary datagram


# How far UDP_SEGMENT may go. With `segments` of 1 every datagram is its own message.
cdef struct Limits:
    Py_ssize_t segments                     # datagrams of one message
    Py_ssize_t segment_size                 # bytes of each


cdef class Buffers:
    """The caller's buffers as iovecs: what one message is gathered from or scattered to."""

    cdef Py_ssize_t vlen                    # room in the arrays
    cdef c.iovec *iov

    # `held` leading views are filled, which is not one per buffer.
    cdef Py_buffer *views
    cdef Py_ssize_t held

    cdef void discard(self) noexcept
    cdef int reserve(self, Py_ssize_t vlen) except -1
    cdef int hold(self, tuple buffers, Py_ssize_t start, Py_ssize_t count, int flags) except -1
    cdef void let_go(self) noexcept


cdef class Gather(Buffers):
    """Kernel headers for up to `vlen` datagrams; for one owner at a time."""

    cdef uint64_t busy

    # The messages of the last pack: how many entries of Outgoing each holds, and its segment
    # size, or 0. `splitting`: they are all segments of one entry.
    cdef c.mmsghdr *msgvec
    cdef int32_t *entries
    cdef uint16_t *segmented
    cdef bint splitting
    cdef char *controls
    cdef c.iovec *split_iov
    cdef Py_ssize_t split_room

    # The caller's payloads and their peers.
    cdef Outgoing out
    cdef uint16_t *segment_sizes

    cdef void address_none(self) noexcept
    cdef int address_all(self, int family, object address, str caller) except -1
    cdef int address_each(self, tuple addresses, Py_ssize_t start, Py_ssize_t count, int family, str caller) except -1
    cdef bint try_acquire(self) noexcept
    cdef void release(self) noexcept
    cdef Py_ssize_t pack(
        self, const Outgoing *out, Py_ssize_t start, Py_ssize_t count, const Limits *limits, Py_ssize_t done
    ) except -1
    cdef Py_ssize_t split(self, const Outgoing *out, Py_ssize_t index, Py_ssize_t done) except -1


cdef Py_ssize_t run_length(
    const Outgoing *out, Py_ssize_t start, Py_ssize_t count, const Limits *limits
) noexcept nogil
cdef Py_ssize_t segments_of(const Outgoing *out, Py_ssize_t index) noexcept nogil
