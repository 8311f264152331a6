"""Ancillary data between control buffers and lists of (level, type, data)."""

import array
import contextlib
import os
import socket
import struct
import sys
from socket import IPPROTO_IP, IPPROTO_IPV6, SCM_RIGHTS, SOL_SOCKET

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsock
from fastsock._cmsg import decode, encode

HEADER = struct.Struct("@Nii")  # struct cmsghdr, but for musl's padding on big-endian

IP_PKTINFO = 8  # linux/in.h
IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50  # linux/in6.h


def item(level: int, kind: int, data: bytes) -> bytes:
    """One item as the kernel lays it out, padded to the next one."""
    padding = socket.CMSG_SPACE(len(data)) - socket.CMSG_LEN(len(data))
    return HEADER.pack(socket.CMSG_LEN(len(data)), level, kind) + data + bytes(padding)


TABLES = [
    [],
    [(SOL_SOCKET, SCM_RIGHTS, b"")],
    [(SOL_SOCKET, SCM_RIGHTS, b"\1\2\3\4")],
    [(0, 0, b"x")],
    [(-1, -(2**31), b"x" * 7), (2**31 - 1, 5, b"y" * 8), (1, 2, b"z" * 9)],
    [(IPPROTO_IP, IP_PKTINFO, bytes(12)), (SOL_SOCKET, 35, bytes(16)), (SOL_SOCKET, 40, bytes(4))],
    [(1, 1, b"x" * 5000)],
]


@pytest.mark.parametrize("ancdata", TABLES)
def test_layout_is_the_kernels(ancdata):
    raw = b"".join(item(*one) for one in ancdata)
    assert encode(ancdata) == raw
    assert decode(raw) == ancdata


@pytest.mark.parametrize("data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), array.array("B", b"abcd")])
def test_data_may_be_any_bytes(data):
    assert encode([(1, 2, data)]) == item(1, 2, b"abcd")


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.binary(max_size=70))))
def test_round_trip(ancdata):
    assert decode(encode(ancdata)) == ancdata


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.binary(max_size=20)), min_size=1), st.data())
def test_cut_buffer_gives_what_is_whole_and_cuts_the_rest(ancdata, data):
    control = encode(ancdata)
    cut = data.draw(st.integers(0, len(control)))
    found = decode(control[:cut])
    # A C library may leave a cut item out (glibc looks ahead, musl does not).
    assert len(found) <= len(ancdata)
    for i, (level, kind, payload) in enumerate(found):
        assert (level, kind) == ancdata[i][:2]
        assert payload == ancdata[i][2] or (i == len(found) - 1 and ancdata[i][2].startswith(payload))
    whole = [len(encode(ancdata[: i + 1])) for i in range(len(ancdata))]
    assert len(found) >= sum(end <= cut for end in whole)


MOST = (1 << 8 * struct.calcsize("N")) - 1  # of a size_t
LENGTHS = st.sampled_from([0, 1, 15, 16, 17, 24, 31, 32, 2**31, 2**32, 2**63, 2**64 - 1, 2**64 - 8, 2**64 - 16])


@given(st.lists(st.builds(lambda size, rest: struct.pack("@N", size & MOST) + rest, LENGTHS, st.binary(max_size=24))))
def test_rubbish_is_never_read_past(chunks):
    control = b"".join(chunks)
    found = decode(control)
    assert sum(len(data) for _, _, data in found) <= len(control)


@given(st.binary(max_size=200))
def test_any_bytes_decode(control):
    assert sum(len(data) for _, _, data in decode(control)) <= len(control)


def test_wrong_arguments():
    with pytest.raises(TypeError):
        decode(None)
    with pytest.raises(TypeError):
        decode("x")
    for bad in ([(1, 2)], [(1, 2, b"", 3)]):
        with pytest.raises((TypeError, ValueError)):
            encode(bad)
    for bad in ([("1", 2, b"")], [(1, None, b"")], [(1, 2, "text")], 5):
        with pytest.raises(TypeError):
            encode(bad)
    with pytest.raises(OverflowError):
        encode([(2**31, 0, b"")])


# --- against the kernel and the standard library ---------------------------------------


@pytest.fixture
def ends(closing):
    """Two connected pairs: ours and the standard library's."""
    ours = [closing(fastsock.Socket(fileno=end.detach())) for end in socket.socketpair(type=socket.SOCK_DGRAM)]
    return ours, [closing(end) for end in socket.socketpair(type=socket.SOCK_DGRAM)]


