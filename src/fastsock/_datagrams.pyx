# A batch of received datagrams, wherever its memory comes from: a sequence of Datagram, lists,
# columns. What fills it is a subclass's business. No system calls.
# May import _linux, _arena, _cmsg, _columns and _sockaddr.
#
# Who owns what: the memory behind `arena` and `columns` lives as long as `memory_owner()`, and
# every view (a column, a Datagram, a NumPy array) holds a reference to that.

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from fastsock cimport _linux as c
from fastsock._arena cimport memory
from fastsock._cmsg cimport DROP_COUNTER, GRO, HARDWARE_TIMESTAMPS, PKTINFO, TIMESTAMPS, TOS, TTL
from fastsock._columns cimport ColumnBatch, Columns, not_recorded, read_metadata
from fastsock._sockaddr cimport decode_address, decode_host

cdef enum:
    KEEP_HEAP_FROM = 512        # smaller bytes objects come from Python's own pools


@cython.no_gc_clear     # views may be read while a garbage cycle is taken apart
cdef class DatagramBatch(ColumnBatch):
    """Received datagrams: a sequence of ``Datagram``, with columns that give them all at once without a copy."""

    # --- for subclasses ------------------------------------------------------------------------

    cdef bint try_acquire(self) noexcept:
        """Hold the batch, so that nothing changes what it shows; False where another thread does."""
        return True

    cdef int acquire(self) except -1:
        """The same, and RuntimeError where another thread does."""
        return 0

    cdef void release_hold(self) noexcept:
        pass

    cdef size_t copy_name(self, Py_ssize_t message, c.sockaddr_storage *name) noexcept:
        """The peer of kernel message `message`; returns the bytes of `name` written. Only where `named`.

        Where another thread receives meanwhile, `message` may be out of range.
        """
        return 0

    cdef object decode_peer(self, const c.sockaddr_storage *name, size_t namelen):
        """The address that it stands for; the caller holds the batch."""
        return decode_address(name, namelen)

    cdef object peer(self, Py_ssize_t message):
        """Both in one, for a subclass that has no need of a copy."""
        cdef c.sockaddr_storage name
        cdef size_t namelen = self.copy_name(message, &name)
        return self.decode_peer(&name, namelen)

    # --- lists: a copy of everything ------------------------------------------------------

    def payloads(self):
        """Return every payload as a bytes object: a list of ``len(batch)``, copied.

        Raises:
            RuntimeError: Another thread is receiving into the batch.
        """
        cdef Py_ssize_t i
        cdef size_t heap_bytes = 0
        cdef Columns *columns
        cdef object _owner = self.memory_owner()
        self.acquire()
        try:
            columns = self.columns
            return [
                new_bytes(self.arena + columns.offsets[i], columns.lengths[i], &heap_bytes)
                for i in range(columns.count)
            ]
        finally:
            self.release_hold()
            c.fastsock_keep_heap(heap_bytes)

    def addresses(self):
        """Return the peer address of every datagram: a list of ``len(batch)``.

        Raises:
            ValueError: The batch was made without ``addresses=True``.
            RuntimeError: Another thread is receiving into the batch.
        """
        cdef Py_ssize_t i
        cdef Columns *columns
        cdef object _owner
        cdef list found = []
        if not self.named:
            raise no_addresses()
        _owner = self.memory_owner()
        self.acquire()
        try:
            columns = self.columns
            for i in range(columns.count):
                found.append(self.peer(columns.messages[i] if self.ancillary & GRO else i))
        finally:
            self.release_hold()
        return found

    # --- a sequence of datagrams ----------------------------------------------------------

    def __getitem__(self, index):
        # Read once: on a free-threaded build a receive may replace them meanwhile.
        cdef Columns *columns = self.columns
        cdef Py_ssize_t i
        cdef Py_ssize_t count = columns.count
        if isinstance(index, slice):
            return [self.datagram(columns, i) for i in range(*index.indices(count))]
        i = index
        if i < 0:
            i += count
        if not 0 <= i < count:
            raise IndexError(f"datagram {index} of a batch that holds {count}")
        return self.datagram(columns, i)

    def __iter__(self):
        cdef Py_ssize_t i = 0
        cdef Columns *columns = self.columns
        while i < columns.count:
            yield self.datagram(columns, i)
            i += 1
            columns = self.columns

    @cython.final
    cdef Datagram datagram(self, Columns *columns, Py_ssize_t index):
        cdef Datagram d = Datagram.__new__(Datagram)
        cdef Py_ssize_t message = index
        cdef Py_ssize_t start
        d.batch = self
        d.owner = self.memory_owner()
        start = columns.offsets[index]
        d.start = self.arena + start
        # On a free-threaded build the two may be of different receives.
        d.nbytes = min(<Py_ssize_t>columns.lengths[index], self.arena_size - start)
        d.truncated = columns.truncated[index]
        d.ancillary = self.ancillary
        if self.ancillary:
            read_metadata(columns, index, &d.metadata)
            if columns.messages != NULL and self.ancillary & GRO:
                message = columns.messages[index]
        if self.named:
            d.namelen = <int>self.copy_name(message, &d.name)
        return d

    @property
    def buffer(self):
        """The whole arena as a writable memoryview of bytes.

        Datagram ``i`` is ``buffer[offsets[i]:offsets[i] + lengths[i]]``.
        """
        return memory(self.memory_owner(), self.arena, self.arena_size, 1, b"B")


