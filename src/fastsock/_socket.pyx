# BaseSocket owns the descriptor, its options, its time-out and its error queue; SingleSocket
# in _single moves one datagram at a time, ReceiveSocket and SendSocket in _receive and _send
# batches. All are compiled, so that no Python frame stands between the user and the call;
# cold methods are Python, in fastsock/_sock.py.
# May import every module below it; goes to the kernel only through _sys.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from fastsock cimport _linux as c
from fastsock._cmsg cimport DROP_COUNTER, GRO, HARDWARE_TIMESTAMPS, PKTINFO, TIMESTAMPS, TOS, TTL
from fastsock._errqueue cimport ERROR_CONTROL, QUOTED_BYTES, decode_error
from fastsock._sockaddr cimport decode_address, encode_address
from fastsock._sys cimport (
    Drain, raise_errno, sys_accept, sys_bind, sys_close, sys_connect, sys_getpeername, sys_getsockname,
    sys_getsockopt, sys_listen, sys_recv_error, sys_set_nonblocking, sys_setsockopt, sys_shutdown, sys_socket,
)

import math
import socket as _stdlib

cdef extern from "Python.h":
    int PyErr_ResourceWarning(object source, Py_ssize_t stacklevel, const char *format, ...) except -1
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef enum:
    RECVERR = 1 << 16           # beside the bits of Ancillary: the socket has an error queue,
    UNCUT = 1 << 17             # each send must stay a message of its own
    MOST_ERRORS = 4096          # records that are kept until recv_errors takes them

# (family or 0, level, option, what is on when it is not 0)
cdef tuple OPTIONS = (
    (0, c.FASTSOCK_SOL_UDP, c.UDP_GRO, GRO),
    (0, c.SOL_SOCKET, c.SO_TIMESTAMPNS, TIMESTAMPS),
    (0, c.SOL_SOCKET, c.SO_TIMESTAMPING, TIMESTAMPS | HARDWARE_TIMESTAMPS),
    (0, c.SOL_SOCKET, c.SO_RXQ_OVFL, DROP_COUNTER),
    (0, c.SOL_SOCKET, c.SO_ZEROCOPY, RECVERR),
    (0, c.SOL_SOCKET, c.SO_TIMESTAMP, 0),       # takes the place of SO_TIMESTAMPNS
    (0, c.SOL_SOCKET, c.SO_TXTIME, 0),          # by its flags
    (0, c.FASTSOCK_SOL_UDP, c.UDP_SEGMENT, UNCUT),
    (0, c.FASTSOCK_SOL_UDP, c.UDP_CORK, UNCUT),
    (0, c.IPPROTO_IP, c.IP_PKTINFO, PKTINFO),
    (c.AF_INET6, c.IPPROTO_IPV6, c.IPV6_RECVPKTINFO, PKTINFO),
    (0, c.IPPROTO_IP, c.IP_RECVTOS, TOS),
    (c.AF_INET6, c.IPPROTO_IPV6, c.IPV6_RECVTCLASS, TOS),
    (0, c.IPPROTO_IP, c.IP_RECVTTL, TTL),
    (c.AF_INET6, c.IPPROTO_IPV6, c.IPV6_RECVHOPLIMIT, TTL),
    (0, c.IPPROTO_IP, c.IP_RECVERR, RECVERR),
    (c.AF_INET6, c.IPPROTO_IPV6, c.IPV6_RECVERR, RECVERR),
)
cdef frozenset LEVELS_AND_NAMES = frozenset((level, name) for _, level, name, _ in OPTIONS) | {
    (c.SOL_SOCKET, c.SO_RCVLOWAT)
}


