# The columns of a receive. A block is never moved and never shrinks: where more room or
# another column is needed a larger one takes its place, and the old one stays until the
# batch goes, because views may show it. Pure. May import _arena, _cmsg and _sockaddr.

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from fastsock._arena cimport readonly_memory
from fastsock._cmsg cimport (
    DROP_COUNTER, GRO, HARDWARE_TIMESTAMPS, PKTINFO, TIMESTAMPS, TOS, TTL, Host, Metadata,
)
from fastsock._sockaddr cimport decode_host


cdef Columns *make_columns(Py_ssize_t capacity, int ancillary, Columns *older) except NULL:
    """Room for `capacity` items; what `older`, which may be NULL, holds is copied."""
    cdef Columns *made
    cdef size_t header = (sizeof(Columns) + 63) & ~<size_t>63
    made = <Columns *>calloc(1, header + columns_size(capacity, ancillary))
    if made == NULL:
        raise MemoryError(f"columns of {capacity} datagrams")
    made.older = older
    place_columns(made, <char *>made + header, capacity, ancillary)
    if older != NULL:
        copy_columns(made, older)
    return made


cdef size_t columns_size(Py_ssize_t capacity, int ancillary) noexcept:
    """Bytes of memory for `capacity` items in each column."""
    cdef size_t row = sizeof(int64_t) + sizeof(int32_t) + sizeof(uint8_t)
    if ancillary & GRO:
        row += sizeof(int32_t)
    if ancillary & TIMESTAMPS:
        row += sizeof(int64_t)
    if ancillary & HARDWARE_TIMESTAMPS:
        row += sizeof(int64_t)
    if ancillary & PKTINFO:
        row += sizeof(Host) + sizeof(int32_t)
    if ancillary & DROP_COUNTER:
        row += sizeof(uint32_t)
    if ancillary & TOS:
        row += 2 * sizeof(uint8_t)
    if ancillary & TTL:
        row += sizeof(uint8_t)
    # One spare row for what place_columns rounds up.
    return row * <size_t>(capacity + 1)


cdef void place_columns(Columns *made, char *at, Py_ssize_t capacity, int ancillary) noexcept:
    """Set where each column lies in the memory at `at`, which is aligned to 8 bytes."""
    made.capacity = capacity
    made.ancillary = ancillary
    # Widest first, so that each column is aligned.
    made.offsets = <int64_t *>take(&at, capacity, sizeof(int64_t))
    if ancillary & TIMESTAMPS:
        made.timestamps_ns = <int64_t *>take(&at, capacity, sizeof(int64_t))
    if ancillary & HARDWARE_TIMESTAMPS:
        made.hardware_timestamps_ns = <int64_t *>take(&at, capacity, sizeof(int64_t))
    made.lengths = <int32_t *>take(&at, capacity, sizeof(int32_t))
    if ancillary & GRO:
        made.messages = <int32_t *>take(&at, capacity, sizeof(int32_t))
    if ancillary & PKTINFO:
        made.locals = <Host *>take(&at, capacity, sizeof(Host))
        made.interface_indexes = <int32_t *>take(&at, capacity, sizeof(int32_t))
    if ancillary & DROP_COUNTER:
        made.drop_counters = <uint32_t *>take(&at, capacity, sizeof(uint32_t))
    made.truncated = <uint8_t *>take(&at, capacity, sizeof(uint8_t))
    if ancillary & TOS:
        made.ecn = <uint8_t *>take(&at, capacity, sizeof(uint8_t))
        made.dscp = <uint8_t *>take(&at, capacity, sizeof(uint8_t))
    if ancillary & TTL:
        made.ttls = <uint8_t *>take(&at, capacity, sizeof(uint8_t))


cdef void slice_columns(Columns *made, const Columns *whole, Py_ssize_t start, Py_ssize_t count) noexcept:
    """Show `count` items of another block's columns from `start` on; their memory stays that block's."""
    made.capacity = made.count = count
    made.ancillary = whole.ancillary
    made.offsets = whole.offsets + start
    made.lengths = whole.lengths + start
    made.truncated = whole.truncated + start
    if whole.messages != NULL:
        made.messages = whole.messages + start
    if whole.timestamps_ns != NULL:
        made.timestamps_ns = whole.timestamps_ns + start
    if whole.hardware_timestamps_ns != NULL:
        made.hardware_timestamps_ns = whole.hardware_timestamps_ns + start
    if whole.locals != NULL:
        made.locals = whole.locals + start
        made.interface_indexes = whole.interface_indexes + start
    if whole.drop_counters != NULL:
        made.drop_counters = whole.drop_counters + start
    if whole.ecn != NULL:
        made.ecn = whole.ecn + start
        made.dscp = whole.dscp + start
    if whole.ttls != NULL:
        made.ttls = whole.ttls + start


