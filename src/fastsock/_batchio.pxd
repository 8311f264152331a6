# Everything that moves many datagrams.

from libc.stdint cimport int64_t
from fastsock cimport _linux as c
from fastsock._recvbatch cimport RecvBatch
from fastsock._sendbatch cimport Gather
from fastsock._socket cimport BaseSocket


cdef class BatchSocket(BaseSocket):
    # Arenas of recv_many and send_many, kept between calls and never shared by two.
    cdef RecvBatch scratch
    cdef Gather gather

    cdef bint may_be_at_end(self, Py_ssize_t received, Py_ssize_t vlen) noexcept
    cdef int check_datagrams(self, str caller) except -1
    cdef RecvBatch borrow_scratch(self, Py_ssize_t vlen, Py_ssize_t bufsize, bint addresses)
    cdef Gather borrow_gather(self, Py_ssize_t vlen)
    cdef Py_ssize_t receive(self, RecvBatch batch, Py_ssize_t vlen, int flags) except -1
    cdef list receive_list(self, str caller, Py_ssize_t vlen, Py_ssize_t bufsize, int flags, bint addresses)
    cdef bint send_prepared(
        self, c.mmsghdr *msgvec, Py_ssize_t count, int flags, bint hold_gil,
        Py_ssize_t *cursor, Py_ssize_t start, int64_t *deadline_ns,
    ) except -1
    cdef Py_ssize_t gather_send(
        self, str caller, tuple payloads, object address, tuple addresses, int flags
    ) except -1
