# Checked system calls: the only crossing into the kernel. Each sys_<call> returns what
# the call returns or raises the OSError that errno names. A call that may wait takes a
# Handle: the descriptor may be closed meanwhile. Imports only _linux.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from fastsock cimport _linux as c

# Up to this many datagrams, or bytes, a call is tried with the GIL held.
cdef enum:
    HOLD_GIL_DATAGRAMS = 64
    HOLD_GIL_BYTES = 65536
    SENDMMSG_MAX = 1024
    HOLD_GIL_EVENTS = 16384     # of epoll: a millisecond, when all are ready

# A descriptor that may be closed while a call waits: -1 then. `drain` empties the error
# queue of a socket that has one, else it is NULL; it returns whether a call that failed
# may have failed for a peer that it has nothing to do with, and sets `error` to an errno
# that a connected socket owes the caller. `reports` counts the ICMP errors that were taken
# from the queue; `seen` is its value when the call began.
ctypedef bint (*Drain)(void *owner, uint64_t *seen, int *error) except -1

cdef struct Handle:
    int fd
    Drain drain
    void *owner
    uint64_t reports

cdef int raise_errno(int err) except -1
cdef int fork_epoch() noexcept
cdef int64_t monotonic_ns() noexcept nogil

cdef int sys_socket(int family, int type, int protocol) except -1
cdef int sys_close(int fd) except -1
cdef int sys_bind(int fd, const c.sockaddr *addr, c.socklen_t addrlen) except -1
cdef int sys_connect(
    Handle *handle, const c.sockaddr *addr, c.socklen_t addrlen, int64_t timeout_ns, int *error
) except -1
cdef int sys_listen(int fd, int backlog) except -1
cdef int sys_accept(Handle *handle, c.sockaddr *addr, c.socklen_t *addrlen, int64_t timeout_ns) except -1
cdef int sys_shutdown(int fd, int how) except -1
cdef int sys_getsockname(int fd, c.sockaddr *addr, c.socklen_t *addrlen) except -1
cdef int sys_getpeername(int fd, c.sockaddr *addr, c.socklen_t *addrlen) except -1
cdef int sys_getsockopt(int fd, int level, int optname, void *optval, c.socklen_t *optlen) except -1
cdef int sys_setsockopt(int fd, int level, int optname, const void *optval, c.socklen_t optlen) except -1
cdef int sys_fcntl(int fd, int cmd, long arg) except -1
cdef int sys_set_nonblocking(int fd, bint nonblocking) except -1


# The first try of the two calls that move one datagram is inlined, and nothing is prepared for a wait
# before it is needed. `hold_gil` allows it.

cdef inline ssize_t sys_recvfrom(
    Handle *handle, void *buf, size_t size, int flags, c.sockaddr *addr, c.socklen_t *addrlen, int64_t timeout_ns,
    bint hold_gil,
) except -1:
    cdef ssize_t rc
    cdef uint64_t reports = handle.reports
    cdef c.socklen_t room = addrlen[0] if addrlen != NULL else 0
    if hold_gil:
        rc = c.recvfrom(handle.fd, buf, size, flags | c.MSG_DONTWAIT, addr, addrlen)
        if rc >= 0:
            return rc
    return sys_recvfrom_again(handle, buf, size, flags, addr, addrlen, room, timeout_ns, hold_gil, reports)

cdef inline ssize_t sys_sendto(
    Handle *handle, const void *buf, size_t size, int flags, const c.sockaddr *addr, c.socklen_t addrlen,
    int64_t timeout_ns, bint hold_gil,
) except -1:
    cdef ssize_t rc
    cdef uint64_t reports = handle.reports
    if hold_gil:
        rc = c.sendto(handle.fd, buf, size, flags | c.MSG_DONTWAIT, addr, addrlen)
        if rc >= 0:
            return rc
    return sys_sendto_again(handle, buf, size, flags, addr, addrlen, timeout_ns, hold_gil, reports)

cdef ssize_t sys_recvfrom_again(
    Handle *handle, void *buf, size_t size, int flags, c.sockaddr *addr, c.socklen_t *addrlen, c.socklen_t room,
    int64_t timeout_ns, bint tried, uint64_t reports,
) except -1
cdef ssize_t sys_sendto_again(
    Handle *handle, const void *buf, size_t size, int flags, const c.sockaddr *addr, c.socklen_t addrlen,
    int64_t timeout_ns, bint tried, uint64_t reports,
) except -1
cdef ssize_t sys_send_rest(Handle *handle, const char *data, size_t size, int flags, int *error) noexcept
cdef ssize_t sys_recvmsg(Handle *handle, c.msghdr *msg, int flags, int64_t timeout_ns, bint hold_gil) except -1
cdef ssize_t sys_sendmsg(
    Handle *handle, c.msghdr *msg, int flags, int64_t timeout_ns, bint hold_gil, int *error
) except -1
cdef int sys_recvmmsg(
    Handle *handle, c.mmsghdr *msgvec, unsigned int vlen, int flags, int64_t timeout_ns, bint hold_gil
) except -1
cdef int sys_recvmmsg_queued(
    int fd, c.mmsghdr *msgvec, unsigned int vlen, int flags, bint hold_gil, int *error
) noexcept
cdef int sys_sendmmsg(
    Handle *handle, c.mmsghdr *msgvec, unsigned int vlen, int flags, int64_t timeout_ns, bint hold_gil, int *error
) except -1
cdef ssize_t sys_recv_error(int fd, c.msghdr *msg) except -2
cdef bint sys_try_sendmsg(int fd, const c.msghdr *msg, int flags) noexcept
cdef bint sys_is_hung_up(int fd) noexcept
cdef int sys_getifaddrs(c.ifaddrs **ifap) except -1

cdef int sys_epoll_create1(int flags) except -1
cdef int sys_epoll_ctl(int epfd, int op, int fd, uint32_t events) except -1
cdef int sys_epoll_wait(Handle *handle, c.epoll_event *events, int maxevents, int64_t timeout_ns) except -1

cdef int sys_memfd_create(const char *name, unsigned int flags) except -1
cdef int sys_ftruncate(int fd, int64_t size) except -1
cdef int64_t sys_fstat_size(int fd) except -1
cdef void *sys_mmap(size_t size, int fd) except NULL
cdef int sys_munmap(void *start, size_t size) except -1
cdef int sys_lock(int fd, bint alone) except -1
cdef int sys_open(const char *path, int flags) except -1
cdef int sys_eventfd(int flags) except -1
cdef int sys_write_event(int fd) except -1
cdef bint sys_poll_in(const Handle *handle, int64_t timeout_ns) except -1
