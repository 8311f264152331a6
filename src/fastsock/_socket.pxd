# The descriptor and everything that moves one datagram.

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef class BaseSocket:
    # The descriptor: -1 once closed. Its kind, as the kernel was asked for it.
    cdef int fd
    cdef readonly int _family
    cdef readonly int _type
    cdef readonly int proto

    # How calls wait: -1 in the kernel, 0 not at all, else nanoseconds.
    cdef int64_t timeout_ns

    # Failures that came after progress, for the next call to raise: errno or 0.
    cdef int deferred_recv
    cdef int deferred_send

    # SO_MEMINFO's counter as last read, and what its 32 bits have carried over.
    cdef uint32_t drops_seen
    cdef uint64_t drops_total

    cdef int open(self, int family, int type, int proto, object fileno) except -1
    cdef int adopt(self, int fd, int family, int type, int proto) except -1
    cdef int raise_deferred(self, int *deferred) except -1


cdef int integer(object value) except? -1
