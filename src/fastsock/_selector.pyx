# What EpollSelector does for each call and each event; its class is put together in
# fastsock/selectors.py. What it raises and returns is that of selectors.EpollSelector.
# May import _linux and _epoll; makes no system call of its own.

cimport cython
from cpython.list cimport PyList_New
from cpython.object cimport PyObject
from libc.math cimport ceil
from libc.stdint cimport int64_t, uint32_t
from fastsock cimport _linux as c
from fastsock._epoll cimport Epoll, Lent, duration_ns
from fastsock._sys cimport sys_epoll_wait

import math
from collections.abc import Mapping
from selectors import SelectorKey

cdef extern from "Python.h":
    int PyObject_AsFileDescriptor(object file) except -1
    PyObject *PyList_GET_ITEM(PyObject *list, Py_ssize_t index)
    void PyList_SET_ITEM(PyObject *list, Py_ssize_t index, PyObject *item)
    void c_incref "Py_INCREF"(PyObject *object)

cdef enum:
    READ = 1                # selectors.EVENT_READ
    WRITE = 2               # selectors.EVENT_WRITE
    LONGEST_S = 2_000_000   # a time-out that surely fits an int of milliseconds


@cython.final
cdef class Interest:
    """A key, and what select() returned of it last: the same again, most of the time."""

    cdef object key
    cdef int fd
    cdef int readiness          # READ and WRITE, before key.events is applied; -1: none yet
    cdef tuple reported         # (key, readiness & key.events)

    cdef int report(self, int readiness) except -1:
        self.reported = (self.key, readiness & self.key.events)
        self.readiness = readiness
        return 0


cdef class KeyMap:
    """Registered keys by file object or descriptor; a view of what is registered now."""

    cdef dict interests

    def __len__(self):
        return len(self.interests)

    def __iter__(self):
        return iter(self.interests)

    def __getitem__(self, fileobj):
        interest = self.interests.get(find_fd(self.interests, fileobj))
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return (<Interest>interest).key

    def get(self, fileobj, default=None):
        """Return the key of a file object or descriptor, or ``default``."""
        interest = self.interests.get(find_fd(self.interests, fileobj))
        return default if interest is None else (<Interest>interest).key


class SelectorMap(KeyMap, Mapping):
    """Registered keys by file object or descriptor; a view of what is registered now."""


