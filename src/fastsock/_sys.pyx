# Checked system calls. The rules that hold for every one of them, and live only here:
#
# * errno becomes an OSError through PyErr_SetFromErrno, which picks the subclass.
# * EINTR runs the signal handlers and restarts with what is left of the time (PEP 475).
#   So does errno 512, which recvmmsg leaves in SO_ERROR (see _compat.h).
# * timeout_ns says how a call waits: -1 in the kernel, 0 not at all, > 0 in ppoll
#   against a deadline, after which it raises TimeoutError.
# * A short call is tried once with MSG_DONTWAIT and the GIL held, because giving the GIL
#   up costs a whole switch interval beside a busy thread. It is released to wait, and
#   for long calls. Holding stops at HOLD_GIL_DATAGRAMS and HOLD_GIL_BYTES.

import os

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from fastsock cimport _linux as c


# --- errors and waiting ---------------------------------------------------------------

cdef int _epoch = 1


def _forked():
    global _epoch
    _epoch += 1


os.register_at_fork(after_in_child=_forked)


cdef int fork_epoch() noexcept:
    """Number that changes in the child of a fork; never zero."""
    return _epoch


cdef int raise_errno(int err) except -1:
    c.errno = err
    PyErr_SetFromErrno(OSError)
    return -1


cdef inline bint is_interrupted(int err) noexcept nogil:
    return err == c.EINTR or err == c.FASTSOCK_ERESTARTSYS


