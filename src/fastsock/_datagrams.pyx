# A batch of received datagrams, wherever its memory comes from: a sequence of Datagram, lists,
# columns. What fills it is a subclass's business. No system calls.
# May import _linux, _arena, _arrow, _cmsg, _columns and _sockaddr.
#
# Who owns what: the memory behind `arena` and `columns` lives as long as `memory_owner()`, and
# every view (a column, a Datagram, a NumPy array) holds a reference to that.

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.string cimport memcpy
from fastsock cimport _linux as c
from fastsock._arena cimport memory, rows
from fastsock._arrow cimport export_array, export_schema
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

    # --- for NumPy and Arrow: neither is imported before it is asked for -------------------------

    def to_numpy(self, dtype=None, *, copy=None):
        """Return datagrams of one size as a NumPy array, with one item for each.

        The array shares the memory of the batch where the datagrams lie at one distance from each other, as they do
        in slots, and with UDP GRO as long as they came in one message. It keeps the memory, and shows what the next
        receive into a ``RecvBatch`` writes there.

        Args:
            dtype: What a datagram holds: a structured or any other type of ``dtype.itemsize`` bytes. None is for
                rows of bytes: uint8 of shape ``(len(batch), length)``.
            copy: None copies where the memory cannot be shared, True always, False never.

        Raises:
            ValueError: A datagram has another size, and which; a type with references, as ``object``; or what would
                have to be copied with ``copy=False``. A datagram that was cut has the size that was kept: see
                ``truncated``.
            ImportError: There is no NumPy.
            RuntimeError: Another thread is receiving into the batch.
        """
        import numpy
        cdef Py_ssize_t i, count, size, start
        cdef Py_ssize_t distance
        cdef bint shared
        cdef Columns *columns
        cdef Py_buffer target
        wanted = None if dtype is None else numpy.dtype(dtype)
        if wanted is not None and wanted.hasobject:
            raise ValueError(f"{wanted!r} holds references, and what was received would be taken for them")
        if copy is not None:
            copy = bool(copy)
        # Before the rest is looked at: it may be refused.
        source = self.buffer
        self.acquire()
        try:
            columns = self.columns
            count = columns.count
            if wanted is None:
                size = columns.lengths[0] if count else 0
                wanted = numpy.dtype((numpy.uint8, (size,)))
            else:
                size = wanted.itemsize
            for i in range(count):
                if columns.lengths[i] != size:
                    raise ValueError(f"datagram {i} has {columns.lengths[i]} bytes, and an item of {wanted!r} {size}")
            start = columns.offsets[0] if count else 0
            distance = columns.offsets[1] - start if count > 1 else size
            shared = True
            for i in range(1, count):
                shared = shared and columns.offsets[i] - columns.offsets[i - 1] == distance
            if copy is False and not shared:
                raise ValueError("the datagrams do not lie at one distance from each other, and copy=False")
            if copy or not shared:
                source = numpy.empty(count * size, numpy.uint8)
                PyObject_GetBuffer(source, &target, PyBUF_WRITABLE)
                for i in range(count):
                    memcpy(<char *>target.buf + i * size, self.arena + columns.offsets[i], <size_t>size)
                PyBuffer_Release(&target)
                start = 0
                distance = size
        finally:
            self.release_hold()
        # As the only field of a structure, because a type with a shape would change the array's.
        return numpy.ndarray((count,), numpy.dtype([("item", wanted)]), source, start, (distance,))["item"]

    def __arrow_c_schema__(self):
        """Return the schema of ``__arrow_c_array__`` as a capsule."""
        return export_schema(self.columns, self.ancillary, self.named)

    def __arrow_c_array__(self, requested_schema=None):
        """Return the batch for Arrow, as the PyCapsule interface has it: a struct array with a field for each column.

        ``pyarrow.record_batch(batch)`` and ``polars.DataFrame(batch)`` call it. The payloads (binary view, those
        beyond 12 bytes) and the columns of numbers share the memory of the batch, and keep it.

        The next receive into a ``RecvBatch`` overwrites them. A view of a payload also holds its length and first
        bytes, which do not follow: what Arrow says of such an array is wrong. Receive into another
        batch, or copy first.

        Args:
            requested_schema: Has no effect; the consumer converts what it gets.

        Raises:
            RuntimeError: Another thread is receiving into the batch.
        """
        cdef object owner = self.memory_owner()
        cdef Columns *columns
        self.acquire()
        try:
            columns = self.columns
            return (
                export_schema(columns, self.ancillary, self.named),
                export_array(owner, self.arena, columns, self.ancillary, self.internet_peers(columns)),
            )
        finally:
            self.release_hold()

    cdef list internet_peers(self, Columns *columns):
        """The addresses of IPv4 and IPv6 peers, and None for others; None without peers. The caller holds the batch."""
        cdef c.sockaddr_storage name
        cdef size_t namelen
        cdef Py_ssize_t i
        cdef list found = []
        if not self.named:
            return None
        for i in range(columns.count):
            namelen = self.copy_name(columns.messages[i] if self.ancillary & GRO else i, &name)
            if (namelen >= sizeof(c.sockaddr_in) and name.ss_family == c.AF_INET) or (
                namelen >= sizeof(c.sockaddr_in6) and name.ss_family == c.AF_INET6
            ):
                found.append(self.decode_peer(&name, namelen))
            else:
                found.append(None)
        return found

    # --- a slot per row -----------------------------------------------------------------------

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.ancillary & GRO:
            raise joined_slots()
        cdef Py_ssize_t count = self.columns.count
        cdef Py_ssize_t start = self.columns.offsets[0] if count else 0
        # On a free-threaded build a receive may change the count meanwhile.
        count = min(count, (self.arena_size - start + self.stride - 1) // self.stride)
        # Shape and strides belong to the view: the next receive changes the count.
        exporter = rows(self.memory_owner(), self.arena + start, count, self.slot_size, self.stride)
        PyObject_GetBuffer(exporter, view, flags)

    def __array__(self, dtype=None, copy=None):
        # NumPy comes here only behind a buffer that was refused. Without this it would take
        # the batch for a sequence, and copy datagram by datagram.
        raise joined_slots()


cdef object joined_slots():
    return BufferError("with UDP GRO a slot holds many datagrams: use buffer, offsets and lengths, or to_numpy()")


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
