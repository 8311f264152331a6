# A batch to send: an arena that the caller writes into and may send many times, with the
# peers and options of each datagram. No system calls: SendSocket packs what is unsent,
# calls sendmmsg, and advances one cursor by what the kernel took.
# May import _linux, _arena, _cmsg, _gather, _sockaddr and, for the fork epoch, _sys.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint16_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from fastsock cimport _linux as c
from fastsock._arena cimport memory, slot_stride
from fastsock._cmsg cimport Host, append_cmsg
from fastsock._gather cimport CONTROL_ROOM
from fastsock._sockaddr cimport encode_address, encode_host
from fastsock._sys cimport fork_epoch

import socket as _stdlib


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
        self.options = []
        self.arena = <char *>calloc(vlen, self.stride)
        self.out.iov = <c.iovec *>calloc(vlen, sizeof(c.iovec))
        if self.arena == NULL or self.out.iov == NULL:
            raise MemoryError(f"{vlen} slots of {slot_size} bytes")
        for i in range(vlen):
            self.out.iov[i].iov_base = self.arena + i * self.stride

    def __dealloc__(self):
        free(self.arena)
        free(self.out.iov)
        free(self.out.names)
        free(self.out.namelens)
        free(self.out.controls)
        free(self.out.controllens)
        free(self.out.segment_sizes)

    cdef int acquire(self) except -1:
        if not c.fastsock_flag_acquire(&self.busy, fork_epoch()):
            raise RuntimeError("this SendBatch is in use by another thread")
        return 0

    cdef void release(self) noexcept:
        c.fastsock_flag_release(&self.busy)

    # --- filling ------------------------------------------------------------------------

    def append(
        self, payload, address=None, *, ecn=None, dscp=None, source=None, interface=None, txtime_ns=None,
        segment_size=None,
    ):
        """Copy ``payload``, a bytes-like object, into the next slot.

        Behind datagrams that are sent already, it alone is unsent: ``clear`` comes first to
        fill a batch anew.

        Args:
            payload: Up to ``slot_size`` bytes; may be empty.
            address: The peer, as ``sendto`` takes it; None on a connected socket.
            ecn: The ECN field, 0 to 3; alone it leaves a DSCP of 0.
            dscp: The DSCP field, 0 to 63.
            source: The local address to send from, without a port: an answer goes out by
                the address that was asked, with ``Datagram.local_address``.
            interface: The interface to send by, an index or a name.
            txtime_ns: When to send, in ns of the clock that the socket was made with:
                ``bind_udp(..., txtime="tai")``.
            segment_size: Cut the payload into datagrams of so many bytes, but for a shorter
                last one; the payload still counts as one in what ``send_batch`` returns.

        Raises:
            BufferError: The batch already holds ``vlen`` datagrams.
            ValueError: The payload is longer than ``slot_size``, or an option out of range.
            RuntimeError: Another thread is sending the batch.
            OSError: There is no such interface (ENODEV).

        What cannot be used on the socket, as a source of another family, is raised by
        ``send_batch``. See ip(7), ipv6(7), SCM_TXTIME in linux/net_tstamp.h.
        """
        cdef Py_buffer view
        cdef object options = None
        if not (
            ecn is None and dscp is None and source is None and interface is None and txtime_ns is None
            and segment_size is None
        ):
            options = check_options(ecn, dscp, source, interface, txtime_ns, segment_size)
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self.acquire()
            try:
                if self.count == self.vlen:
                    raise BufferError(f"the batch is full: vlen is {self.vlen}")
                if view.len > self.slot_size:
                    raise ValueError(f"a payload of {view.len} bytes does not fit a slot_size of {self.slot_size}")
                memmove(self.arena + self.count * self.stride, view.buf, <size_t>view.len)
                self.out.iov[self.count].iov_len = <size_t>view.len
                self.addresses.append(address)
                self.options.append(options)
                if address is None and interface is not None and source is None:
                    self.by_interface = True
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
            self.options.clear()
            self.count = self.cursor = self.encoded = self.segments = 0
            self.unaddressed = self.by_interface = False
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
            if count:
                self.segments = 0
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
                self.unaddressed = False

    cdef int prepare(self, int family, bint mapped) except -1:
        """Encode the addresses and options that are new since the last send on this family.

        `mapped` says that the connected peer of an IPv6 socket is an IPv4 one.
        """
        cdef Py_ssize_t i
        if self.encoded_family != family or self.encoded_mapped != mapped:
            self.encoded_family = family
            self.encoded_mapped = mapped
            self.encoded = 0
            self.unaddressed = self.unaddressed or self.cursor > 0
        for i in range(max(self.encoded, self.cursor), self.count):
            address = self.addresses[i]
            if address is not None:
                if self.out.names == NULL:
                    self.make_names()
                encode_address(family, address, "send_batch", &self.out.names[i], &self.out.namelens[i])
            elif self.out.names != NULL:
                self.out.namelens[i] = 0
            options = self.options[i]
            if options is not None:
                if self.out.controls == NULL:
                    self.make_controls()
                self.encode_options(i, family, options)
            elif self.out.controls != NULL:
                self.out.controllens[i] = 0
                self.out.segment_sizes[i] = 0
            self.encoded = i + 1
        return 0

    cdef int make_names(self) except -1:
        cdef c.sockaddr_storage *names = <c.sockaddr_storage *>calloc(self.vlen, sizeof(c.sockaddr_storage))
        self.out.namelens = <c.socklen_t *>calloc(self.vlen, sizeof(c.socklen_t))
        if names == NULL or self.out.namelens == NULL:
            free(names)
            free(self.out.namelens)
            self.out.namelens = NULL
            raise MemoryError()
        self.out.names = names
        return 0

    cdef int make_controls(self) except -1:
        cdef char *controls = <char *>calloc(self.vlen, CONTROL_ROOM)
        self.out.controllens = <uint16_t *>calloc(self.vlen, sizeof(uint16_t))
        self.out.segment_sizes = <uint16_t *>calloc(self.vlen, sizeof(uint16_t))
        if controls == NULL or self.out.controllens == NULL or self.out.segment_sizes == NULL:
            free(controls)
            free(self.out.controllens)
            free(self.out.segment_sizes)
            self.out.controllens = NULL
            self.out.segment_sizes = NULL
            raise MemoryError()
        self.out.controls = controls
        return 0

    cdef int encode_options(self, Py_ssize_t index, int family, tuple options) except -1:
        """Write the ancillary data of one datagram, in what the family's stack reads."""
        cdef char *control = self.out.controls + index * CONTROL_ROOM
        cdef size_t size = 0
        cdef int tos
        cdef uint64_t txtime_ns
        cdef Host host
        cdef c.in_pktinfo pktinfo
        cdef c.in6_pktinfo pktinfo6
        given_tos, source, interface, given_txtime_ns, segment_size = options
        self.out.controllens[index] = 0
        self.out.segment_sizes[index] = segment_size
        if family not in (c.AF_INET, c.AF_INET6) and not (given_tos is None and source is None and not interface):
            raise ValueError("ecn, dscp, source and interface are for IP sockets")     # others pass over them
        if given_tos is not None:
            # To an IPv4 peer of an IPv6 socket goes IP_TOS, to the others IPV6_TCLASS; each
            # stack passes over what is the other's (net/ipv4/ip_sockglue.c, ip_cmsg_send).
            tos = given_tos
            size = append_cmsg(control, size, c.IPPROTO_IP, c.IP_TOS, &tos, sizeof(tos))
            if family == c.AF_INET6:
                size = append_cmsg(control, size, c.IPPROTO_IPV6, c.IPV6_TCLASS, &tos, sizeof(tos))
        if source is not None or interface:
            memset(&host, 0, sizeof(host))
            if source is not None:
                encode_host(family, source, &host)
            if family == c.AF_INET6:
                memset(&pktinfo6, 0, sizeof(pktinfo6))
                memcpy(&pktinfo6.ipi6_addr, host.address, sizeof(pktinfo6.ipi6_addr))
                # To an IPv4 peer the kernel takes none but a mapped address, be it unspecified.
                if source is None and self.goes_to_mapped(index):
                    pktinfo6.ipi6_addr.s6_addr[10] = pktinfo6.ipi6_addr.s6_addr[11] = 0xFF
                pktinfo6.ipi6_ifindex = interface
                size = append_cmsg(control, size, c.IPPROTO_IPV6, c.IPV6_PKTINFO, &pktinfo6, sizeof(pktinfo6))
            else:
                memset(&pktinfo, 0, sizeof(pktinfo))
                memcpy(&pktinfo.ipi_spec_dst, host.address, sizeof(pktinfo.ipi_spec_dst))
                pktinfo.ipi_ifindex = interface
                size = append_cmsg(control, size, c.IPPROTO_IP, c.IP_PKTINFO, &pktinfo, sizeof(pktinfo))
        if given_txtime_ns is not None:
            txtime_ns = given_txtime_ns
            size = append_cmsg(control, size, c.SOL_SOCKET, c.SCM_TXTIME, &txtime_ns, sizeof(txtime_ns))
        self.out.controllens[index] = <uint16_t>size
        return 0

    cdef bint goes_to_mapped(self, Py_ssize_t index) noexcept:
        if self.out.names == NULL or self.out.namelens[index] == 0:
            return self.encoded_mapped
        return is_mapped(&self.out.names[index])


