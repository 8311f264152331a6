# Everything that moves one datagram.

from fastsock._socket cimport BaseSocket


cdef class SingleSocket(BaseSocket):
    cdef ssize_t send_rest(self, const char *data, Py_ssize_t size, int flags) except -1
