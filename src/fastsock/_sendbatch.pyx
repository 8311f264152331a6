# Outgoing messages. Gather points the kernel at the caller's own buffers; SendBatch is an
# arena that the caller writes into and may send many times. No system calls: _socket
# calls `prepare`, sendmmsg, and advances one cursor by what sendmmsg returned.
# May import _linux, _arena, _sockaddr and, for the fork epoch, _sys.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free
from libc.string cimport memmove
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM
from fastsock cimport _linux as c
from fastsock._arena cimport memory, slot_stride
from fastsock._sockaddr cimport encode_address
from fastsock._sys cimport fork_epoch


@cython.final
cdef class Gather:
    def __dealloc__(self):
        self.let_go()
        self.discard()

    cdef bint try_acquire(self) noexcept:
        return c.fastsock_flag_acquire(&self.busy, fork_epoch())

    cdef void release(self) noexcept:
        c.fastsock_flag_release(&self.busy)

    cdef void discard(self) noexcept:
        free(self.msgvec)
        free(self.iov)
        free(self.views)
        free(self.names)
        self.msgvec = NULL
        self.iov = NULL
        self.views = NULL
        self.names = NULL
        self.vlen = 0

    cdef int reserve(self, Py_ssize_t vlen) except -1:
        """Make room for `vlen` messages; nothing is held at this time."""
        cdef Py_ssize_t i
        if vlen <= self.vlen:
            return 0
        self.discard()
        self.msgvec = <c.mmsghdr *>calloc(vlen, sizeof(c.mmsghdr))
        self.iov = <c.iovec *>calloc(vlen, sizeof(c.iovec))
        self.views = <Py_buffer *>calloc(vlen, sizeof(Py_buffer))
        self.names = <c.sockaddr_storage *>calloc(vlen, sizeof(c.sockaddr_storage))
        if self.msgvec == NULL or self.iov == NULL or self.views == NULL or self.names == NULL:
            self.discard()
            raise MemoryError()
        for i in range(vlen):
            self.msgvec[i].msg_hdr.msg_iov = &self.iov[i]
            self.msgvec[i].msg_hdr.msg_iovlen = 1
        self.vlen = vlen
        return 0

    cdef int hold(self, tuple buffers, Py_ssize_t start, Py_ssize_t count, int flags) except -1:
        """Point the iovecs at buffers[start:start + count]; the caller holds the tuple until let_go."""
        cdef Py_ssize_t i
        for i in range(count):
            item = <object>PyTuple_GET_ITEM(buffers, start + i)
            if PyBytes_CheckExact(item) and flags == PyBUF_SIMPLE:
                # The tuple holds it, and nothing can change it: no buffer need be taken.
                self.iov[i].iov_base = PyBytes_AS_STRING(item)
                self.iov[i].iov_len = <size_t>PyBytes_GET_SIZE(item)
            else:
                PyObject_GetBuffer(item, &self.views[self.held], flags)
                self.iov[i].iov_base = self.views[self.held].buf
                self.iov[i].iov_len = <size_t>self.views[self.held].len
                self.held += 1
        return 0

    cdef int prepare(self, tuple payloads, Py_ssize_t start, Py_ssize_t count) except -1:
        """Hold the payloads, one message each, for the connected peer."""
        cdef Py_ssize_t i
        self.hold(payloads, start, count, PyBUF_SIMPLE)
        for i in range(count):
            self.msgvec[i].msg_hdr.msg_name = NULL
            self.msgvec[i].msg_hdr.msg_namelen = 0
        return 0

    cdef int address_all(self, Py_ssize_t count, int family, object address, str caller) except -1:
        """Address `count` prepared messages to one peer."""
        cdef Py_ssize_t i
        cdef c.socklen_t namelen = 0
        encode_address(family, address, caller, &self.names[0], &namelen)
        for i in range(count):
            self.msgvec[i].msg_hdr.msg_name = &self.names[0]
            self.msgvec[i].msg_hdr.msg_namelen = namelen
        return 0

    cdef int address_each(self, tuple addresses, Py_ssize_t start, Py_ssize_t count, int family, str caller) except -1:
        """Address each prepared message to its own peer."""
        cdef Py_ssize_t i
        cdef c.msghdr *hdr
        for i in range(count):
            hdr = &self.msgvec[i].msg_hdr
            encode_address(family, addresses[start + i], caller, &self.names[i], &hdr.msg_namelen)
            hdr.msg_name = &self.names[i]
        return 0

    cdef void let_go(self) noexcept:
        """Release the buffers, after the call that used them."""
        cdef Py_ssize_t i
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        self.held = 0


