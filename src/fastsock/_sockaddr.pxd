# Socket addresses between the kernel's form and Python's. Pure: no system call but the
# resolver, which runs only for host names. Imports _linux, and _cmsg for Host.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t
from fastsock cimport _linux as c
from fastsock._cmsg cimport Host

# Returns 1 where the same object will always have this form: its parts cannot change, and no
# resolver was asked; else 0.
cdef int encode_address(
    int family, object address, str caller, c.sockaddr_storage *storage, c.socklen_t *addrlen
) except -1
cdef object decode_address(const c.sockaddr_storage *storage, size_t addrlen)
cdef int encode_host(int family, object host, Host *encoded) except -1
cdef object decode_host(const Host *host)

cdef struct Peer:
    uint8_t key[28]
    PyObject *address       # owned; NULL in an empty place

cdef class AddressCache:
    """Decoded addresses by their kernel form; for one owner at a time."""

    cdef Peer *peers
    cdef size_t size        # a power of two
    cdef size_t used
    cdef size_t evictions   # since the last growth
    cdef Peer *latest

    cdef object decode(self, const c.sockaddr_storage *storage, size_t addrlen)
    cdef size_t place(self, const uint8_t *key) noexcept
    cdef int grow(self) except -1
