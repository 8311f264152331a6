# Receiving batches: an arena, its kernel headers and its columns. No system calls: _receive
# calls `prepare`, recvmmsg and `decode` in turn, the first and last of which are pure.
# May import _linux, _arena, _cmsg, _columns, _datagrams, _sockaddr and, for the fork epoch, _sys.
#
# Who owns what: a RecvBatch allocates its memory once and frees it in __dealloc__; columns
# may be replaced by larger ones, and then both stay. Every view (a column, a Datagram, a
# NumPy array) holds a reference to the batch, so memory outlives its views, and nothing is
# ever moved. A receive overwrites contents, not memory.

cimport cython
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from fastsock cimport _linux as c
from fastsock._arena cimport slot_stride
from fastsock._cmsg cimport (
    GRO, Metadata, ancillary_of, control_size, decode_metadata, encode_control, metadata_room,
)
from fastsock._columns cimport Columns, make_columns, write_metadata
from fastsock._datagrams cimport DatagramBatch
from fastsock._sockaddr cimport AddressCache, encode_address
from fastsock._sys cimport fork_epoch

cdef enum:
    SEGMENTS = 64               # datagrams that GRO joins (linux/udp.h, UDP_GRO_CNT_MAX)


@cython.no_gc_clear     # views may be read while a garbage cycle is taken apart
cdef class RecvBatch(DatagramBatch):
    """Room for up to ``vlen`` kernel messages of ``slot_size`` bytes each, used again and again.

    ``Socket.recv_batch(batch)`` fills it. ``len(batch)``, iteration and ``batch[i]`` then
    give the datagrams of that receive, the columns give them all at once without a copy,
    and ``numpy.asarray(batch)`` is a ``(len(batch), slot_size)`` uint8 array on the same
    memory. The next receive into the batch overwrites the contents; views taken earlier
    stay valid memory, and show what is there then.

    With UDP GRO one message holds many datagrams: the batch always speaks of datagrams, so
    ``len(batch)`` may exceed ``vlen``, ``offsets`` and ``lengths`` say where each lies, and
    ``numpy.asarray`` is a BufferError. It takes a ``slot_size`` of at least 65535.

    Args:
        vlen: Messages per call, at least 1. 32 to 64 is fastest; 8 to 16 with GRO.
        slot_size: Bytes per slot, at least 1. A longer datagram is cut and marked
            ``truncated``. 65535 holds any UDP datagram.
        addresses: Record the peer of every datagram (about 60 ns each).

    Raises:
        ValueError: ``vlen`` or ``slot_size`` is below 1.
        MemoryError: The arena does not fit in memory.

    Timestamps and other metadata are recorded when the socket was told to receive them:
    see ``bind_udp``. A batch serves one thread at a time: a receive into it while another
    is under way raises RuntimeError. See recvmmsg(2).
    """

    def __cinit__(self, Py_ssize_t vlen=64, Py_ssize_t slot_size=2048, *, bint addresses=False):
        cdef Py_ssize_t i
        self.stride = slot_stride(vlen, slot_size)
        self.vlen = vlen
        self.slot_size = self.iov_size = self.keep_size = slot_size
        # calloc: the arena can be seen through `buffer`, and large ones stay untouched
        # until a datagram arrives in them.
        self.arena = <char *>calloc(vlen, self.stride)
        self.arena_size = vlen * self.stride
        self.msgvec = <c.mmsghdr *>calloc(vlen, sizeof(c.mmsghdr))
        self.iov = <c.iovec *>calloc(vlen, sizeof(c.iovec))
        if addresses:
            self.names = <c.sockaddr_storage *>calloc(vlen, sizeof(c.sockaddr_storage))
            self.peers = AddressCache()
        if self.arena == NULL or self.msgvec == NULL or self.iov == NULL or (addresses and self.names == NULL):
            raise MemoryError(f"{vlen} slots of {slot_size} bytes")
        self.columns = make_columns(vlen, 0, self.columns)
        self.named = self.naming = addresses
        for i in range(vlen):
            self.columns.offsets[i] = i * self.stride
            self.iov[i].iov_base = self.arena + i * self.stride
            self.iov[i].iov_len = <size_t>slot_size
            self.msgvec[i].msg_hdr.msg_iov = &self.iov[i]
            self.msgvec[i].msg_hdr.msg_iovlen = 1
            if addresses:
                self.msgvec[i].msg_hdr.msg_name = &self.names[i]
                self.msgvec[i].msg_hdr.msg_namelen = sizeof(c.sockaddr_storage)

    def __dealloc__(self):
        free(self.arena)
        free(self.msgvec)
        free(self.iov)
        free(self.names)
        free(self.controls)

    # --- ownership ---------------------------------------------------------------------

    cdef bint try_acquire(self) noexcept:
        return c.fastsock_flag_acquire(&self.busy, fork_epoch())

    cdef int acquire(self) except -1:
        if not self.try_acquire():
            raise RuntimeError("this RecvBatch is in use by another thread")
        return 0

    cdef void release_hold(self) noexcept:
        c.fastsock_flag_release(&self.busy)

    # --- peers ----------------------------------------------------------------------------

    cdef size_t copy_name(self, Py_ssize_t message, c.sockaddr_storage *name) noexcept:
        cdef size_t namelen
        message = min(message, self.vlen - 1)
        namelen = min(<size_t>self.msgvec[message].msg_hdr.msg_namelen, sizeof(c.sockaddr_storage))
        memcpy(name, &self.names[message], namelen)
        return namelen

    cdef object decode_peer(self, const c.sockaddr_storage *name, size_t namelen):
        return self.peers.decode(name, namelen)

    cdef object peer(self, Py_ssize_t message):
        message = min(message, self.vlen - 1)
        return self.peers.decode(&self.names[message], self.msgvec[message].msg_hdr.msg_namelen)

    # --- prepare and decode: the two pure halves of a receive ---------------------------

    cdef int attach(self, int ancillary) except -1:
        """Empty the batch, and be ready for the ancillary data of a socket; the caller owns the batch."""
        cdef Py_ssize_t i
        cdef Py_ssize_t capacity = self.columns.capacity
        cdef size_t room = metadata_room() if ancillary else 0
        # First: with other ancillary data the same rows would be read in another way.
        self.columns.count = 0
        if ancillary == self.ancillary:
            return 0
        if room and self.controls == NULL:
            self.controls = <char *>calloc(self.vlen, room)
            if self.controls == NULL:
                raise MemoryError()
        if ancillary & GRO and not self.columns.ancillary & GRO:
            capacity = max(capacity, self.vlen * SEGMENTS)
        if ancillary & ~self.columns.ancillary:
            self.columns = make_columns(capacity, self.columns.ancillary | ancillary, self.columns)
        if not ancillary & GRO:
            for i in range(self.vlen):
                self.columns.offsets[i] = i * self.stride
        self.ancillary = ancillary
        self.control_room = room
        for i in range(self.vlen):
            self.msgvec[i].msg_hdr.msg_control = self.controls + <size_t>i * room if room else NULL
            self.msgvec[i].msg_hdr.msg_controllen = room
        return 0

    cdef void prepare(self) noexcept:
        """Undo what the last receive wrote into the headers, and only there."""
        cdef Py_ssize_t i
        cdef c.msghdr *hdr
        for i in range(self.dirty):
            hdr = &self.msgvec[i].msg_hdr
            hdr.msg_flags = 0
            hdr.msg_controllen = self.control_room
            if self.naming:
                hdr.msg_namelen = sizeof(c.sockaddr_storage)
        self.dirty = 0
        self.columns.count = 0

    cdef int decode(self, Py_ssize_t received, bint seqpacket_full) except -1:
        """Fill the columns from `received` headers; `seqpacket_full`: all there were room for."""
        cdef Py_ssize_t i
        cdef Py_ssize_t size
        cdef int flags
        cdef int seen = 0
        cdef Columns *columns = self.columns
        self.dirty = received
        if self.ancillary:
            return self.decode_ancillary(received)
        for i in range(received):
            # With MSG_TRUNC among the call's flags, msg_len is the datagram's whole
            # length: never trust it beyond the slot.
            size = self.msgvec[i].msg_len
            flags = self.msgvec[i].msg_hdr.msg_flags
            seen |= flags
            columns.lengths[i] = <int32_t>(size if size < self.iov_size else self.iov_size)
            columns.truncated[i] = (flags & c.MSG_TRUNC) != 0
        self.unasked = (seen & c.MSG_CTRUNC) != 0
        if seqpacket_full:
            # At end-of-file every header that is left comes back empty: one stands for all.
            while received > 1 and columns.lengths[received - 1] == 0 and columns.lengths[received - 2] == 0:
                received -= 1
        columns.count = received
        return 0

    cdef int decode_ancillary(self, Py_ssize_t received) except -1:
        """The same with control buffers, and with each message split by its segment size."""
        cdef Py_ssize_t i, segment, size, count, start, end
        cdef Py_ssize_t filled = 0
        cdef int flags
        cdef int seen = 0
        cdef bint cut
        cdef bint glued = False
        cdef Columns *columns = self.columns
        cdef bint joined = (self.ancillary & GRO) != 0
        cdef bint other = (self.ancillary & ~GRO) != 0
        cdef Metadata found
        for i in range(received):
            size = min(<Py_ssize_t>self.msgvec[i].msg_len, self.iov_size)
            flags = self.msgvec[i].msg_hdr.msg_flags
            seen |= flags
            decode_metadata(&self.msgvec[i].msg_hdr, &found)
            segment = size
            count = 1
            if joined and 0 < found.segment_size < size:
                segment = found.segment_size
                count = (size + segment - 1) // segment
            if filled + count > columns.capacity:
                columns.count = filled
                columns = make_columns(2 * (filled + count), columns.ancillary, columns)
                self.columns = columns
            start = 0
            if joined:
                start = i * self.stride
                end = start + size
                cut = segment > self.keep_size
                while True:
                    columns.offsets[filled] = start
                    columns.lengths[filled] = <int32_t>min(min(segment, end - start), self.keep_size)
                    columns.truncated[filled] = cut and end - start > self.keep_size
                    columns.messages[filled] = <int32_t>i
                    filled += 1
                    start += segment
                    if start >= end:
                        break
            else:
                columns.lengths[filled] = <int32_t>size
                columns.truncated[filled] = 0
                filled += 1
                glued = glued or found.segment_size > 0
            if flags & c.MSG_TRUNC:
                columns.truncated[filled - 1] = 1
            if other:
                write_metadata(columns, filled - count, filled, &found)
        self.unasked = glued or (seen & c.MSG_CTRUNC) != 0
        columns.count = filled
        return 0

    def load(self, datagrams, int family=c.AF_INET, *, ancdata=None):
        """Fill the batch as a receive would, from memory: to test what consumes batches.

        Args:
            datagrams: Up to ``vlen`` payloads, or ``(payload, address)`` pairs for a batch
                with ``addresses``. A payload longer than ``slot_size`` is cut and marked.
            family: The address family of the pairs.
            ancdata: What the kernel says of each, as the second item that ``recvmsg``
                returns; a list as long as ``datagrams``. With UDP_GRO among it the payload
                is split.

        Returns:
            The number of datagrams now in the batch.

        Raises:
            ValueError: More datagrams than ``vlen``, or ancillary data that is too large.
        """
        # Copied before anything is written: they may be datagrams of this very batch.
        cdef bint named = self.named
        cdef list items = [
            (bytes(memoryview(item[0] if named else item)), item[1] if named else None) for item in datagrams
        ]
        cdef list controls = [[(level, kind, bytes(data)) for level, kind, data in one] for one in ancdata or ()]
        cdef Py_ssize_t i
        cdef Py_ssize_t size
        cdef int ancillary = 0
        cdef bytes payload
        cdef c.msghdr *hdr
        if len(items) > self.vlen:
            raise ValueError(f"{len(items)} datagrams do not fit in a batch of vlen {self.vlen}")
        if ancdata is not None and len(controls) != len(items):
            raise ValueError(f"{len(items)} datagrams with ancillary data for {len(controls)}")
        for one in controls:
            for level, kind, _ in one:
                ancillary |= ancillary_of(level, kind)
        self.acquire()
        try:
            self.prepare()
            self.attach(ancillary)
            self.dirty = len(items)
            for i in range(len(items)):
                payload, address = items[i]
                hdr = &self.msgvec[i].msg_hdr
                if named:
                    encode_address(family, address, "load", &self.names[i], &hdr.msg_namelen)
                size = len(payload)
                hdr.msg_flags = c.MSG_TRUNC if size > self.slot_size else 0
                if ancillary:
                    if control_size(controls[i]) > self.control_room:
                        raise ValueError(f"the ancillary data of datagram {i} is too large")
                    hdr.msg_controllen = control_size(controls[i])
                    encode_control(controls[i], hdr)
                self.msgvec[i].msg_len = <unsigned int>size
                memcpy(self.arena + i * self.stride, <const char *>payload, min(size, self.slot_size))
            self.decode(len(items), False)
        finally:
            self.release_hold()
        return self.columns.count

    def __repr__(self):
        return (
            f"<fastsock.RecvBatch of {self.columns.count} datagrams, vlen={self.vlen}, slot_size={self.slot_size}"
            f"{', addresses=True' if self.named else ''}>"
        )

    # --- columns: no copy -------------------------------------------------------------------
