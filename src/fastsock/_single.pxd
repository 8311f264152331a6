# Everything that moves one datagram.

from fastsock._socket cimport BaseSocket


cdef class SingleSocket(BaseSocket):
    cdef int single_flags(self, object flags) except? -1
    cdef void count_received(self, int flags) noexcept