cdef char *take(char **at, Py_ssize_t capacity, size_t itemsize) noexcept:
    cdef char *start = at[0]
    at[0] += <size_t>capacity * itemsize
    return start


cdef void copy_columns(Columns *made, const Columns *old) noexcept:
    cdef size_t count = <size_t>min(made.capacity, old.count)
    made.count = <Py_ssize_t>count
    copy(made.offsets, old.offsets, count * sizeof(int64_t))
    copy(made.lengths, old.lengths, count * sizeof(int32_t))
    copy(made.truncated, old.truncated, count)
    copy(made.messages, old.messages, count * sizeof(int32_t))
    copy(made.timestamps_ns, old.timestamps_ns, count * sizeof(int64_t))
    copy(made.hardware_timestamps_ns, old.hardware_timestamps_ns, count * sizeof(int64_t))
    copy(made.locals, old.locals, count * sizeof(Host))
    copy(made.interface_indexes, old.interface_indexes, count * sizeof(int32_t))
    copy(made.drop_counters, old.drop_counters, count * sizeof(uint32_t))
    copy(made.ecn, old.ecn, count)
    copy(made.dscp, old.dscp, count)
    copy(made.ttls, old.ttls, count)


cdef void copy(void *target, const void *source, size_t size) noexcept:
    if target != NULL and source != NULL:
        memcpy(target, source, size)


cdef void free_columns(Columns *columns) noexcept:
    """Free a block and all that it replaced."""
    cdef Columns *older
    while columns != NULL:
        older = columns.older
        free(columns)
        columns = older


cdef void write_metadata(Columns *columns, Py_ssize_t start, Py_ssize_t end, const Metadata *found) noexcept nogil:
    """What one message's control buffer said, for its datagrams start to end."""
    cdef Py_ssize_t i
    if columns.timestamps_ns != NULL:
        for i in range(start, end):
            columns.timestamps_ns[i] = found.timestamp_ns
    if columns.hardware_timestamps_ns != NULL:
        for i in range(start, end):
            columns.hardware_timestamps_ns[i] = found.hardware_timestamp_ns
    if columns.locals != NULL:
        for i in range(start, end):
            columns.locals[i] = found.local
            columns.interface_indexes[i] = found.interface_index
    if columns.drop_counters != NULL:
        for i in range(start, end):
            columns.drop_counters[i] = found.drop_counter
    if columns.ecn != NULL:
        for i in range(start, end):
            columns.ecn[i] = found.tos & 3
            columns.dscp[i] = found.tos >> 2
    if columns.ttls != NULL:
        for i in range(start, end):
            columns.ttls[i] = found.ttl


cdef void read_metadata(const Columns *columns, Py_ssize_t index, Metadata *found) noexcept:
    if columns.timestamps_ns != NULL:
        found.timestamp_ns = columns.timestamps_ns[index]
    if columns.hardware_timestamps_ns != NULL:
        found.hardware_timestamp_ns = columns.hardware_timestamps_ns[index]
    if columns.locals != NULL:
        found.local = columns.locals[index]
        found.interface_index = columns.interface_indexes[index]
    if columns.drop_counters != NULL:
        found.drop_counter = columns.drop_counters[index]
    if columns.ecn != NULL:
        found.tos = <uint8_t>(columns.dscp[index] << 2 | columns.ecn[index])
    if columns.ttls != NULL:
        found.ttl = columns.ttls[index]


# --- what the user sees of them ------------------------------------------------------------

