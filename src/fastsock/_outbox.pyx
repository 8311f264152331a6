# Outbox: what a datagram transport has queued. A program calls sendto once for each datagram,
# so that this is compiled. Imports nothing.

cimport cython
from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE

cdef enum:
    OVERHEAD_BYTES = 8          # that a queued datagram counts beside its payload, as in asyncio

OVERHEAD = OVERHEAD_BYTES


@cython.final
cdef class Outbox:
    """Datagrams in the order of the calls.

    Args:
        addressed: Whether each has a peer of its own: 1, or 0 for none; -1 leaves all to ``otherwise``.
        otherwise: Called with ``(data, addr)`` for what ``put`` does not simply queue.
    """

    cdef readonly list payloads
    cdef readonly list peers            # as many, or none
    cdef public Py_ssize_t queued       # bytes, with OVERHEAD for each
    cdef public Py_ssize_t limit        # of `queued`, up to which put() only queues; -1 for never
    cdef public bint scheduled          # whether a flush will come by itself
    cdef int addressed
    cdef public object otherwise

    def __init__(self, int addressed, otherwise):
        self.payloads = []
        self.peers = []
        self.queued = 0
        self.limit = -1
        self.scheduled = False
        self.addressed = addressed
        self.otherwise = otherwise

    def put(self, data, addr=None):
        """Queue a datagram, as ``sendto`` of the transport."""
        cdef Py_ssize_t size
        if PyBytes_CheckExact(data) and self.scheduled and (addr is not None) == self.addressed:
            size = PyBytes_GET_SIZE(data) + OVERHEAD_BYTES
            if self.queued + size <= self.limit:
                self.payloads.append(data)
                if addr is not None:
                    self.peers.append(addr)
                self.queued += size
                return
        self.otherwise(data, addr)

    def forget(self, Py_ssize_t count):
        """Take the first ``count`` off the queue."""
        cdef Py_ssize_t i
        if count >= len(self.payloads):
            self.payloads.clear()
            self.peers.clear()
            self.queued = 0
            return
        for i in range(count):
            self.queued -= len(<bytes>self.payloads[i]) + OVERHEAD_BYTES
        del self.payloads[:count], self.peers[:count]
