# The descriptor, its options, its time-out and its error queue.

from cpython.long cimport PyLong_Check
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint32_t, uint64_t
from fastsock._sys cimport Handle


cdef class BaseSocket:
    # The descriptor: -1 once closed. Its kind, as the kernel was asked for it.
    cdef Handle handle
    cdef readonly int _family
    cdef readonly int _type
    cdef readonly int proto

    # Files of makefile that are open: the descriptor is closed behind the last of them.
    cdef public int _io_refs
    cdef public bint _closed

    # How calls wait: -1 in the kernel, 0 not at all, else nanoseconds.
    cdef int64_t timeout_ns

    # What the options say: the ancillary data that comes with datagrams, as bits of
    # _cmsg.Ancillary, and whether datagrams must not be sent as one.
    cdef int ancillary
    cdef bint uncut

    # Whether a stream's receives wait for more than one byte (SO_RCVLOWAT).
    cdef bint low_water

    # Failures that came after progress, for the next call to raise: errno or 0.
    cdef int deferred_recv
    cdef int deferred_send

    # Records of the error queue that a send or receive came upon, and the buffers that
    # zero-copy sends hold, by the kernel's number of the send.
    cdef list errors
    cdef int reported           # errno of the latest ICMP error
    cdef dict pins
    cdef int zerocopy_epoch     # the fork epoch in which send_zerocopy was first used; 0 for never
    cdef set early              # those that were done before they were noted

    # Counts since the socket was opened: datagrams, super-datagrams that had to be sent
    # again plainly, records that found no room in `errors`.
    cdef readonly int64_t _received
    cdef readonly int64_t _sent
    cdef readonly int64_t _gso_fallbacks
    cdef readonly int64_t _errors_discarded

    # SO_MEMINFO's counter as last read, and what its 32 bits have carried over.
    cdef uint32_t drops_seen
    cdef uint64_t drops_total

    cdef int open(self, int family, int type, int proto, object fileno) except -1
    cdef int adopt(self, int fd, int family, int type, int proto) except -1
    cdef tuple accept_descriptor(self)
    cdef int set_timeout(self, object timeout) except -1
    cdef int release(self) except -1
    cdef int learn_options(self, int level=*, int name=*, int taken=*) except -1
    cdef list read_errors(self)
    cdef int unpin(self, object ids) except -1
    cdef int note_record(self, object record) except -1
    cdef bint absorb_errors(self, uint64_t *seen, int *error) except -1
    cdef int refuse_joined(self, str caller) except -1
    cdef int raise_kept(self, int *deferred) except -1

    cdef inline int raise_deferred(self, int *deferred) except -1:
        """Raise the failure that an earlier call kept because it had made progress."""
        return self.raise_kept(deferred) if deferred[0] else 0


cdef int64_t timeout_as_ns(object timeout) except? -2


cdef inline int integer(object value) except? -1:
    """A C int from what has __index__: a float is a TypeError, as in the socket module."""
    return value if PyLong_Check(value) else PyNumber_Index(value)
