# Epoll: an interest set in the kernel, and the readiness of what is in it. What it raises,
# and in which order it looks at its arguments, is select.epoll's (Modules/selectmodule.c).
# May import _linux, _sys and integer(); goes to the kernel only through _sys.

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.list cimport PyList_New
from cpython.long cimport PyLong_AsUnsignedLongMask
from cpython.object cimport PyObject
from libc.limits cimport INT_MAX, INT_MIN
from libc.math cimport ceil, floor
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset
from fastsock cimport _linux as c
from fastsock._socket cimport integer
from fastsock._sys cimport fork_epoch, sys_close, sys_epoll_create1, sys_epoll_ctl, sys_epoll_wait

cdef extern from "Python.h":
    int PyObject_AsFileDescriptor(object file) except -1
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    # On pointers, because a cast to object counts a reference up and down.
    void PyList_SET_ITEM(PyObject *list, Py_ssize_t index, PyObject *item)
    void c_incref "Py_INCREF"(PyObject *object)
    void c_xdecref "Py_XDECREF"(PyObject *object)

cdef enum:
    DEFAULT_EVENTS = 1023       # of one poll(): FD_SETSIZE - 1, as select.epoll
    MOST_KEPT = 1 << 20         # events that an array may have room for and be kept
    MOST_REPORTED = 1 << 16     # descriptors of which poll() keeps what it returned


