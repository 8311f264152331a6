# SendSocket sends whole batches of datagrams, and single buffers that the kernel cuts into
# datagrams. May import every module below it; goes to the kernel only through _sys.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.string cimport memset
from fastsock cimport _linux as c
from fastsock._gather cimport MAX_PAYLOAD, Gather, Limits, Outgoing, segments_of
from fastsock._gso cimport gso_segments
from fastsock._receive cimport ReceiveSocket
from fastsock._sendbatch cimport SendBatch, in_range, is_mapped
from fastsock._socket cimport integer
from fastsock._sys cimport (
    HOLD_GIL_BYTES, HOLD_GIL_DATAGRAMS, SENDMMSG_MAX, fork_epoch, monotonic_ns, raise_errno, sys_getpeername,
    sys_getsockopt, sys_sendmmsg,
)

cdef extern from "Python.h":
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef object CONNECTED = object()    # in place of an address: the peer is the socket's own

cdef enum:
    HOLD_GIL_MESSAGES = 16      # of segments, up to HOLD_GIL_BYTES, are a short call
    SPLIT_ROOM = 128            # segments of one message at most, which may have to go one by one


cdef class SendSocket(ReceiveSocket):
    cdef int adopt(self, int fd, int family, int type, int proto) except -1:
        self._gso_wanted = True
        self.gso_segment_size = MAX_PAYLOAD
        self.zerocopy_number = 0
        return ReceiveSocket.adopt(self, fd, family, type, proto)

    # --- sending in batches ----------------------------------------------------------------------------

    def send_many(self, payloads, flags=0):
        """Send each of ``payloads`` as one datagram to the connected peer.

        While ``gso`` is on, runs of equal sizes cross the network stack as one (UDP_SEGMENT),
        and arrive as the datagrams that they are.

        Args:
            payloads: An iterable of bytes-like objects; any number. They are kept until the
                call returns; the buffers of 1024 at a time are held while they are sent.
            flags: As sendmmsg(2).

        Returns:
            How many the kernel took: all of them, or fewer where the next one would block
            on a non-blocking socket, ran into the time-out, or was refused. Calling again
            with the rest says why.

        Raises:
            ValueError: ``flags`` has MSG_ZEROCOPY: see ``send_zerocopy``.
            OSError: The first payload was refused, and nothing was sent: EMSGSIZE when it
                is too large, ECONNREFUSED for an earlier datagram (icmp(7)). A failure that
                the kernel reports only once, behind a partial send, is kept for the next
                call to raise, before it sends anything.
            BlockingIOError, TimeoutError: Not even the first could be sent (EAGAIN).

        Holds the GIL while it tries, for up to 64 payloads; releases it to wait and for
        more. Restarts on EINTR (PEP 475). See sendmmsg(2), udp(7).
        """
        self.check_datagrams("send_many")
        return self.gather_send("send_many", tuple(payloads), CONNECTED, None, self.send_flags(flags))

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
        return self.gather_send("sendto_many", items, address, peers, self.send_flags(flags))

    def send_batch(self, SendBatch batch not None, flags=0):
        """Send the unsent datagrams of ``batch``, or all of them when it was sent whole.

        Args:
            batch: Keeps its datagrams; ``batch.unsent`` says how many are left.
            flags: As sendmmsg(2).

        Returns:
            How many the kernel took, as ``send_many``; 0 for an empty batch, or where of a
            payload with a ``segment_size`` only some segments could go. Calling again goes on
            with the rest.

        Raises:
            OSError: As ``send_many``; the first unsent datagram was refused, and
                ``batch.skip()`` leaves it out.
            RuntimeError: Another thread is sending the batch.

        GIL, EINTR: as ``send_many``. See sendmmsg(2).
        """
        cdef Gather gather
        cdef Py_ssize_t start
        cdef Sending sending
        cdef bint mapped
        self.check_datagrams("send_batch")
        how = self.send_flags(flags)
        batch.acquire()
        try:
            self.raise_deferred(&self.deferred_send)
            batch.rewind()
            start = batch.cursor
            mapped = batch.by_interface and self._family == c.AF_INET6 and self.has_mapped_peer()
            try:
                batch.prepare(self._family, mapped)
            except Exception:
                if batch.encoded <= start:
                    raise
                # The next call, whose first unsent datagram has the bad address, raises it.
            if batch.encoded > start:
                memset(&sending, 0, sizeof(sending))
                sending.entry = start
                sending.segments = batch.segments
                gather = self.borrow_gather(max(SPLIT_ROOM, min(batch.encoded - start, SENDMMSG_MAX)))
                try:
                    self.send_outgoing(
                        gather, &batch.out, batch.encoded, how,
                        datagrams_in(&batch.out, start, batch.encoded) <= HOLD_GIL_DATAGRAMS, &sending,
                    )
                finally:
                    gather.release()
                    batch.cursor = sending.entry
                    batch.segments = sending.segments
            return batch.cursor - start
        finally:
            batch.release()

    # --- one buffer, many datagrams -------------------------------------------------------------------

    def send_segments(self, payload, segment_size, address=None, flags=0):
        """Send ``payload`` as datagrams of ``segment_size`` bytes; only the last may be shorter.

        The kernel cuts it (UDP_SEGMENT), 64 or 128 datagrams at a time; where it cannot, the
        same datagrams are sent one by one. An empty payload sends nothing.

        Args:
            payload: A contiguous bytes-like object of any length.
            segment_size: Bytes of a datagram, 1 to 65535. More than the path's MTU allows
                makes each datagram go out in fragments.
            address: The peer, as ``sendto`` takes it; None on a connected socket.
            flags: As sendmsg(2).

        Returns:
            The bytes that the kernel took: all, or a multiple of ``segment_size`` where the
            next datagram would block or was refused. Calling again with the rest says why.

        Raises:
            ValueError: ``segment_size`` is out of range, or ``flags`` has MSG_MORE.
            OSError, BlockingIOError, TimeoutError: As ``send_many``.

        Holds the GIL while it tries, for up to 64 KiB; releases it to wait and for more.
        Restarts on EINTR (PEP 475). See udp(7), UDP_SEGMENT.
        """
        cdef Py_ssize_t numbers = 0
        if integer(flags) & c.MSG_MORE:
            raise ValueError("MSG_MORE would append the datagrams to each other")
        return self.send_cut(
            "send_segments", payload, in_range("segment_size", segment_size, 1, 0xFFFF), address,
            self.send_flags(flags), &numbers,
        )

    def send_zerocopy(self, payload, address=None, *, segment_size=None, flags=0):
        """Send ``payload`` without copying it: one datagram, or several of ``segment_size`` bytes.

        The buffer is held until the kernel reports that it is done with it, which is looked
        for by every ``send_zerocopy`` and ``recv_errors``; ``zerocopy_pending`` counts what is
        held. Do not change its contents until then. Closing the socket lets go of it. Below
        10 KB, and on loopback, where the kernel copies after all, it costs more than it saves.

        Args:
            payload: A contiguous bytes-like object; empty sends nothing.
            address: The peer, as ``sendto`` takes it; None on a connected socket.
            segment_size: As ``send_segments``.
            flags: As sendmsg(2).

        Returns:
            The bytes that the kernel took, as ``send_segments``.

        Raises:
            OSError: As ``send_segments``; ENOBUFS where net.core.optmem_max holds no more
                sends that are under way; EBUSY where SO_ZEROCOPY was switched on elsewhere:
                this call does it itself.
            RuntimeError: Another thread is in the same call on this socket.

        See MSG_ZEROCOPY in send(2), Documentation/networking/msg_zerocopy.rst.
        """
        cdef Py_ssize_t numbers = 0
        cdef Py_ssize_t i
        cdef uint64_t seen
        cdef int owed = 0
        cdef Py_ssize_t size = 0 if segment_size is None else in_range("segment_size", segment_size, 1, 0xFFFF)
        cdef int how = integer(flags)
        self.check_datagrams("send_zerocopy")
        # The kernel numbers these sends: two at a time would mix up whose is whose.
        if not c.fastsock_flag_acquire(&self.zerocopy_busy, fork_epoch()):
            raise RuntimeError("another thread is in send_zerocopy() on this socket")
        try:
            self.own_zerocopy()
            seen = self.handle.reports
            self.absorb_errors(&seen, &owed)
            if owed:
                raise_errno(owed)
            held = PyMemoryView_FromObject(payload)
            self.early = set()
            try:
                # `held`, not `payload`, which may export another buffer the second time.
                return self.send_cut("send_zerocopy", held, size, address, how | c.MSG_ZEROCOPY, &numbers)
            finally:
                with cython.critical_section(self):
                    for i in range(numbers):
                        number = (self.zerocopy_number + i) & 0xFFFFFFFF
                        if number not in self.early and self.handle.fd >= 0:
                            self.pins[number] = held
                    self.early = None
                    self.zerocopy_number = (self.zerocopy_number + numbers) & 0xFFFFFFFF
        finally:
            c.fastsock_flag_release(&self.zerocopy_busy)

    cdef int own_zerocopy(self) except -1:
        """Switch SO_ZEROCOPY on; it must not have been on for anybody else, who may have used numbers."""
        cdef int value = 0
        cdef c.socklen_t size = sizeof(value)
        sys_getsockopt(self.handle.fd, c.SOL_SOCKET, c.SO_ZEROCOPY, &value, &size)
        if value and self.zerocopy_epoch != fork_epoch():
            raise OSError(
                c.EBUSY, "SO_ZEROCOPY was switched on elsewhere (setsockopt, a duplicate, the parent of a fork), and "
                "the kernel's numbers of its sends are not known here"
            )
        if not value:
            self.setsockopt(c.SOL_SOCKET, c.SO_ZEROCOPY, 1)
            self.zerocopy_epoch = fork_epoch()
        return 0

    cdef Py_ssize_t send_cut(
        self, str caller, object payload, Py_ssize_t segment_size, object address, int flags, Py_ssize_t *numbers
    ) except -1:
        """Send one buffer, whole where `segment_size` is 0; counts the numbers that the kernel gave out."""
        cdef Py_buffer view
        cdef Gather gather
        cdef Outgoing out
        cdef Limits limits
        cdef Sending sending
        cdef Py_ssize_t step, entries, done, chunk, i, at
        cdef bint whole = True
        self.check_datagrams(caller)
        if address is not None:
            PySys_Audit("socket.sendto", "OO", <PyObject *>self, <PyObject *>address)
        self.raise_deferred(&self.deferred_send)
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            if view.len == 0:
                return 0
            self.limits(&limits)
            step = view.len
            if segment_size:
                step = segment_size
                if segment_size <= limits.segment_size:
                    step *= max(<Py_ssize_t>1, min(limits.segments, MAX_PAYLOAD // segment_size))
            entries = (view.len + step - 1) // step
            memset(&sending, 0, sizeof(sending))
            gather = self.borrow_gather(max(SPLIT_ROOM, min(entries, SENDMMSG_MAX)))
            try:
                if address is None:
                    gather.address_none()
                else:
                    gather.address_all(self._family, address, caller)
                out = gather.out
                out.segment_sizes = gather.segment_sizes if step > segment_size > 0 else NULL
                done = 0
                while whole and done < entries:
                    chunk = min(entries - done, SENDMMSG_MAX)
                    for i in range(chunk):
                        at = (done + i) * step
                        out.iov[i].iov_base = <char *>view.buf + at
                        out.iov[i].iov_len = <size_t>min(step, view.len - at)
                        gather.segment_sizes[i] = <uint16_t>segment_size
                    sending.entry = 0
                    try:
                        whole = self.send_outgoing(
                            gather, &out, chunk, flags,
                            view.len <= HOLD_GIL_BYTES and entries <= HOLD_GIL_MESSAGES, &sending,
                        )
                    finally:
                        numbers[0] = sending.numbers
                    done += sending.entry
                return min(view.len, done * step + sending.segments * segment_size)
            finally:
                gather.release()
        finally:
            PyBuffer_Release(&view)

    # --- how it is done ---------------------------------------------------------------------------------

    @property
    def gso(self):
        """Whether the kernel cuts sends into datagrams (UDP_SEGMENT, Linux 4.18).

        True on UDP sockets unless FASTSOCK_GSO=0 is in the environment, or an option wants each
        send by itself: transmit timestamps, UDP_CORK, the socket's own UDP_SEGMENT. It becomes False by
        itself when a device on the way refuses (EIO): then every datagram is sent by itself,
        and ``stats.gso_fallbacks`` counts what had to be sent again. Assign False to switch
        it off, True to try again.
        """
        cdef Limits limits
        self.limits(&limits)
        return limits.segments > 1

    @gso.setter
    def gso(self, bint wanted):
        self._gso_wanted = wanted
        self.gso_segment_size = MAX_PAYLOAD

    cdef int limits(self, Limits *limits) except -1:
        limits.segments = 1
        limits.segment_size = 0
        if (
            self._gso_wanted and not self.uncut and self._type == c.SOCK_DGRAM
            and self._family in (c.AF_INET, c.AF_INET6) and self.proto in (0, c.IPPROTO_UDP)
        ):
            limits.segments = gso_segments()
            limits.segment_size = self.gso_segment_size
        return 0

    cdef int send_flags(self, object flags) except? -1:
        cdef int how = integer(flags)
        if how & c.MSG_ZEROCOPY:
            raise ValueError("MSG_ZEROCOPY takes buffers that stay until the kernel is done: use send_zerocopy()")
        return how

    cdef bint send_outgoing(
        self, Gather gather, const Outgoing *out, Py_ssize_t end, int flags, bint hold_gil, Sending *sending
    ) except -1:
        """Send entries up to `end`; only what sendmmsg returns moves `sending` on.

        Returns True when all went, False when the next one would block or was refused;
        raises when nothing has been sent since the user's call began.

        A message that asks for segmentation may be refused where its datagrams are not: by a
        device without transmit checksums (EIO), for a segment above the MTU (EMSGSIZE, older
        kernels EINVAL), or under SO_NO_CHECK (EINVAL); see udp_send_skb in net/ipv4/udp.c.
        Nothing of it was sent then. Its datagrams go one by one, and when they do, that much
        is not asked for again.
        """
        cdef Limits limits
        cdef Py_ssize_t plain_until = -1        # entries before it go without segmentation
        cdef Py_ssize_t refused_size = 0
        cdef int refusal = 0
        cdef Py_ssize_t messages, sent
        cdef int got
        cdef int error = 0
        cdef int64_t left_ns = self.timeout_ns
        while sending.entry < end:
            self.limits(&limits)
            if sending.entry < plain_until or flags & c.MSG_MORE:
                limits.segments = 1
            messages = min(end if sending.entry >= plain_until else plain_until, sending.entry + gather.vlen)
            messages = gather.pack(out, sending.entry, messages - sending.entry, &limits, sending.segments)
            sent = 0
            while sent < messages:
                if left_ns > 0:
                    if sending.deadline_ns == 0:
                        sending.deadline_ns = monotonic_ns() + left_ns
                    left_ns = max(<int64_t>1, sending.deadline_ns - monotonic_ns())
                try:
                    got = sys_sendmmsg(
                        &self.handle, gather.msgvec + sent, <unsigned int>(messages - sent), flags, left_ns, hold_gil,
                        &error,
                    )
                except OSError:
                    if flags & c.MSG_ZEROCOPY:
                        self.count_refused(sending, error)
                    if gather.segmented[sent] and error in (c.EIO, c.EINVAL, c.EMSGSIZE):
                        refusal = error
                        refused_size = gather.segmented[sent]
                        plain_until = sending.entry + gather.entries[sent]
                        break
                    if not sending.moved or error == 0:
                        raise
                    # The next call meets the same refusal again, unless the kernel has just
                    # reported the only one there was: that one is kept for it.
                    if self._family != c.AF_UNIX and is_asynchronous(error):
                        self.deferred_send = error
                    return False
                self.advance(gather, out, sent, got, sending)
                sent += got
                if sent < messages:
                    if flags & c.MSG_ZEROCOPY:
                        self.count_refused(sending, 0)
                    # What would block is tried again only where calls wait; what asks for
                    # segmentation may have been refused for that alone.
                    if (self.timeout_ns == 0 or flags & c.MSG_DONTWAIT) and not gather.segmented[sent]:
                        return False
                    PyErr_CheckSignals()    # a blocked sendmmsg returns a short count for EINTR
            if refusal and sending.entry >= plain_until:
                self.remember_refusal(refusal, refused_size)
                refusal = 0
        return True

    cdef void advance(
        self, Gather gather, const Outgoing *out, Py_ssize_t start, Py_ssize_t count, Sending *sending
    ) noexcept:
        """The kernel took messages start .. start + count of the last pack."""
        cdef Py_ssize_t i
        cdef int64_t datagrams = 0
        for i in range(start, start + count):
            if gather.splitting:
                datagrams += 1
                sending.segments += 1
                if sending.segments == segments_of(out, sending.entry):
                    sending.entry += 1
                    sending.segments = 0
            else:
                datagrams += gather.entries[i] if gather.entries[i] > 1 else segments_of(out, sending.entry)
                sending.entry += gather.entries[i]
        sending.numbers += count
        sending.moved = True
        c.fastsock_count(&self._sent, datagrams)

    cdef int count_refused(self, Sending *sending, int error) except -1:
        """Find out whether what was refused just now, with `error`, has used up zero-copy numbers.

        It has where the refusal came when the buffers were attached already, as that of
        segmentation does: then the completion is in the error queue by now, and nobody else
        can have that number.
        """
        cdef uint64_t seen = self.handle.reports
        cdef int owed = 0               # by the refusal at hand
        if self.handle.fd < 0:
            return 0
        self.absorb_errors(&seen, &owed)
        if owed and owed != error:
            self.deferred_send = owed
        while (self.zerocopy_number + <uint64_t>sending.numbers) & 0xFFFFFFFF in self.early:
            sending.numbers += 1
        return 0

    cdef void remember_refusal(self, int refusal, Py_ssize_t segment_size) noexcept:
        if refusal == c.EIO:
            self._gso_wanted = False
        else:
            self.gso_segment_size = min(self.gso_segment_size, segment_size - 1)
        c.fastsock_count(&self._gso_fallbacks, 1)

    cdef Py_ssize_t gather_send(
        self, str caller, tuple payloads, object address, tuple addresses, int flags
    ) except -1:
        cdef Py_ssize_t total = len(payloads)
        cdef Py_ssize_t cursor = 0
        cdef Py_ssize_t chunk = min(total, SENDMMSG_MAX)
        cdef Sending sending
        cdef bint whole = True
        cdef Gather gather
        self.raise_deferred(&self.deferred_send)
        if total == 0:
            return 0
        memset(&sending, 0, sizeof(sending))
        gather = self.borrow_gather(chunk)
        try:
            if address is CONNECTED:
                gather.address_none()
            while whole and cursor < total:
                chunk = min(total - cursor, SENDMMSG_MAX)
                try:
                    gather.hold(payloads, cursor, chunk, PyBUF_SIMPLE)
                    if addresses is not None:
                        gather.address_each(addresses, cursor, chunk, self._family, caller)
                    elif address is not CONNECTED:
                        gather.address_all(self._family, address, caller)
                except Exception:
                    if cursor == 0:
                        raise
                    break               # the next call, with the rest, raises it
                sending.entry = 0
                whole = self.send_outgoing(
                    gather, &gather.out, chunk, flags, total <= HOLD_GIL_DATAGRAMS, &sending
                )
                cursor += sending.entry
                gather.let_go()
            return cursor
        finally:
            gather.let_go()
            gather.release()

    cdef bint has_mapped_peer(self) except -1:
        """Whether the connected peer of an IPv6 socket is an IPv4 one."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        try:
            sys_getpeername(self.handle.fd, <c.sockaddr *>&storage, &addrlen)
        except OSError:
            return False                # ENOTCONN
        return is_mapped(&storage)

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


# --- helpers -----------------------------------------------------------------------------------------------

cdef Py_ssize_t datagrams_in(const Outgoing *out, Py_ssize_t start, Py_ssize_t end) noexcept:
    cdef Py_ssize_t i
    cdef Py_ssize_t total = 0
    if out.segment_sizes == NULL:
        return end - start
    for i in range(start, end):
        total += segments_of(out, i)
    return total


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
