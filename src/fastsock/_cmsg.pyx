# Ancillary data between the kernel's control buffers and Python's lists of
# (cmsg_level, cmsg_type, cmsg_data), as recvmsg and sendmsg of the socket module have
# them. Pure: no system call. Imports only _linux. See cmsg(3).

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset
from fastsock cimport _linux as c


cdef size_t control_size(list ancdata) except? 0:
    """Bytes of control buffer that `ancdata`, a list of (int, int, bytes), needs."""
    cdef size_t total = 0
    for _, _, data in ancdata:
        total += c.CMSG_SPACE(len(<bytes>data))
    return total


cdef int encode_control(list ancdata, c.msghdr *msg) except -1:
    """Write `ancdata` into msg's control buffer, which is large enough."""
    cdef c.cmsghdr *cmsg = NULL
    cdef bytes raw
    if msg.msg_controllen:
        # CMSG_NXTHDR reads the length behind the last header (glibc bug 13500).
        memset(msg.msg_control, 0, msg.msg_controllen)
    for level, kind, data in ancdata:
        cmsg = c.CMSG_FIRSTHDR(msg) if cmsg == NULL else c.CMSG_NXTHDR(msg, cmsg)
        if cmsg == NULL:
            raise RuntimeError("control buffer too small for its ancillary data")
        raw = data
        cmsg.cmsg_level = level
        cmsg.cmsg_type = kind
        cmsg.cmsg_len = c.CMSG_LEN(len(raw))
        memcpy(c.CMSG_DATA(cmsg), <const char *>raw, len(raw))
    return 0


cdef list decode_control(c.msghdr *msg):
    """Read every whole item of a received control buffer; what was cut is cut here."""
    cdef list found = []
    cdef c.cmsghdr *cmsg = c.CMSG_FIRSTHDR(msg)
    cdef char *end = <char *>msg.msg_control + msg.msg_controllen
    cdef char *data
    cdef size_t size
    while cmsg != NULL and cmsg.cmsg_len >= c.CMSG_LEN(0):
        data = <char *>c.CMSG_DATA(cmsg)
        size = min(<size_t>cmsg.cmsg_len - c.CMSG_LEN(0), <size_t>(end - data))
        found.append((cmsg.cmsg_level, cmsg.cmsg_type, PyBytes_FromStringAndSize(data, <Py_ssize_t>size)))
        cmsg = c.CMSG_NXTHDR(msg, cmsg)
    return found


def encode(ancdata):
    """The control buffer of `ancdata`, as bytes: what sendmsg hands to the kernel."""
    cdef list items = [(level, kind, bytes(data)) for level, kind, data in ancdata]
    cdef size_t size = control_size(items)
    cdef bytes control = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    cdef c.msghdr msg
    memset(&msg, 0, sizeof(msg))
    msg.msg_control = <char *>control
    msg.msg_controllen = size
    encode_control(items, &msg)
    return control


def decode(bytes control not None):
    """The ancillary data in `control`: what recvmsg makes of the kernel's answer."""
    cdef bytearray copy = bytearray(control)
    cdef c.msghdr msg
    memset(&msg, 0, sizeof(msg))
    msg.msg_control = <char *>copy
    msg.msg_controllen = len(copy)
    return decode_control(&msg)