@cython.no_gc_clear     # the interest set may be used while a garbage cycle is taken apart
cdef class BaseEpollSelector:
    cdef Epoll epoll
    cdef dict interests         # by descriptor, in the order of registration
    cdef list by_fd             # the same by index: finding one takes no int object
    cdef object keys            # a SelectorMap; None once closed

    def __cinit__(self):
        cdef KeyMap keys = SelectorMap()
        self.epoll = Epoll()
        self.interests = keys.interests = {}
        self.by_fd = []
        self.keys = keys

    def __init__(self):
        pass

    def fileno(self):
        """Return the descriptor of the epoll instance."""
        return self.epoll.fileno()

    def close(self):
        """Close the epoll instance and forget all keys; closing again does nothing."""
        self.epoll.close()
        with cython.critical_section(self):
            del self.by_fd[:]
            self.interests.clear()
            self.keys = None

    def get_map(self):
        """Return a mapping of file objects to keys, always up to date; None once closed."""
        with cython.critical_section(self):
            return self.keys

    # --- interest -----------------------------------------------------------------------------

    def register(self, fileobj, events, data=None):
        """Watch ``fileobj``, a descriptor or what has ``fileno()``.

        Args:
            events: EVENT_READ, EVENT_WRITE or both.
            data: Anything; in the key that is returned, now and by ``select``.

        Raises:
            ValueError: ``events`` or ``fileobj`` is not valid, or the selector is closed.
            KeyError: ``fileobj`` is registered.
            OSError: The kernel refuses it, as EPERM for a regular file.

        See epoll_ctl(2), EPOLL_CTL_ADD.
        """
        if not events or events & ~(READ | WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        cdef object fd = find_fd(self.interests, fileobj)
        cdef int at = PyObject_AsFileDescriptor(fd)
        with cython.critical_section(self):
            if fd in self.interests:
                raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
            self.epoll.control(c.EPOLL_CTL_ADD, at, event_mask(events))
            return self.place(at, fileobj, fd, events, data)

    def unregister(self, fileobj):
        """Watch ``fileobj`` no longer, and return its key.

        One that is closed, and has no descriptor any more, is found all the same. Raises
        KeyError where it is not registered. See epoll_ctl(2), EPOLL_CTL_DEL.
        """
        cdef Interest interest
        with cython.critical_section(self):
            interest = self.remove(fileobj)
            try:
                self.epoll.control(c.EPOLL_CTL_DEL, interest.fd, 0)
            except OSError:
                pass            # closed since, and with that out of the interest set
            return interest.key

    def modify(self, fileobj, events, data=None):
        """Change ``events`` or ``data`` of a key; returns the new one.

        Raises KeyError where ``fileobj`` is not registered; OSError, and it is no longer registered,
        where the kernel refuses. See epoll_ctl(2), EPOLL_CTL_MOD.
        """
        cdef Interest interest
        cdef bint changed = False
        with cython.critical_section(self):
            found = self.interests.get(find_fd(self.interests, fileobj))
            if found is None:
                raise KeyError(f"{fileobj!r} is not registered")
            interest = found
            registered, fd, old_events, old_data = interest.key
            if events != old_events:
                mask = event_mask(events)
                try:
                    self.epoll.control(c.EPOLL_CTL_MOD, interest.fd, mask)
                except BaseException:
                    self.remove(fileobj)
                    raise
                changed = True
            if changed or data != old_data:
                return self.place(interest.fd, registered, fd, events, data)
            return interest.key

    cdef object place(self, int at, object fileobj, object fd, object events, object data):
        """Put a new key in the place of `fd`."""
        cdef Interest interest = Interest.__new__(Interest)
        interest.key = tuple.__new__(SelectorKey, (fileobj, fd, events, data))
        interest.fd = at
        interest.readiness = -1
        if at >= len(self.by_fd):
            self.by_fd.extend([None] * (at + 1 - len(self.by_fd)))
        self.by_fd[at] = interest
        self.interests[fd] = interest
        return interest.key

    cdef Interest remove(self, object fileobj):
        found = self.interests.pop(find_fd(self.interests, fileobj), None)
        if found is None:
            raise KeyError(f"{fileobj!r} is not registered")
        cdef Interest interest = found
        self.by_fd[interest.fd] = None
        return interest

    # --- readiness ------------------------------------------------------------------------------

    def select(self, timeout=None):
        """Wait until something is ready, at most ``timeout`` seconds.

        Args:
            timeout: Rounded up to milliseconds. None: without end; 0 or negative: not at all.

        Returns:
            ``[(key, events)]``, empty when time was up; ``events`` are those of EVENT_READ and
            EVENT_WRITE that were asked for and are there. An error or a hang-up is both.

        Raises:
            ValueError: The selector is closed.

        Holds the GIL while it tries, and releases it to wait. Restarts on EINTR (PEP 475); where a
        signal handler raises InterruptedError the list is empty. See epoll_wait(2).
        """
        cdef Lent lent
        cdef Epoll epoll = self.epoll
        cdef int most = max(<int>len(self.interests), 1)
        cdef int64_t timeout_ns = selection_ns(timeout)
        epoll.check_open()
        epoll.lend(most, &lent)
        try:
            return self.ready_list(lent.events, sys_epoll_wait(&epoll.handle, lent.events, most, timeout_ns))
        except InterruptedError:
            return []
        finally:
            epoll.give_back(&lent)

    cdef list ready_list(self, const c.epoll_event *events, int count):
        """(key, events) of each that is still registered."""
        cdef int i, fd, readiness
        cdef int filled = 0
        cdef PyObject *found
        cdef Interest interest
        cdef list result = PyList_New(count)
        with cython.critical_section(self):
            for i in range(count):
                fd = events[i].data.fd
                # Anew each time: making a tuple may run a finalizer, and that anything.
                if fd >= len(self.by_fd):
                    continue
                found = PyList_GET_ITEM(<PyObject *>self.by_fd, fd)
                if found == <PyObject *>None:
                    continue
                readiness = (WRITE if events[i].events & ~<uint32_t>c.EPOLLIN else 0) | (
                    READ if events[i].events & ~<uint32_t>c.EPOLLOUT else 0
                )
                interest = <Interest>found
                if interest.readiness != readiness:
                    interest.report(readiness)
                c_incref(<PyObject *>interest.reported)
                PyList_SET_ITEM(<PyObject *>result, filled, <PyObject *>interest.reported)
                filled += 1
        if filled < count:
            del result[filled:]
        return result


cdef uint32_t event_mask(object events) except? 0xFFFFFFFF:
    cdef int wanted = events & (READ | WRITE)
    return <uint32_t>((c.EPOLLIN if wanted & READ else 0) | (c.EPOLLOUT if wanted & WRITE else 0))


cdef object find_fd(dict interests, object fileobj):
    """The descriptor of a file object; of a closed one by search. ValueError where there is none."""
    cdef Interest interest
    if isinstance(fileobj, int):
        fd = fileobj
    else:
        fd = None
        try:
            fd = int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            pass
    if fd is not None and fd >= 0:
        return fd
    for interest in list(interests.values()):
        if interest.key.fileobj is fileobj:
            return interest.key.fd
    if fd is None:
        raise ValueError(f"Invalid file object: {fileobj!r}")
    raise ValueError(f"Invalid file descriptor: {fd}")


cdef int64_t selection_ns(object timeout) except? -2:
    """As `duration_ns`, but below zero is not at all."""
    cdef double exact
    if timeout is None:
        return -1
    if isinstance(timeout, float):
        exact = <double>timeout
        if exact <= 0:
            return 0
        if exact < LONGEST_S:
            return <int64_t>ceil(exact * 1e3) * 1_000_000
    elif timeout <= 0:
        return 0
    return duration_ns(math.ceil(timeout * 1e3) * 1e-3)     # which refuses what cannot be
