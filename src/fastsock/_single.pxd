# Everything that moves one datagram.

from fastsock cimport _linux as c
from fastsock._socket cimport BaseSocket


cdef class SingleSocket(BaseSocket):
    # The address that sendto was last given, where its form cannot change, and that form.
    cdef object peer
    cdef c.sockaddr_storage peer_name
    cdef c.socklen_t peer_namelen

    cdef int encode_peer(self, object address, c.sockaddr_storage *storage, c.socklen_t *addrlen) except -1
    cdef tuple receive_message(self, c.iovec *iov, Py_ssize_t count, Py_ssize_t ancbufsize, int how)
    cdef ssize_t send_to_peer(self, const char *data, Py_ssize_t size, int flags, object address) except -1
    cdef ssize_t send_rest(self, const char *data, Py_ssize_t size, int flags) noexcept
