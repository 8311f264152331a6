# Receiving batches: an arena, its kernel headers and its columns. No system calls: _socket
# calls `prepare`, recvmmsg and `decode` in turn, the first and last of which are pure.
# May import _linux, _arena, _sockaddr and, for the fork epoch, _sys.
#
# Who owns what: a RecvBatch allocates everything once and frees it in __dealloc__. Every
# view (a column, a Datagram, a NumPy array) holds a reference to the batch, so memory
# outlives its views, and nothing is ever moved. A receive overwrites contents, not memory.

cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, PyBUF_C_CONTIGUOUS, PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_FillInfo,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from fastsock cimport _linux as c
from fastsock._arena cimport memory, slot_stride
from fastsock._sockaddr cimport AddressCache, decode_address, encode_address
from fastsock._sys cimport fork_epoch

cdef enum:
    KEEP_HEAP_FROM = 512    # smaller bytes objects come from Python's own pools
    KEPT_PAYLOADS = 1024    # positions of a list whose payloads are kept to be written again,
    KEPT_BYTES = 2 << 20    # and their sum; of both generations, twice as much at the most
    LEND_FROM = 256         # below it a copy is as fast


@cython.final
@cython.no_gc_clear     # views may be read while a garbage cycle is taken apart
cdef class RecvBatch:
    """Room for up to ``vlen`` kernel messages of ``slot_size`` bytes each, used again and again.

    ``Socket.recv_batch(batch)`` fills it. ``len(batch)``, iteration and ``batch[i]`` then
    give the datagrams of that receive, the columns give them all at once without a copy,
    and ``numpy.asarray(batch)`` is a ``(len(batch), slot_size)`` uint8 array on the same
    memory. The next receive into the batch overwrites the contents; views taken earlier
    stay valid memory, and show the new contents.

    Args:
        vlen: Messages per call, at least 1. 32 to 64 is fastest.
        slot_size: Bytes per slot, at least 1. A longer datagram is cut and marked
            ``truncated``. 65535 holds any UDP datagram.
        addresses: Record the peer of every datagram (about 60 ns each).

    Raises:
        ValueError: ``vlen`` or ``slot_size`` is below 1.
        MemoryError: The arena does not fit in memory.

    A batch serves one thread at a time: a receive into it while another is under way
    raises RuntimeError. See recvmmsg(2).
    """

    def __cinit__(self, Py_ssize_t vlen=64, Py_ssize_t slot_size=2048, *, bint addresses=False):
        cdef Py_ssize_t i
        self.stride = slot_stride(vlen, slot_size)
        self.vlen = vlen
        self.slot_size = slot_size
        # calloc: the arena can be seen through `buffer`, and large ones stay untouched
        # until a datagram arrives in them.
        self.arena = <char *>calloc(vlen, self.stride)
        self.msgvec = <c.mmsghdr *>calloc(vlen, sizeof(c.mmsghdr))
        self.iov = <c.iovec *>calloc(vlen, sizeof(c.iovec))
        self.offsets_column = <int64_t *>calloc(vlen, sizeof(int64_t))
        self.lengths_column = <int32_t *>calloc(vlen, sizeof(int32_t))
        self.truncated_column = <uint8_t *>calloc(vlen, sizeof(uint8_t))
        if addresses:
            self.names = <c.sockaddr_storage *>calloc(vlen, sizeof(c.sockaddr_storage))
            self.peers = AddressCache()
        if (
            self.arena == NULL or self.msgvec == NULL or self.iov == NULL
            or self.offsets_column == NULL or self.lengths_column == NULL
            or self.truncated_column == NULL or (addresses and self.names == NULL)
        ):
            raise MemoryError(f"{vlen} slots of {slot_size} bytes")
        for i in range(vlen):
            self.offsets_column[i] = i * self.stride
            self.iov[i].iov_base = self.arena + i * self.stride
            self.msgvec[i].msg_hdr.msg_iov = &self.iov[i]
            self.msgvec[i].msg_hdr.msg_iovlen = 1
        self.shape(slot_size, addresses)

    def __dealloc__(self):
        self.forget_payloads()
        free(self.arena)
        free(self.msgvec)
        free(self.iov)
        free(self.names)
        free(self.offsets_column)
        free(self.lengths_column)
        free(self.truncated_column)

    # --- ownership ---------------------------------------------------------------------

    cdef bint try_acquire(self) noexcept:
        return c.fastsock_flag_acquire(&self.busy, fork_epoch())

    cdef int acquire(self) except -1:
        if not self.try_acquire():
            raise RuntimeError("this RecvBatch is in use by another thread")
        return 0

    cdef void release(self) noexcept:
        c.fastsock_flag_release(&self.busy)

    # --- prepare and decode: the two pure halves of a receive ---------------------------

    cdef void shape(self, Py_ssize_t iov_size, bint naming) noexcept:
        """Let datagrams fill `iov_size` bytes of each slot, with or without their peers."""
        cdef Py_ssize_t i
        if iov_size == self.iov_size and naming == self.naming:
            return
        self.iov_size = iov_size
        for i in range(self.vlen):
            if self.young != NULL:
                self.unlend(i)
            else:
                self.iov[i].iov_len = <size_t>iov_size
            self.msgvec[i].msg_hdr.msg_name = &self.names[i] if naming else NULL
            self.msgvec[i].msg_hdr.msg_namelen = sizeof(c.sockaddr_storage) if naming else 0
        self.naming = naming

    cdef void prepare(self) noexcept:
        """Undo what the last receive wrote into the headers, and only there."""
        cdef Py_ssize_t i
        cdef c.msghdr *hdr
        for i in range(self.dirty):
            hdr = &self.msgvec[i].msg_hdr
            hdr.msg_flags = 0
            hdr.msg_controllen = 0
            if self.naming:
                hdr.msg_namelen = sizeof(c.sockaddr_storage)
            if self.young != NULL:
                self.lend(i)
        self.dirty = 0
        self.count = 0

    cdef void decode(self, Py_ssize_t received, bint seqpacket_full) noexcept:
        """Fill the columns from `received` headers; `seqpacket_full`: all there were room for."""
        cdef Py_ssize_t i
        cdef Py_ssize_t size
        cdef int flags
        for i in range(received):
            # With MSG_TRUNC among the call's flags, msg_len is the datagram's whole
            # length: never trust it beyond the slot.
            size = self.msgvec[i].msg_len
            flags = self.msgvec[i].msg_hdr.msg_flags
            self.lengths_column[i] = <int32_t>(size if size < self.iov_size else self.iov_size)
            self.truncated_column[i] = (flags & c.MSG_TRUNC) != 0
        self.dirty = received
        if seqpacket_full:
            # At end-of-file every header that is left comes back empty: one stands for all.
            while received > 1 and self.lengths_column[received - 1] == 0 and self.lengths_column[received - 2] == 0:
                received -= 1
        self.count = received

    def load(self, datagrams, int family=c.AF_INET):
        """Fill the batch as a receive would, from memory: to test what consumes batches.

        Args:
            datagrams: Up to ``vlen`` payloads, or ``(payload, address)`` pairs for a batch
                with ``addresses``. A payload longer than ``slot_size`` is cut and marked.
            family: The address family of the pairs.

        Returns:
            The number of datagrams now in the batch.

        Raises:
            ValueError: More datagrams than ``vlen``.
        """
        # Copied before anything is written: they may be datagrams of this very batch.
        cdef bint named = self.names != NULL
        cdef list items = [
            (bytes(memoryview(item[0] if named else item)), item[1] if named else None) for item in datagrams
        ]
        cdef Py_ssize_t i
        cdef Py_ssize_t size
        cdef bytes payload
        if len(items) > self.vlen:
            raise ValueError(f"{len(items)} datagrams do not fit in a batch of vlen {self.vlen}")
        self.acquire()
        try:
            self.prepare()
            self.dirty = len(items)
            for i in range(len(items)):
                payload, address = items[i]
                if named:
                    encode_address(family, address, "load", &self.names[i], &self.msgvec[i].msg_hdr.msg_namelen)
                size = len(payload)
                self.msgvec[i].msg_hdr.msg_flags = c.MSG_TRUNC if size > self.slot_size else 0
                self.msgvec[i].msg_len = <unsigned int>size
                memcpy(self.arena + self.offsets_column[i], <const char *>payload, min(size, self.slot_size))
            self.decode(len(items), False)
        finally:
            self.release()
        return self.count

    # --- lists: a copy of everything ------------------------------------------------------

    cdef int keep_payloads(self) except -1:
        """Keep what lists are made of: the kernel may write it again once nobody else has it."""
        cdef Py_ssize_t i
        cdef Generation *generation
        cdef c.iovec *iov = <c.iovec *>calloc(<size_t>self.vlen, 2 * sizeof(c.iovec))
        if iov == NULL:
            raise MemoryError()
        for i in range(self.vlen):
            iov[2 * i + 1] = self.iov[i]
            self.msgvec[i].msg_hdr.msg_iov = &iov[2 * i]
            self.msgvec[i].msg_hdr.msg_iovlen = 2
        free(self.iov)
        self.iov = iov
        self.young = &self.generations[0]
        for i in range(2):
            generation = &self.generations[i]
            generation.kept = <PyObject **>calloc(KEPT_PAYLOADS, sizeof(PyObject *))
            generation.steady = <uint8_t *>calloc(KEPT_PAYLOADS, sizeof(uint8_t))
            if generation.kept == NULL or generation.steady == NULL:
                raise MemoryError()     # such a batch is never used
        return 0

    cdef void forget_payloads(self) noexcept:
        cdef Py_ssize_t g, i
        cdef PyObject **kept
        for g in range(2):
            kept = self.generations[g].kept
            if kept != NULL:
                for i in range(KEPT_PAYLOADS):
                    if kept[i] != NULL:
                        Py_DECREF(<object>kept[i])
            free(kept)
            free(self.generations[g].steady)

    cdef void begin_list(self) noexcept:
        """Take the other generation where the last list is still held.

        It is in `payloads = sock.recv_many()` within a loop: the name lets the last list go
        only when the call has returned the next.
        """
        cdef Py_ssize_t i
        cdef PyObject *first = self.young.kept[0]
        if first != NULL and not c.fastsock_is_sole(first):
            self.young = &self.generations[1 if self.young == &self.generations[0] else 0]
            for i in range(self.vlen):
                self.unlend(i)
            self.dirty = self.vlen      # so that `prepare` lends what this one has kept

    # A message's first iovec is empty, or the payload kept at the slot's own position: then
    # nobody else holds that object, and nobody gets it before `unlend`.

    cdef void lend(self, Py_ssize_t index) noexcept:
        """Let the kernel write into the payload kept for this slot, if its size repeats."""
        cdef PyObject *old
        cdef Py_ssize_t size
        if index >= KEPT_PAYLOADS or not self.young.steady[index]:
            return
        old = self.young.kept[index]
        if old == NULL or not c.fastsock_is_sole(old):
            return
        size = PyBytes_GET_SIZE(<object>old)
        if LEND_FROM <= size <= self.iov_size:
            self.iov[2 * index].iov_base = PyBytes_AS_STRING(<object>old)
            self.iov[2 * index].iov_len = <size_t>size
            self.iov[2 * index + 1].iov_len = <size_t>(self.iov_size - size)

    cdef void unlend(self, Py_ssize_t index) noexcept:
        self.iov[2 * index].iov_len = 0
        self.iov[2 * index + 1].iov_len = <size_t>self.iov_size

    cdef bytes lent_payload(self, Py_ssize_t index, Py_ssize_t size, size_t *heap_bytes):
        """The payload of a slot that was lent: the object itself, or a copy from both iovecs."""
        cdef const char *head = <const char *>self.iov[2 * index].iov_base
        cdef Py_ssize_t lent = <Py_ssize_t>self.iov[2 * index].iov_len
        cdef bytes fresh
        self.unlend(index)
        if size == lent:
            c.fastsock_again(self.young.kept[index])
            return <bytes>self.young.kept[index]
        self.young.steady[index] = False
        if size < lent:
            return new_bytes(head, size, heap_bytes)
        fresh = new_bytes(NULL, size, heap_bytes)
        memcpy(PyBytes_AS_STRING(fresh), head, <size_t>lent)
        memcpy(PyBytes_AS_STRING(fresh) + lent, self.arena + self.offsets_column[index], <size_t>(size - lent))
        return fresh

    cdef bytes payload(self, Py_ssize_t index, Py_ssize_t position, size_t *heap_bytes):
        """Payload `index`, for `position` of a list that may span several receives.

        What malloc gave for it is added to `heap_bytes`.
        """
        cdef Py_ssize_t size = self.lengths_column[index]
        cdef const char *start = self.arena + self.offsets_column[index]
        cdef PyObject *old
        cdef bytes fresh
        if self.young != NULL and self.iov[2 * index].iov_len != 0:
            return self.lent_payload(index, size, heap_bytes)
        if self.young == NULL or position >= KEPT_PAYLOADS:
            return new_bytes(start, size, heap_bytes)
        if position < self.vlen:
            self.unlend(position)
        old = self.young.kept[position]
        if old != NULL and PyBytes_GET_SIZE(<object>old) == size and c.fastsock_is_sole(old):
            memcpy(PyBytes_AS_STRING(<object>old), start, <size_t>size)
            c.fastsock_again(old)
            self.young.steady[position] = True
            return <bytes>old
        self.young.steady[position] = False
        fresh = new_bytes(start, size, heap_bytes)
        if old != NULL:
            self.young.nbytes -= PyBytes_GET_SIZE(<object>old)
            self.young.kept[position] = NULL
            Py_DECREF(<object>old)
        # The empty and the one-byte objects are everybody's.
        if size > 1 and self.young.nbytes + size <= KEPT_BYTES:
            Py_INCREF(fresh)
            self.young.kept[position] = <PyObject *>fresh
            self.young.nbytes += size
        return fresh

    cdef list payload_list(self, Py_ssize_t position, size_t *heap_bytes):
        cdef Py_ssize_t i
        cdef Py_ssize_t count = self.count
        cdef list result = PyList_New(count)
        for i in range(count):
            item = self.payload(i, position + i, heap_bytes)
            Py_INCREF(item)
            PyList_SET_ITEM(result, i, item)
        return result

    cdef list payload_address_list(self, Py_ssize_t position, size_t *heap_bytes):
        cdef Py_ssize_t i
        cdef Py_ssize_t count = self.count
        cdef list result = PyList_New(count)
        for i in range(count):
            address = self.peers.decode(&self.names[i], self.msgvec[i].msg_hdr.msg_namelen)
            item = (self.payload(i, position + i, heap_bytes), address)
            Py_INCREF(item)
            PyList_SET_ITEM(result, i, item)
        return result

    def payloads(self):
        """Return every payload as a bytes object: a list of ``len(batch)``, copied.

        Raises:
            RuntimeError: Another thread is receiving into the batch.
        """
        cdef size_t heap_bytes = 0
        self.acquire()
        try:
            return self.payload_list(0, &heap_bytes)
        finally:
            self.release()
            c.fastsock_keep_heap(heap_bytes)

    def addresses(self):
        """Return the peer address of every datagram: a list of ``len(batch)``.

        Raises:
            ValueError: The batch was made without ``addresses=True``.
            RuntimeError: Another thread is receiving into the batch.
        """
        cdef Py_ssize_t i
        if self.names == NULL:
            raise no_addresses()
        self.acquire()
        try:
            return [
                self.peers.decode(&self.names[i], self.msgvec[i].msg_hdr.msg_namelen)
                for i in range(self.count)
            ]
        finally:
            self.release()

    # --- a sequence of datagrams ----------------------------------------------------------

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        cdef Py_ssize_t i
        if isinstance(index, slice):
            return [self.datagram(i) for i in range(*index.indices(self.count))]
        i = index
        if i < 0:
            i += self.count
        if not 0 <= i < self.count:
            raise IndexError(f"datagram {index} of a batch that holds {self.count}")
        return self.datagram(i)

    def __iter__(self):
        cdef Py_ssize_t i = 0
        while i < self.count:
            yield self.datagram(i)
            i += 1

    cdef Datagram datagram(self, Py_ssize_t index):
        cdef Datagram d = Datagram.__new__(Datagram)
        cdef c.socklen_t namelen
        d.batch = self
        d.start = self.arena + self.offsets_column[index]
        d.nbytes = self.lengths_column[index]
        d.truncated = self.truncated_column[index]
        if self.names != NULL:
            namelen = self.msgvec[index].msg_hdr.msg_namelen
            d.namelen = <int>min(<size_t>namelen, sizeof(c.sockaddr_storage))
            memcpy(&d.name, &self.names[index], <size_t>d.namelen)
        return d

    def __repr__(self):
        return (
            f"<fastsock.RecvBatch of {self.count} datagrams, vlen={self.vlen}, slot_size={self.slot_size}"
            f"{', addresses=True' if self.names != NULL else ''}>"
        )

    # --- columns: no copy -------------------------------------------------------------------

    @property
    def buffer(self):
        """The whole arena as a writable memoryview of bytes.

        Datagram ``i`` is ``buffer[offsets[i]:offsets[i] + lengths[i]]``.
        """
        return memory(self, self.arena, self.vlen * self.stride, 1, b"B")

    @property
    def offsets(self):
        """Where each datagram starts in ``buffer``: a memoryview of ``len(batch)`` int64."""
        return memory(self, self.offsets_column, self.count, sizeof(int64_t), b"q")

    @property
    def lengths(self):
        """The bytes of each datagram: a memoryview of ``len(batch)`` int32."""
        return memory(self, self.lengths_column, self.count, sizeof(int32_t), b"i")

    @property
    def truncated(self):
        """Which datagrams were longer than their slot: a memoryview of ``len(batch)`` bool."""
        return memory(self, self.truncated_column, self.count, sizeof(uint8_t), b"?")

    @property
    def nbytes(self):
        """The sum of ``lengths``."""
        cdef Py_ssize_t i
        cdef int64_t total = 0
        for i in range(self.count):
            total += self.lengths_column[i]
        return total

    def __getbuffer__(self, Py_buffer *view, int flags):
        # Shape and strides belong to the view: the next receive changes the count.
        cdef Py_ssize_t count = self.count
        cdef bint gaps = self.stride != self.slot_size and count > 1
        if (flags & PyBUF_STRIDES) != PyBUF_STRIDES or flags & PyBUF_F_CONTIGUOUS & ~PyBUF_STRIDES or (
            gaps and flags & (PyBUF_C_CONTIGUOUS | PyBUF_ANY_CONTIGUOUS) & ~PyBUF_STRIDES
        ):
            raise BufferError("a RecvBatch is two-dimensional with gaps: use its buffer, offsets and lengths")
        cdef Py_ssize_t *geometry = <Py_ssize_t *>PyMem_Malloc(4 * sizeof(Py_ssize_t))
        if geometry == NULL:
            raise MemoryError()
        geometry[0] = count
        geometry[1] = self.slot_size
        geometry[2] = self.stride
        geometry[3] = 1
        view.buf = self.arena
        view.obj = self
        view.len = geometry[0] * geometry[1]
        view.itemsize = 1
        view.readonly = 0
        view.ndim = 2
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = b"B"
        view.shape = geometry
        view.strides = geometry + 2
        view.suboffsets = NULL
        view.internal = geometry

    def __releasebuffer__(self, Py_buffer *view):
        PyMem_Free(view.internal)


