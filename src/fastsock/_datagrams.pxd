# Batches of received datagrams, and the datagrams. No system calls.

from fastsock cimport _linux as c
from fastsock._cmsg cimport Metadata
from fastsock._columns cimport ColumnBatch, Columns


cdef class DatagramBatch(ColumnBatch):
    cdef readonly Py_ssize_t slot_size      # bytes of a slot that a message may fill
    cdef readonly Py_ssize_t stride         # bytes from one slot to the next; 0 where datagrams lie densely
    cdef char *arena                        # where `offsets` count from
    cdef Py_ssize_t arena_size              # bytes that `buffer` shows
    cdef bint named                         # whether peers are recorded

    cdef bint try_acquire(self) noexcept
    cdef int acquire(self) except -1
    cdef void release_hold(self) noexcept
    cdef size_t copy_name(self, Py_ssize_t message, c.sockaddr_storage *name) noexcept
    cdef object decode_peer(self, const c.sockaddr_storage *name, size_t namelen)
    cdef object peer(self, Py_ssize_t message)
    cdef list internet_peers(self, Columns *columns)
    cdef Datagram datagram(self, Columns *columns, Py_ssize_t index)


cdef class Datagram:
    # Where it lies, in memory that the owner keeps; the batch decodes its address.
    cdef DatagramBatch batch
    cdef object owner
    cdef char *start
    cdef Py_ssize_t nbytes
    cdef readonly bint truncated

    # What was recorded of it, by the bits of ancillary.
    cdef int ancillary
    cdef Metadata metadata

    # The peer as the kernel gave it, decoded when asked for.
    cdef c.sockaddr_storage name
    cdef int namelen                        # -1 when the batch records no addresses

    cdef int need(self, int bit, str option) except -1


cdef bytes new_bytes(const char *start, Py_ssize_t size, size_t *heap_bytes)