def received_descriptors(ancdata) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancdata:
        assert (level, kind) == (SOL_SOCKET, SCM_RIGHTS)
        fds.frombytes(data)
    return list(fds)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_scm_rights_as_the_standard_library(ends, count):
    for a, b in ends:
        with open("/dev/null") as file:
            rights = array.array("i", [file.fileno()] * count)
            assert a.sendmsg([b"pay", b"load"], [(SOL_SOCKET, SCM_RIGHTS, rights)]) == 7
            payload, ancdata, flags, _ = b.recvmsg(100, socket.CMSG_LEN(rights.itemsize * count))
            fds = received_descriptors(ancdata)
            try:
                assert (payload, len(fds)) == (b"payload", count)
                assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
                assert all(os.path.sameopenfile(fd, file.fileno()) for fd in fds)
            finally:
                for fd in fds:
                    os.close(fd)


@pytest.mark.parametrize("ancbufsize", [0, 1, socket.CMSG_LEN(0), socket.CMSG_LEN(4), socket.CMSG_LEN(8)])
def test_cut_ancillary_data_as_the_standard_library(ends, ancbufsize):
    found = []
    for a, b in ends:
        with open("/dev/null") as file:
            a.sendmsg([b"x"], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [file.fileno()] * 3))])
        _, ancdata, flags, _ = b.recvmsg(100, ancbufsize)
        fds = received_descriptors(ancdata)
        for fd in fds:
            os.close(fd)
        found.append((len(fds), flags & socket.MSG_CTRUNC))
    assert found[0] == found[1]


def test_descriptors_that_no_call_asks_for_are_not_leaked(ends, no_descriptor_leaks):
    a, b = ends[0]
    batch = fastsock.RecvBatch()
    for receive in (lambda: b.recv(9), lambda: b.recv_many(), lambda: b.recv_batch(batch)):
        with open("/dev/null") as file:
            a.sendmsg([b"x"], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [file.fileno()]))])
        assert receive()


def test_pktinfo_as_the_standard_library(family, closing):
    level, option, kind, size = (
        (IPPROTO_IP, IP_PKTINFO, IP_PKTINFO, 12)
        if family.family == socket.AF_INET
        else (IPPROTO_IPV6, IPV6_RECVPKTINFO, IPV6_PKTINFO, 20)
    )
    found = []
    for make in (fastsock.Socket, socket.socket):
        sock = closing(make(family.family, socket.SOCK_DGRAM))
        sock.bind(family.address())
        sock.settimeout(10)
        sock.setsockopt(level, option, 1)
        sock.sendmsg([b"x"], [], 0, sock.getsockname())
        payload, ancdata, flags, address = sock.recvmsg(10, socket.CMSG_SPACE(size))
        assert address == sock.getsockname()
        found.append((payload, ancdata, flags))
    assert found[0] == found[1]
    assert [(one[0], one[1], len(one[2])) for one in found[0][1]] == [(level, kind, size)]


def test_several_items_reach_the_kernel(closing, udp_pair, family):
    # Both in one call: the second one is only found if the first one's padding is right.
    sock = udp_pair.sender
    if family.family == socket.AF_INET:
        items = [(IPPROTO_IP, socket.IP_TTL, struct.pack("=i", 9)), (IPPROTO_IP, socket.IP_TOS, struct.pack("=i", 8))]
        udp_pair.receiver.setsockopt(IPPROTO_IP, 12, 1)  # IP_RECVTTL
        udp_pair.receiver.setsockopt(IPPROTO_IP, 13, 1)  # IP_RECVTOS
    else:
        items = [
            (IPPROTO_IPV6, socket.IPV6_HOPLIMIT, struct.pack("=i", 9)),
            (IPPROTO_IPV6, socket.IPV6_TCLASS, struct.pack("=i", 8)),
        ]
        udp_pair.receiver.setsockopt(IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        udp_pair.receiver.setsockopt(IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    assert sock.sendmsg([b"x"], items) == 1
    _, ancdata, _, _ = udp_pair.receiver.recvmsg(10, 200)
    values = {kind: int.from_bytes(data, sys.byteorder) for _, kind, data in ancdata}
    assert sorted(values.values()) == [8, 9]


@pytest.mark.parametrize("bad", [[(1, 2)], [(1, 2, b"", 3)], [(1, "2", b"")], [(1, 2, "text")], 5, [5]])
def test_wrong_ancdata_is_a_type_error_and_sends_nothing(ends, bad):
    for a, b in ends:
        with pytest.raises(TypeError):
            a.sendmsg([b"x"], bad)
        b.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            pytest.fail(f"sent {b.recv(10)}")
