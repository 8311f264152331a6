# What the kernel can do with UDP_SEGMENT: asked once per process. May import _linux, _cmsg
# and _sys.

import os

from libc.stdint cimport uint16_t
from libc.string cimport memset
from fastsock cimport _linux as c
from fastsock._cmsg cimport append_cmsg
from fastsock._sys cimport (
    sys_bind, sys_close, sys_getsockname, sys_setsockopt, sys_socket, sys_try_sendmsg,
)

cdef Py_ssize_t found_segments = 0      # 0: not asked yet


cdef Py_ssize_t gso_segments() except -1:
    """Datagrams that one message may be cut into; 1 without GSO. Asked once per process."""
    global found_segments
    if found_segments == 0:
        if os.environ.get("FASTSOCK_GSO") == "0":
            found_segments = 1
        else:
            found_segments = probe_segments()
    return max(<Py_ssize_t>1, found_segments)


cdef Py_ssize_t probe_segments() except -1:
    """Try it on a throw-away socket, because kernels before 4.18 ignore the cmsg and glue.

    0 where there is none to be had at the moment: then it is asked again.

    64 at most, 128 since Linux 6.10 (linux/udp.h, UDP_MAX_SEGMENTS): told apart by sending
    65 bytes to oneself.
    """
    cdef int fd
    cdef int value = 1400
    cdef c.sockaddr_in name
    cdef c.socklen_t namelen = sizeof(name)
    cdef char payload[65]
    cdef char control[64]
    cdef uint16_t segment_size = 1
    cdef c.iovec iov
    cdef c.msghdr msg
    try:
        fd = sys_socket(c.AF_INET, c.SOCK_DGRAM, 0)
    except OSError:
        return 0
    try:
        sys_setsockopt(fd, c.FASTSOCK_SOL_UDP, c.UDP_SEGMENT, &value, sizeof(value))
        value = 0
        sys_setsockopt(fd, c.FASTSOCK_SOL_UDP, c.UDP_SEGMENT, &value, sizeof(value))
        memset(&name, 0, sizeof(name))
        name.sin_family = c.AF_INET
        name.sin_addr.s_addr = c.htonl(c.INADDR_LOOPBACK)
        sys_bind(fd, <c.sockaddr *>&name, sizeof(name))
        sys_getsockname(fd, <c.sockaddr *>&name, &namelen)
    except OSError:
        sys_close(fd)
        return 1 if value else 64
    memset(payload, 0, sizeof(payload))
    memset(&msg, 0, sizeof(msg))
    iov.iov_base = payload
    iov.iov_len = sizeof(payload)
    msg.msg_name = &name
    msg.msg_namelen = namelen
    msg.msg_iov = &iov
    msg.msg_iovlen = 1
    msg.msg_control = control
    msg.msg_controllen = append_cmsg(
        control, 0, c.FASTSOCK_SOL_UDP, c.UDP_SEGMENT, &segment_size, sizeof(segment_size)
    )
    try:
        return 128 if sys_try_sendmsg(fd, &msg, c.MSG_DONTWAIT) else 64
    finally:
        sys_close(fd)


def max_segments():
    """Datagrams that one message may be cut into; 1 where GSO is missing or switched off."""
    return gso_segments()
