# Ancillary data between the kernel's control buffers and Python: lists of
# (cmsg_level, cmsg_type, cmsg_data) as recvmsg and sendmsg of the socket module have them,
# and the Metadata that a batch records of each message.
# Pure: no system call. Imports only _linux. See cmsg(3).

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
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


# --- what a batch records --------------------------------------------------------------

cdef size_t metadata_room() noexcept:
    """Bytes of control buffer for everything that decode_metadata knows, all at once."""
    cdef size_t room = c.CMSG_SPACE(sizeof(int))                    # UDP_GRO
    room += c.CMSG_SPACE(sizeof(c.timespec))                        # SO_TIMESTAMPNS
    room += c.CMSG_SPACE(sizeof(c.scm_timestamping))
    room += c.CMSG_SPACE(sizeof(c.in_pktinfo)) + c.CMSG_SPACE(sizeof(c.in6_pktinfo))
    room += 2 * c.CMSG_SPACE(sizeof(int))                           # IP_TOS, IPV6_TCLASS
    room += 2 * c.CMSG_SPACE(sizeof(int))                           # IP_TTL, IPV6_HOPLIMIT
    room += c.CMSG_SPACE(sizeof(uint32_t))                          # SO_RXQ_OVFL
    return (room + 63) & ~<size_t>63


cdef int ancillary_of(int level, int kind) noexcept:
    """The bits of Ancillary that a received item belongs to."""
    if level == c.FASTSOCK_SOL_UDP:
        return GRO if kind == c.UDP_GRO else 0
    if level == c.SOL_SOCKET:
        if kind == c.SCM_TIMESTAMPNS:
            return TIMESTAMPS
        if kind == c.SCM_TIMESTAMPING:
            return TIMESTAMPS | HARDWARE_TIMESTAMPS
        return DROP_COUNTER if kind == c.SO_RXQ_OVFL else 0
    if level == c.IPPROTO_IP:
        if kind == c.IP_PKTINFO:
            return PKTINFO
        return TOS if kind == c.IP_TOS else TTL if kind == c.IP_TTL else 0
    if level == c.IPPROTO_IPV6:
        if kind == c.IPV6_PKTINFO:
            return PKTINFO
        return TOS if kind == c.IPV6_TCLASS else TTL if kind == c.IPV6_HOPLIMIT else 0
    return 0


cdef inline int64_t as_ns(const c.timespec *ts) noexcept nogil:
    # Unsigned, because `load` takes any bytes for a timespec: rubbish must wrap, not overflow.
    return <int64_t>(<uint64_t>ts.tv_sec * <uint64_t>1_000_000_000 + <uint64_t>ts.tv_nsec)


cdef void decode_metadata(c.msghdr *msg, Metadata *found) noexcept nogil:
    """Read a received control buffer; what it does not hold, or holds cut, is 0.

    The kernel gives a v4 datagram on a dual-stack socket its TOS and TTL at level
    IPPROTO_IP and its destination, mapped, at level IPPROTO_IPV6: all are understood
    wherever they stand, and the mapped destination wins over IP_PKTINFO's.
    """
    cdef c.cmsghdr *cmsg = c.CMSG_FIRSTHDR(msg)
    cdef char *end = <char *>msg.msg_control + msg.msg_controllen
    cdef unsigned char *data
    cdef size_t size
    cdef int number
    cdef c.timespec ts
    cdef c.scm_timestamping stamps
    cdef c.in_pktinfo pktinfo
    cdef c.in6_pktinfo pktinfo6
    memset(found, 0, sizeof(Metadata))
    while cmsg != NULL and cmsg.cmsg_len >= c.CMSG_LEN(0):
        data = c.CMSG_DATA(cmsg)
        size = min(<size_t>cmsg.cmsg_len - c.CMSG_LEN(0), <size_t>(end - <char *>data))
        number = 0
        memcpy(&number, data, min(size, sizeof(int)))
        if cmsg.cmsg_level == c.FASTSOCK_SOL_UDP:
            if cmsg.cmsg_type == c.UDP_GRO and size >= sizeof(int):
                found.segment_size = number
        elif cmsg.cmsg_level == c.SOL_SOCKET:
            if cmsg.cmsg_type == c.SCM_TIMESTAMPNS and size >= sizeof(ts):
                memcpy(&ts, data, sizeof(ts))
                found.timestamp_ns = as_ns(&ts)
            elif cmsg.cmsg_type == c.SCM_TIMESTAMPING and size >= sizeof(stamps):
                memcpy(&stamps, data, sizeof(stamps))
                # [0] is the kernel's clock, [2] the device's (linux/errqueue.h).
                if as_ns(&stamps.ts[0]) != 0:
                    found.timestamp_ns = as_ns(&stamps.ts[0])
                found.hardware_timestamp_ns = as_ns(&stamps.ts[2])
            elif cmsg.cmsg_type == c.SO_RXQ_OVFL and size >= sizeof(uint32_t):
                found.drop_counter = <uint32_t>number
        elif cmsg.cmsg_level == c.IPPROTO_IP:
            if cmsg.cmsg_type == c.IP_PKTINFO and size >= sizeof(pktinfo):
                if found.local.family == 0:
                    memcpy(&pktinfo, data, sizeof(pktinfo))
                    found.interface_index = pktinfo.ipi_ifindex
                    found.local.family = c.AF_INET
                    memcpy(found.local.address, &pktinfo.ipi_addr, sizeof(pktinfo.ipi_addr))
            elif cmsg.cmsg_type == c.IP_TOS and size >= 1:
                found.tos = data[0]         # one byte (net/ipv4/ip_sockglue.c, ip_cmsg_recv_tos)
            elif cmsg.cmsg_type == c.IP_TTL and size >= sizeof(int):
                found.ttl = <uint8_t>number
        elif cmsg.cmsg_level == c.IPPROTO_IPV6:
            if cmsg.cmsg_type == c.IPV6_PKTINFO and size >= sizeof(pktinfo6):
                memcpy(&pktinfo6, data, sizeof(pktinfo6))
                found.interface_index = <int>pktinfo6.ipi6_ifindex
                found.local.family = c.AF_INET6
                memcpy(found.local.address, &pktinfo6.ipi6_addr, sizeof(pktinfo6.ipi6_addr))
            elif cmsg.cmsg_type == c.IPV6_TCLASS and size >= sizeof(int):
                found.tos = <uint8_t>number
            elif cmsg.cmsg_type == c.IPV6_HOPLIMIT and size >= sizeof(int):
                found.ttl = <uint8_t>number
        cmsg = c.CMSG_NXTHDR(msg, cmsg)


cdef size_t append_cmsg(char *control, size_t at, int level, int kind, const void *data, size_t size) noexcept nogil:
    """Write one item at `at` of a control buffer with room for it; returns where the next goes."""
    cdef c.cmsghdr *cmsg = <c.cmsghdr *>(control + at)
    memset(cmsg, 0, c.CMSG_SPACE(size))
    cmsg.cmsg_level = level
    cmsg.cmsg_type = kind
    cmsg.cmsg_len = c.CMSG_LEN(size)
    memcpy(c.CMSG_DATA(cmsg), data, size)
    return at + c.CMSG_SPACE(size)


# --- for tests --------------------------------------------------------------------------

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
