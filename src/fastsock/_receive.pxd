# Everything that receives many datagrams.

from fastsock._lists cimport ListBatch
from fastsock._recvbatch cimport RecvBatch
from fastsock._single cimport SingleSocket


cdef class ReceiveSocket(SingleSocket):
    # The arena of recv_many, kept between calls and never shared by two.
    cdef ListBatch scratch

    cdef bint may_be_at_end(self, Py_ssize_t received, Py_ssize_t vlen) noexcept
    cdef int receive_flags(self, object flags) except? -1
    cdef int check_datagrams(self, str caller) except -1
    cdef ListBatch borrow_scratch(self, Py_ssize_t vlen, Py_ssize_t bufsize, bint addresses)
    cdef Py_ssize_t receive(self, RecvBatch batch, Py_ssize_t vlen, int flags) except -1
    cdef int take(self, RecvBatch batch, int received, Py_ssize_t vlen, int flags) except -1
    cdef int refuse_glued(self, RecvBatch batch, int received) except -1
    cdef bint joins(self) except -1
    cdef list receive_list(self, str caller, Py_ssize_t vlen, Py_ssize_t bufsize, int flags, bint addresses)
