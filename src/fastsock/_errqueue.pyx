# Records of a socket's error queue (MSG_ERRQUEUE): ICMP errors, and what the kernel reports
# of a send that is done: transmit timestamps, zero-copy completions, missed transmit times.
# Pure: BaseSocket reads the queue. May import _linux, _cmsg and _sockaddr.
# See IP_RECVERR in ip(7), Documentation/networking/timestamping.rst and msg_zerocopy.rst.

from collections import namedtuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memset
from fastsock cimport _linux as c
from fastsock._cmsg cimport Metadata, decode_metadata
from fastsock._sockaddr cimport decode_address


class ErrorRecord(
    namedtuple(
        "ErrorRecord",
        ["errno", "origin", "type", "code", "address", "offender", "mtu", "payload", "ids", "timestamp_ns", "copied"],
        defaults=[None, None, None, b"", None, None, False],
    )
):
    """One record of a socket's error queue: see ``Socket.recv_errors``.

    Attributes:
        errno: What a call fails with for it, as ECONNREFUSED; 0 for what is no error.
        origin: "icmp", "icmp6" or "local" for errors; "timestamp", "zerocopy" or "txtime" for
            what became of a send.
        type, code: The ICMP type and code. Of a timestamp, type says where it was taken: 0
            as the driver got it, 1 as the scheduler did. Of txtime, code is 1 for a bad time
            and 2 for one that was missed.
        address: Where the datagram was sent to: the original destination, or None.
        offender: The host that sent the ICMP error, without a port, or None.
        mtu: Bytes of the packet that would have fitted, with EMSGSIZE; else None.
        payload: The start of the datagram, as far as it was quoted.
        ids: The sends that it is about: a range of numbers, from 0 for the first send after
            the option was set, modulo 2**32; None for errors.
        timestamp_ns: When it was sent, in ns since 1970 or by the device's clock; of txtime,
            the time that was asked for; else None.
        copied: Whether the kernel copied a zero-copy send after all, as on loopback.
    """

    __slots__ = ()
    __module__ = "fastsock"


cdef dict ORIGINS = {
    c.SO_EE_ORIGIN_LOCAL: "local",
    c.SO_EE_ORIGIN_ICMP: "icmp",
    c.SO_EE_ORIGIN_ICMP6: "icmp6",
    c.SO_EE_ORIGIN_TIMESTAMPING: "timestamp",
    c.SO_EE_ORIGIN_ZEROCOPY: "zerocopy",
    c.SO_EE_ORIGIN_TXTIME: "txtime",
}


cdef object decode_error(c.msghdr *msg, const char *payload, size_t size):
    """The record in a received message; None where its control buffer holds none."""
    cdef c.cmsghdr *cmsg = c.CMSG_FIRSTHDR(msg)
    cdef char *end = <char *>msg.msg_control + msg.msg_controllen
    cdef char *data
    cdef size_t room
    cdef c.sock_extended_err ee
    cdef c.sockaddr_storage storage
    cdef Metadata metadata
    cdef object offender = None
    cdef object ids = None
    cdef object timestamp_ns = None
    cdef int origin
    while cmsg != NULL and cmsg.cmsg_len >= c.CMSG_LEN(0):
        if (
            cmsg.cmsg_level == c.IPPROTO_IP and cmsg.cmsg_type == c.IP_RECVERR
            or cmsg.cmsg_level == c.IPPROTO_IPV6 and cmsg.cmsg_type == c.IPV6_RECVERR
        ):
            break
        cmsg = c.CMSG_NXTHDR(msg, cmsg)
    else:
        return None
    data = <char *>c.CMSG_DATA(cmsg)
    room = min(<size_t>cmsg.cmsg_len - c.CMSG_LEN(0), <size_t>(end - data))
    if room < sizeof(ee):
        return None
    memcpy(&ee, data, sizeof(ee))
    origin = ee.ee_origin
    # SO_EE_OFFENDER: a sockaddr behind the fixed part; AF_UNSPEC where nobody is known.
    room = min(room - sizeof(ee), sizeof(storage))
    if room > sizeof(c.sa_family_t):
        memcpy(&storage, data + sizeof(ee), room)
        if storage.ss_family in (c.AF_INET, c.AF_INET6):
            offender = decode_address(&storage, room)[0]
    if origin == c.SO_EE_ORIGIN_ZEROCOPY:
        # 32-bit numbers that may wrap within a range.
        ids = range(ee.ee_info, <int64_t>ee.ee_info + <uint32_t>(ee.ee_data - ee.ee_info) + 1)
    elif origin == c.SO_EE_ORIGIN_TIMESTAMPING:
        decode_metadata(msg, &metadata)
        ids = range(ee.ee_data, <int64_t>ee.ee_data + 1)
        timestamp_ns = metadata.hardware_timestamp_ns or metadata.timestamp_ns or None
    elif origin == c.SO_EE_ORIGIN_TXTIME:
        timestamp_ns = <int64_t>ee.ee_data << 32 | ee.ee_info
    return ErrorRecord(
        # A timestamp comes as ENOMSG, which no call fails with; missed times as ECANCELED or EINVAL.
        0 if origin == c.SO_EE_ORIGIN_TIMESTAMPING else ee.ee_errno,
        ORIGINS.get(origin, str(origin)),
        ee.ee_info if origin == c.SO_EE_ORIGIN_TIMESTAMPING else ee.ee_type,
        ee.ee_code,
        decode_address(<c.sockaddr_storage *>msg.msg_name, msg.msg_namelen) if msg.msg_namelen else None,
        offender,
        ee.ee_info if ee.ee_errno == c.EMSGSIZE else None,
        PyBytes_FromStringAndSize(payload, <Py_ssize_t>size),
        ids,
        timestamp_ns,
        origin == c.SO_EE_ORIGIN_ZEROCOPY and ee.ee_code & c.SO_EE_CODE_ZEROCOPY_COPIED != 0,
    )


# --- for tests ---------------------------------------------------------------------------------

def decode(bytes control not None, bytes payload not None=b"", bytes name not None=b""):
    """The record in a control buffer, beside the quoted payload and the sockaddr of the peer, or None."""
    cdef bytearray copy = bytearray(control)
    cdef c.sockaddr_storage storage
    cdef c.msghdr msg
    memset(&msg, 0, sizeof(msg))
    memset(&storage, 0, sizeof(storage))
    memcpy(&storage, <const char *>name, min(<size_t>len(name), sizeof(storage)))
    msg.msg_name = &storage
    msg.msg_namelen = <c.socklen_t>len(name)
    msg.msg_control = <char *>copy
    msg.msg_controllen = len(copy)
    return decode_error(&msg, payload, <size_t>len(payload))