cdef bytes new_bytes(const char *start, Py_ssize_t size, size_t *heap_bytes):
    """A new bytes object; what malloc gives for it is added to `heap_bytes`."""
    if size > KEEP_HEAP_FROM:
        heap_bytes[0] += <size_t>size
    return PyBytes_FromStringAndSize(start, size)


cdef object no_addresses():
    return ValueError("this batch records no addresses: make it with addresses=True")


@cython.final
@cython.no_gc_clear
@cython.freelist(64)
cdef class Datagram:
    """One received datagram, as a view of its slot: nothing is copied until asked for.

    ``bytes(d)`` copies the payload; ``d.payload`` is a memoryview of it, which the next
    receive into the batch overwrites. All else stays as it was received. A Datagram
    supports the buffer protocol itself.
    """

    def __cinit__(self):
        self.namelen = -1

    def __init__(self):
        raise TypeError("Datagrams come from a batch")

    @property
    def payload(self):
        """The payload as a memoryview of the batch's memory: ``len(d)`` bytes, no copy."""
        return PyMemoryView_FromObject(self)

    @property
    def address(self):
        """The peer's address, as ``recvfrom`` gives it.

        Raises:
            ValueError: The batch was made without ``addresses=True``.
        """
        if self.namelen < 0:
            raise no_addresses()
        if not self.batch.try_acquire():
            return decode_address(&self.name, <size_t>self.namelen)
        try:
            return self.batch.decode_peer(&self.name, <size_t>self.namelen)
        finally:
            self.batch.release_hold()

    cdef int need(self, int bit, str option) except -1:
        if not self.ancillary & bit:
            raise not_recorded(option)
        return 0

    @property
    def timestamp_ns(self):
        """When the kernel received it, in ns since 1970; None where it does not say.

        ValueError on this and the attributes below where the socket was not told to receive
        them: see ``bind_udp``.
        """
        self.need(TIMESTAMPS, "timestamps")
        return self.metadata.timestamp_ns or None

    @property
    def hardware_timestamp_ns(self):
        """When the device received it, by its own clock; None where it does not say."""
        self.need(HARDWARE_TIMESTAMPS, "timestamps='hardware'")
        return self.metadata.hardware_timestamp_ns or None

    @property
    def ecn(self):
        """Its ECN field, 0 to 3 (RFC 3168)."""
        self.need(TOS, "ecn")
        return self.metadata.tos & 3

    @property
    def dscp(self):
        """Its DSCP field, 0 to 63 (RFC 2474)."""
        self.need(TOS, "ecn")
        return self.metadata.tos >> 2

    @property
    def ttl(self):
        """The TTL or hop limit that it arrived with."""
        self.need(TTL, "ttl")
        return self.metadata.ttl

    @property
    def local_address(self):
        """The address that it was sent to, without the port: one of ours, or a group."""
        self.need(PKTINFO, "pktinfo")
        return decode_host(&self.metadata.local)

    @property
    def interface_index(self):
        """The interface that it came in by; ``socket.if_indextoname`` has its name."""
        self.need(PKTINFO, "pktinfo")
        return self.metadata.interface_index

    @property
    def drop_counter(self):
        """SO_RXQ_OVFL as it was queued: see ``RecvBatch.drop_counters``."""
        self.need(DROP_COUNTER, "drop_counter")
        return self.metadata.drop_counter

    def __len__(self):
        return self.nbytes

    def __bytes__(self):
        return PyBytes_FromStringAndSize(self.start, self.nbytes)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.nbytes, 0, flags)

    def __repr__(self):
        address = f" from {self.address!r}" if self.namelen >= 0 else ""
        return f"<fastsock.Datagram of {self.nbytes} bytes{address}{', truncated' if self.truncated else ''}>"
