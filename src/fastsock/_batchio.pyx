# Whole batches of datagrams: BatchSocket adds to BaseSocket every call that moves many at
# once. May import every module below it; goes to the kernel only through _sys.

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport int64_t
from fastsock cimport _linux as c
from fastsock._recvbatch cimport RecvBatch
from fastsock._sendbatch cimport Gather, SendBatch
from fastsock._socket cimport BaseSocket, integer
from fastsock._sys cimport (
    HOLD_GIL_DATAGRAMS, SENDMMSG_MAX, monotonic_ns, sys_is_hung_up, sys_recvmmsg, sys_recvmmsg_queued, sys_sendmmsg,
)

cdef extern from "Python.h":
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef object CONNECTED = object()    # in place of an address: the peer is the socket's own

cdef enum:
    CHUNK_BYTES = 64 << 20      # the largest scratch arena of recv_many
    MOST_PER_CALL = 1 << 18     # datagrams of one recv_many: about a tenth of a second
    YIELD_EVERY = 16            # chunks of recv_many that may follow each other under the GIL


cdef class BatchSocket(BaseSocket):
    def close(self):
        """Close the socket, and let go of what it keeps for the next batch. See close(2)."""
        with cython.critical_section(self):
            self.scratch = None
        BaseSocket.close(self)

    # --- receiving in batches ----------------------------------------------------------------------

    def recv_batch(self, RecvBatch batch not None, flags=0):
        """Receive up to ``batch.vlen`` datagrams with one system call, without copying them.

        Waits for the first as ``recv`` does, then takes what is queued and never waits for
        more. Slot ``i`` holds datagram ``i`` for ``0 <= i < len(batch)``. The next receive
        into the same batch overwrites it; views taken earlier stay valid memory.

        Args:
            batch: Overwritten; empty when the call raises. A datagram longer than
                ``batch.slot_size`` is cut and marked ``truncated``.
            flags: As recvmmsg(2); MSG_PEEK shows only the first datagram.

        Returns:
            The number of datagrams received, at least 1.

        Raises:
            BlockingIOError: Nothing was waiting on a non-blocking socket (EAGAIN).
            TimeoutError: Nothing came in time.
            ConnectionRefusedError: An earlier send drew an ICMP error (ECONNREFUSED).
            RuntimeError: Another thread is receiving into the batch.
            OSError: The socket is a stream (EOPNOTSUPP).

        Holds the GIL while it tries, for up to 64 messages; releases it to wait. Restarts
        on EINTR (PEP 475). See recvmmsg(2), udp(7).
        """
        self.check_datagrams("recv_batch")
        batch.acquire()
        try:
            return self.receive(batch, batch.vlen, integer(flags))
        finally:
            batch.release()

    def recv_many(self, Py_ssize_t vlen=64, Py_ssize_t bufsize=65535, flags=0):
        """Receive up to ``vlen`` datagrams as a list of bytes.

        Waits for the first as ``recv`` does, then takes what is queued and never waits for
        more.

        Args:
            vlen: The most to take, at least 1. One call takes no more than 262144, so that
                signals are heard under a flood.
            bufsize: Bytes of each datagram to keep, at least 1; what is longer is cut.
            flags: As recvmmsg(2); MSG_PEEK shows only the first datagram.

        Returns:
            At least one payload. On a SOCK_SEQPACKET socket a last empty one is end-of-file.

        Raises:
            ValueError: ``vlen`` or ``bufsize`` is below 1.
            BlockingIOError, TimeoutError, OSError: As ``recv_batch``.

        Holds the GIL while it tries, and releases it to wait. Restarts on EINTR (PEP 475).
        See recvmmsg(2), udp(7).
        """
        return self.receive_list("recv_many", vlen, bufsize, integer(flags), False)

    def recvfrom_many(self, Py_ssize_t vlen=64, Py_ssize_t bufsize=65535, flags=0):
        """As ``recv_many``, but a list of ``(bytes, address)``."""
        return self.receive_list("recvfrom_many", vlen, bufsize, integer(flags), True)

    cdef Py_ssize_t receive(self, RecvBatch batch, Py_ssize_t vlen, int flags) except -1:
        """Prepare, call, decode; the caller owns the batch."""
        cdef int received
        batch.prepare()
        self.raise_deferred(&self.deferred_recv)
        if flags & c.MSG_PEEK:
            vlen = 1            # every message of one call would be the same datagram
        received = sys_recvmmsg(
            &self.fd, batch.msgvec, <unsigned int>vlen, flags, self.timeout_ns, vlen <= HOLD_GIL_DATAGRAMS
        )
        batch.decode(received, self.may_be_at_end(received, vlen))
        return batch.count

    cdef list receive_list(self, str caller, Py_ssize_t vlen, Py_ssize_t bufsize, int flags, bint addresses):
        # A large vlen goes in chunks that stay in the cache: 64 per call is the fastest,
        # and a million slots of 65535 bytes fit in no memory.
        cdef Py_ssize_t chunk
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t size
        cdef int received
        cdef int chunks = 0
        cdef size_t heap_bytes = 0
        cdef int error = 0
        cdef RecvBatch batch
        cdef list result
        if vlen < 1:
            raise ValueError(f"vlen must be at least 1, not {vlen}")
        if bufsize < 1:
            raise ValueError(f"bufsize must be at least 1, not {bufsize}")
        self.check_datagrams(caller)
        vlen = min(vlen, MOST_PER_CALL)
        chunk = min(vlen, max(1, min(HOLD_GIL_DATAGRAMS, CHUNK_BYTES // bufsize)))
        batch = self.borrow_scratch(chunk, bufsize, addresses)
        try:
            batch.begin_list()
            self.receive(batch, chunk, flags)
            result = batch.payload_address_list(at, &heap_bytes) if addresses else batch.payload_list(at, &heap_bytes)
            size = batch.count
            at = size
            # A short chunk has emptied the queue, and behind an empty one may be the end-of-file
            # that a seqpacket socket repeats.
            while at < vlen and size == chunk and not flags & c.MSG_PEEK:
                if self._type == c.SOCK_SEQPACKET and batch.lengths_column[size - 1] == 0:
                    break
                chunks += 1
                chunk = min(chunk, vlen - at)
                batch.prepare()
                received = sys_recvmmsg_queued(
                    self.fd, batch.msgvec, <unsigned int>chunk, flags, chunks % YIELD_EVERY != 0, &error
                )
                if error:
                    self.deferred_recv = error
                batch.decode(received, self.may_be_at_end(received, chunk))
                size = batch.count
                if size:
                    if addresses:
                        result += batch.payload_address_list(at, &heap_bytes)
                    else:
                        result += batch.payload_list(at, &heap_bytes)
                at += size
            return result
        finally:
            batch.release()
            c.fastsock_keep_heap(heap_bytes)

    cdef RecvBatch borrow_scratch(self, Py_ssize_t vlen, Py_ssize_t bufsize, bint addresses):
        """The socket's own batch, acquired; a new one while another thread has it."""
        cdef RecvBatch batch
        cdef Py_ssize_t slot_size = bufsize
        with cython.critical_section(self):
            batch = self.scratch
            if batch is None or not batch.try_acquire():
                batch = None
            if batch is None or batch.vlen < vlen or batch.slot_size < bufsize:
                if batch is not None:
                    if max(bufsize, batch.slot_size) <= CHUNK_BYTES // max(vlen, batch.vlen):
                        vlen = max(vlen, batch.vlen)
                        slot_size = max(bufsize, batch.slot_size)
                    batch.release()
                batch = RecvBatch(vlen, slot_size, addresses=True)
                batch.acquire()
                batch.keep_payloads()
                self.scratch = batch
        batch.shape(bufsize, addresses)
        return batch

    # --- sending in batches ----------------------------------------------------------------------------

    def send_many(self, payloads, flags=0):
        """Send each of ``payloads`` as one datagram to the connected peer.

        Args:
            payloads: An iterable of bytes-like objects; any number. They are kept until the
                call returns; the buffers of 1024 at a time are held while they are sent.
            flags: As sendmmsg(2).

        Returns:
            How many the kernel took: all of them, or fewer where the next one would block
            on a non-blocking socket, ran into the time-out, or was refused. Calling again
            with the rest says why.

        Raises:
            OSError: The first payload was refused, and nothing was sent: EMSGSIZE when it
                is too large, ECONNREFUSED for an earlier datagram (icmp(7)). A failure that
                the kernel reports only once, behind a partial send, is kept for the next
                call to raise, before it sends anything.
            BlockingIOError, TimeoutError: Not even the first could be sent (EAGAIN).

        Holds the GIL while it tries, for up to 64 payloads; releases it to wait and for
        more. Restarts on EINTR (PEP 475). See sendmmsg(2), udp(7).
        """
        self.check_datagrams("send_many")
        return self.gather_send("send_many", tuple(payloads), CONNECTED, None, integer(flags))

    def sendto_many(self, payloads, address, flags=0):
        """Send each of ``payloads`` as one datagram, to one peer or each to its own.

        Args:
            payloads: An iterable of bytes-like objects.
            address: One address as ``sendto`` takes it, or a sequence of as many as there
                are payloads.
            flags: As sendmmsg(2).

        Returns:
            How many the kernel took, as ``send_many``.

        Raises:
            ValueError: The sequence of peers is not as long as that of the payloads.
            OSError: As ``send_many``; socket.gaierror for a host that does not resolve,
                before anything is sent where it is among the first 1024.

        See ``send_many``, sendmmsg(2).
        """
        cdef tuple items = tuple(payloads)
        cdef tuple peers = None
        self.check_datagrams("sendto_many")
        PySys_Audit("socket.sendto", "OO", <PyObject *>self, <PyObject *>address)
        if not is_one_address(self._family, address):
            peers = tuple(address)
            if len(peers) != len(items):
                raise ValueError(f"{len(items)} payloads for {len(peers)} addresses")
            address = CONNECTED
        return self.gather_send("sendto_many", items, address, peers, integer(flags))

    def send_batch(self, SendBatch batch not None, flags=0):
        """Send the unsent datagrams of ``batch``, or all of them when it was sent whole.

        Args:
            batch: Keeps its datagrams; ``batch.unsent`` says how many are left.
            flags: As sendmmsg(2).

        Returns:
            How many the kernel took, as ``send_many``; 0 for an empty batch. Calling again
            goes on with the rest.

        Raises:
            OSError: As ``send_many``; the first unsent datagram was refused, and
                ``batch.skip()`` leaves it out.
            RuntimeError: Another thread is sending the batch.

        GIL, EINTR: as ``send_many``. See sendmmsg(2).
        """
        cdef Py_ssize_t start
        cdef int64_t deadline_ns = 0
        self.check_datagrams("send_batch")
        batch.acquire()
        try:
            self.raise_deferred(&self.deferred_send)
            batch.rewind()
            start = batch.cursor
            try:
                batch.prepare(self._family)
            except Exception:
                if batch.encoded <= start:
                    raise
                # The next call, whose first unsent datagram has the bad address, raises it.
            if batch.encoded > start:
                self.send_prepared(
                    &batch.msgvec[start], batch.encoded - start, integer(flags),
                    batch.encoded - start <= HOLD_GIL_DATAGRAMS, &batch.cursor, start, &deadline_ns,
                )
            return batch.cursor - start
        finally:
            batch.release()

    cdef bint send_prepared(
        self, c.mmsghdr *msgvec, Py_ssize_t count, int flags, bint hold_gil,
        Py_ssize_t *cursor, Py_ssize_t start, int64_t *deadline_ns,
    ) except -1:
        """Send msgvec[:count]; only what sendmmsg returns advances `cursor`.

        `start` is where the cursor stood when the user's call began. Returns True when all
        went, False when the next message would block or was refused; raises when nothing
        has been sent since `start`.
        """
        cdef Py_ssize_t sent = 0
        cdef Py_ssize_t want
        cdef int got
        cdef int error = 0
        cdef int64_t left_ns = self.timeout_ns
        while sent < count:
            want = min(count - sent, SENDMMSG_MAX)
            if left_ns > 0:
                if deadline_ns[0] == 0:
                    deadline_ns[0] = monotonic_ns() + left_ns
                left_ns = max(<int64_t>1, deadline_ns[0] - monotonic_ns())
            try:
                got = sys_sendmmsg(&self.fd, msgvec + sent, <unsigned int>want, flags, left_ns, hold_gil, &error)
            except OSError:
                if cursor[0] == start or error == 0:
                    raise
                # The next call meets the same refusal again, unless the kernel has just
                # reported the only one there was: that one is kept for it.
                if self._family != c.AF_UNIX and is_asynchronous(error):
                    self.deferred_send = error
                return False
            sent += got
            cursor[0] += got
            if got < want:
                if self.timeout_ns == 0 or flags & c.MSG_DONTWAIT:
                    return False
                PyErr_CheckSignals()    # a blocked sendmmsg returns a short count for EINTR
        return True

    cdef Py_ssize_t gather_send(
        self, str caller, tuple payloads, object address, tuple addresses, int flags
    ) except -1:
        cdef Py_ssize_t total = len(payloads)
        cdef Py_ssize_t cursor = 0
        cdef Py_ssize_t chunk = min(total, SENDMMSG_MAX)
        cdef int64_t deadline_ns = 0
        cdef bint whole = True
        cdef Gather gather
        self.raise_deferred(&self.deferred_send)
        if total == 0:
            return 0
        gather = self.borrow_gather(chunk)
        try:
            while whole and cursor < total:
                chunk = min(total - cursor, SENDMMSG_MAX)
                try:
                    gather.prepare(payloads, cursor, chunk)
                    if addresses is not None:
                        gather.address_each(addresses, cursor, chunk, self._family, caller)
                    elif address is not CONNECTED:
                        gather.address_all(chunk, self._family, address, caller)
                except Exception:
                    if cursor == 0:
                        raise
                    break               # the next call, with the rest, raises it
                whole = self.send_prepared(
                    gather.msgvec, chunk, flags, total <= HOLD_GIL_DATAGRAMS, &cursor, 0, &deadline_ns
                )
                gather.let_go()
            return cursor
        finally:
            gather.let_go()
            gather.release()

    cdef Gather borrow_gather(self, Py_ssize_t vlen):
        """The socket's own gather list, acquired; a new one while another call has it."""
        cdef Gather gather
        with cython.critical_section(self):
            gather = self.gather
            if gather is None or not gather.try_acquire():
                gather = Gather()
                gather.try_acquire()
                self.gather = gather
        try:
            gather.reserve(vlen)
        except MemoryError:
            gather.release()
            raise
        return gather

    cdef bint may_be_at_end(self, Py_ssize_t received, Py_ssize_t vlen) noexcept:
        """Whether empty datagrams at the end of a receive may be one end-of-file, repeated."""
        return self._type == c.SOCK_SEQPACKET and received == vlen > 1 and sys_is_hung_up(self.fd)

    cdef int check_datagrams(self, str caller) except -1:
        if self._type == c.SOCK_STREAM:
            raise OSError(c.EOPNOTSUPP, f"{caller}() is for datagram and seqpacket sockets, and this is a stream")
        return 0


cdef bint is_asynchronous(int err) noexcept:
    """Whether the kernel reports `err` once, for an earlier datagram: icmp(7), udp(7)."""
    return err in (
        c.ECONNREFUSED, c.ECONNRESET, c.EHOSTDOWN, c.EHOSTUNREACH, c.ENETDOWN, c.ENETUNREACH, c.ENOPROTOOPT,
    )


cdef bint is_one_address(int family, object address):
    """Whether `address` is one peer rather than a sequence of them."""
    if isinstance(address, tuple):
        return family != c.AF_UNIX and not (address and isinstance((<tuple>address)[0], tuple))
    return isinstance(address, (str, bytes, bytearray, memoryview)) or not hasattr(address, "__iter__")
