# SingleSocket moves one datagram at a time, as the standard library does. May import every
# module below it; goes to the kernel only through _sys.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from fastsock cimport _linux as c
from fastsock._cmsg cimport control_size, decode_control, encode_control
from fastsock._errqueue cimport decode_error
from fastsock._gather cimport Buffers
from fastsock._sockaddr cimport decode_address, encode_address
from fastsock._socket cimport BaseSocket, integer
from fastsock._sys cimport (
    HOLD_GIL_BYTES, monotonic_ns, sys_recvfrom, sys_recvmsg, sys_send_rest, sys_sendmsg, sys_sendto,
)

cdef object MISSING = object()

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t newsize) except -1
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef enum:
    STACK_BYTES = 2048          # recv copies a small datagram from here, and allocates once
    SMALL_CONTROL = 64          # words of ancillary data for which recvmsg allocates nothing
    # Sends that must not be tried first: one may wait for the connection, each call of the
    # other has a number.
    WHOLE_CALLS = c.MSG_FASTOPEN | c.MSG_ZEROCOPY


cdef class SingleSocket(BaseSocket):
    def recv(self, Py_ssize_t bufsize, flags=0, /):
        """Receive one datagram of up to ``bufsize`` bytes, as bytes. See recv(2).

        Of a stream: what is there, up to ``bufsize``; b"" when the peer has sent its last.

        Raises:
            BlockingIOError: Nothing was waiting on a non-blocking socket (EAGAIN).
            TimeoutError: Nothing came in time.
            ConnectionRefusedError: An earlier send drew an ICMP error (ECONNREFUSED).
        """
        cdef int how = integer(flags)
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        self.refuse_joined("recv")
        self.raise_deferred(&self.deferred_recv)
        if bufsize == 0:
            return b""
        payload = receive_bytes(self, bufsize, how, NULL, NULL)
        count_received(self, how)
        return payload

    def recvfrom(self, Py_ssize_t bufsize, flags=0, /):
        """Receive one datagram as ``(bytes, address)``. Raises as ``recv``. See recvfrom(2)."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        cdef int how = integer(flags)
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        self.refuse_joined("recvfrom")
        self.raise_deferred(&self.deferred_recv)
        payload = receive_bytes(self, bufsize, how, <c.sockaddr *>&storage, &addrlen)
        count_received(self, how)
        return payload, decode_address(&storage, addrlen)

    def recv_into(self, buffer, Py_ssize_t nbytes=0, flags=0):
        """Receive one datagram into a writable ``buffer``; returns its size in bytes.

        At most ``nbytes`` of the buffer are used, or all of it where ``nbytes`` is 0. With
        MSG_TRUNC the size may exceed them. Raises as ``recv``. See recv(2).
        """
        cdef Py_buffer view
        cdef int how = integer(flags)
        self.refuse_joined("recv_into")
        self.raise_deferred(&self.deferred_recv)
        get_writable(buffer, &view)
        try:
            size = room_in(&view, nbytes, "recv_into")
            if size == 0:
                return 0
            got = sys_recvfrom(
                &self.handle, view.buf, size, how, NULL, NULL, self.timeout_ns, may_try(self, size, how)
            )
            count_received(self, how)
            return got
        finally:
            PyBuffer_Release(&view)

    def recvfrom_into(self, buffer, Py_ssize_t nbytes=0, flags=0):
        """As ``recv_into``; returns ``(nbytes, address)``."""
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = sizeof(storage)
        cdef Py_buffer view
        cdef int how = integer(flags)
        self.refuse_joined("recvfrom_into")
        self.raise_deferred(&self.deferred_recv)
        get_writable(buffer, &view)
        try:
            size = room_in(&view, nbytes, "recvfrom_into")
            got = sys_recvfrom(
                &self.handle, view.buf, size, how, <c.sockaddr *>&storage, &addrlen, self.timeout_ns,
                may_try(self, size, how),
            )
            count_received(self, how)
            return got, decode_address(&storage, addrlen)
        finally:
            PyBuffer_Release(&view)

    def recvmsg(self, Py_ssize_t bufsize, Py_ssize_t ancbufsize=0, flags=0):
        """Receive one datagram with ancillary data. Raises as ``recv``. See recvmsg(2), cmsg(3).

        Returns:
            ``(payload, ancdata, msg_flags, address)``, ancdata being a list of
            ``(cmsg_level, cmsg_type, cmsg_data)``.
        """
        cdef c.iovec iov
        cdef char stack[STACK_BYTES]
        cdef PyObject *payload = NULL
        cdef int how = integer(flags)
        if bufsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        iov.iov_base = stack
        iov.iov_len = <size_t>bufsize
        if bufsize > STACK_BYTES:
            large = PyBytes_FromStringAndSize(NULL, bufsize)
            iov.iov_base = PyBytes_AS_STRING(large)
        got, ancdata, msg_flags, address = self.receive_message(&iov, 1, ancbufsize, how)
        size = min(<Py_ssize_t>got, bufsize)        # more with MSG_TRUNC
        if bufsize <= STACK_BYTES:
            return PyBytes_FromStringAndSize(stack, size), ancdata, msg_flags, address
        payload = <PyObject *>large
        Py_INCREF(large)
        large = None                                # or it could not be resized
        _PyBytes_Resize(&payload, size)
        large = <object>payload
        Py_DECREF(large)
        return large, ancdata, msg_flags, address

    def recvmsg_into(self, buffers, Py_ssize_t ancbufsize=0, flags=0):
        """As ``recvmsg``, into writable ``buffers`` one after the other; the size comes first."""
        cdef tuple targets = tuple(buffers)
        cdef int how = integer(flags)
        cdef Buffers held = Buffers()
        held.reserve(max(1, len(targets)))
        try:
            try:
                held.hold(targets, 0, len(targets), PyBUF_WRITABLE)
            except BufferError as error:
                raise TypeError(f"recvmsg_into() needs read-write bytes-like objects: {error}") from None
            return self.receive_message(held.iov, len(targets), ancbufsize, how)
        finally:
            held.let_go()

    cdef tuple receive_message(self, c.iovec *iov, Py_ssize_t count, Py_ssize_t ancbufsize, int how):
        cdef c.sockaddr_storage storage
        cdef c.msghdr msg
        cdef size_t small[SMALL_CONTROL]
        if not 0 <= ancbufsize <= 0x7FFFFFFF:
            raise ValueError("invalid ancillary data buffer length")
        self.raise_deferred(&self.deferred_recv)
        memset(&msg, 0, sizeof(msg))
        if ancbufsize:
            msg.msg_control = small if <size_t>ancbufsize <= sizeof(small) else malloc(<size_t>ancbufsize)
            if msg.msg_control == NULL:
                raise MemoryError()
        try:
            msg.msg_name = &storage
            msg.msg_namelen = sizeof(storage)
            msg.msg_iov = iov
            msg.msg_iovlen = <size_t>count
            msg.msg_controllen = <size_t>ancbufsize
            size = sys_recvmsg(
                &self.handle, &msg, how, self.timeout_ns, may_try(self, iov_bytes(&msg), how)
            )
            count_received(self, how)
            if how & c.MSG_ERRQUEUE:
                record = decode_error(&msg, NULL, 0)
                if record is not None:
                    self.note_record(record)
            return size, decode_control(&msg), msg.msg_flags, decode_address(&storage, msg.msg_namelen)
        finally:
            if msg.msg_control != small:
                free(msg.msg_control)

    def send(self, data, flags=0, /):
        """Send one datagram to the connected peer; returns its size. See send(2).

        On a stream: how many bytes the kernel took, which may be fewer.

        Raises:
            BlockingIOError: The send buffer of a non-blocking socket is full (EAGAIN).
            OSError: EMSGSIZE for a datagram too large, EDESTADDRREQ without a peer.
        """
        cdef Py_buffer view
        cdef int how = send_flags(self, flags)
        self.raise_deferred(&self.deferred_send)
        if PyBytes_CheckExact(data):
            # The caller holds it, and nothing can change it: no buffer need be taken.
            return send_bytes(self, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), how, NULL, 0)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return send_bytes(self, <const char *>view.buf, view.len, how, NULL, 0)
        finally:
            PyBuffer_Release(&view)

    def sendall(self, data, flags=0, /):
        """Send all of ``data``, whatever it takes; on a datagram socket, as ``send``. Returns None.

        After an exception nothing tells how much of it went.
        """
        cdef Py_buffer view
        cdef Py_ssize_t done = 0
        cdef int64_t deadline = monotonic_ns() + self.timeout_ns
        cdef int64_t left = self.timeout_ns
        cdef int how = send_flags(self, flags)
        self.raise_deferred(&self.deferred_send)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            while True:
                done += sys_sendto(
                    &self.handle, <char *>view.buf + done, <size_t>(view.len - done), how, NULL, 0, left,
                    view.len - done <= HOLD_GIL_BYTES and not how & WHOLE_CALLS,
                )
                c.fastsock_count(&self._sent, 1)
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
        cdef Py_buffer view
        cdef int flags = 0
        if address is MISSING:
            address = flags_or_address
        else:
            flags = send_flags(self, flags_or_address)
        self.raise_deferred(&self.deferred_send)
        if PyBytes_CheckExact(data):
            return self.send_to_peer(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), flags, address)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.send_to_peer(<const char *>view.buf, view.len, flags, address)
        finally:
            PyBuffer_Release(&view)

    cdef ssize_t send_to_peer(self, const char *data, Py_ssize_t size, int flags, object address) except -1:
        cdef c.sockaddr_storage storage
        cdef c.socklen_t addrlen = 0
        self.encode_peer(address, &storage, &addrlen)
        PySys_Audit("socket.sendto", "OO", <PyObject *>self, <PyObject *>address)
        return send_bytes(self, data, size, flags, <c.sockaddr *>&storage, addrlen)

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
        cdef Buffers held
        cdef bint hold_gil
        cdef int error = 0
        cdef int how = send_flags(self, flags)
        self.raise_deferred(&self.deferred_send)
        memset(&msg, 0, sizeof(msg))
        if address is not None:
            encode_address(self._family, address, "sendmsg", &storage, &msg.msg_namelen)
            msg.msg_name = &storage
            PySys_Audit("socket.sendmsg", "OO", <PyObject *>self, <PyObject *>address)
        else:
            PySys_Audit("socket.sendmsg", "OO", <PyObject *>self, <PyObject *>None)
        held = Buffers()
        held.reserve(max(1, len(payloads)))
        if controllen:
            msg.msg_control = malloc(controllen)
        try:
            if controllen:
                if msg.msg_control == NULL:
                    raise MemoryError()
                msg.msg_controllen = controllen
                encode_control(items, &msg)
            held.hold(payloads, 0, len(payloads), PyBUF_SIMPLE)
            msg.msg_iov = held.iov
            msg.msg_iovlen = <size_t>len(payloads)
            # A stream that waits takes all that it is given in one call: see send_bytes.
            hold_gil = iov_bytes(&msg) <= HOLD_GIL_BYTES and not (self._type == c.SOCK_STREAM and self.timeout_ns < 0)
            size = sys_sendmsg(&self.handle, &msg, how, self.timeout_ns, hold_gil, &error)
            c.fastsock_count(&self._sent, 1)
            return size
        finally:
            held.let_go()
            free(msg.msg_control)

    cdef int encode_peer(self, object address, c.sockaddr_storage *storage, c.socklen_t *addrlen) except -1:
        """As encode_address; the tuple that was sent to last time is not read again."""
        with cython.critical_section(self):
            if address is self.peer and self.peer_name.ss_family == self._family:
                memcpy(storage, &self.peer_name, self.peer_namelen)
                addrlen[0] = self.peer_namelen
                return 0
        if encode_address(self._family, address, "sendto", storage, addrlen):
            with cython.critical_section(self):
                self.peer = address
                self.peer_namelen = addrlen[0]
                memcpy(&self.peer_name, storage, addrlen[0])
        return 0

    cdef ssize_t send_rest(self, const char *data, Py_ssize_t size, int flags) noexcept:
        """Of a stream that waits send(2) takes all; the first try took what there was room for."""
        cdef int error = 0
        cdef ssize_t sent = sys_send_rest(&self.handle, data, <size_t>size, flags, &error)
        if error and error != c.EPIPE:
            # The socket has forgotten it now, and whoever comes next must hear of it.
            self.deferred_send = self.deferred_recv = error
        return sent


# --- helpers ---------------------------------------------------------------------------------------------

cdef inline int send_flags(SingleSocket sock, object flags) except? -1:
    """Flags of a send; MSG_ZEROCOPY not beside send_zerocopy, whose count it would upset."""
    cdef int how = integer(flags)
    if how & c.MSG_ZEROCOPY and sock.zerocopy_epoch:
        raise ValueError("MSG_ZEROCOPY after send_zerocopy() would mix up which buffers the kernel still reads")
    return how


cdef inline ssize_t send_bytes(
    SingleSocket self, const char *data, Py_ssize_t size, int flags, const c.sockaddr *addr, c.socklen_t addrlen
) except -1:
    cdef ssize_t sent = sys_sendto(
        &self.handle, data, <size_t>size, flags, addr, addrlen, self.timeout_ns,
        size <= HOLD_GIL_BYTES and not flags & WHOLE_CALLS,
    )
    c.fastsock_count(&self._sent, 1)
    if sent < size and self.timeout_ns < 0 and not flags & c.MSG_DONTWAIT:
        sent += self.send_rest(data + sent, size - sent, flags)
    return sent


cdef inline bint may_try(SingleSocket sock, size_t size, int flags) noexcept:
    """Whether a receive may be tried without waiting. MSG_WAITALL and SO_RCVLOWAT would not be heard."""
    return size <= HOLD_GIL_BYTES and not flags & c.MSG_WAITALL and not sock.low_water


cdef size_t iov_bytes(const c.msghdr *msg) noexcept:
    cdef size_t total = 0
    cdef size_t i
    for i in range(msg.msg_iovlen):
        total += msg.msg_iov[i].iov_len
    return total


cdef inline void count_received(SingleSocket sock, int flags) noexcept:
    if not flags & (c.MSG_PEEK | c.MSG_ERRQUEUE):
        c.fastsock_count(&sock._received, 1)


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


cdef size_t room_in(Py_buffer *view, Py_ssize_t nbytes, str caller) except? 0:
    if nbytes < 0:
        raise ValueError(f"negative buffersize in {caller}")
    if nbytes > view.len:
        raise ValueError("nbytes is greater than the length of the buffer")
    return <size_t>(nbytes if nbytes else view.len)


cdef bytes receive_bytes(
    SingleSocket sock, Py_ssize_t bufsize, int flags, c.sockaddr *addr, c.socklen_t *addrlen
):
    cdef char stack[STACK_BYTES]
    cdef ssize_t size
    cdef PyObject *payload
    cdef bint hold_gil = may_try(sock, <size_t>bufsize, flags)
    if bufsize <= STACK_BYTES:
        size = sys_recvfrom(
            &sock.handle, stack, <size_t>bufsize, flags, addr, addrlen, sock.timeout_ns, hold_gil
        )
        return PyBytes_FromStringAndSize(stack, min(size, bufsize))     # MSG_TRUNC: size may exceed
    whole = PyBytes_FromStringAndSize(NULL, bufsize)
    size = sys_recvfrom(
        &sock.handle, PyBytes_AS_STRING(whole), <size_t>bufsize, flags, addr, addrlen, sock.timeout_ns, hold_gil
    )
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