cdef int64_t monotonic_ns() noexcept nogil:
    cdef c.timespec now
    c.clock_gettime(c.CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


# How one call has waited so far.
cdef struct Waiting:
    int64_t timeout_ns
    int64_t deadline_ns
    bint blocked            # has already been sent to wait in the kernel
    int wakeups             # polls that reported readiness; none has led to success
    int error               # what the kernel refused the call with; 0 for a handler's exception
    int drains              # how often the error queue was emptied
    bint keep_errors        # the call itself reads the error queue
    uint64_t reports        # ICMP errors that this call has heard of, whoever read them

# Readiness may be false for good: an undrained error queue keeps POLLERR up, and an
# unconnected AF_UNIX socket is writable whatever its peer's queue. After so many futile
# wake-ups a call tries again every millisecond, instead of spinning until its deadline.
cdef enum:
    FUTILE_WAKEUPS = 4
    RETRY_NS = 1_000_000

# An ICMP error for one peer fails whatever call comes next, even to another (udp(7),
# IP_RECVERR). Where the socket keeps an error queue it is emptied then, and the call tried
# again; not for ever, because a peer may die anew each time.
cdef enum:
    MOST_DRAINS = 64


cdef int open_fd(Handle *handle, Waiting *w) except -1:
    """The descriptor; EBADF when the socket was closed while the call waited."""
    if handle.fd < 0:
        w.error = c.EBADF
        return raise_errno(c.EBADF)
    return handle.fd


cdef int poll_until(Handle *handle, short events, Waiting *w) except -1:
    """Wait in ppoll for `events` or the deadline, without the GIL."""
    cdef c.pollfd poll
    cdef c.timespec left
    cdef int64_t left_ns
    cdef int rc, err
    cdef Drain drain
    if w.deadline_ns == 0:
        w.deadline_ns = monotonic_ns() + w.timeout_ns
    while True:
        left_ns = w.deadline_ns - monotonic_ns()
        if left_ns <= 0:
            w.error = c.EAGAIN
            raise TimeoutError("timed out")
        poll.fd = open_fd(handle, w)
        poll.events = events
        poll.revents = 0
        if w.wakeups >= FUTILE_WAKEUPS:
            poll.fd = -1
            left_ns = min(left_ns, <int64_t>RETRY_NS)
        left.tv_sec = left_ns // 1_000_000_000
        left.tv_nsec = left_ns % 1_000_000_000
        with nogil:
            rc = c.ppoll(&poll, 1, &left, NULL)
            err = c.errno
        if rc > 0:
            drain = handle.drain        # once: another thread may change the socket's options
            if not poll.revents & c.POLLERR or drain == NULL or w.keep_errors:
                w.wakeups += 1
                return 0
            err = 0
            drain(handle.owner, &w.reports, &err)       # and POLLERR goes: no futile wake-up
            if err:
                w.error = err
                return raise_errno(err)
            return 0
        if rc == 0:
            if poll.fd < 0:
                return 0
            w.error = c.EAGAIN
            raise TimeoutError("timed out")
        if not is_interrupted(err):
            return raise_errno(err)
        PyErr_CheckSignals()


cdef bint resume(Handle *handle, short events, int flags, Waiting *w) except -1:
    """Decide how a call that failed with errno goes on.

    Returns True to call again and block in the kernel with the GIL released, False to
    call again with MSG_DONTWAIT; raises when the call is over.
    """
    cdef int err = c.errno
    cdef int owed = err
    cdef Drain drain
    if is_interrupted(err):
        PyErr_CheckSignals()
        open_fd(handle, w)
        return w.blocked
    if err == c.EAGAIN and w.timeout_ns > 0:
        poll_until(handle, events, w)
        open_fd(handle, w)
        return False
    drain = handle.drain
    if (
        err != c.EAGAIN and drain != NULL and not w.keep_errors and w.drains < MOST_DRAINS
        and not flags & c.MSG_ZEROCOPY      # whose refusals the caller has to count
    ):
        w.drains += 1
        w.error = err
        if drain(handle.owner, &w.reports, &owed):
            open_fd(handle, w)
            w.error = 0
            return w.blocked
        err = owed              # an earlier refusal comes first; that of this datagram will come again
    # The first send with TCP_FASTOPEN_CONNECT connects: EINPROGRESS to a try that may not wait for it.
    if err not in (c.EAGAIN, c.EINPROGRESS) or w.timeout_ns >= 0 or w.blocked or flags & c.MSG_DONTWAIT:
        w.error = err
        return raise_errno(err)
    w.blocked = True
    return True


cdef inline Waiting waiting(const Handle *handle, int64_t timeout_ns, int flags) noexcept:
    cdef Waiting w
    w.keep_errors = flags & c.MSG_ERRQUEUE != 0
    w.timeout_ns = timeout_ns
    w.deadline_ns = 0
    w.blocked = False
    w.wakeups = 0
    w.error = 0
    w.drains = 0
    w.reports = handle.reports
    return w


# --- the socket itself ----------------------------------------------------------------

cdef int sys_socket(int family, int type, int protocol) except -1:
    cdef int fd = c.socket(family, type | c.SOCK_CLOEXEC, protocol)
    return fd if fd >= 0 else raise_errno(c.errno)


cdef int sys_close(int fd) except -1:
    cdef int rc, err
    with nogil:
        rc = c.close(fd)
        err = c.errno
    # The descriptor is gone even when close says EINTR; the peer's reset is no news.
    if rc < 0 and err != c.ECONNRESET and err != c.EINTR:
        return raise_errno(err)
    return 0


cdef int sys_bind(int fd, const c.sockaddr *addr, c.socklen_t addrlen) except -1:
    cdef int rc, err
    with nogil:
        rc = c.bind(fd, addr, addrlen)
        err = c.errno
    return rc if rc == 0 else raise_errno(err)


cdef int sys_connect(
    Handle *handle, const c.sockaddr *addr, c.socklen_t addrlen, int64_t timeout_ns, int *error
) except -1:
    """Beside an exception, `error` is the errno, or 0 for what a signal handler raised."""
    cdef int rc, at
    cdef c.socklen_t size = sizeof(int)
    cdef Waiting w = waiting(handle, timeout_ns if timeout_ns > 0 else <int64_t>1 << 62, 0)
    error[0] = 0
    while True:
        at = handle.fd
        with nogil:
            rc = c.connect(at, addr, addrlen)
            w.error = c.errno
        if rc == 0:
            return 0
        if not is_interrupted(w.error) or addr.sa_family != c.AF_UNIX:
            break
        PyErr_CheckSignals()    # one to a full backlog has not even begun (net/unix/af_unix.c)
    # An interrupted connect goes on in the kernel: wait for its end (connect(2), EINTR).
    if is_interrupted(w.error):
        PyErr_CheckSignals()
        w.error = c.EINPROGRESS
    elif w.error != c.EINPROGRESS or timeout_ns < 0:
        timeout_ns = 0
    if timeout_ns == 0:
        error[0] = w.error
        return raise_errno(w.error)
    w.error = 0
    try:
        poll_until(handle, c.POLLOUT, &w)
    finally:
        error[0] = w.error
    sys_getsockopt(open_fd(handle, &w), c.SOL_SOCKET, c.SO_ERROR, error, &size)
    if error[0] and error[0] != c.EISCONN:
        return raise_errno(error[0])
    return 0


cdef int sys_listen(int fd, int backlog) except -1:
    cdef int rc, err
    with nogil:
        rc = c.listen(fd, backlog)
        err = c.errno
    return rc if rc == 0 else raise_errno(err)


cdef int sys_accept(Handle *handle, c.sockaddr *addr, c.socklen_t *addrlen, int64_t timeout_ns) except -1:
    """There is no MSG_DONTWAIT for it, and a duplicate may have set the socket to block.

    So it is never tried with the GIL held, and under a time-out only when poll has told of a connection.
    """
    cdef int rc, err, at
    cdef c.socklen_t room = addrlen[0]
    cdef Waiting w = waiting(handle, timeout_ns, 0)
    w.blocked = timeout_ns < 0
    while True:
        if timeout_ns > 0:
            poll_until(handle, c.POLLIN, &w)
        addrlen[0] = room
        at = handle.fd
        with nogil:
            rc = c.accept4(at, addr, addrlen, c.SOCK_CLOEXEC)
            err = c.errno
        if rc >= 0:
            return rc
        if err == c.EAGAIN and timeout_ns > 0:
            w.wakeups = 0       # another process took it, as often as it likes
            continue
        c.errno = err
        resume(handle, c.POLLIN, 0, &w)


cdef int sys_shutdown(int fd, int how) except -1:
    cdef int rc, err
    with nogil:
        rc = c.shutdown(fd, how)
        err = c.errno
    return rc if rc == 0 else raise_errno(err)


cdef int sys_getsockname(int fd, c.sockaddr *addr, c.socklen_t *addrlen) except -1:
    if c.getsockname(fd, addr, addrlen) < 0:
        return raise_errno(c.errno)
    return 0


cdef int sys_getpeername(int fd, c.sockaddr *addr, c.socklen_t *addrlen) except -1:
    if c.getpeername(fd, addr, addrlen) < 0:
        return raise_errno(c.errno)
    return 0


cdef int sys_getsockopt(int fd, int level, int optname, void *optval, c.socklen_t *optlen) except -1:
    if c.getsockopt(fd, level, optname, optval, optlen) < 0:
        return raise_errno(c.errno)
    return 0


cdef int sys_setsockopt(int fd, int level, int optname, const void *optval, c.socklen_t optlen) except -1:
    if c.setsockopt(fd, level, optname, optval, optlen) < 0:
        return raise_errno(c.errno)
    return 0


cdef int sys_fcntl(int fd, int cmd, long arg) except -1:
    cdef int rc = c.fcntl(fd, cmd, arg)
    return rc if rc >= 0 else raise_errno(c.errno)


cdef int sys_set_nonblocking(int fd, bint nonblocking) except -1:
    cdef int old = sys_fcntl(fd, c.F_GETFL, 0)
    cdef int new = old | c.O_NONBLOCK if nonblocking else old & ~c.O_NONBLOCK
    if new != old:
        sys_fcntl(fd, c.F_SETFL, new)
    return 0


# --- one message ----------------------------------------------------------------------
# The six loops below differ in the call alone. A call for which the GIL must not be held, because
# it is long or because MSG_DONTWAIT would cut it short, starts without it; whether it then waits
# is for timeout_ns to say. The descriptor is read anew before every try, because a signal handler
# or another thread may close the socket, and its number may be somebody else's by then.

cdef ssize_t sys_recvfrom_again(
    Handle *handle, void *buf, size_t size, int flags, c.sockaddr *addr, c.socklen_t *addrlen, c.socklen_t room,
    int64_t timeout_ns, bint tried, uint64_t reports,
) except -1:
    """What sys_recvfrom comes to when its first try failed, with errno, or was not made."""
    cdef ssize_t rc
    cdef int err, at
    cdef bint long_call = not tried
    cdef int wait_flags = flags if timeout_ns < 0 else flags | c.MSG_DONTWAIT
    cdef bint block = long_call
    cdef Waiting w = waiting(handle, timeout_ns, flags)
    w.blocked = long_call
    w.reports = reports
    if tried:
        block = resume(handle, c.POLLIN, flags, &w)
    while True:
        if addrlen != NULL:
            addrlen[0] = room
        at = handle.fd
        if block:
            with nogil:
                rc = c.recvfrom(at, buf, size, wait_flags, addr, addrlen)
                err = c.errno
            c.errno = err
        else:
            rc = c.recvfrom(at, buf, size, flags | c.MSG_DONTWAIT, addr, addrlen)
        if rc >= 0:
            return rc
        block = resume(handle, c.POLLIN, flags, &w) or long_call


cdef ssize_t sys_sendto_again(
    Handle *handle, const void *buf, size_t size, int flags, const c.sockaddr *addr, c.socklen_t addrlen,
    int64_t timeout_ns, bint tried, uint64_t reports,
) except -1:
    """What sys_sendto comes to when its first try failed, with errno, or was not made."""
    cdef ssize_t rc
    cdef int err, at
    cdef bint long_call = not tried
    cdef int wait_flags = flags if timeout_ns < 0 else flags | c.MSG_DONTWAIT
    cdef bint block = long_call
    cdef Waiting w = waiting(handle, timeout_ns, flags)
    w.blocked = long_call
    w.reports = reports
    if tried:
        block = resume(handle, c.POLLOUT, flags, &w)
    while True:
        at = handle.fd
        if block:
            with nogil:
                rc = c.sendto(at, buf, size, wait_flags, addr, addrlen)
                err = c.errno
            c.errno = err
        else:
            rc = c.sendto(at, buf, size, flags | c.MSG_DONTWAIT, addr, addrlen)
        if rc >= 0:
            return rc
        block = resume(handle, c.POLLOUT, flags, &w) or long_call


cdef ssize_t sys_send_rest(Handle *handle, const char *data, size_t size, int flags, int *error) noexcept:
    """Go on with a send on a blocking stream that has made progress; returns what went beyond it.

    As the kernel would have: until all is taken, or a signal comes, or an error, or SO_SNDTIMEO has
    run out. None of them is raised, because of the progress. An error is left on the socket, for the
    next call of whatever kind: only where it comes between ppoll and sendto it is taken, and in `error`.
    """
    cdef c.pollfd poll
    cdef c.timeval longest
    cdef c.timespec most, pause
    cdef c.timespec *limit = NULL
    cdef c.socklen_t room = sizeof(longest)
    cdef size_t done = 0
    cdef ssize_t rc
    if c.getsockopt(handle.fd, c.SOL_SOCKET, c.SO_SNDTIMEO, &longest, &room) == 0 and (
        longest.tv_sec or longest.tv_usec
    ):
        most.tv_sec = longest.tv_sec
        most.tv_nsec = longest.tv_usec * 1000
        limit = &most
    while done < size:
        poll.fd = handle.fd
        poll.events = c.POLLOUT
        poll.revents = 0
        if poll.fd < 0:
            break
        with nogil:
            rc = c.ppoll(&poll, 1, limit, NULL)
        if rc <= 0 or poll.revents & ~c.POLLOUT:
            break
        rc = c.sendto(handle.fd, data + done, size - done, flags | c.MSG_DONTWAIT, NULL, 0)
        if rc >= 0:
            done += <size_t>rc
        elif c.errno == c.EAGAIN:       # no memory, though there is room: not to spin
            pause.tv_sec = 0
            pause.tv_nsec = RETRY_NS
            with nogil:
                c.ppoll(NULL, 0, &pause, NULL)
        else:
            error[0] = c.errno
            break
    return <ssize_t>done


cdef ssize_t sys_recvmsg(Handle *handle, c.msghdr *msg, int flags, int64_t timeout_ns, bint hold_gil) except -1:
    cdef ssize_t rc
    cdef int err, at
    cdef c.socklen_t namelen = msg.msg_namelen
    cdef size_t controllen = msg.msg_controllen
    cdef bint long_call = not hold_gil
    cdef int wait_flags = flags if timeout_ns < 0 else flags | c.MSG_DONTWAIT
    cdef bint block = long_call
    cdef Waiting w = waiting(handle, timeout_ns, flags)
    w.blocked = long_call
    while True:
        msg.msg_namelen = namelen
        msg.msg_controllen = controllen
        at = handle.fd
        if block:
            with nogil:
                rc = c.recvmsg(at, msg, wait_flags)
                err = c.errno
            c.errno = err
        else:
            rc = c.recvmsg(at, msg, flags | c.MSG_DONTWAIT)
        if rc >= 0:
            return rc
        block = resume(handle, c.POLLIN, flags, &w) or long_call


cdef ssize_t sys_sendmsg(
    Handle *handle, c.msghdr *msg, int flags, int64_t timeout_ns, bint hold_gil, int *error
) except -1:
    cdef ssize_t rc
    cdef int err, at
    cdef bint long_call = not hold_gil
    cdef int wait_flags = flags if timeout_ns < 0 else flags | c.MSG_DONTWAIT
    cdef bint block = long_call
    cdef Waiting w = waiting(handle, timeout_ns, flags)
    w.blocked = long_call
    while True:
        at = handle.fd
        if block:
            with nogil:
                rc = c.sendmsg(at, msg, wait_flags)
                err = c.errno
            c.errno = err
        else:
            rc = c.sendmsg(at, msg, flags | c.MSG_DONTWAIT)
        if rc >= 0:
            return rc
        try:
            block = resume(handle, c.POLLOUT, flags, &w) or long_call
        finally:
            error[0] = w.error


# --- many messages --------------------------------------------------------------------

cdef int sys_recvmmsg(
    Handle *handle, c.mmsghdr *msgvec, unsigned int vlen, int flags, int64_t timeout_ns, bint hold_gil
) except -1:
    """Wait for one datagram as `timeout_ns` says, then take what is queued.

    MSG_WAITFORONE is always there: without it a signal after the first datagram leaves
    errno 512 behind. The kernel's own timeout is never used: it is looked at only after
    a datagram came (recvmmsg(2), BUGS).
    """
    cdef int rc, err, at
    cdef bint long_call = not hold_gil
    cdef int wait_flags = flags if timeout_ns < 0 else flags | c.MSG_DONTWAIT
    cdef bint block = long_call
    cdef Waiting w = waiting(handle, timeout_ns, flags)
    flags |= c.MSG_WAITFORONE
    wait_flags |= c.MSG_WAITFORONE
    w.blocked = long_call
    while True:
        at = handle.fd
        if block:
            with nogil:
                rc = c.fastsock_recvmmsg(at, msgvec, vlen, wait_flags)
                err = c.errno
            c.errno = err
        else:
            rc = c.fastsock_recvmmsg(at, msgvec, vlen, flags | c.MSG_DONTWAIT)
        if rc >= 0:
            return rc
        block = resume(handle, c.POLLIN, flags, &w) or long_call


cdef int sys_sendmmsg(
    Handle *handle, c.mmsghdr *msgvec, unsigned int vlen, int flags, int64_t timeout_ns, bint hold_gil, int *error
) except -1:
    """Send at least one message of at most SENDMMSG_MAX, or raise.

    One message goes through sendmsg, which is faster. With `hold_gil` the count may stop
    where the next message would block; without it, a blocking socket blocks. Beside an
    exception, `error` tells what refused the call: an errno, or 0 for a signal handler.
    """
    cdef int rc, err, at
    cdef bint long_call = not hold_gil
    cdef int wait_flags = flags if timeout_ns < 0 else flags | c.MSG_DONTWAIT
    cdef bint block = long_call
    cdef Waiting w = waiting(handle, timeout_ns, flags)
    if vlen == 1:
        msgvec[0].msg_len = <unsigned int>sys_sendmsg(
            handle, &msgvec[0].msg_hdr, flags, timeout_ns, True, error
        )
        return 1
    w.blocked = long_call
    while True:
        at = handle.fd
        if block:
            with nogil:
                rc = c.fastsock_sendmmsg(at, msgvec, vlen, wait_flags)
                err = c.errno
            c.errno = err
        else:
            rc = c.fastsock_sendmmsg(at, msgvec, vlen, flags | c.MSG_DONTWAIT)
        if rc >= 0:
            return rc
        try:
            block = resume(handle, c.POLLOUT, flags, &w) or long_call
        finally:
            error[0] = w.error


cdef int sys_recvmmsg_queued(
    int fd, c.mmsghdr *msgvec, unsigned int vlen, int flags, bint hold_gil, int *error
) noexcept:
    """Take what is queued after an earlier call of the same receive: never wait or raise.

    Returns the count; 0 with `error` set to an errno, or to 0 when nothing was queued.
    """
    cdef int rc, err
    flags |= c.MSG_WAITFORONE | c.MSG_DONTWAIT
    if hold_gil:
        rc = c.fastsock_recvmmsg(fd, msgvec, vlen, flags)
        err = c.errno
    else:
        with nogil:
            rc = c.fastsock_recvmmsg(fd, msgvec, vlen, flags)
            err = c.errno
    if rc >= 0:
        error[0] = 0
        return rc
    error[0] = 0 if err == c.EAGAIN or is_interrupted(err) else err
    return 0


cdef ssize_t sys_recv_error(int fd, c.msghdr *msg) except -2:
    """Take one record of the error queue without waiting; -1 when there is none."""
    cdef ssize_t size
    while True:
        size = c.recvmsg(fd, msg, c.MSG_ERRQUEUE | c.MSG_DONTWAIT)
        if size >= 0:
            return size
        if c.errno == c.EAGAIN:
            return -1
        if not is_interrupted(c.errno):
            raise_errno(c.errno)
        PyErr_CheckSignals()


cdef bint sys_try_sendmsg(int fd, const c.msghdr *msg, int flags) noexcept:
    """Whether the kernel takes a message, whatever the reason."""
    return c.sendmsg(fd, msg, flags) >= 0


cdef bint sys_is_hung_up(int fd) noexcept:
    """Whether the peer has closed its end: poll(2), POLLRDHUP."""
    cdef c.pollfd poll
    cdef c.timespec now
    now.tv_sec = now.tv_nsec = 0
    poll.fd = fd
    poll.events = c.POLLRDHUP
    poll.revents = 0
    return c.ppoll(&poll, 1, &now, NULL) > 0 and poll.revents & (c.POLLRDHUP | c.POLLHUP) != 0


cdef int sys_getifaddrs(c.ifaddrs **ifap) except -1:
    cdef int rc, err
    with nogil:
        rc = c.getifaddrs(ifap)
        err = c.errno
    return rc if rc == 0 else raise_errno(err)


# --- readiness of many ----------------------------------------------------------------

cdef int sys_epoll_create1(int flags) except -1:
    cdef int fd = c.epoll_create1(flags)
    return fd if fd >= 0 else raise_errno(c.errno)


cdef int sys_epoll_ctl(int epfd, int op, int fd, uint32_t events) except -1:
    """Change the interest in `fd`, which is also what its events carry. See epoll_ctl(2)."""
    cdef c.epoll_event event
    event.events = events
    event.data.u64 = 0
    event.data.fd = fd
    return 0 if c.epoll_ctl(epfd, op, fd, &event) == 0 else raise_errno(c.errno)


cdef int sys_epoll_wait(Handle *handle, c.epoll_event *events, int maxevents, int64_t timeout_ns) except -1:
    """Wait for readiness as `timeout_ns` says, rounded up to milliseconds; 0 when time is up.

    `events` is written without the GIL: nobody else may have it. See epoll_wait(2).
    """
    cdef int rc, err, at
    cdef int timeout_ms = -1
    cdef int64_t deadline_ns = 0
    if maxevents <= HOLD_GIL_EVENTS:
        rc = c.epoll_wait(handle.fd, events, maxevents, 0)
        if rc > 0 or (rc == 0 and timeout_ns == 0):
            return rc
        if rc < 0 and not is_interrupted(c.errno):
            return raise_errno(c.errno)
    if timeout_ns > 0:
        deadline_ns = monotonic_ns() + timeout_ns
    while True:
        if timeout_ns >= 0:
            timeout_ms = <int>((timeout_ns + 999_999) // 1_000_000)
        at = handle.fd
        with nogil:
            rc = c.epoll_wait(at, events, maxevents, timeout_ms)
            err = c.errno
        if rc >= 0:
            return rc
        if not is_interrupted(err):
            return raise_errno(err)
        PyErr_CheckSignals()
        if timeout_ns > 0:
            timeout_ns = deadline_ns - monotonic_ns()
            if timeout_ns <= 0:
                return 0


# --- shared memory, and events ------------------------------------------------------------

cdef int sys_memfd_create(const char *name, unsigned int flags) except -1:
    cdef int fd = c.memfd_create(name, flags)
    return fd if fd >= 0 else raise_errno(c.errno)


cdef int sys_ftruncate(int fd, int64_t size) except -1:
    return 0 if c.ftruncate(fd, size) == 0 else raise_errno(c.errno)


cdef int64_t sys_fstat_size(int fd) except -1:
    cdef c.struct_stat found
    return found.st_size if c.fstat(fd, &found) == 0 else raise_errno(c.errno)


cdef void *sys_mmap(size_t size, int fd) except NULL:
    """Map all of a file, shared, to read and to write. See mmap(2)."""
    cdef void *start = c.mmap(NULL, size, c.PROT_READ | c.PROT_WRITE, c.MAP_SHARED, fd, 0)
    if start == c.MAP_FAILED:
        raise_errno(c.errno)
    return start


cdef int sys_munmap(void *start, size_t size) except -1:
    return 0 if c.munmap(start, size) == 0 else raise_errno(c.errno)


cdef int sys_open(const char *path, int flags) except -1:
    """Open a file that does not wait, with the GIL held. See open(2)."""
    cdef int fd = c.open(path, flags)
    return fd if fd >= 0 else raise_errno(c.errno)


cdef int sys_lock(int fd, bint alone) except -1:
    """Lock a file, unless somebody else has; returns whether it did.

    The lock is that of the open file description, where this is the only process that has it (`alone`), and ends
    with that. Else it is the process's, and ends when the process closes any descriptor of the file. See fcntl(2).
    """
    cdef c.flock lock
    memset(&lock, 0, sizeof(lock))
    lock.l_type = c.F_WRLCK
    lock.l_whence = c.SEEK_SET
    if c.fcntl(fd, c.F_OFD_SETLK if alone else c.F_SETLK, &lock) == 0:
        return True
    if c.errno != c.EAGAIN and c.errno != c.EACCES:
        raise_errno(c.errno)
    return False


cdef int sys_eventfd(int flags) except -1:
    cdef int fd = c.eventfd(0, flags)
    return fd if fd >= 0 else raise_errno(c.errno)


cdef int sys_write_event(int fd) except -1:
    """Add one to an eventfd, which wakes who polls it; a full one is readable already."""
    cdef uint64_t one = 1
    if c.write(fd, &one, sizeof(one)) < 0 and c.errno != c.EAGAIN:
        return raise_errno(c.errno)
    return 0


cdef bint sys_poll_in(const Handle *handle, int64_t timeout_ns) except -1:
    """Wait without the GIL until there is something to read, or the time is up (-1: without end)."""
    cdef c.pollfd poll
    cdef c.timespec left
    cdef int rc, err
    cdef int64_t deadline_ns = monotonic_ns() + timeout_ns if timeout_ns > 0 else 0
    while True:
        poll.fd = handle.fd
        poll.events = c.POLLIN
        poll.revents = 0
        left.tv_sec = timeout_ns // 1_000_000_000
        left.tv_nsec = timeout_ns % 1_000_000_000
        with nogil:
            rc = c.ppoll(&poll, 1, &left if timeout_ns >= 0 else NULL, NULL)
            err = c.errno
        if rc >= 0:
            return rc > 0
        if not is_interrupted(err):
            return raise_errno(err)
        PyErr_CheckSignals()
        if timeout_ns > 0:
            timeout_ns = max(<int64_t>0, deadline_ns - monotonic_ns())