cdef class BaseSocket:
    def __cinit__(self):
        self.handle.fd = -1
        self.handle.owner = <void *>self
        self.errors = []
        self.pins = {}
        self._family = self._type = self.proto = -1
        self.timeout_ns = -1

    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        self.open(integer(family), integer(type), integer(proto), fileno)

    cdef int open(self, int family, int type, int proto, object fileno) except -1:
        cdef int fd
        if self.handle.fd >= 0:
            raise RuntimeError("a socket is opened once")
        if fileno is None:
            family = c.AF_INET if family == -1 else family
            type = c.SOCK_STREAM if type == -1 else type
            proto = 0 if proto == -1 else proto
        PySys_Audit("socket.__new__", "Oiii", <PyObject *>self, family, type, proto)
        if fileno is None:
            fd = sys_socket(family, type, proto)
        else:
            fd = integer(fileno)
            if fd < 0:
                raise ValueError("negative file descriptor")
            family, type, proto = describe(fd, family, type, proto)
        try:
            self.adopt(fd, family, type, proto)
            if fileno is not None:
                self.learn_options()
        except BaseException:
            self.handle.fd = -1
            if fileno is None:
                sys_close(fd)
            raise
        return 0

    cdef int adopt(self, int fd, int family, int type, int proto) except -1:
        self.handle.fd = fd
        self._family = family
        self._type = type & ~(c.SOCK_NONBLOCK | c.SOCK_CLOEXEC)
        self.proto = proto
        self._closed = False
        self.timeout_ns = -1
        self.deferred_recv = self.deferred_send = 0
        self.drops_seen = self.drops_total = 0
        self._received = self._sent = self._gso_fallbacks = self._errors_discarded = 0
        self.ancillary = 0
        self.uncut = self.low_water = False
        self.zerocopy_epoch = 0
        self.handle.drain = NULL
        self.errors = []
        self.pins = {}
        default = _stdlib.getdefaulttimeout()
        if type & c.SOCK_NONBLOCK:
            self.timeout_ns = 0
        elif default is not None:
            self.set_timeout(default)
        return 0

    def __del__(self):
        if self.handle.fd >= 0:
            try:
                PyErr_ResourceWarning(self, 1, "unclosed %R", <PyObject *>self)
            finally:
                self.release()

    # --- the descriptor ---------------------------------------------------------------------

    def fileno(self):
        """Return the file descriptor, or -1 once the socket is closed."""
        return self.handle.fd

    def detach(self):
        """Give the file descriptor away and mark the socket closed, without closing it."""
        self._closed = True
        return c.fastsock_exchange(&self.handle.fd, -1)

    def close(self):
        """Close the socket; closing it again does nothing. See close(2).

        While a file of ``makefile`` is open the descriptor stays, until that is closed too.
        """
        self._closed = True
        if self._io_refs <= 0:
            self._real_close()

    def _real_close(self):
        """Close the descriptor, files of ``makefile`` or not."""
        self.release()

    cdef int release(self) except -1:
        cdef int fd = c.fastsock_exchange(&self.handle.fd, -1)
        with cython.critical_section(self):
            self.pins = {}
        if fd >= 0:
            sys_close(fd)
        return 0

    # --- how calls wait -----------------------------------------------------------------------

    def settimeout(self, timeout):
        """Let calls wait without end (None), not at all (0), or ``timeout`` seconds.

        Raises:
            ValueError: ``timeout`` is negative or not a number.
        """
        self.set_timeout(timeout)

    cdef int set_timeout(self, object timeout) except -1:
        cdef int64_t ns = timeout_as_ns(timeout)
        sys_set_nonblocking(self.handle.fd, ns >= 0)
        self.timeout_ns = ns
        return 0

    def gettimeout(self):
        """Return the time-out in seconds, or None when calls wait without end."""
        return None if self.timeout_ns < 0 else self.timeout_ns / 1e9

    def setblocking(self, flag):
        """As ``settimeout(None)`` where ``flag`` is true, else as ``settimeout(0)``."""
        self.set_timeout(None if flag else 0)

    @property
    def timeout(self):
        """What ``gettimeout`` returns."""
        return None if self.timeout_ns < 0 else self.timeout_ns / 1e9

    def getblocking(self):
        """Return False where calls never wait."""
        return self.timeout_ns != 0

    # --- addresses and connections --------------------------------------------------------------

    def bind(self, address):
        """Bind to ``address``. Raises OSError, as EADDRINUSE. See bind(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        encode_address(self._family, address, "bind", &storage, &addrlen)
        PySys_Audit("socket.bind", "OO", <PyObject *>self, <PyObject *>address)
        sys_bind(self.handle.fd, <c.sockaddr *>&storage, addrlen)

    def listen(self, backlog=None, /):
        """Take connections from now on, and queue up to ``backlog`` of them for ``accept``.

        128 by default; the kernel cuts it to ``net.core.somaxconn``. See listen(2).
        """
        sys_listen(self.handle.fd, min(c.SOMAXCONN, 128) if backlog is None else max(0, integer(backlog)))

    def _accept(self):
        """Wait for a connection; returns ``(fd, address)``, for a class with an ``accept`` of its own."""
        return self.accept_descriptor()

    cdef tuple accept_descriptor(self):
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        cdef int fd = sys_accept(&self.handle, <c.sockaddr *>&storage, &addrlen, self.timeout_ns)
        try:
            return fd, decode_address(&storage, addrlen)
        except BaseException:
            sys_close(fd)
            raise

    def _accept_as(self, BaseSocket made not None):
        """Wait for a connection, open ``made``, which is new, on it, and return its address. See accept4(2).

        What the kernel would tell of the descriptor is known from the socket that listens.
        """
        cdef int fd
        fd, address = self.accept_descriptor()
        try:
            PySys_Audit("socket.__new__", "Oiii", <PyObject *>made, self._family, self._type, self.proto)
            made.adopt(fd, self._family, self._type, self.proto)
        except BaseException:
            made.handle.fd = -1
            sys_close(fd)
            raise
        made.low_water = self.low_water
        return address

    def connect(self, address):
        """Connect to ``address``; see connect(2).

        On a datagram socket nothing is sent: it sets the peer of ``send``, and the only one
        that ``recv`` hears.

        Raises:
            ConnectionRefusedError: Nobody listens there (ECONNREFUSED).
            TimeoutError: No answer came in time; the attempt goes on in the kernel.
            BlockingIOError: The attempt of a non-blocking socket has begun (EINPROGRESS).
        """
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        cdef int error = 0
        encode_address(self._family, address, "connect", &storage, &addrlen)
        PySys_Audit("socket.connect", "OO", <PyObject *>self, <PyObject *>address)
        sys_connect(&self.handle, <c.sockaddr *>&storage, addrlen, self.timeout_ns, &error)

    def connect_ex(self, address):
        """As ``connect``, but return the errno, or 0, where the system call fails."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        cdef int error = 0
        encode_address(self._family, address, "connect_ex", &storage, &addrlen)
        PySys_Audit("socket.connect", "OO", <PyObject *>self, <PyObject *>address)
        try:
            sys_connect(&self.handle, <c.sockaddr *>&storage, addrlen, self.timeout_ns, &error)
        except OSError:
            if error == 0:
                raise
        return error

    def getsockname(self):
        """Return the local address. See getsockname(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        sys_getsockname(self.handle.fd, <c.sockaddr *>&storage, &addrlen)
        return decode_address(&storage, addrlen)

    def getpeername(self):
        """Return the peer's address; OSError (ENOTCONN) without one. See getpeername(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        sys_getpeername(self.handle.fd, <c.sockaddr *>&storage, &addrlen)
        return decode_address(&storage, addrlen)

    def shutdown(self, how):
        """Shut down one half of the connection, or both. See shutdown(2)."""
        sys_shutdown(self.handle.fd, integer(how))

    # --- options -----------------------------------------------------------------------------------

    def getsockopt(self, level, optname, buflen=0):
        """Return an option: an int, or up to ``buflen`` bytes. See getsockopt(2)."""
        cdef char raw[1024]
        cdef int number = 0
        cdef int room = integer(buflen)
        cdef c.socklen_t size = sizeof(int)
        if room == 0:
            sys_getsockopt(self.handle.fd, integer(level), integer(optname), &number, &size)
            return number
        if not 0 < room <= 1024:
            raise OSError("getsockopt buflen out of range")
        size = room
        sys_getsockopt(self.handle.fd, integer(level), integer(optname), raw, &size)
        return PyBytes_FromStringAndSize(raw, size)

    def setsockopt(self, level, optname, value, optlen=None):
        """Set an option to an int, a bytes-like object, or None of ``optlen`` bytes. See setsockopt(2)."""
        cdef int number = 0
        cdef int at = integer(level)
        cdef int name = integer(optname)
        cdef Py_buffer view
        if value is None:
            if optlen is None:
                raise TypeError("setsockopt() with None needs optlen")
            sys_setsockopt(self.handle.fd, at, name, NULL, <c.socklen_t>integer(optlen))
        elif optlen is not None:
            raise TypeError("setsockopt() takes optlen only with None")
        elif isinstance(value, int) or hasattr(value, "__index__"):
            number = integer(value)
            sys_setsockopt(self.handle.fd, at, name, &number, sizeof(int))
        else:
            PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
            try:
                sys_setsockopt(self.handle.fd, at, name, view.buf, <c.socklen_t>view.len)
            finally:
                PyBuffer_Release(&view)
        if (at, name) in LEVELS_AND_NAMES:
            self.learn_options(at, name, number)

    cdef int learn_options(self, int level=-1, int name=-1, int taken=0) except -1:
        """Ask the kernel what its options say of datagrams and of the error queue.

        Of one that it does not tell (an emulator) what `name` was just set to is believed.
        """
        cdef int value[2]
        cdef int found = 0
        cdef c.socklen_t size
        cdef Drain drain = NULL
        if self._type == c.SOCK_STREAM:
            value[0] = taken
            size = sizeof(int)
            try:
                sys_getsockopt(self.handle.fd, c.SOL_SOCKET, c.SO_RCVLOWAT, value, &size)
            except OSError:
                pass
            self.low_water = value[0] > 1
            return 0
        if self._family not in (c.AF_INET, c.AF_INET6) or self._type != c.SOCK_DGRAM:
            return 0
        for family, at, option, bits in OPTIONS:
            if family not in (0, self._family):
                continue
            memset(value, 0, sizeof(value))
            size = sizeof(value)
            try:
                sys_getsockopt(self.handle.fd, at, option, value, &size)
            except OSError:
                if (at, option) != (level, name):
                    continue
                value[0] = taken
            if (at, option) == (c.SOL_SOCKET, c.SO_TIMESTAMPING):
                if value[0] & c.SOF_TIMESTAMPING_SOFTWARE and value[0] & c.SOF_TIMESTAMPING_RX_SOFTWARE:
                    found |= TIMESTAMPS
                if value[0] & c.SOF_TIMESTAMPING_RAW_HARDWARE and value[0] & c.SOF_TIMESTAMPING_RX_HARDWARE:
                    found |= HARDWARE_TIMESTAMPS
                if value[0] & (c.SOF_TIMESTAMPING_TX_SOFTWARE | c.SOF_TIMESTAMPING_TX_HARDWARE):
                    found |= RECVERR | UNCUT    # one stamp would stand for many datagrams
            elif (at, option) == (c.SOL_SOCKET, c.SO_TXTIME):
                if value[1] & c.SOF_TXTIME_REPORT_ERRORS:
                    found |= RECVERR
            elif value[0]:
                found |= <int>bits
        self.ancillary = found & ~(RECVERR | UNCUT)
        self.uncut = found & UNCUT != 0
        if found & RECVERR:
            drain = drain_errors
        self.handle.drain = drain
        return 0

    @property
    def drops(self):
        """Datagrams that the kernel dropped at this socket since it was opened.

        Right at once, unlike SO_RXQ_OVFL, and carried on past 32 bits as long as it is
        read before the kernel's counter has gone round once more. With UDP GRO a joined
        message that is dropped counts once, however many datagrams it held. OSError
        (ENOPROTOOPT) before Linux 4.12. See SK_MEMINFO_DROPS in linux/sock_diag.h.
        """
        cdef uint32_t info[c.FASTSOCK_MEMINFO_VARS]
        cdef c.socklen_t size = sizeof(info)
        memset(info, 0, sizeof(info))
        sys_getsockopt(self.handle.fd, c.SOL_SOCKET, c.SO_MEMINFO, info, &size)
        if size <= c.FASTSOCK_MEMINFO_DROPS * sizeof(uint32_t):
            raise_errno(c.ENOPROTOOPT)      # an emulator that takes every option for an int
        with cython.critical_section(self):
            self.drops_total += <uint32_t>(info[c.FASTSOCK_MEMINFO_DROPS] - self.drops_seen)
            self.drops_seen = info[c.FASTSOCK_MEMINFO_DROPS]
            return self.drops_total

    @property
    def gro(self):
        """Whether the kernel joins received datagrams (UDP_GRO): see ``bind_udp``."""
        return self.ancillary & GRO != 0

    # --- the error queue ---------------------------------------------------------------------------

    def recv_errors(self):
        """Take every record of the error queue: a list of ``ErrorRecord``, empty when there is none.

        What comes there: ICMP errors with ``bind_udp(..., error_queue=True)``, transmit
        timestamps, and completions of ``send_zerocopy``. Records that a send or a receive
        came upon, to go on behind an error of another peer, are kept for this call; beyond
        4096 they are only counted, in ``stats.errors_discarded``. Never waits; poll and epoll
        report POLLERR while a record is there. See MSG_ERRQUEUE in recv(2), IP_RECVERR in ip(7).

        Raises:
            OSError: The socket is closed (EBADF).
        """
        cdef list fresh = self.read_errors()
        with cython.critical_section(self):
            kept = self.errors
            self.errors = []
        return kept + fresh

    cdef list read_errors(self):
        """Empty the kernel's queue; lets go of buffers whose zero-copy send is done."""
        cdef char payload[QUOTED_BYTES]
        cdef char control[ERROR_CONTROL]
        cdef c.sockaddr_storage name
        cdef c.iovec iov
        cdef c.msghdr msg
        cdef ssize_t size
        cdef list found = []
        if self.handle.fd < 0:
            raise_errno(c.EBADF)
        if self._family not in (c.AF_INET, c.AF_INET6):
            return found                # AF_UNIX passes over MSG_ERRQUEUE, and would give datagrams
        memset(&msg, 0, sizeof(msg))
        iov.iov_base = payload
        iov.iov_len = sizeof(payload)
        msg.msg_iov = &iov
        msg.msg_iovlen = 1
        msg.msg_name = &name
        msg.msg_control = control
        while True:
            msg.msg_namelen = sizeof(name)
            msg.msg_controllen = sizeof(control)
            msg.msg_flags = 0
            size = sys_recv_error(self.handle.fd, &msg)
            if size < 0 or not msg.msg_flags & c.MSG_ERRQUEUE:
                return found
            record = decode_error(&msg, payload, <size_t>size)
            if record is not None:
                self.note_record(record)
                found.append(record)

    cdef int note_record(self, object record) except -1:
        """What a record means to this socket, whoever asked for it."""
        if record.origin == "zerocopy":
            self.unpin(record.ids)
        elif record.origin in ("icmp", "icmp6"):
            self.handle.reports += 1
            self.reported = record.errno
        return 0

    cdef int unpin(self, object ids) except -1:
        """The kernel is done with these zero-copy sends; one may be over before it is noted."""
        with cython.critical_section(self):
            for number in ids:
                if self.pins.pop(number & 0xFFFFFFFF, None) is None and self.early is not None:
                    self.early.add(number & 0xFFFFFFFF)
        return 0

    cdef bint absorb_errors(self, uint64_t *seen, int *error) except -1:
        """Move the kernel's queue into `errors`; whether a failed call may be tried again.

        It may when an ICMP error came since `seen` and the socket has no peer of its own: then
        the error is of some earlier datagram, and has nothing to do with the one at hand. By
        the time that the call looks, another thread may have taken the record: so they are
        counted. `error` is what the call failed with, or 0. With a peer of its own, it becomes
        what a call would have failed with: the kernel forgets it when the record is taken
        (net/core/skbuff.c, sock_dequeue_err_skb). A full receive buffer has no room for
        records: then a refusal is all that is left of one.
        """
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        cdef list fresh = [record for record in self.read_errors() if record.origin != "zerocopy"]
        cdef Py_ssize_t room
        with cython.critical_section(self):
            room = max(0, MOST_ERRORS - len(self.errors))
            self.errors += fresh[:room]
            self._errors_discarded += max(0, len(fresh) - room)
        if self.handle.reports == seen[0]:
            if error[0] != c.ECONNREFUSED:
                return False
            self._errors_discarded += 1
            self.reported = c.ECONNREFUSED
        seen[0] = self.handle.reports
        try:
            sys_getpeername(self.handle.fd, <c.sockaddr *>&storage, &addrlen)
        except OSError:
            return True                 # ENOTCONN
        error[0] = self.reported
        return False

    def _keep_errors(self):
        """Empty the error queue into what ``recv_errors`` will return; raises what a call would have failed with.

        For those who wait elsewhere than in a call: POLLERR stays up until the queue is empty.
        """
        cdef uint64_t seen = self.handle.reports
        cdef int owed = 0
        self.absorb_errors(&seen, &owed)
        if owed:
            raise_errno(owed)

    @property
    def _has_error_queue(self):
        """Whether an option makes the kernel queue records."""
        return self.handle.drain != NULL

    @property
    def _errors_kept(self):
        """Records that ``recv_errors`` would return without asking the kernel."""
        return len(self.errors)

    @property
    def zerocopy_pending(self):
        """Sends of ``send_zerocopy`` whose buffers the kernel may still read."""
        return len(self.pins)

    # --- checks ----------------------------------------------------------------------------------------

    cdef int refuse_joined(self, str caller) except -1:
        """With UDP GRO a plain receive would return several datagrams as one (udp(7))."""
        if self.ancillary & GRO:
            raise OSError(
                c.EOPNOTSUPP,
                f"{caller}() would return joined datagrams as one on a socket with UDP GRO: use recv_many(), "
                "recvfrom_many() or recv_batch()"
            )
        return 0

    cdef int raise_kept(self, int *deferred) except -1:
        cdef int err = c.fastsock_exchange(deferred, 0)
        return raise_errno(err) if err else 0