cdef bint is_mapped(const c.sockaddr_storage *storage) noexcept:
    """Whether it is an IPv4 address, mapped for an IPv6 socket."""
    cdef const c.in6_addr *address = &(<const c.sockaddr_in6 *>storage).sin6_addr
    cdef int i
    for i in range(10):
        if address.s6_addr[i]:
            return False
    return storage.ss_family == c.AF_INET6 and address.s6_addr[10] == address.s6_addr[11] == 0xFF


cdef tuple check_options(
    object ecn, object dscp, object source, object interface, object txtime_ns, object segment_size
):
    """(tos, source, interface index, txtime_ns, segment size), each None or 0 where not asked for."""
    cdef object tos = None
    if ecn is not None or dscp is not None:
        tos = in_range("dscp", 0 if dscp is None else dscp, 0, 63) << 2
        tos |= in_range("ecn", 0 if ecn is None else ecn, 0, 3)
    if isinstance(interface, str):
        try:
            interface = _stdlib.if_nametoindex(interface)
        except OSError:
            raise OSError(c.ENODEV, f"no interface {interface!r}") from None
    if txtime_ns is not None:
        txtime_ns = in_range("txtime_ns", txtime_ns, 0, 2**63 - 1)
    return (
        tos, source, 0 if interface is None else in_range("interface", interface, 0, 2**31 - 1), txtime_ns,
        0 if segment_size is None else in_range("segment_size", segment_size, 1, 0xFFFF),
    )


cdef object in_range(str name, object value, object least, object most):
    """`value` as an int; TypeError for what has no __index__, ValueError beyond the limits."""
    cdef object number = PyNumber_Index(value)
    if not least <= number <= most:
        raise ValueError(f"{name} must be {least} to {most}, not {number}")
    return number