@cython.final
@cython.no_gc_clear     # as RecvBatch
cdef class SendBatch:
    """Datagrams to be sent together: an arena of ``vlen`` slots of ``slot_size`` bytes.

    ``append`` copies a payload in; ``Socket.send_batch(batch)`` sends what is unsent.
    A batch that was sent whole starts over at the next ``send_batch``, so that one filled
    once can be sent many times; ``clear`` empties it.

    Args:
        vlen: Room for datagrams, at least 1.
        slot_size: Bytes per slot, at least 1.

    Raises:
        ValueError: ``vlen`` or ``slot_size`` is below 1.
        MemoryError: The arena does not fit in memory.

    A batch serves one thread at a time. See sendmmsg(2).
    """

    def __cinit__(self, Py_ssize_t vlen=64, Py_ssize_t slot_size=2048):
        cdef Py_ssize_t i
        self.stride = slot_stride(vlen, slot_size)
        self.vlen = vlen
        self.slot_size = slot_size
        self.addresses = []
        self.arena = <char *>calloc(vlen, self.stride)
        self.msgvec = <c.mmsghdr *>calloc(vlen, sizeof(c.mmsghdr))
        self.iov = <c.iovec *>calloc(vlen, sizeof(c.iovec))
        if self.arena == NULL or self.msgvec == NULL or self.iov == NULL:
            raise MemoryError(f"{vlen} slots of {slot_size} bytes")
        for i in range(vlen):
            self.iov[i].iov_base = self.arena + i * self.stride
            self.msgvec[i].msg_hdr.msg_iov = &self.iov[i]
            self.msgvec[i].msg_hdr.msg_iovlen = 1

    def __dealloc__(self):
        free(self.arena)
        free(self.msgvec)
        free(self.iov)
        free(self.names)

    cdef int acquire(self) except -1:
        if not c.fastsock_flag_acquire(&self.busy, fork_epoch()):
            raise RuntimeError("this SendBatch is in use by another thread")
        return 0

    cdef void release(self) noexcept:
        c.fastsock_flag_release(&self.busy)

    # --- filling ------------------------------------------------------------------------

    def append(self, payload, address=None):
        """Copy ``payload``, a bytes-like object, into the next slot.

        Behind datagrams that are sent already, it alone is unsent: ``clear`` comes first to
        fill a batch anew.

        Args:
            payload: Up to ``slot_size`` bytes; may be empty.
            address: The peer, as ``sendto`` takes it; None on a connected socket.

        Raises:
            BufferError: The batch already holds ``vlen`` datagrams.
            ValueError: The payload is longer than ``slot_size``.
            RuntimeError: Another thread is sending the batch.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self.acquire()
            try:
                if self.count == self.vlen:
                    raise BufferError(f"the batch is full: vlen is {self.vlen}")
                if view.len > self.slot_size:
                    raise ValueError(f"a payload of {view.len} bytes does not fit a slot_size of {self.slot_size}")
                memmove(self.arena + self.count * self.stride, view.buf, <size_t>view.len)
                self.iov[self.count].iov_len = <size_t>view.len
                self.addresses.append(address)
                self.count += 1
            finally:
                self.release()
        finally:
            PyBuffer_Release(&view)

    def clear(self):
        """Forget every datagram, sent or not.

        Raises:
            RuntimeError: Another thread is sending the batch.
        """
        self.acquire()
        try:
            self.addresses.clear()
            self.count = self.cursor = self.encoded = 0
            self.unaddressed = False
        finally:
            self.release()

    def skip(self, Py_ssize_t count=1):
        """Leave the next ``count`` unsent datagrams out: how to go on behind a refused one.

        Raises:
            ValueError: Fewer than ``count`` are unsent.
        """
        self.acquire()
        try:
            if not 0 <= count <= self.count - self.cursor:
                raise ValueError(f"cannot skip {count} of {self.count - self.cursor} unsent datagrams")
            self.cursor += count
            self.unaddressed = self.unaddressed or count > 0
        finally:
            self.release()

    def __len__(self):
        return self.count

    @property
    def unsent(self):
        """Datagrams that the kernel has not taken yet."""
        return self.count - self.cursor

    @property
    def buffer(self):
        """The whole arena as a writable memoryview of bytes: slot ``i`` starts at ``i * stride``.

        Write through it to change payloads in place between two sends.
        """
        return memory(self, self.arena, self.vlen * self.stride, 1, b"B")

    def __repr__(self):
        return (
            f"<fastsock.SendBatch of {self.count} datagrams, {self.unsent} unsent, "
            f"vlen={self.vlen}, slot_size={self.slot_size}>"
        )

    # --- preparing ------------------------------------------------------------------------

    cdef void rewind(self) noexcept:
        """Start over once all is sent."""
        if self.cursor == self.count:
            self.cursor = 0
            if self.unaddressed:
                self.encoded = 0

    cdef int prepare(self, int family) except -1:
        """Address the messages that are new since the last send on this family."""
        cdef Py_ssize_t i
        cdef c.msghdr *hdr
        if self.encoded_family != family:
            self.encoded_family = family
            self.encoded = 0
            self.unaddressed = self.unaddressed or self.cursor > 0
        for i in range(max(self.encoded, self.cursor), self.count):
            hdr = &self.msgvec[i].msg_hdr
            address = self.addresses[i]
            if address is None:
                hdr.msg_name = NULL
                hdr.msg_namelen = 0
            else:
                if self.names == NULL:
                    self.names = <c.sockaddr_storage *>calloc(self.vlen, sizeof(c.sockaddr_storage))
                    if self.names == NULL:
                        raise MemoryError()
                encode_address(family, address, "send_batch", &self.names[i], &hdr.msg_namelen)
                hdr.msg_name = &self.names[i]
            self.encoded = i + 1
        return 0
