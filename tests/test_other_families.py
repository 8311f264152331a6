"""Addresses beyond AF_INET, AF_INET6 and AF_UNIX: the standard library's tuples, or the kernel's own bytes."""

import errno
import os
import socket
import struct

import pytest

import fastsock
from fastsock._sockaddr import decode, encode

# struct sockaddr_nl, sockaddr_vm and sockaddr_ll, of linux/netlink.h, linux/vm_sockets.h and linux/if_packet.h.
NETLINK = struct.pack("@HHII", socket.AF_NETLINK, 0, 7, 0x80000001)
VSOCK = struct.pack("@HHIIB3x", socket.AF_VSOCK, 0, 1234, 2, 0)


def packet(index, protocol, pkttype=0, hatype=0, hardware=b""):
    head = struct.pack("@HHiHBB", socket.AF_PACKET, socket.htons(protocol), index, hatype, pkttype, len(hardware))
    return head + hardware.ljust(8, b"\0")


ADDRESSES = [
    (NETLINK, (7, 0x80000001)),
    (VSOCK, (2, 1234)),
    (packet(1, 0x800, 4, 772, b"\1\2\3\4\5\6"), ("lo", 0x800, 4, 772, b"\1\2\3\4\5\6")),
    (struct.pack("@H", socket.AF_CAN) + b"\7" * 14, (socket.AF_CAN, b"\7" * 14)),
]


@pytest.mark.parametrize(("raw", "address"), ADDRESSES)
def test_round_trip(raw, address):
    family = struct.unpack_from("@H", raw)[0]
    assert decode(raw) == address
    assert encode(family, address) == raw


def test_minus_one_is_every_bit():
    assert decode(encode(socket.AF_NETLINK, (0, -1))) == (0, 2**32 - 1)
    assert decode(encode(socket.AF_VSOCK, (-1, -1))) == (2**32 - 1, 2**32 - 1)  # VMADDR_CID_ANY, VMADDR_PORT_ANY


@pytest.mark.parametrize("size", [2, 3, 4])
def test_packet_addresses_may_be_short(size):
    assert encode(socket.AF_PACKET, ("lo", 3, 1, 2)[:size]) == packet(1, 3, *(1, 2)[: size - 2])


def test_an_interface_that_is_gone():
    assert decode(packet(2**31 - 1, 3)) == ("", 3, 0, 0, b"")


BAD = [
    (socket.AF_NETLINK, [0, 0], TypeError, "bind(): AF_NETLINK address must be a pair (pid, groups)"),
    (socket.AF_NETLINK, (0, 0, 0), TypeError, "pair"),
    (socket.AF_NETLINK, ("0", 0), TypeError, ""),
    (socket.AF_VSOCK, (1,), TypeError, "(CID, port)"),
    (socket.AF_PACKET, ("lo",), TypeError, "(ifname, proto"),
    (socket.AF_PACKET, ("lo", 0x10000), OverflowError, "proto must be 0-65535"),
    (socket.AF_PACKET, ("lo", 0, 0, 0, bytes(9)), ValueError, "8 bytes or less"),
    (socket.AF_PACKET, ("no such one", 0), OSError, "no interface named 'no such one'"),
    (socket.AF_CAN, ("can0",), OSError, "bind(): bad family"),
    (socket.AF_CAN, (socket.AF_INET, b""), OSError, "bad family"),
    (socket.AF_CAN, (socket.AF_CAN, bytes(127)), OSError, "longer than 126 bytes"),
]


@pytest.mark.parametrize(("family", "address", "error", "text"), BAD)
def test_bad_addresses(family, address, error, text):
    with pytest.raises(error) as raised:
        encode(family, address, "bind")
    assert text in str(raised.value)


def test_no_such_interface_has_an_errno():
    with pytest.raises(OSError, match="no interface") as raised:
        encode(socket.AF_PACKET, ("no such one", 0))
    assert raised.value.errno == errno.ENODEV


NETLINK_ROUTE = (socket.AF_NETLINK, socket.SOCK_RAW, 0)
GETLINK = struct.pack("=LHHLL BBHiII", 32, 18, 0x301, 7, 0, 0, 0, 0, 0, 0, 0)  # RTM_GETLINK, NLM_F_DUMP


def test_netlink_as_the_standard_library_has_it():
    with fastsock.Socket(*NETLINK_ROUTE) as sock:
        sock.bind((0, 1))
        sock.settimeout(10)
        with socket.socket(fileno=os.dup(sock.fileno())) as twin:
            assert sock.getsockname() == twin.getsockname()
        assert sock.sendto(GETLINK, (0, 0)) == 32
        payload, address = sock.recvfrom(1 << 16)
        assert struct.unpack_from("=LHHL", payload)[1:] == (16, 2, 7)  # RTM_NEWLINK, NLM_F_MULTI
        assert address == (0, 0)  # from the kernel
        while struct.unpack_from("=LH", payload)[1] != 3:  # NLMSG_DONE
            payload, _, _, address = sock.recvmsg(1 << 16)
            assert address == (0, 0)


def can_be_made(*kind):
    try:
        fastsock.Socket(*kind).close()
    except OSError:
        return False
    return True


KINDS = (NETLINK_ROUTE, (socket.AF_PACKET, socket.SOCK_RAW, 0), (socket.AF_VSOCK, socket.SOCK_STREAM, 0))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if can_be_made(*kind)], ids=str)
def test_sockets_of_other_families(kind):
    with fastsock.Socket(*kind) as sock, sock.dup() as copy:
        assert (sock.family, sock.type, sock.proto) == (copy.family, copy.type, copy.proto) == kind
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == kind[0]
        name = sock.getsockname()
        assert f"family={kind[0]:d}" in repr(sock)
        with sock.to_stdlib() as theirs:
            assert theirs.getsockname() == name
