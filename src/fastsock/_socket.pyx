# BaseSocket owns the descriptor, its options and its time-out, and moves one datagram at a
# time; BatchSocket, in _batchio, adds the batches. Both are compiled, so that no Python
# frame stands between the user and the call; cold methods are Python, in fastsock/_sock.py.
# May import every module below it; goes to the kernel only through _sys.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from fastsock cimport _linux as c
from fastsock._cmsg cimport control_size, decode_control, encode_control
from fastsock._sendbatch cimport Gather
from fastsock._sockaddr cimport decode_address, encode_address
from fastsock._sys cimport (
    monotonic_ns, raise_errno, sys_bind, sys_close, sys_connect, sys_getpeername, sys_getsockname, sys_getsockopt,
    sys_recvfrom, sys_recvmsg, sys_sendmsg, sys_sendto, sys_set_nonblocking, sys_setsockopt, sys_shutdown, sys_socket,
)

import math
import socket as _stdlib

cdef object MISSING = object()

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t newsize) except -1
    int PyErr_ResourceWarning(object source, Py_ssize_t stacklevel, const char *format, ...) except -1
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef enum:
    STACK_BYTES = 2048          # recv copies a small datagram from here, and allocates once


cdef class BaseSocket:
    def __cinit__(self):
        self.fd = -1
        self._family = self._type = self.proto = -1
        self.timeout_ns = -1

    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        self.open(integer(family), integer(type), integer(proto), fileno)

    cdef int open(self, int family, int type, int proto, object fileno) except -1:
        cdef int fd
        if self.fd >= 0:
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
        except BaseException:
            self.fd = -1
            if fileno is None:
                sys_close(fd)
            raise
        return 0

    cdef int adopt(self, int fd, int family, int type, int proto) except -1:
        self.fd = fd
        self._family = family
        self._type = type & ~(c.SOCK_NONBLOCK | c.SOCK_CLOEXEC)
        self.proto = proto
        self.timeout_ns = -1
        self.deferred_recv = self.deferred_send = 0
        self.drops_seen = self.drops_total = 0
        default = _stdlib.getdefaulttimeout()
        if type & c.SOCK_NONBLOCK:
            self.timeout_ns = 0
        elif default is not None:
            self.settimeout(default)
        return 0

    def __del__(self):
        if self.fd >= 0:
            try:
                PyErr_ResourceWarning(self, 1, "unclosed %R", <PyObject *>self)
            finally:
                self.close()

    # --- the descriptor ---------------------------------------------------------------------

    def fileno(self):
        """Return the file descriptor, or -1 once the socket is closed."""
        return self.fd

    def detach(self):
        """Give the file descriptor away and mark the socket closed, without closing it."""
        return c.fastsock_exchange(&self.fd, -1)

    def close(self):
        """Close the socket; closing it again does nothing. See close(2)."""
        cdef int fd = c.fastsock_exchange(&self.fd, -1)
        if fd >= 0:
            sys_close(fd)

    # --- how calls wait -----------------------------------------------------------------------

    def settimeout(self, timeout):
        """Let calls wait without end (None), not at all (0), or ``timeout`` seconds.

        Raises:
            ValueError: ``timeout`` is negative or not a number.
        """
        cdef int64_t ns
        if timeout is None:
            ns = -1
        else:
            seconds = timeout if isinstance(timeout, float) else PyNumber_Index(timeout)
            if seconds != seconds:
                raise ValueError("Invalid value NaN (not a number)")
            if seconds < 0:
                raise ValueError("Timeout value out of range")
            if seconds > 9_223_372_036:
                raise OverflowError("timestamp too large to convert to C PyTime_t")
            # Half of the int64 range, so that a deadline on the clock cannot overflow.
            ns = min(math.ceil(seconds * 1_000_000_000), 1 << 62)
        sys_set_nonblocking(self.fd, ns >= 0)
        self.timeout_ns = ns

    def gettimeout(self):
        """Return the time-out in seconds, or None when calls wait without end."""
        return None if self.timeout_ns < 0 else self.timeout_ns / 1e9

    def setblocking(self, flag):
        """As ``settimeout(None)`` where ``flag`` is true, else as ``settimeout(0)``."""
        self.settimeout(None if flag else 0)

    def getblocking(self):
        """Return False where calls never wait."""
        return self.timeout_ns != 0

    # --- addresses -------------------------------------------------------------------------------

    def bind(self, address):
        """Bind to ``address``. Raises OSError, as EADDRINUSE. See bind(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        encode_address(self._family, address, "bind", &storage, &addrlen)
        PySys_Audit("socket.bind", "OO", <PyObject *>self, <PyObject *>address)
        sys_bind(self.fd, <c.sockaddr *>&storage, addrlen)

    def connect(self, address):
        """Set the peer of ``send`` and the only one ``recv`` hears. See connect(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        cdef int error = 0
        encode_address(self._family, address, "connect", &storage, &addrlen)
        PySys_Audit("socket.connect", "OO", <PyObject *>self, <PyObject *>address)
        sys_connect(&self.fd, <c.sockaddr *>&storage, addrlen, self.timeout_ns, &error)

    def connect_ex(self, address):
        """As ``connect``, but return the errno, or 0, where the system call fails."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        cdef int error = 0
        encode_address(self._family, address, "connect_ex", &storage, &addrlen)
        PySys_Audit("socket.connect", "OO", <PyObject *>self, <PyObject *>address)
        try:
            sys_connect(&self.fd, <c.sockaddr *>&storage, addrlen, self.timeout_ns, &error)
        except OSError:
            if error == 0:
                raise
        return error

    def getsockname(self):
        """Return the local address. See getsockname(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        sys_getsockname(self.fd, <c.sockaddr *>&storage, &addrlen)
        return decode_address(&storage, addrlen)

    def getpeername(self):
        """Return the peer's address; OSError (ENOTCONN) without one. See getpeername(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        sys_getpeername(self.fd, <c.sockaddr *>&storage, &addrlen)
        return decode_address(&storage, addrlen)

    def shutdown(self, how):
        """Shut down one half of the connection, or both. See shutdown(2)."""
        sys_shutdown(self.fd, integer(how))

    # --- options -----------------------------------------------------------------------------------

    def getsockopt(self, level, optname, buflen=0):
        """Return an option: an int, or up to ``buflen`` bytes. See getsockopt(2)."""
        cdef char raw[1024]
        cdef int number = 0
        cdef int room = integer(buflen)
        cdef c.socklen_t size = sizeof(int)
        if room == 0:
            sys_getsockopt(self.fd, integer(level), integer(optname), &number, &size)
            return number
        if not 0 < room <= 1024:
            raise OSError("getsockopt buflen out of range")
        size = room
        sys_getsockopt(self.fd, integer(level), integer(optname), raw, &size)
        return PyBytes_FromStringAndSize(raw, size)

    def setsockopt(self, level, optname, value, optlen=None):
        """Set an option to an int, a bytes-like object, or None of ``optlen`` bytes. See setsockopt(2)."""
        cdef int number
        cdef int at = integer(level)
        cdef int name = integer(optname)
        cdef Py_buffer view
        if value is None:
            if optlen is None:
                raise TypeError("setsockopt() with None needs optlen")
            sys_setsockopt(self.fd, at, name, NULL, <c.socklen_t>integer(optlen))
        elif optlen is not None:
            raise TypeError("setsockopt() takes optlen only with None")
        elif isinstance(value, int) or hasattr(value, "__index__"):
            number = integer(value)
            sys_setsockopt(self.fd, at, name, &number, sizeof(int))
        else:
            PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
            try:
                sys_setsockopt(self.fd, at, name, view.buf, <c.socklen_t>view.len)
            finally:
                PyBuffer_Release(&view)

    @property
    def drops(self):
        """Datagrams that the kernel dropped at this socket since it was opened.

        Right at once, unlike SO_RXQ_OVFL, and carried on past 32 bits as long as it is
        read before the kernel's counter has gone round once more. OSError (ENOPROTOOPT)
        before Linux 4.12. See SK_MEMINFO_DROPS in linux/sock_diag.h.
        """
        cdef uint32_t info[c.FASTSOCK_MEMINFO_VARS]
        cdef c.socklen_t size = sizeof(info)
        memset(info, 0, sizeof(info))
        sys_getsockopt(self.fd, c.SOL_SOCKET, c.SO_MEMINFO, info, &size)
        if size <= c.FASTSOCK_MEMINFO_DROPS * sizeof(uint32_t):
            raise_errno(c.ENOPROTOOPT)      # an emulator that takes every option for an int
        with cython.critical_section(self):
            self.drops_total += <uint32_t>(info[c.FASTSOCK_MEMINFO_DROPS] - self.drops_seen)
            self.drops_seen = info[c.FASTSOCK_MEMINFO_DROPS]
            return self.drops_total

    # --- one datagram at a time ----------------------------------------------------------------------

    def recv(self, Py_ssize_t bufsize, flags=0):
        """Receive one datagram of up to ``bufsize`` bytes, as bytes. See recv(2).

        Raises:
            BlockingIOError: Nothing was waiting on a non-blocking socket (EAGAIN).
            TimeoutError: Nothing came in time.
            ConnectionRefusedError: An earlier send drew an ICMP error (ECONNREFUSED).
        """
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        self.raise_deferred(&self.deferred_recv)
        if bufsize == 0:
            return b""
        return receive_bytes(&self.fd, bufsize, integer(flags), NULL, NULL, self.timeout_ns)

    def recvfrom(self, Py_ssize_t bufsize, flags=0):
        """Receive one datagram as ``(bytes, address)``. Raises as ``recv``. See recvfrom(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        self.raise_deferred(&self.deferred_recv)
        payload = receive_bytes(&self.fd, bufsize, integer(flags), <c.sockaddr *>&storage, &addrlen, self.timeout_ns)
        return payload, decode_address(&storage, addrlen)

    def recv_into(self, buffer, Py_ssize_t nbytes=0, flags=0):
        """Receive one datagram into a writable ``buffer``; returns its size in bytes.

        At most ``nbytes`` of the buffer are used, or all of it where ``nbytes`` is 0. With
        MSG_TRUNC the size may exceed them. Raises as ``recv``. See recv(2).
        """
        cdef Py_buffer view
        self.raise_deferred(&self.deferred_recv)
        get_writable(buffer, &view)
        try:
            size = room_in(&view, nbytes, "recv_into")
            if size == 0:
                return 0
            return sys_recvfrom(&self.fd, view.buf, size, integer(flags), NULL, NULL, self.timeout_ns)
        finally:
            PyBuffer_Release(&view)

    def recvfrom_into(self, buffer, Py_ssize_t nbytes=0, flags=0):
        """As ``recv_into``; returns ``(nbytes, address)``."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        cdef Py_buffer view
        self.raise_deferred(&self.deferred_recv)
        get_writable(buffer, &view)
        try:
            size = room_in(&view, nbytes, "recvfrom_into")
            got = sys_recvfrom(
                &self.fd, view.buf, size, integer(flags), <c.sockaddr *>&storage, &addrlen, self.timeout_ns
            )
            return got, decode_address(&storage, addrlen)
        finally:
            PyBuffer_Release(&view)

    def recvmsg(self, Py_ssize_t bufsize, Py_ssize_t ancbufsize=0, flags=0):
        """Receive one datagram with ancillary data. Raises as ``recv``. See recvmsg(2), cmsg(3).

        Returns:
            ``(payload, ancdata, msg_flags, address)``, ancdata being a list of
            ``(cmsg_level, cmsg_type, cmsg_data)``.
        """
        if bufsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        cdef bytearray payload = bytearray(bufsize)
        size, ancdata, msg_flags, address = self.recvmsg_into([payload], ancbufsize, flags)
        return bytes(memoryview(payload)[:size]), ancdata, msg_flags, address

    def recvmsg_into(self, buffers, Py_ssize_t ancbufsize=0, flags=0):
        """As ``recvmsg``, into writable ``buffers`` one after the other; the size comes first."""
        cdef c.sockaddr_storage storage
        cdef c.msghdr msg
        cdef Gather gather
        cdef tuple targets = tuple(buffers)
        if not 0 <= ancbufsize <= 0x7FFFFFFF:
            raise ValueError("invalid ancillary data buffer length")
        self.raise_deferred(&self.deferred_recv)
        memset(&msg, 0, sizeof(msg))
        gather = Gather()
        gather.reserve(max(1, len(targets)))
        msg.msg_control = malloc(<size_t>ancbufsize) if ancbufsize else NULL
        try:
            if ancbufsize and msg.msg_control == NULL:
                raise MemoryError()
            try:
                gather.hold(targets, 0, len(targets), PyBUF_WRITABLE)
            except BufferError as error:
                raise TypeError(f"recvmsg_into() needs read-write bytes-like objects: {error}") from None
            msg.msg_name = &storage
            msg.msg_namelen = sizeof(storage)
            msg.msg_iov = gather.iov
            msg.msg_iovlen = <size_t>len(targets)
            msg.msg_controllen = <size_t>ancbufsize
            size = sys_recvmsg(&self.fd, &msg, integer(flags), self.timeout_ns)
            return size, decode_control(&msg), msg.msg_flags, decode_address(&storage, msg.msg_namelen)
        finally:
            gather.release()
            free(msg.msg_control)

    def send(self, data, flags=0):
        """Send one datagram to the connected peer; returns its size. See send(2).

        Raises:
            BlockingIOError: The send buffer of a non-blocking socket is full (EAGAIN).
            OSError: EMSGSIZE for a datagram too large, EDESTADDRREQ without a peer.
        """
        cdef Py_buffer view
        self.raise_deferred(&self.deferred_send)
        if PyBytes_CheckExact(data):
            # The caller holds it, and nothing can change it: no buffer need be taken.
            return sys_sendto(
                &self.fd, PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data), integer(flags), NULL, 0,
                self.timeout_ns,
            )
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return sys_sendto(&self.fd, view.buf, <size_t>view.len, integer(flags), NULL, 0, self.timeout_ns)
        finally:
            PyBuffer_Release(&view)

    def sendall(self, data, flags=0):
        """Send all of ``data``: on a datagram socket, as ``send``. Returns None."""
        cdef Py_buffer view
        cdef Py_ssize_t done = 0
        cdef int64_t deadline = monotonic_ns() + self.timeout_ns
        cdef int64_t left = self.timeout_ns
        self.raise_deferred(&self.deferred_send)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            while True:
                done += sys_sendto(
                    &self.fd, <char *>view.buf + done, <size_t>(view.len - done), integer(flags), NULL, 0, left
                )
                if done >= view.len:
                    return
                PyErr_CheckSignals()    # a blocked send returns a short count for EINTR
                if self.timeout_ns > 0:
                    left = deadline - monotonic_ns()
                    if left <= 0:
                        raise TimeoutError("timed out")
        finally:
            PyBuffer_Release(&view)

    def sendto(self, data, flags_or_address, address=MISSING, /):
        """sendto(data[, flags], address): send one datagram to ``address``; returns its size.

        Raises as ``send``, and socket.gaierror for a host name that does not resolve.
        See sendto(2).
        """
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        cdef Py_buffer view
        cdef int flags = 0
        if address is MISSING:
            address = flags_or_address
        else:
            flags = integer(flags_or_address)
        self.raise_deferred(&self.deferred_send)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            encode_address(self._family, address, "sendto", &storage, &addrlen)
            PySys_Audit("socket.sendto", "OO", <PyObject *>self, <PyObject *>address)
            return sys_sendto(
                &self.fd, view.buf, <size_t>view.len, flags, <c.sockaddr *>&storage, addrlen, self.timeout_ns
            )
        finally:
            PyBuffer_Release(&view)

    def sendmsg(self, buffers, ancdata=(), flags=0, address=None):
        """Send one datagram gathered from ``buffers``, with ancillary data; returns its size.

        ``ancdata`` is an iterable of ``(cmsg_level, cmsg_type, cmsg_data)``. Raises as
        ``sendto``. See sendmsg(2), cmsg(3).
        """
        cdef c.sockaddr_storage storage
        cdef c.msghdr msg
        cdef tuple payloads = tuple(buffers)
        cdef list items = control_items(ancdata)
        cdef size_t controllen = control_size(items)
        cdef Gather gather
        cdef int error = 0
        self.raise_deferred(&self.deferred_send)
        memset(&msg, 0, sizeof(msg))
        if address is not None:
            encode_address(self._family, address, "sendmsg", &storage, &msg.msg_namelen)
            msg.msg_name = &storage
            PySys_Audit("socket.sendmsg", "OO", <PyObject *>self, <PyObject *>address)
        else:
            PySys_Audit("socket.sendmsg", "OO", <PyObject *>self, <PyObject *>None)
        gather = Gather()
        gather.reserve(max(1, len(payloads)))
        if controllen:
            msg.msg_control = malloc(controllen)
        try:
            if controllen:
                if msg.msg_control == NULL:
                    raise MemoryError()
                msg.msg_controllen = controllen
                encode_control(items, &msg)
            gather.hold(payloads, 0, len(payloads), PyBUF_SIMPLE)
            msg.msg_iov = gather.iov
            msg.msg_iovlen = <size_t>len(payloads)
            return sys_sendmsg(&self.fd, &msg, integer(flags), self.timeout_ns, &error)
        finally:
            gather.release()
            free(msg.msg_control)

    # --- checks ----------------------------------------------------------------------------------------

    cdef int raise_deferred(self, int *deferred) except -1:
        """Raise the failure that an earlier call kept because it had made progress."""
        cdef int err
        if deferred[0] == 0:
            return 0
        err = c.fastsock_exchange(deferred, 0)
        return raise_errno(err) if err else 0


# --- helpers ---------------------------------------------------------------------------------------------

cdef int integer(object value) except? -1:
    """A C int from what has __index__: a float is a TypeError, as in the socket module."""
    if isinstance(value, int):
        return value
    return PyNumber_Index(value)


cdef int get_writable(object buffer, Py_buffer *view) except -1:
    try:
        PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE)
    except BufferError:
        raise TypeError(f"a read-write bytes-like object is required, not '{type(buffer).__name__}'") from None
    return 0


cdef list control_items(object ancdata):
    """(int, int, bytes) of each item of sendmsg's ancillary data."""
    cdef list items = []
    for item in ancdata:
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            raise TypeError("[sendmsg() ancillary data items] must be sequences of length 3")
        level, kind, data = item
        items.append((integer(level), integer(kind), bytes(memoryview(data))))
    return items


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


cdef size_t room_in(Py_buffer *view, Py_ssize_t nbytes, str caller) except? 0:
    if nbytes < 0:
        raise ValueError(f"negative buffersize in {caller}")
    if nbytes > view.len:
        raise ValueError("nbytes is greater than the length of the buffer")
    return <size_t>(nbytes if nbytes else view.len)


cdef bytes receive_bytes(
    int *fd, Py_ssize_t bufsize, int flags, c.sockaddr *addr, c.socklen_t *addrlen, int64_t timeout_ns
):
    cdef char stack[STACK_BYTES]
    cdef ssize_t size
    cdef PyObject *payload
    if bufsize <= STACK_BYTES:
        size = sys_recvfrom(fd, stack, <size_t>bufsize, flags, addr, addrlen, timeout_ns)
        return PyBytes_FromStringAndSize(stack, min(size, bufsize))     # MSG_TRUNC: size may exceed
    whole = PyBytes_FromStringAndSize(NULL, bufsize)
    size = sys_recvfrom(fd, PyBytes_AS_STRING(whole), <size_t>bufsize, flags, addr, addrlen, timeout_ns)
    if size >= bufsize:
        return whole
    # _PyBytes_Resize takes the only reference, and gives back the one to the smaller object.
    payload = <PyObject *>whole
    Py_INCREF(whole)
    whole = None
    _PyBytes_Resize(&payload, size)
    whole = <object>payload
    Py_DECREF(whole)
    return whole