cdef inline bytes new_bytes(const char *start, Py_ssize_t size, size_t *heap_bytes):
    """A new bytes object; what malloc gives for it is added to `heap_bytes`."""
    if size > KEEP_HEAP_FROM:
        heap_bytes[0] += <size_t>size
    return PyBytes_FromStringAndSize(start, size)


cdef object no_addresses():
    return ValueError("this batch records no addresses: make it with RecvBatch(..., addresses=True)")


@cython.final
@cython.no_gc_clear
@cython.freelist(64)
cdef class Datagram:
    """One received datagram, as a view of its slot: nothing is copied until asked for.

    ``bytes(d)`` copies the payload; ``d.payload`` is a memoryview of it, which the next
    receive into the batch overwrites. ``len(d)``, ``truncated`` and ``address`` stay as
    they were received. A Datagram supports the buffer protocol itself.
    """

    def __cinit__(self):
        self.namelen = -1

    def __init__(self):
        raise TypeError("Datagrams come from a RecvBatch")

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
            return self.batch.peers.decode(&self.name, <size_t>self.namelen)
        finally:
            self.batch.release()

    def __len__(self):
        return self.nbytes

    def __bytes__(self):
        return PyBytes_FromStringAndSize(self.start, self.nbytes)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.nbytes, 0, flags)

    def __repr__(self):
        address = f" from {self.address!r}" if self.namelen >= 0 else ""
        return f"<fastsock.Datagram of {self.nbytes} bytes{address}{', truncated' if self.truncated else ''}>"
