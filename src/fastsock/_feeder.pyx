# A ring with the native thread that fills it from a socket. The thread is plain C, _feeder.h; it calls back for
# ancillary data only, into functions that touch no Python object. May import _cmsg, _columns, _ring, _socket and _sys.

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from fastsock cimport _linux as c
from fastsock._cmsg cimport GRO, Metadata, decode_metadata, metadata_room
from fastsock._columns cimport Columns, write_metadata
from fastsock._ring cimport FASTSOCK_MESSAGE_ROOM, Mapping, Ring, fastsock_geometry, fastsock_load, plan
from fastsock._socket cimport BaseSocket
from fastsock._sys cimport fork_epoch, monotonic_ns, raise_errno, sys_close, sys_epoll_create1, sys_eventfd

cdef enum:
    VLEN = 64                   # the fastest, without GRO and with it
    GRO_VLEN = 8
    VLEN_MAX = 1024
    SPIN_SLICE_NS = 10_000_000  # between two looks whether a signal came
    MOST_US = 1_000_000
    PRIORITY_MAX = 99           # sched(7)


cdef int32_t decode(c.msghdr *msg, void *found) noexcept nogil:
    decode_metadata(msg, <Metadata *>found)
    return (<Metadata *>found).segment_size


cdef void write(void *columns, Py_ssize_t start, Py_ssize_t end, const void *found) noexcept nogil:
    write_metadata(<Columns *>columns, start, end, <const Metadata *>found)


