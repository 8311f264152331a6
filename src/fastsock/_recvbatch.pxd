# Receiving batches: an arena, its kernel headers and its columns. No system calls.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from fastsock cimport _linux as c
from fastsock._sockaddr cimport AddressCache


# The payloads of one list, kept to be written again.
cdef struct Generation:
    PyObject **kept                         # by their position in the list
    uint8_t *steady                         # whether a position's size was the same again
    Py_ssize_t nbytes                       # the sum of their sizes


cdef class RecvBatch:
    # Geometry, fixed at construction.
    cdef readonly Py_ssize_t vlen           # kernel messages per call
    cdef readonly Py_ssize_t slot_size      # bytes of a slot that a datagram may fill
    cdef readonly Py_ssize_t stride         # bytes from one slot to the next

    # What the kernel is handed: two iovecs a message when payloads are kept, else one.
    # iov_size is how much of a datagram they take now, and naming whether each msg_name is
    # set: a name that nobody reads costs 30 ns.
    cdef c.mmsghdr *msgvec
    cdef c.iovec *iov
    cdef c.sockaddr_storage *names          # NULL unless addresses were asked for
    cdef char *arena
    cdef Py_ssize_t iov_size
    cdef bint naming
    cdef Py_ssize_t dirty                   # leading headers that the last call changed

    # What the last receive left: columns of `count` items.
    cdef Py_ssize_t count
    cdef int64_t *offsets_column
    cdef int32_t *lengths_column
    cdef uint8_t *truncated_column

    # Of a socket's own batch, for lists; else NULL. See docs/design/malloc.md.
    cdef Generation generations[2]
    cdef Generation *young                  # the one that the present list is made from

    # Ownership: see _compat.h. Held over a receive and over whatever reads names or peers.
    cdef uint64_t busy
    cdef AddressCache peers

    cdef bint try_acquire(self) noexcept
    cdef int acquire(self) except -1
    cdef void release(self) noexcept
    cdef void shape(self, Py_ssize_t iov_size, bint naming) noexcept
    cdef void prepare(self) noexcept
    cdef void decode(self, Py_ssize_t received, bint seqpacket_full) noexcept
    cdef int keep_payloads(self) except -1
    cdef void forget_payloads(self) noexcept
    cdef void begin_list(self) noexcept
    cdef void lend(self, Py_ssize_t index) noexcept
    cdef void unlend(self, Py_ssize_t index) noexcept
    cdef bytes payload(self, Py_ssize_t index, Py_ssize_t position, size_t *heap_bytes)
    cdef bytes lent_payload(self, Py_ssize_t index, Py_ssize_t size, size_t *heap_bytes)
    cdef list payload_list(self, Py_ssize_t position, size_t *heap_bytes)
    cdef list payload_address_list(self, Py_ssize_t position, size_t *heap_bytes)
    cdef Datagram datagram(self, Py_ssize_t index)


cdef class Datagram:
    # The slot it lies in: the batch keeps the memory.
    cdef RecvBatch batch
    cdef char *start
    cdef Py_ssize_t nbytes
    cdef readonly bint truncated

    # The peer as the kernel gave it, decoded when asked for.
    cdef c.sockaddr_storage name
    cdef int namelen                        # -1 when the batch records no addresses
