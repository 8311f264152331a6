# fastsock.Socket's compiled half: the descriptor and everything that is called per datagram.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from fastsock._recvbatch cimport RecvBatch
from fastsock._sendbatch cimport Gather
from fastsock cimport _linux as c


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

    # Arenas of recv_many and send_many, kept between calls and never shared by two.
    cdef RecvBatch scratch
    cdef Gather gather

    cdef int adopt(self, int fd, int family, int type, int proto) except -1
    cdef int check_datagrams(self, str caller) except -1
    cdef int raise_deferred(self, int *deferred) except -1
    cdef RecvBatch borrow_scratch(self, Py_ssize_t vlen, Py_ssize_t bufsize, bint addresses)
    cdef Gather borrow_gather(self, Py_ssize_t vlen)
    cdef Py_ssize_t receive(self, RecvBatch batch, Py_ssize_t vlen, int flags) except -1
    cdef list receive_list(self, str caller, Py_ssize_t vlen, Py_ssize_t bufsize, int flags, bint addresses)
    cdef bint send_prepared(
        self, c.mmsghdr *msgvec, Py_ssize_t count, int flags, bint hold_gil,
        Py_ssize_t *cursor, Py_ssize_t start, int64_t *deadline_ns,
    ) except -1
    cdef Py_ssize_t gather_send(self, str caller, tuple payloads, object address, tuple addresses, int flags) except -1
