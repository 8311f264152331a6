# ReceiveSocket takes whole batches of datagrams. May import every module below it; goes to
# the kernel only through _sys.

cimport cython
from libc.stdint cimport uint64_t
from fastsock cimport _linux as c
from fastsock._cmsg cimport GRO
from fastsock._lists cimport ListBatch
from fastsock._recvbatch cimport GRO_SLOT_SIZE, RecvBatch
from fastsock._single cimport SingleSocket
from fastsock._socket cimport integer
from fastsock._sys cimport HOLD_GIL_DATAGRAMS, sys_getsockopt, sys_is_hung_up, sys_recvmmsg, sys_recvmmsg_queued

cdef enum:
    CHUNK_BYTES = 64 << 20      # the largest scratch arena of recv_many
    MOST_PER_CALL = 1 << 18     # datagrams of one recv_many: about a tenth of a second
    YIELD_EVERY = 16            # chunks of recv_many that may follow each other under the GIL
    HOLD_GIL_GRO = 16           # messages of joined datagrams, up to a megabyte, are a short call
    GRO_CHUNK = 8               # of them in one call of recv_many: what the cache holds


cdef class ReceiveSocket(SingleSocket):
    def close(self):
        """Close the socket, and let go of what it keeps for the next batch. See close(2)."""
        with cython.critical_section(self):
            self.scratch = None
        SingleSocket.close(self)

    # --- receiving in batches ----------------------------------------------------------------------

    def recv_batch(self, RecvBatch batch not None, flags=0):
        """Receive up to ``batch.vlen`` messages with one system call, without copying them.

        Waits for the first as ``recv`` does, then takes what is queued and never waits for
        more. Without UDP GRO a message is a datagram, and slot ``i`` holds datagram ``i``;
        with it ``offsets`` and ``lengths`` say where each datagram lies. The next receive
        into the same batch overwrites it; views taken earlier stay valid memory.

        Args:
            batch: Overwritten; empty when the call raises. A datagram longer than
                ``batch.slot_size`` is cut and marked ``truncated``.
            flags: As recvmmsg(2); MSG_PEEK shows only the first message.

        Returns:
            The number of datagrams received, at least 1; more than ``batch.vlen`` with GRO.

        Raises:
            BlockingIOError: Nothing was waiting on a non-blocking socket (EAGAIN).
            TimeoutError: Nothing came in time.
            ConnectionRefusedError: An earlier send drew an ICMP error (ECONNREFUSED).
            ValueError: UDP GRO is on, and ``batch.slot_size`` is below 65535.
            RuntimeError: Another thread is receiving into the batch.
            OSError: The socket is a stream (EOPNOTSUPP).

        Holds the GIL while it tries, for up to 64 messages, 16 with GRO; releases it to wait. Restarts
        on EINTR (PEP 475). See recvmmsg(2), udp(7).
        """
        self.check_datagrams("recv_batch")
        how = self.receive_flags(flags)
        if self.ancillary & GRO and batch.slot_size < GRO_SLOT_SIZE:
            raise ValueError(
                f"UDP GRO joins datagrams up to {GRO_SLOT_SIZE} bytes, and the batch has slot_size={batch.slot_size}: "
                f"make it with RecvBatch(vlen, {GRO_SLOT_SIZE})"
            )
        batch.acquire()
        try:
            batch.attach(self.ancillary)
            return self.receive(batch, batch.vlen, how)
        finally:
            batch.release_hold()

    def recv_many(self, Py_ssize_t vlen=64, Py_ssize_t bufsize=65535, flags=0):
        """Receive up to ``vlen`` datagrams as a list of bytes.

        Waits for the first as ``recv`` does, then takes what is queued and never waits for
        more.

        Args:
            vlen: The most messages to take, at least 1: with UDP GRO each may hold many
                datagrams. One call goes no further once it has 262144, so that
                signals are heard under a flood.
            bufsize: Bytes of each datagram to keep, at least 1; what is longer is cut.
            flags: As recvmmsg(2); MSG_PEEK shows only the first message.

        Returns:
            At least one payload. On a SOCK_SEQPACKET socket a last empty one is end-of-file.

        Raises:
            ValueError: ``vlen`` or ``bufsize`` is below 1.
            BlockingIOError, TimeoutError, OSError: As ``recv_batch``.

        Holds the GIL while it tries, and releases it to wait. Restarts on EINTR (PEP 475).
        See recvmmsg(2), udp(7).
        """
        return self.receive_list("recv_many", vlen, bufsize, self.receive_flags(flags), False)

    def recvfrom_many(self, Py_ssize_t vlen=64, Py_ssize_t bufsize=65535, flags=0):
        """As ``recv_many``, but a list of ``(bytes, address)``."""
        return self.receive_list("recvfrom_many", vlen, bufsize, self.receive_flags(flags), True)

    cdef Py_ssize_t receive(self, RecvBatch batch, Py_ssize_t vlen, int flags) except -1:
        """Prepare, call, decode; the caller owns the batch."""
        cdef int received
        cdef bint hold_gil = vlen <= (HOLD_GIL_GRO if self.ancillary & GRO else HOLD_GIL_DATAGRAMS)
        batch.prepare()
        self.raise_deferred(&self.deferred_recv)
        if flags & c.MSG_PEEK:
            vlen = 1            # every message of one call would be the same
        received = sys_recvmmsg(&self.handle, batch.msgvec, <unsigned int>vlen, flags, self.timeout_ns, hold_gil)
        self.take(batch, received, vlen, flags)
        return batch.columns.count

    cdef int take(self, RecvBatch batch, int received, Py_ssize_t vlen, int flags) except -1:
        """Decode and count what the kernel handed over."""
        batch.decode(received, self.may_be_at_end(received, vlen))
        if batch.unasked and not batch.ancillary & GRO:
            self.refuse_glued(batch, received)
        if not flags & c.MSG_PEEK:
            c.fastsock_count(&self._received, batch.columns.count)
        return 0

    cdef int refuse_glued(self, RecvBatch batch, int received) except -1:
        """Ancillary data came that the batch was not ready for: was it the segment size?

        It may be where a duplicate or another thread turned UDP GRO on. Lists on a socket with
        other metadata come here every time, and pay for one getsockopt.
        """
        if not self.joins():
            return 0
        self.learn_options()
        batch.columns.count = 0
        raise OSError(
            c.EIO, f"UDP GRO was turned on behind this receive, and {received} messages may hold joined datagrams: "
            "they are lost, the next receive splits them"
        )

    cdef bint joins(self) except -1:
        """Whether the kernel joins datagrams, whoever told it to."""
        cdef int value = 0
        cdef c.socklen_t size = sizeof(value)
        if self._family not in (c.AF_INET, c.AF_INET6) or self._type != c.SOCK_DGRAM:
            return False
        try:
            sys_getsockopt(self.handle.fd, c.FASTSOCK_SOL_UDP, c.UDP_GRO, &value, &size)
        except OSError:
            return False                # before Linux 5.0
        return value != 0

    cdef list receive_list(self, str caller, Py_ssize_t vlen, Py_ssize_t bufsize, int flags, bint addresses):
        # A large vlen goes in chunks that stay in the cache: 64 per call is the fastest,
        # and a million slots of 65535 bytes fit in no memory.
        cdef bint gro = (self.ancillary & GRO) != 0
        cdef Py_ssize_t chunk
        cdef Py_ssize_t at = 0              # messages so far, and datagrams
        cdef Py_ssize_t position = 0
        cdef int received
        cdef int chunks = 0
        cdef size_t heap_bytes = 0
        cdef int error = 0
        cdef uint64_t seen
        cdef ListBatch batch
        cdef list result
        if vlen < 1:
            raise ValueError(f"vlen must be at least 1, not {vlen}")
        if bufsize < 1:
            raise ValueError(f"bufsize must be at least 1, not {bufsize}")
        self.check_datagrams(caller)
        vlen = min(vlen, MOST_PER_CALL)
        if gro:
            chunk = min(vlen, GRO_CHUNK)
        else:
            chunk = min(vlen, max(1, min(HOLD_GIL_DATAGRAMS, CHUNK_BYTES // bufsize)))
        batch = self.borrow_scratch(chunk, bufsize, addresses)
        try:
            batch.begin_list()
            self.receive(batch, chunk, flags)
            result = batch.payload_address_list(0, &heap_bytes) if addresses else batch.payload_list(0, &heap_bytes)
            received = <int>batch.dirty if gro else <int>batch.columns.count
            at = received
            position = batch.columns.count
            # A short chunk has emptied the queue, and behind an empty one may be the end-of-file
            # that a seqpacket socket repeats.
            while at < vlen and position < MOST_PER_CALL and received == chunk and not flags & c.MSG_PEEK:
                if self._type == c.SOCK_SEQPACKET and batch.columns.lengths[received - 1] == 0:
                    break
                chunks += 1
                chunk = min(chunk, vlen - at)
                batch.prepare()
                seen = self.handle.reports
                received = sys_recvmmsg_queued(
                    self.handle.fd, batch.msgvec, <unsigned int>chunk, flags, chunks % YIELD_EVERY != 0, &error
                )
                try:
                    if error and not (self.handle.drain != NULL and self.absorb_errors(&seen, &error)):
                        self.deferred_recv = error
                    self.take(batch, received, chunk, flags)
                except OSError as failure:
                    self.deferred_recv = failure.errno      # behind datagrams: for the next call
                    break
                if not gro:
                    received = <int>batch.columns.count
                if received:
                    if addresses:
                        result += batch.payload_address_list(position, &heap_bytes)
                    else:
                        result += batch.payload_list(position, &heap_bytes)
                at += received
                position += batch.columns.count
            return result
        finally:
            batch.release_hold()
            c.fastsock_keep_heap(heap_bytes)

    cdef ListBatch borrow_scratch(self, Py_ssize_t vlen, Py_ssize_t bufsize, bint addresses):
        """The socket's own batch, acquired; a new one while another thread has it."""
        cdef ListBatch batch
        cdef Py_ssize_t needed = max(bufsize, GRO_SLOT_SIZE if self.ancillary & GRO else 1)
        cdef Py_ssize_t slot_size = needed
        with cython.critical_section(self):
            batch = self.scratch
            if batch is None or not batch.try_acquire():
                batch = None
            if batch is None or batch.vlen < vlen or batch.slot_size < needed:
                if batch is not None:
                    if max(needed, batch.slot_size) <= CHUNK_BYTES // max(vlen, batch.vlen):
                        vlen = max(vlen, batch.vlen)
                        slot_size = max(needed, batch.slot_size)
                    batch.release_hold()
                batch = ListBatch(vlen, slot_size, addresses=True)
                batch.acquire()
                self.scratch = batch
        try:
            batch.shape(bufsize, addresses, self.ancillary)
        except MemoryError:
            batch.release_hold()
            raise
        return batch

    cdef bint may_be_at_end(self, Py_ssize_t received, Py_ssize_t vlen) noexcept:
        """Whether empty datagrams at the end of a receive may be one end-of-file, repeated."""
        return self._type == c.SOCK_SEQPACKET and received == vlen > 1 and sys_is_hung_up(self.handle.fd)

    cdef int receive_flags(self, object flags) except? -1:
        cdef int how = integer(flags)
        if how & c.MSG_ERRQUEUE:
            raise ValueError("MSG_ERRQUEUE gives no datagrams: use recv_errors()")
        return how

    cdef int check_datagrams(self, str caller) except -1:
        if self._type == c.SOCK_STREAM:
            raise OSError(c.EOPNOTSUPP, f"{caller}() is for datagram and seqpacket sockets, and this is a stream")
        return 0