cdef bint drain_errors(void *owner, uint64_t *seen, int *error) except -1:
    return (<BaseSocket>owner).absorb_errors(seen, error)


cdef int64_t timeout_as_ns(object timeout) except? -2:
    """A time-out in seconds as nanoseconds, rounded up; -1 for None. What it raises is the socket module's."""
    if timeout is None:
        return -1
    seconds = timeout if isinstance(timeout, float) else PyNumber_Index(timeout)
    if seconds != seconds:
        raise ValueError("Invalid value NaN (not a number)")
    if seconds < 0:
        raise ValueError("Timeout value out of range")
    if seconds > 9_223_372_036:
        raise OverflowError("timestamp too large to convert to C PyTime_t")
    # Half of the int64 range, so that a deadline on the clock cannot overflow.
    return min(math.ceil(seconds * 1_000_000_000), 1 << 62)


cdef tuple describe(int fd, int family, int type, int proto):
    """What the kernel says of an open descriptor, for each of the three that is -1."""
    cdef c.sockaddr_storage storage
    cdef c.socklen_t addrlen = sizeof(storage)
    cdef c.socklen_t size = sizeof(int)
    memset(&storage, 0, sizeof(storage))
    sys_getsockname(fd, <c.sockaddr *>&storage, &addrlen)       # EBADF, ENOTSOCK
    if family == -1:
        family = storage.ss_family
    if type == -1:
        sys_getsockopt(fd, c.SOL_SOCKET, c.SO_TYPE, &type, &size)
    if proto == -1:
        sys_getsockopt(fd, c.SOL_SOCKET, c.SO_PROTOCOL, &proto, &size)
    return family, type, proto
