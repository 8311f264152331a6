# fastsock.Socket's compiled half: owns the descriptor and holds every method that is
# called per datagram, so that no Python frame stands between the user and the call.
# Cold methods are Python, in fastsock/_sock.py. May import every module below it; goes to
# the kernel only through _sys.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from fastsock cimport _linux as c
from fastsock._cmsg cimport control_size, decode_control, encode_control
from fastsock._recvbatch cimport RecvBatch
from fastsock._sendbatch cimport Gather, SendBatch
from fastsock._sockaddr cimport decode_address, encode_address
from fastsock._sys cimport (
    HOLD_GIL_DATAGRAMS, SENDMMSG_MAX, monotonic_ns, raise_errno, sys_bind, sys_close, sys_connect, sys_getpeername,
    sys_getsockname, sys_getsockopt, sys_recvfrom, sys_recvmmsg, sys_recvmmsg_queued, sys_recvmsg, sys_sendmmsg,
    sys_sendmsg, sys_sendto, sys_set_nonblocking, sys_setsockopt, sys_shutdown, sys_socket,
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
    CHUNK_BYTES = 64 << 20      # the largest scratch arena of recv_many that is kept
    YIELD_EVERY = 16            # chunks of recv_many that may follow each other under the GIL


cdef bint is_asynchronous(int err) noexcept:
    """Whether the kernel reports `err` once, for an earlier datagram: icmp(7), udp(7)."""
    return err in (
        c.ECONNREFUSED, c.ECONNRESET, c.EHOSTDOWN, c.EHOSTUNREACH, c.ENETDOWN, c.ENETUNREACH, c.ENOPROTOOPT,
    )


cdef class BaseSocket:
    def __cinit__(self):
        self.fd = -1
        self._family = self._type = self.proto = -1
        self.timeout_ns = -1

    def __init__(self, int family=-1, int type=-1, int proto=-1, fileno=None):
        cdef int fd
        if self.fd >= 0:
            raise RuntimeError("a socket is opened once")
        if fileno is None:
            family = c.AF_INET if family == -1 else family
            type = c.SOCK_STREAM if type == -1 else type
            proto = 0 if proto == -1 else proto
            fd = sys_socket(family, type, proto)
        else:
            if isinstance(fileno, float):
                raise TypeError("integer argument expected, got float")
            fd = fileno
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
        PySys_Audit("socket.__new__", "Oiii", <PyObject *>self, family, type, proto)

    cdef int adopt(self, int fd, int family, int type, int proto) except -1:
        self.fd = fd
        self._family = family
        self._type = type & ~(c.SOCK_NONBLOCK | c.SOCK_CLOEXEC)
        self.proto = proto
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
        cdef int fd = self.fd
        self.fd = -1
        return fd

    def close(self):
        """Close the socket; closing it again does nothing. See close(2)."""
        cdef int fd = self.fd
        self.fd = -1
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
        return None if self.timeout_ns < 0 else self.timeout_ns / 1_000_000_000

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
        encode_address(self._family, address, "connect", &storage, &addrlen)
        PySys_Audit("socket.connect", "OO", <PyObject *>self, <PyObject *>address)
        sys_connect(self.fd, <c.sockaddr *>&storage, addrlen, self.timeout_ns)

    def connect_ex(self, address):
        """As ``connect``, but return the errno, or 0, where the system call fails."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        encode_address(self._family, address, "connect_ex", &storage, &addrlen)
        PySys_Audit("socket.connect", "OO", <PyObject *>self, <PyObject *>address)
        try:
            sys_connect(self.fd, <c.sockaddr *>&storage, addrlen, self.timeout_ns)
        except TimeoutError as error:
            return error.errno or c.EAGAIN
        except OSError as error:
            return error.errno
        return 0

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

    def shutdown(self, int how):
        """Shut down one half of the connection, or both. See shutdown(2)."""
        sys_shutdown(self.fd, how)

    # --- options -----------------------------------------------------------------------------------

    def getsockopt(self, int level, int optname, int buflen=0):
        """Return an option: an int, or up to ``buflen`` bytes. See getsockopt(2)."""
        cdef int number = 0
        cdef c.socklen_t size = sizeof(int)
        if buflen == 0:
            sys_getsockopt(self.fd, level, optname, &number, &size)
            return number
        if not 0 < buflen <= 1024:
            raise OSError("getsockopt buflen out of range")
        cdef char raw[1024]
        size = buflen
        sys_getsockopt(self.fd, level, optname, raw, &size)
        return PyBytes_FromStringAndSize(raw, size)

    def setsockopt(self, int level, int optname, value, optlen=None):
        """Set an option to an int, a bytes-like object, or None of ``optlen`` bytes. See setsockopt(2)."""
        cdef int number
        cdef Py_buffer view
        if value is None:
            if optlen is None:
                raise TypeError("setsockopt() with None needs optlen")
            sys_setsockopt(self.fd, level, optname, NULL, optlen)
        elif optlen is not None:
            raise TypeError("setsockopt() takes optlen only with None")
        elif isinstance(value, int):
            number = value
            sys_setsockopt(self.fd, level, optname, &number, sizeof(int))
        else:
            PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
            try:
                sys_setsockopt(self.fd, level, optname, view.buf, <c.socklen_t>view.len)
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
        with cython.critical_section(self):
            self.drops_total += <uint32_t>(info[c.FASTSOCK_MEMINFO_DROPS] - self.drops_seen)
            self.drops_seen = info[c.FASTSOCK_MEMINFO_DROPS]
            return self.drops_total

    # --- one datagram at a time ----------------------------------------------------------------------

    def recv(self, Py_ssize_t bufsize, int flags=0):
        """Receive one datagram of up to ``bufsize`` bytes, as bytes. See recv(2).

        Raises:
            BlockingIOError: Nothing was waiting on a non-blocking socket (EAGAIN).
            TimeoutError: Nothing came in time.
            ConnectionRefusedError: An earlier send drew an ICMP error (ECONNREFUSED).
        """
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        self.raise_deferred(&self.deferred_recv)
        return receive_bytes(self.fd, bufsize, flags, NULL, NULL, self.timeout_ns)

    def recvfrom(self, Py_ssize_t bufsize, int flags=0):
        """Receive one datagram as ``(bytes, address)``. Raises as ``recv``. See recvfrom(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        self.raise_deferred(&self.deferred_recv)
        payload = receive_bytes(self.fd, bufsize, flags, <c.sockaddr *>&storage, &addrlen, self.timeout_ns)
        return payload, decode_address(&storage, addrlen)

    def recv_into(self, buffer, Py_ssize_t nbytes=0, int flags=0):
        """Receive one datagram into a writable ``buffer``; returns its size in bytes.

        At most ``nbytes`` of the buffer are used, or all of it where ``nbytes`` is 0. With
        MSG_TRUNC the size may exceed them. Raises as ``recv``. See recv(2).
        """
        cdef Py_buffer view
        self.raise_deferred(&self.deferred_recv)
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            size = room_in(&view, nbytes, "recv_into")
            return sys_recvfrom(self.fd, view.buf, size, flags, NULL, NULL, self.timeout_ns)
        finally:
            PyBuffer_Release(&view)

    def recvfrom_into(self, buffer, Py_ssize_t nbytes=0, int flags=0):
        """As ``recv_into``; returns ``(nbytes, address)``."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        cdef Py_buffer view
        self.raise_deferred(&self.deferred_recv)
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            size = room_in(&view, nbytes, "recvfrom_into")
            got = sys_recvfrom(self.fd, view.buf, size, flags, <c.sockaddr *>&storage, &addrlen, self.timeout_ns)
            return got, decode_address(&storage, addrlen)
        finally:
            PyBuffer_Release(&view)

    def recvmsg(self, Py_ssize_t bufsize, Py_ssize_t ancbufsize=0, int flags=0):
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

    def recvmsg_into(self, buffers, Py_ssize_t ancbufsize=0, int flags=0):
        """As ``recvmsg``, into writable ``buffers`` one after the other; the size comes first."""
        cdef c.sockaddr_storage storage
        cdef c.msghdr msg
        cdef Gather gather
        cdef tuple targets = tuple(buffers)
        cdef Py_ssize_t i
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
            gather.hold(targets, 0, len(targets), PyBUF_WRITABLE)
            msg.msg_name = &storage
            msg.msg_namelen = sizeof(storage)
            msg.msg_iov = gather.iov
            msg.msg_iovlen = <size_t>len(targets)
            msg.msg_controllen = <size_t>ancbufsize
            size = sys_recvmsg(self.fd, &msg, flags, self.timeout_ns)
            return size, decode_control(&msg), msg.msg_flags, decode_address(&storage, msg.msg_namelen)
        finally:
            gather.release()
            free(msg.msg_control)

    def send(self, data, int flags=0):
        """Send one datagram to the connected peer; returns its size. See send(2).

        Raises:
            BlockingIOError: The send buffer of a non-blocking socket is full (EAGAIN).
            OSError: EMSGSIZE for a datagram too large, EDESTADDRREQ without a peer.
        """
        cdef Py_buffer view
        self.raise_deferred(&self.deferred_send)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return sys_sendto(self.fd, view.buf, <size_t>view.len, flags, NULL, 0, self.timeout_ns)
        finally:
            PyBuffer_Release(&view)

    def sendall(self, data, int flags=0):
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
                    self.fd, <char *>view.buf + done, <size_t>(view.len - done), flags, NULL, 0, left
                )
                if done >= view.len:
                    return
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
            flags = flags_or_address
        self.raise_deferred(&self.deferred_send)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            encode_address(self._family, address, "sendto", &storage, &addrlen)
            PySys_Audit("socket.sendto", "OO", <PyObject *>self, <PyObject *>address)
            return sys_sendto(
                self.fd, view.buf, <size_t>view.len, flags, <c.sockaddr *>&storage, addrlen, self.timeout_ns
            )
        finally:
            PyBuffer_Release(&view)

    def sendmsg(self, buffers, ancdata=(), int flags=0, address=None):
        """Send one datagram gathered from ``buffers``, with ancillary data; returns its size.

        ``ancdata`` is an iterable of ``(cmsg_level, cmsg_type, cmsg_data)``. Raises as
        ``sendto``. See sendmsg(2), cmsg(3).
        """
        cdef c.sockaddr_storage storage
        cdef c.msghdr msg
        cdef tuple payloads = tuple(buffers)
        cdef list items = [(level, kind, bytes(memoryview(data))) for level, kind, data in ancdata]
        cdef size_t controllen = control_size(items)
        cdef Gather gather
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
            return sys_sendmsg(self.fd, &msg, flags, self.timeout_ns)
        finally:
            gather.release()
            free(msg.msg_control)

    # --- receiving in batches ----------------------------------------------------------------------

    def recv_batch(self, RecvBatch batch not None, int flags=0):
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
        self.raise_deferred(&self.deferred_recv)
        batch.acquire()
        try:
            return self.receive(batch, batch.vlen, flags)
        finally:
            batch.release()

    def recv_many(self, Py_ssize_t vlen=64, Py_ssize_t bufsize=65535, int flags=0):
        """Receive up to ``vlen`` datagrams as a list of bytes.

        Waits for the first as ``recv`` does, then takes what is queued and never waits for
        more.

        Args:
            vlen: The most to take, at least 1.
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
        return self.receive_list("recv_many", vlen, bufsize, flags, False)

    def recvfrom_many(self, Py_ssize_t vlen=64, Py_ssize_t bufsize=65535, int flags=0):
        """As ``recv_many``, but a list of ``(bytes, address)``."""
        return self.receive_list("recvfrom_many", vlen, bufsize, flags, True)

    cdef Py_ssize_t receive(self, RecvBatch batch, Py_ssize_t vlen, int flags) except -1:
        """Prepare, call, decode; the caller owns the batch."""
        cdef int received
        batch.prepare()
        if flags & c.MSG_PEEK:
            vlen = 1            # every message of one call would be the same datagram
        received = sys_recvmmsg(
            self.fd, batch.msgvec, <unsigned int>vlen, flags, self.timeout_ns, vlen <= HOLD_GIL_DATAGRAMS
        )
        batch.decode(received, self._type == c.SOCK_SEQPACKET)
        return batch.count

    cdef list receive_list(self, str caller, Py_ssize_t vlen, Py_ssize_t bufsize, int flags, bint addresses):
        # A large vlen goes in chunks that stay in the cache: 64 per call is the fastest,
        # and a million slots of 65535 bytes fit in no memory.
        cdef Py_ssize_t chunk
        cdef Py_ssize_t left = vlen
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
        self.raise_deferred(&self.deferred_recv)
        chunk = min(vlen, max(1, min(HOLD_GIL_DATAGRAMS, CHUNK_BYTES // bufsize)))
        batch = self.borrow_scratch(chunk, bufsize, addresses)
        try:
            self.receive(batch, chunk, flags)
            result = batch.payload_address_list(&heap_bytes) if addresses else batch.payload_list(&heap_bytes)
            size = batch.count
            left -= size
            # A short chunk has emptied the queue.
            while left > 0 and size == chunk and not flags & c.MSG_PEEK:
                chunks += 1
                chunk = min(chunk, left)
                batch.prepare()
                received = sys_recvmmsg_queued(
                    self.fd, batch.msgvec, <unsigned int>chunk, flags, chunks % YIELD_EVERY != 0, &error
                )
                self.deferred_recv = error
                batch.decode(received, self._type == c.SOCK_SEQPACKET)
                size = batch.count
                if size:
                    result += batch.payload_address_list(&heap_bytes) if addresses else batch.payload_list(&heap_bytes)
                left -= size
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
                    vlen = max(vlen, batch.vlen)
                    slot_size = max(bufsize, batch.slot_size)
                    batch.release()
                batch = RecvBatch(vlen, slot_size, addresses=True)
                batch.acquire()
                self.scratch = batch
        batch.shape(bufsize, addresses)
        return batch

    # --- sending in batches ----------------------------------------------------------------------------

    def send_many(self, payloads, int flags=0):
        """Send each of ``payloads`` as one datagram to the connected peer.

        Args:
            payloads: An iterable of bytes-like objects; any number. Their buffers are held
                until the call returns.
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
        return self.gather_send("send_many", tuple(payloads), None, None, flags)

    def sendto_many(self, payloads, address, int flags=0):
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
        if not is_one_address(self._family, address):
            peers = tuple(address)
            if len(peers) != len(items):
                raise ValueError(f"{len(items)} payloads for {len(peers)} addresses")
            address = None
        return self.gather_send("sendto_many", items, address, peers, flags)

    def send_batch(self, SendBatch batch not None, int flags=0):
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
            batch.prepare(self._family)
            if batch.cursor == batch.count:
                batch.cursor = 0
            start = batch.cursor
            if batch.count > 0:
                self.send_prepared(
                    &batch.msgvec[start], batch.count - start, flags,
                    batch.count - start <= HOLD_GIL_DATAGRAMS, &batch.cursor, start, &deadline_ns,
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
        cdef int64_t left_ns = self.timeout_ns
        while sent < count:
            want = min(count - sent, SENDMMSG_MAX)
            if left_ns > 0:
                if deadline_ns[0] == 0:
                    deadline_ns[0] = monotonic_ns() + left_ns
                left_ns = max(<int64_t>1, deadline_ns[0] - monotonic_ns())
            try:
                got = sys_sendmmsg(self.fd, msgvec + sent, <unsigned int>want, flags, left_ns, hold_gil)
            except OSError as error:
                if cursor[0] == start:
                    raise
                # The next call meets the same refusal again, unless the kernel has just
                # reported the only one there was: that one is kept for it.
                if self._family != c.AF_UNIX and is_asynchronous(error.errno or 0):
                    self.deferred_send = error.errno
                return False
            sent += got
            cursor[0] += got
            if got < want:
                if self.timeout_ns == 0 or flags & c.MSG_DONTWAIT:
                    return False
                PyErr_CheckSignals()    # a blocked sendmmsg returns a short count for EINTR
        return True

    cdef Py_ssize_t gather_send(self, str caller, tuple payloads, object address, tuple addresses, int flags) except -1:
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
                    elif address is not None:
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

    # --- checks ----------------------------------------------------------------------------------------

    cdef int check_datagrams(self, str caller) except -1:
        if self._type == c.SOCK_STREAM:
            raise OSError(c.EOPNOTSUPP, f"{caller}() is for datagram and seqpacket sockets, and this is a stream")
        return 0

    cdef int raise_deferred(self, int *deferred) except -1:
        """Raise the failure that an earlier call kept because it had made progress."""
        cdef int err
        if deferred[0] == 0:
            return 0
        err = c.fastsock_exchange(deferred, 0)
        return raise_errno(err) if err else 0


# --- helpers ---------------------------------------------------------------------------------------------

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


cdef bint is_one_address(int family, object address):
    """Whether `address` is one peer rather than a sequence of them."""
    if isinstance(address, tuple):
        return family != c.AF_UNIX and not (address and isinstance((<tuple>address)[0], tuple))
    return isinstance(address, (str, bytes, bytearray, memoryview)) or not hasattr(address, "__iter__")


cdef size_t room_in(Py_buffer *view, Py_ssize_t nbytes, str caller) except? 0:
    if nbytes < 0:
        raise ValueError(f"negative buffersize in {caller}")
    if nbytes > view.len:
        raise ValueError("nbytes is greater than the length of the buffer")
    return <size_t>(nbytes if nbytes else view.len)


cdef bytes receive_bytes(
    int fd, Py_ssize_t bufsize, int flags, c.sockaddr *addr, c.socklen_t *addrlen, int64_t timeout_ns
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
