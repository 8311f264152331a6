# Receiving batches: an arena, its kernel headers and its columns. No system calls.

from libc.stdint cimport uint64_t
from fastsock cimport _linux as c
from fastsock._datagrams cimport DatagramBatch
from fastsock._sockaddr cimport AddressCache

# What a slot must hold for UDP GRO, which joins datagrams up to one IP packet.
cdef enum:
    GRO_SLOT_SIZE = 65535


cdef class RecvBatch(DatagramBatch):
    # Geometry, fixed at construction.
    cdef readonly Py_ssize_t vlen           # kernel messages per call

    # What the kernel is handed. naming is whether each msg_name is set: a name that nobody
    # reads costs 30 ns.
    cdef c.mmsghdr *msgvec
    cdef c.iovec *iov
    cdef c.sockaddr_storage *names          # NULL unless addresses were asked for
    cdef bint naming
    cdef Py_ssize_t dirty                   # leading headers that the last call changed

    # The control buffers, which exist from the first receive that wants ancillary data.
    cdef char *controls
    cdef size_t control_room                # bytes of each that are in use: 0 or all
    cdef bint unasked                       # the last receive brought more than it was ready for

    # Bytes of each message that are received, and of each datagram that are kept.
    cdef Py_ssize_t iov_size
    cdef Py_ssize_t keep_size

    # Ownership: see _compat.h. Held over a receive and over whatever reads names or peers.
    cdef uint64_t busy
    cdef AddressCache peers

    cdef int attach(self, int ancillary) except -1
    cdef void prepare(self) noexcept
    cdef int decode(self, Py_ssize_t received, bint seqpacket_full) except -1
    cdef int decode_ancillary(self, Py_ssize_t received) except -1
