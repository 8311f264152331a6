# A batch to send: an arena to write in. No system calls.

from libc.stdint cimport uint64_t
from fastsock cimport _linux as c
from fastsock._gather cimport Outgoing


cdef class SendBatch:
    # Geometry, fixed at construction.
    cdef readonly Py_ssize_t vlen
    cdef readonly Py_ssize_t slot_size
    cdef readonly Py_ssize_t stride         # bytes from one slot to the next

    # What is to be sent. Addresses and options are encoded when the socket is known.
    cdef char *arena
    cdef Outgoing out
    cdef list addresses
    cdef list options
    cdef int encoded_family                 # the family that they are encoded for,
    cdef bint encoded_mapped                # and whether its peer is an IPv4 one of an IPv6 socket
    cdef Py_ssize_t encoded                 # leading datagrams that are encoded

    # Datagrams in the batch, how many of them the kernel took, and how many segments of the
    # next one.
    cdef Py_ssize_t count
    cdef Py_ssize_t cursor
    cdef Py_ssize_t segments
    cdef bint unaddressed                   # some before the cursor, which a replay must see to
    cdef bint by_interface                  # some go to the connected peer by an interface
    cdef uint64_t busy

    cdef int acquire(self) except -1
    cdef void release(self) noexcept
    cdef void rewind(self) noexcept
    cdef int prepare(self, int family, bint mapped) except -1
    cdef int make_names(self) except -1
    cdef int make_controls(self) except -1
    cdef bint goes_to_mapped(self, Py_ssize_t index) noexcept
    cdef int encode_options(self, Py_ssize_t index, int family, tuple options) except -1


cdef bint is_mapped(const c.sockaddr_storage *storage) noexcept
cdef object in_range(str name, object value, object least, object most)
