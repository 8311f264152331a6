# The interest set, and an array that its events wait into.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from fastsock cimport _linux as c
from fastsock._sys cimport Handle


# An array of events that nobody else writes: the object's own, or one of the call's own
# where another thread, or this one further up, has that.
cdef struct Lent:
    c.epoll_event *events
    bint own


# What poll() returned last of a descriptor: the same again, most of the time.
cdef struct Reported:
    PyObject *pair                      # (fd, events); NULL: nothing yet
    uint32_t events


cdef class Epoll:
    cdef Handle handle
    cdef bint opened
    cdef c.epoll_event *events
    cdef int capacity
    cdef uint64_t owner                 # who waits into `events`: see fastsock_flag_acquire

    cdef Reported *reported             # by descriptor
    cdef int reported_room

    cdef int close_fd(self) except -1
    cdef int check_open(self) except -1
    cdef int control(self, int op, int fd, uint32_t events) except -1
    cdef int lend(self, int maxevents, Lent *lent) except -1
    cdef void give_back(self, Lent *lent) noexcept
    cdef list event_list(self, const c.epoll_event *events, int count)
    cdef PyObject *new_pair(self, int fd, uint32_t events) except NULL
    cdef bint make_room(self, int fd) noexcept


cdef int64_t duration_ns(object seconds) except? -2