cdef class Epoll:
    """An epoll instance, with the methods and errors of ``select.epoll``.

    Args:
        sizehint: Positive or -1; the kernel ignores it.
        flags: 0 or EPOLL_CLOEXEC; the descriptor is never inheritable.

    Several threads may use one at a time, and each sees its own events. See epoll(7).
    """

    def __cinit__(self):
        self.handle.fd = -1

    def __init__(self, sizehint=-1, flags=0):
        cdef int hint = integer(sizehint)
        cdef int how = integer(flags)
        if hint <= 0 and hint != -1:
            raise ValueError("negative sizehint")
        if how and how != c.EPOLL_CLOEXEC:
            raise OSError("invalid flags")
        if self.opened:
            raise RuntimeError("an epoll object is opened once")
        self.handle.fd = sys_epoll_create1(c.EPOLL_CLOEXEC)
        self.opened = True

    @classmethod
    def fromfd(cls, fd):
        """Make an object of an epoll descriptor, which it owns from then on."""
        cdef int at = integer(fd)
        if at < 0:
            raise ValueError("negative file descriptor")
        cdef Epoll made = cls.__new__(cls)
        made.handle.fd = at
        made.opened = True
        return made

    def __dealloc__(self):
        cdef int at
        self.close_fd()
        free(self.events)
        for at in range(self.reported_room):
            c_xdecref(self.reported[at].pair)
        free(self.reported)

    def __enter__(self):
        self.check_open()
        return self

    def __exit__(self, exc_type=None, exc_value=None, exc_tb=None, /):
        self.close()

    # --- the descriptor ---------------------------------------------------------------------

    def close(self):
        """Close the descriptor; closing it again does nothing. See close(2).

        A thread that waits in ``poll`` goes on waiting, as the kernel has it.
        """
        self.close_fd()

    cdef int close_fd(self) except -1:
        cdef int fd = c.fastsock_exchange(&self.handle.fd, -1)
        if fd >= 0:
            try:
                sys_close(fd)
            except OSError:
                pass            # EBADF: closed behind its back, which select.epoll does not tell either
        return 0

    @property
    def closed(self):
        """Whether the descriptor is closed."""
        return self.handle.fd < 0

    def fileno(self):
        """Return the epoll descriptor itself, which can be waited for in turn."""
        self.check_open()
        return self.handle.fd

    cdef int check_open(self) except -1:
        if self.handle.fd < 0:
            raise ValueError("I/O operation on closed epoll object")
        return 0

    # --- interest -----------------------------------------------------------------------------

    def register(self, fd, eventmask=c.EPOLLIN | c.EPOLLPRI | c.EPOLLOUT):
        """Add ``fd``, a number or what has ``fileno()``, to the interest set.

        Args:
            eventmask: EPOLLIN and the others of the ``select`` module, or-ed.

        Raises:
            FileExistsError: It is there (EEXIST).
            PermissionError: It is always ready, as a regular file (EPERM).

        Holds the GIL. See epoll_ctl(2), EPOLL_CTL_ADD.
        """
        self.control(c.EPOLL_CTL_ADD, PyObject_AsFileDescriptor(fd), <uint32_t>PyLong_AsUnsignedLongMask(eventmask))

    def modify(self, fd, eventmask):
        """Change what is waited for at ``fd``.

        Raises FileNotFoundError where it is not registered (ENOENT). Holds the GIL. See
        epoll_ctl(2), EPOLL_CTL_MOD.
        """
        self.control(c.EPOLL_CTL_MOD, PyObject_AsFileDescriptor(fd), <uint32_t>PyLong_AsUnsignedLongMask(eventmask))

    def unregister(self, fd):
        """Take ``fd`` out of the interest set.

        Raises FileNotFoundError where it is not registered (ENOENT), OSError where it is
        closed (EBADF): the kernel itself forgets a file that is closed. Holds the GIL. See
        epoll_ctl(2), EPOLL_CTL_DEL.
        """
        self.control(c.EPOLL_CTL_DEL, PyObject_AsFileDescriptor(fd), 0)

    cdef int control(self, int op, int fd, uint32_t events) except -1:
        self.check_open()
        return sys_epoll_ctl(self.handle.fd, op, fd, events)

    # --- readiness ------------------------------------------------------------------------------

    def poll(self, timeout=None, maxevents=-1):
        """Wait until something is ready, at most ``timeout`` seconds.

        Args:
            timeout: Rounded up to milliseconds. None or negative: without end.
            maxevents: The most to return, at least 1; -1 is 1023. The rest comes first
                with the next call.

        Returns:
            ``[(fd, events)]``, empty when time was up; ``events`` are EPOLLIN and the others of
            the ``select`` module, or-ed.

        Raises:
            ValueError: The object is closed, ``maxevents`` is below 1, ``timeout`` is NaN.
            OverflowError: ``timeout`` is over 2147483.647 seconds.
            OSError: A signal handler closed the object (EBADF).

        Holds the GIL while it tries, and releases it to wait. Restarts on EINTR (PEP 475). See
        epoll_wait(2).
        """
        cdef Lent lent
        cdef int most = integer(maxevents)
        self.check_open()
        cdef int64_t timeout_ns = duration_ns(timeout)
        if most == -1:
            most = DEFAULT_EVENTS
        elif most < 1:
            raise ValueError(f"maxevents must be greater than 0, got {most}")
        self.lend(most, &lent)
        try:
            return self.event_list(lent.events, sys_epoll_wait(&self.handle, lent.events, most, timeout_ns))
        finally:
            self.give_back(&lent)

    def wait_into(self, fds, events, timeout=None):
        """As ``poll``, but write into two arrays; no object is made per event.

        Args:
            fds: Writable array of 32-bit integers, as ``array("i", bytes(4096))`` or NumPy's
                int32: the descriptors. Beyond what is returned it is left alone.
            events: Another: the events of each.
            timeout: As for ``poll``.

        Returns:
            How many are ready, as many as fit in the shorter array; 0 when time was up.

        Raises:
            TypeError: Not contiguous, not writable, or not of 32-bit integers.
            ValueError: An array is empty; and as ``poll``.

        GIL and EINTR as ``poll``; the arrays cannot be resized meanwhile. See epoll_wait(2).
        """
        cdef Lent lent
        cdef Py_buffer fd_view, event_view
        cdef int count, most
        cdef Py_ssize_t room
        self.check_open()
        cdef int64_t timeout_ns = duration_ns(timeout)
        export_int32("fds", fds, &fd_view)
        try:
            export_int32("events", events, &event_view)
            try:
                room = min(fd_view.len, event_view.len) // <Py_ssize_t>sizeof(int32_t)
                most = <int>min(room, INT_MAX // <Py_ssize_t>sizeof(c.epoll_event))     # EP_MAX_EVENTS
                self.lend(most, &lent)
                try:
                    count = sys_epoll_wait(&self.handle, lent.events, most, timeout_ns)
                    copy_events(lent.events, count, <int32_t *>fd_view.buf, <uint32_t *>event_view.buf)
                    return count
                finally:
                    self.give_back(&lent)
            finally:
                PyBuffer_Release(&event_view)
        finally:
            PyBuffer_Release(&fd_view)

    # --- the array ------------------------------------------------------------------------------

    cdef int lend(self, int maxevents, Lent *lent) except -1:
        """Have room for `maxevents` until `give_back`; nothing is kept where this raises."""
        cdef int wanted
        cdef c.epoll_event *grown
        lent.own = maxevents <= MOST_KEPT and c.fastsock_flag_acquire(&self.owner, fork_epoch())
        if lent.own and maxevents <= self.capacity:
            lent.events = self.events
            return 0
        wanted = max(maxevents, 2 * self.capacity) if lent.own else maxevents
        grown = <c.epoll_event *>malloc(<size_t>wanted * sizeof(c.epoll_event))
        if grown == NULL:
            if lent.own:
                c.fastsock_flag_release(&self.owner)
            raise MemoryError()
        if lent.own:
            free(self.events)
            self.events = grown
            self.capacity = wanted
        lent.events = grown
        return 0

    cdef void give_back(self, Lent *lent) noexcept:
        if lent.own:
            c.fastsock_flag_release(&self.owner)
        else:
            free(lent.events)

    # --- what poll() returns ----------------------------------------------------------------------

    cdef list event_list(self, const c.epoll_event *events, int count):
        cdef int i, fd
        cdef PyObject *pair
        cdef list result = PyList_New(count)
        with cython.critical_section(self):
            for i in range(count):
                fd = events[i].data.fd
                if 0 <= fd < self.reported_room and self.reported[fd].pair != NULL and (
                    self.reported[fd].events == events[i].events
                ):
                    pair = self.reported[fd].pair
                    c_incref(pair)
                else:
                    pair = self.new_pair(fd, events[i].events)
                PyList_SET_ITEM(<PyObject *>result, i, pair)
        return result

    cdef PyObject *new_pair(self, int fd, uint32_t events) except NULL:
        """A new reference to (fd, events), which the next event_list finds."""
        cdef PyObject *old
        cdef object pair = (fd, events)
        if self.make_room(fd):
            old = self.reported[fd].pair
            c_incref(<PyObject *>pair)
            self.reported[fd].pair = <PyObject *>pair
            self.reported[fd].events = events
            c_xdecref(old)
        c_incref(<PyObject *>pair)
        return <PyObject *>pair

    cdef bint make_room(self, int fd) noexcept:
        """Whether there is room to remember what was reported of `fd`."""
        cdef Reported *grown
        cdef int room = max(self.reported_room, 64)
        if not 0 <= fd < MOST_REPORTED:
            return False
        if fd < self.reported_room:
            return True
        while room <= fd:
            room *= 2
        grown = <Reported *>realloc(self.reported, <size_t>room * sizeof(Reported))
        if grown == NULL:
            return False
        memset(&grown[self.reported_room], 0, <size_t>(room - self.reported_room) * sizeof(Reported))
        self.reported = grown
        self.reported_room = room
        return True


cdef void copy_events(const c.epoll_event *events, int count, int32_t *fds, uint32_t *masks) noexcept:
    cdef int i
    for i in range(count):
        fds[i] = events[i].data.fd
        masks[i] = events[i].events


cdef int export_int32(str name, object array, Py_buffer *view) except -1:
    """Export a writable array of at least one 32-bit integer; released by the caller."""
    cdef const char *format
    cdef const char *wanted = b"iIlL"
    cdef bint found = False
    try:
        PyObject_GetBuffer(array, view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    except (TypeError, ValueError, BufferError) as error:     # NumPy: ValueError
        raise TypeError(
            f"{name} must be a writable, contiguous array of 32-bit integers, not {type(array).__name__}"
        ) from error
    format = view.format
    if format != NULL and format[0] in (b"@", b"="):
        format += 1
    if format != NULL and format[0] != 0 and format[1] == 0:
        while wanted[0] != 0 and not found:
            found = wanted[0] == format[0]
            wanted += 1
    try:
        if not found or view.itemsize != sizeof(int32_t):
            text = "bytes" if view.format == NULL else (<bytes>view.format).decode()
            raise TypeError(f"{name} must be an array of 32-bit integers, not of {view.itemsize} bytes ({text!r}) each")
        if view.len == 0:
            raise ValueError(f"{name} is empty")
    except BaseException:
        PyBuffer_Release(view)
        raise
    return 0


cdef int64_t duration_ns(object seconds) except? -2:
    """Nanoseconds of a time-out that fits an int of milliseconds; -1: without end.

    As select.epoll takes it: rounded away from zero, an int or a float.
    """
    cdef double exact
    cdef long long whole
    cdef int overflow = 0
    cdef int64_t ns
    if seconds is None:
        return -1
    if isinstance(seconds, float):
        exact = <double>seconds
        if exact != exact:
            raise ValueError("Invalid value NaN (not a number)")
        exact *= 1e9
        exact = ceil(exact) if exact >= 0 else floor(exact)
        if not (<double>INT64_MIN <= exact < -<double>INT64_MIN):
            raise OverflowError("timestamp out of range for platform time_t")
        ns = <int64_t>exact
    else:
        if isinstance(seconds, int):
            whole = PyLong_AsLongLongAndOverflow(seconds, &overflow)
        else:
            try:
                whole = PyLong_AsLongLongAndOverflow(seconds, &overflow)
            except TypeError:
                raise TypeError("timeout must be an integer or None") from None
        if overflow or not (-(INT64_MAX // 1_000_000_000) <= whole <= INT64_MAX // 1_000_000_000):
            raise OverflowError("timestamp too large to convert to C PyTime_t")
        ns = whole * 1_000_000_000
    if ns > <int64_t>INT_MAX * 1_000_000 or ns <= (<int64_t>INT_MIN - 1) * 1_000_000:
        raise OverflowError("timeout is too large")
    return ns if ns >= 0 else -1
