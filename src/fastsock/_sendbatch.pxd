# Outgoing messages: a gather list over the caller's buffers, and an arena to write in.
# No system calls.

from libc.stdint cimport int32_t, uint64_t
from fastsock cimport _linux as c


cdef class Gather:
    """Headers for a run of the caller's payloads; for one owner at a time."""

    cdef Py_ssize_t vlen                    # room in the arrays
    cdef Py_ssize_t held                    # leading views that are filled: not one per message
    cdef c.mmsghdr *msgvec
    cdef c.iovec *iov
    cdef Py_buffer *views
    cdef c.sockaddr_storage *names          # NULL until the first address
    cdef uint64_t busy

    cdef void discard(self) noexcept
    cdef int reserve(self, Py_ssize_t vlen) except -1
    cdef int hold(self, tuple buffers, Py_ssize_t start, Py_ssize_t count, int flags) except -1
    cdef int prepare(self, tuple payloads, Py_ssize_t start, Py_ssize_t count) except -1
    cdef int address_all(self, Py_ssize_t count, int family, object address, str caller) except -1
    cdef int address_each(self, tuple addresses, Py_ssize_t start, Py_ssize_t count, int family, str caller) except -1
    cdef void let_go(self) noexcept
    cdef bint try_acquire(self) noexcept
    cdef void release(self) noexcept


cdef class SendBatch:
    # Geometry, fixed at construction.
    cdef readonly Py_ssize_t vlen
    cdef readonly Py_ssize_t slot_size
    cdef readonly Py_ssize_t stride         # bytes from one slot to the next

    # What the kernel is handed.
    cdef c.mmsghdr *msgvec
    cdef c.iovec *iov
    cdef char *arena
    cdef list addresses                     # per datagram; encoded when the socket is known
    cdef c.sockaddr_storage *names
    cdef int encoded_family                 # the family that `names` is encoded for
    cdef Py_ssize_t encoded                 # leading datagrams that `names` is right for

    # Datagrams in the batch, and how many of them the kernel took.
    cdef Py_ssize_t count
    cdef Py_ssize_t cursor
    cdef bint unaddressed                   # some before the cursor, which a replay must see to
    cdef uint64_t busy

    cdef int acquire(self) except -1
    cdef void release(self) noexcept
    cdef void rewind(self) noexcept
    cdef int prepare(self, int family) except -1