@cython.no_gc_clear     # views may be read while a garbage cycle is taken apart
cdef class ColumnBatch:
    """What every batch of received datagrams has: its columns, without a copy."""

    def __cinit__(self, *_, **__):
        self.columns = make_columns(0, 0, NULL)

    def __dealloc__(self):
        free_columns(self.columns)

    def __len__(self):
        return self.columns.count

    cdef object memory_owner(self):
        """What keeps the columns' memory, and with it every view of them."""
        return self

    cdef Columns *recorded(self, int bit, str option) except NULL:
        """The columns, with what `option` makes the kernel tell; ValueError where it was not on."""
        if not self.ancillary & bit:
            raise not_recorded(option)
        # Not before: on a free-threaded build a receive may replace them meanwhile.
        return self.columns

    @property
    def offsets(self):
        """Where each datagram starts in ``buffer``: a memoryview of ``len(batch)`` int64."""
        cdef Columns *columns = self.columns
        return readonly_memory(self.memory_owner(), columns.offsets, columns.count, sizeof(int64_t), b"q")

    @property
    def lengths(self):
        """The bytes of each datagram: a memoryview of ``len(batch)`` int32."""
        cdef Columns *columns = self.columns
        return readonly_memory(self.memory_owner(), columns.lengths, columns.count, sizeof(int32_t), b"i")

    @property
    def truncated(self):
        """Which datagrams were longer than their slot: a memoryview of ``len(batch)`` bool."""
        cdef Columns *columns = self.columns
        return readonly_memory(self.memory_owner(), columns.truncated, columns.count, sizeof(uint8_t), b"?")

    @property
    def timestamps_ns(self):
        """When the kernel received each datagram, in ns since 1970: a memoryview of int64.

        0 where it does not say. ValueError on this and the columns below where the last
        receive was from a socket that was not told to: see ``bind_udp``.
        """
        cdef Columns *columns = self.recorded(TIMESTAMPS, "timestamps")
        return readonly_memory(self.memory_owner(), columns.timestamps_ns, columns.count, sizeof(int64_t), b"q")

    @property
    def hardware_timestamps_ns(self):
        """When the device received each datagram, by its own clock: a memoryview of int64, 0 for unknown."""
        cdef Columns *columns = self.recorded(HARDWARE_TIMESTAMPS, "timestamps='hardware'")
        return readonly_memory(
            self.memory_owner(), columns.hardware_timestamps_ns, columns.count, sizeof(int64_t), b"q"
        )

    @property
    def ecn(self):
        """The ECN field of each datagram, 0 to 3 (RFC 3168): a memoryview of uint8."""
        cdef Columns *columns = self.recorded(TOS, "ecn")
        return readonly_memory(self.memory_owner(), columns.ecn, columns.count, sizeof(uint8_t), b"B")

    @property
    def dscp(self):
        """The DSCP field of each datagram, 0 to 63 (RFC 2474): a memoryview of uint8. Comes with ``ecn``."""
        cdef Columns *columns = self.recorded(TOS, "ecn")
        return readonly_memory(self.memory_owner(), columns.dscp, columns.count, sizeof(uint8_t), b"B")

    @property
    def ttls(self):
        """The TTL or hop limit that each datagram arrived with: a memoryview of uint8."""
        cdef Columns *columns = self.recorded(TTL, "ttl")
        return readonly_memory(self.memory_owner(), columns.ttls, columns.count, sizeof(uint8_t), b"B")

    @property
    def interface_indexes(self):
        """The interface that each datagram came in by: a memoryview of int32."""
        cdef Columns *columns = self.recorded(PKTINFO, "pktinfo")
        return readonly_memory(self.memory_owner(), columns.interface_indexes, columns.count, sizeof(int32_t), b"i")

    @property
    def drop_counters(self):
        """SO_RXQ_OVFL as each datagram was queued: a memoryview of uint32.

        The datagrams dropped at the socket before it, modulo 2**32. It lags behind
        ``Socket.drops``, which is right at once; this tells where in the stream they fell.
        """
        cdef Columns *columns = self.recorded(DROP_COUNTER, "drop_counter")
        return readonly_memory(self.memory_owner(), columns.drop_counters, columns.count, sizeof(uint32_t), b"I")

    @property
    def nbytes(self):
        """The sum of ``lengths``."""
        cdef Py_ssize_t i
        cdef int64_t total = 0
        cdef Columns *columns = self.columns
        for i in range(columns.count):
            total += columns.lengths[i]
        return total

    def local_addresses(self):
        """Return the address that every datagram was sent to, without its port: a list of ``len(batch)``.

        Raises:
            ValueError: The socket does not receive it: ``bind_udp(..., pktinfo=True)``.
        """
        cdef Columns *columns = self.recorded(PKTINFO, "pktinfo")
        cdef Py_ssize_t i
        return [decode_host(&columns.locals[i]) for i in range(columns.count)]


cdef object not_recorded(str option):
    if "=" not in option:
        option += "=True"
    return ValueError(f"not recorded: make the socket with bind_udp(..., {option}), and receive from it")