cdef class Feeder(Ring):
    """A ring that a native thread fills from a socket.

    Args:
        sock: A datagram socket, which the feeder owns from then on.
        The others as for ``Receiver``; ``cpu`` -1 is any, ``name`` the thread's.

    The thread never holds the GIL. In a forked child there is none, and the ring is only that.
    """

    def __cinit__(self, *_, **__):
        self.feeder.stop_fd = self.feeder.epoll_fd = -1

    def __init__(
        self, BaseSocket sock not None, *, Py_ssize_t slots, Py_ssize_t slot_size, object vlen, bint addresses,
        int cpu, int priority, object spin_us, object coalesce_us, str name not None,
    ):
        cdef fastsock_geometry geometry
        cdef Py_ssize_t messages
        cdef int error
        cdef unsigned int i
        cdef bytes encoded = name.encode()[:sizeof(self.feeder.name) - 1]
        if self.epoch or self.closed_:
            raise RuntimeError("a feeder is started once")
        if sock._type != c.SOCK_DGRAM:
            raise OSError(c.EOPNOTSUPP, "a receiver is for datagram sockets")
        self.feeder.spin_ns = self.spin_ns = in_ns("spin_us", spin_us)
        self.feeder.coalesce_ns = in_ns("coalesce_us", coalesce_us)
        self.feeder.joined = (sock.ancillary & GRO) != 0
        messages = GRO_VLEN if self.feeder.joined else VLEN
        if vlen is not None:
            messages = vlen
        if not 1 <= messages <= VLEN_MAX:
            raise ValueError(f"vlen must be 1 to {VLEN_MAX}, not {messages}")
        geometry = plan(slots, slot_size, sock.ancillary, sock._family, addresses)
        self.feeder.vlen = <unsigned int>messages
        self.feeder.cpu = cpu
        if not 0 <= priority <= PRIORITY_MAX:
            raise ValueError(f"priority must be 0 to {PRIORITY_MAX}, not {priority}")
        self.feeder.priority = priority
        memcpy(self.feeder.name, <const char *>encoded, len(encoded))
        self.mapping = Mapping.create(&geometry)
        self.event.fd = sys_eventfd(c.EFD_CLOEXEC | c.EFD_NONBLOCK)
        self.feeder.stop_fd = sys_eventfd(c.EFD_CLOEXEC | c.EFD_NONBLOCK)
        self.feeder.epoll_fd = sys_epoll_create1(c.EPOLL_CLOEXEC)
        self.feeder.ring = self.mapping.ring
        self.feeder.views = self.mapping.views
        self.feeder.fd = sock.handle.fd
        self.feeder.eventfd = self.event.fd
        self.feeder.decode = decode
        self.feeder.write = write
        self.feeder.control_room = metadata_room() if sock.ancillary else 0
        self.feeder.found = calloc(1, sizeof(Metadata))
        self.feeder.msgvec = <c.mmsghdr *>calloc(self.feeder.vlen, sizeof(c.mmsghdr))
        self.feeder.iov = <c.iovec *>calloc(self.feeder.vlen, sizeof(c.iovec))
        self.feeder.controls = <char *>calloc(self.feeder.vlen, max(<size_t>1, self.feeder.control_room))
        if (
            self.feeder.found == NULL or self.feeder.msgvec == NULL or self.feeder.iov == NULL
            or self.feeder.controls == NULL
        ):
            raise MemoryError()
        for i in range(self.feeder.vlen):
            self.feeder.iov[i].iov_len = <size_t>(FASTSOCK_MESSAGE_ROOM if self.feeder.joined else slot_size)
            self.feeder.msgvec[i].msg_hdr.msg_iov = &self.feeder.iov[i]
            if self.feeder.control_room:
                self.feeder.msgvec[i].msg_hdr.msg_control = self.feeder.controls + i * self.feeder.control_room
        try:
            self.drops_before = sock.drops
            self.feeder.drops_seen = self.drops_before & 0xFFFFFFFF
        except OSError:
            self.drops_before = None
        with nogil:
            error = fastsock_feeder_start(&self.feeder)
        if error:
            raise_errno(error)
        self.sock = sock
        self.epoch = fork_epoch()

    def __dealloc__(self):
        if self.is_ours():
            with nogil:
                fastsock_feeder_stop(&self.feeder)
        self.close_descriptors()
        free(self.feeder.found)
        free(self.feeder.msgvec)
        free(self.feeder.iov)
        free(self.feeder.controls)

    cdef bint is_ours(self) noexcept:
        """Whether the thread is in this process, and not in a parent's."""
        return self.epoch == fork_epoch()

    cdef int spin(self, int64_t until_ns) except -1:
        cdef int rc = 1
        cdef int64_t slice_ns
        if not self.is_ours():
            return 1
        while monotonic_ns() < until_ns:
            slice_ns = min(until_ns, monotonic_ns() + SPIN_SLICE_NS)
            with nogil:
                rc = fastsock_feeder_drive(&self.feeder, slice_ns)
            if not rc or self.feeder.stopped:
                return rc
            PyErr_CheckSignals()
        return rc

    cdef object kernel_drops(self, Mapping mapping):
        if self.drops_before is None:
            return None
        # Up to date, as long as the thread is there to receive what comes.
        if self.is_ours() and not self.feeder.stopped and self.sock.handle.fd >= 0:
            return self.sock.drops - self.drops_before
        return fastsock_load(&mapping.ring.counts.kernel_drops)

    def ask_to_stop(self):
        """Have the thread stop, without waiting for it."""
        if self.is_ours():
            fastsock_feeder_ask_to_stop(&self.feeder)

    def ask_to_close(self):
        """The same, and take no more: whoever waits in ``take`` learns of that, and not of the ring's end."""
        self.closed_ = True
        self.ask_to_stop()

    def stop(self):
        """Receive what is queued, then no more. What is in the ring can still be taken."""
        if self.is_ours():
            with nogil:
                fastsock_feeder_stop(&self.feeder)

    def close(self):
        """Stop, and close the ring and the feeder's own descriptors; closing again does nothing.

        Batches that were taken stay valid; what was not taken is lost.
        """
        self.closed_ = True
        self.stop()
        Ring.close(self)
        self.close_descriptors()
        if self.sock is not None:
            self.sock.close()

    cdef int close_descriptors(self) except -1:
        cdef int fd = c.fastsock_exchange(&self.feeder.stop_fd, -1)
        if fd >= 0:
            sys_close(fd)
        fd = c.fastsock_exchange(&self.feeder.epoll_fd, -1)
        if fd >= 0:
            sys_close(fd)
        return 0


cdef int64_t in_ns(str option, object microseconds) except -1:
    if not 0 <= microseconds <= MOST_US:
        raise ValueError(f"{option} must be 0 to {MOST_US}, not {microseconds}")
    return <int64_t>(microseconds * 1000)
