"""Receiving, one datagram or many at a time, on every kind of socket that has datagrams."""

import errno
import socket
import time

import pytest

import fastsock
from fastsock import RecvBatch, Socket

MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, MSG_WAITALL = (
    socket.MSG_DONTWAIT,
    socket.MSG_PEEK,
    socket.MSG_TRUNC,
    socket.MSG_WAITALL,
)


def recv(sock, bufsize=65535, flags=0):
    return sock.recv(bufsize, flags)


def recvfrom(sock, bufsize=65535, flags=0):
    return sock.recvfrom(bufsize, flags)[0]


def recv_into(sock, bufsize=65535, flags=0):
    buffer = bytearray(bufsize)
    return bytes(buffer[: sock.recv_into(buffer, 0, flags)])


def recvfrom_into(sock, bufsize=65535, flags=0):
    buffer = bytearray(bufsize)
    return bytes(buffer[: sock.recvfrom_into(buffer, 0, flags)[0]])


def recvmsg(sock, bufsize=65535, flags=0):
    return sock.recvmsg(bufsize, 0, flags)[0]


def recvmsg_into(sock, bufsize=65535, flags=0):
    head, tail = bytearray(bufsize // 2), bytearray(bufsize - bufsize // 2)
    size = sock.recvmsg_into([head, tail], 0, flags)[0]
    return bytes(head + tail)[:size]


def recv_many(sock, bufsize=65535, flags=0):
    return sock.recv_many(1, bufsize, flags)[0]


def recvfrom_many(sock, bufsize=65535, flags=0):
    return sock.recvfrom_many(1, bufsize, flags)[0][0]


def recv_batch(sock, bufsize=65535, flags=0):
    batch = RecvBatch(1, bufsize)
    assert sock.recv_batch(batch, flags) == 1
    return bytes(batch[0])


SINGLE = [recv, recvfrom, recv_into, recvfrom_into, recvmsg, recvmsg_into]
MANY = [recv_many, recvfrom_many, recv_batch]
every_call = pytest.mark.parametrize("call", SINGLE + MANY)


# --- every call alike -------------------------------------------------------------------


@every_call
def test_order_and_content(udp_pair, call):
    payloads = [b"", b"a", b"", b"x" * 1400, b"", b"y" * 9000, b"z" * 65507, b"end"]
    for payload in payloads:
        udp_pair.sender.send(payload)
        assert call(udp_pair.receiver) == payload
    for payload in payloads[:-2]:
        udp_pair.sender.send(payload)
    assert [call(udp_pair.receiver) for _ in payloads[:-2]] == payloads[:-2]


@every_call
@pytest.mark.parametrize("bufsize", [1, 5, 2047, 2048, 2049, 3000])
def test_bufsize_cuts(udp_pair, call, bufsize):
    payload = bytes(range(256)) * 20
    udp_pair.sender.send_many([payload, b"next"])
    assert call(udp_pair.receiver, bufsize) == payload[:bufsize]
    assert call(udp_pair.receiver, bufsize) == b"next"[:bufsize]


@every_call
@pytest.mark.parametrize("bufsize", [4, 2048, 3000])
def test_msg_trunc_never_shows_more_than_the_buffer(udp_pair, call, bufsize):
    # The kernel then says the datagram's whole length (dnsdist read past its buffer).
    payload = b"0123456789" * 500
    udp_pair.sender.send_many([payload, b"next"])
    assert call(udp_pair.receiver, bufsize, MSG_TRUNC) == payload[:bufsize]
    assert call(udp_pair.receiver, bufsize, MSG_TRUNC) == b"next"[:bufsize]


@pytest.mark.parametrize("into", [Socket.recv_into, Socket.recvfrom_into])
def test_msg_trunc_into_a_buffer_says_the_whole_length(udp_pair, into):
    udp_pair.sender.send(b"0123456789")
    buffer = bytearray(b"....")
    size = into(udp_pair.receiver, buffer, 3, MSG_TRUNC)
    assert (size if into is Socket.recv_into else size[0]) == 10
    assert buffer == b"012."


@every_call
def test_msg_peek_leaves_the_datagram(udp_pair, call):
    udp_pair.sender.send_many([b"one", b"two"])
    assert [call(udp_pair.receiver, flags=MSG_PEEK) for _ in range(3)] == [b"one"] * 3
    assert [call(udp_pair.receiver) for _ in range(2)] == [b"one", b"two"]


@every_call
@pytest.mark.parametrize("flags", [MSG_WAITALL, MSG_DONTWAIT])
def test_other_flags(udp_pair, call, flags):
    udp_pair.sender.send(b"x")
    assert call(udp_pair.receiver, flags=flags) == b"x"


@every_call
@pytest.mark.parametrize("bufsize", [100, 200_000])
def test_nothing_there(udp_pair, call, bufsize):
    sock = udp_pair.receiver
    sock.settimeout(None)
    with pytest.raises(BlockingIOError) as caught:
        call(sock, bufsize, MSG_DONTWAIT)
    assert caught.value.errno == errno.EAGAIN
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        call(sock, bufsize)
    sock.settimeout(0.02)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="timed out"):
        call(sock, bufsize)
    assert time.monotonic() - began >= 0.02
    udp_pair.sender.send(b"still works")
    assert call(sock, bufsize) == b"still works"


@every_call
def test_closed(family, call):
    sock = fastsock.bind_udp(family.address())
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        call(sock)
    assert caught.value.errno == errno.EBADF


@every_call
def test_flags_out_of_range(udp_pair, call):
    with pytest.raises(OverflowError):
        call(udp_pair.receiver, flags=2**31)
    with pytest.raises(TypeError):
        call(udp_pair.receiver, flags="0")


@every_call
def test_refused_peer(family, closing, call):
    with fastsock.bind_udp(family.address()) as gone:
        address = gone.getsockname()
    sock = closing(fastsock.connect_udp(address))
    sock.settimeout(10)
    sock.send(b"x")  # loopback: the ICMP error is there when send returns
    with pytest.raises(ConnectionRefusedError):
        call(sock)
    sock.setblocking(False)  # reported once
    with pytest.raises(BlockingIOError):
        call(sock)


def test_peer_address(udp_pair):
    name = udp_pair.sender.getsockname()
    sock, batch = udp_pair.receiver, RecvBatch(1, 9, addresses=True)
    for receive in (
        lambda: sock.recvfrom(9)[1],
        lambda: sock.recvfrom_into(bytearray(9))[1],
        lambda: sock.recvmsg(9)[3],
        lambda: sock.recvmsg_into([bytearray(9)])[3],
        lambda: sock.recvfrom_many()[0][1],
        lambda: sock.recv_batch(batch) and batch[0].address,
    ):
        udp_pair.sender.send(b"x")
        assert receive() == name


# --- batches --------------------------------------------------------------------------------


def payloads_of(sock, name, vlen, bufsize=65535):
    if name == "recv_many":
        return sock.recv_many(vlen, bufsize)
    if name == "recvfrom_many":
        return [payload for payload, _ in sock.recvfrom_many(vlen, bufsize)]
    batch = RecvBatch(vlen, bufsize)
    assert sock.recv_batch(batch) == len(batch)
    return batch.payloads()


@pytest.mark.parametrize("name", ["recv_many", "recvfrom_many", "recv_batch"])
@pytest.mark.parametrize("vlen", [1, 2, 63, 64, 65, 128, 129, 200, 1000])
def test_vlen_against_what_is_queued(udp_pair, name, vlen):
    payloads = [b"%d" % i for i in range(150)]
    assert udp_pair.sender.send_many(payloads) == 150
    left = payloads
    while left:
        got = payloads_of(udp_pair.receiver, name, vlen, 100)
        assert got == left[:vlen]
        left = left[vlen:]
    udp_pair.receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        udp_pair.receiver.recv(1)


def test_huge_vlen_takes_what_is_queued(udp_pair):
    udp_pair.sender.send_many([b"%d" % i for i in range(150)])
    assert udp_pair.receiver.recv_many(1_000_000) == [b"%d" % i for i in range(150)]
    udp_pair.sender.send(b"x")
    assert udp_pair.receiver.recvfrom_many(2**62) == [(b"x", udp_pair.sender.getsockname())]


@pytest.mark.parametrize("method", ["recv_many", "recvfrom_many"])
def test_lists_refuse_a_bad_geometry(udp_pair, method):
    call = getattr(udp_pair.receiver, method)
    for arguments, text in (((0,), "vlen"), ((-1,), "vlen"), ((1, 0), "bufsize"), ((1, -1), "bufsize")):
        with pytest.raises(ValueError, match=f"{text} must be at least 1"):
            call(*arguments)
    with pytest.raises(OverflowError):
        call(2**63)
    with pytest.raises(TypeError):
        call("64")
    with pytest.raises(MemoryError):
        call(1, 2**31)
    udp_pair.sender.send(b"x")
    assert len(call()) == 1


def test_shape_may_change_from_call_to_call(udp_pair):
    sock, sender = udp_pair
    name = sender.getsockname()
    payloads = [bytes([i]) * (100 * i) for i in range(1, 9)]
    for vlen, bufsize in [(64, 65535), (1, 10), (8, 300), (2, 100_000), (64, 1), (3, 2048), (65, 700), (64, 65535)]:
        sender.send_many(payloads)
        got = []
        while len(got) < 8:
            got += sock.recv_many(vlen, bufsize)
        assert got == [payload[:bufsize] for payload in payloads]
        sender.send_many(payloads)
        pairs = []
        while len(pairs) < 8:
            pairs += sock.recvfrom_many(vlen, bufsize)
        assert pairs == [(payload[:bufsize], name) for payload in payloads]


def test_lists_with_and_without_peers_in_turn(udp_pair, family, closing):
    others = [closing(fastsock.connect_udp(udp_pair.receiver.getsockname())) for _ in range(3)]
    for other in others * 2:
        other.send_many([b"a", b"b"])
        assert udp_pair.receiver.recv_many(1) == [b"a"]
        assert udp_pair.receiver.recvfrom_many() == [(b"b", other.getsockname())]


def test_bytes_outlive_the_next_receive(udp_pair):
    udp_pair.sender.send_many([b"a" * 3000, b"b"])
    first = udp_pair.receiver.recv_many()
    udp_pair.sender.send_many([b"c" * 3000, b"d"])
    udp_pair.receiver.recv_many()
    assert first == [b"a" * 3000, b"b"]


def test_peek_of_many_shows_the_first_only(udp_pair):
    batch = RecvBatch()
    udp_pair.sender.send_many([b"one", b"two"])
    assert udp_pair.receiver.recv_many(flags=MSG_PEEK) == [b"one"]
    assert udp_pair.receiver.recvfrom_many(flags=MSG_PEEK) == [(b"one", udp_pair.sender.getsockname())]
    assert udp_pair.receiver.recv_batch(batch, MSG_PEEK) == 1
    assert udp_pair.receiver.recv_many() == [b"one", b"two"]


def test_batch_is_reset_between_receives(udp_pair):
    batch = RecvBatch(8, 4, addresses=True)
    udp_pair.sender.send_many([b"too long", b"fits", b"too long"])
    assert udp_pair.receiver.recv_batch(batch) == 3
    assert batch.truncated.tolist() == [True, False, True]
    udp_pair.sender.send(b"1")
    assert udp_pair.receiver.recv_batch(batch) == 1
    assert (batch.payloads(), batch.truncated.tolist()) == ([b"1"], [False])
    udp_pair.sender.send_many([b"2"] * 8)
    assert udp_pair.receiver.recv_batch(batch) == 8
    assert batch.truncated.tolist() == [False] * 8
    assert batch.addresses() == [udp_pair.sender.getsockname()] * 8


def test_one_batch_on_sockets_of_every_family(closing, unix_pair):
    # Each family's addresses are longer than those of the one before.
    batch = RecvBatch(4, 16, addresses=True)
    unnamed = unix_pair()
    pairs = [(unnamed.receiver, unnamed.sender, None)]
    for host in ("127.0.0.1", "::1"):
        receiver = closing(fastsock.bind_udp((host, 0)))
        sender = closing(fastsock.connect_udp(receiver.getsockname()))
        pairs.append((receiver, sender, sender.getsockname()))
    for receiver, sender, name in pairs:
        for count in (1, 3):
            assert sender.send_many([b"x"] * count) == count
            assert receiver.recv_batch(batch) == count
            assert batch.addresses() == [name] * count


def test_batch_is_empty_when_the_receive_fails(udp_pair):
    batch = RecvBatch()
    batch.load([b"stale"])
    udp_pair.receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        udp_pair.receiver.recv_batch(batch)
    assert len(batch) == 0
    assert batch.payloads() == []


def test_recv_batch_wants_a_batch(udp_pair):
    for bad in (None, 64, bytearray(100), fastsock.SendBatch()):
        with pytest.raises(TypeError):
            udp_pair.receiver.recv_batch(bad)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_streams_are_refused(family):
    with Socket(family, socket.SOCK_STREAM) as sock:
        for call in MANY:
            with pytest.raises(OSError, match="stream") as caught:
                call(sock)
            assert caught.value.errno == errno.EOPNOTSUPP


# --- dual stack, AF_UNIX, seqpacket -------------------------------------------------------


def test_mapped_and_native_peers_in_one_batch(closing):
    sock = closing(fastsock.bind_udp(("::", 0), dualstack_ipv6=True))
    sock.settimeout(10)
    port = sock.getsockname()[1]
    v4, v6 = closing(fastsock.connect_udp(("127.0.0.1", port))), closing(fastsock.connect_udp(("::1", port)))
    for sender in (v4, v6, v4):
        sender.send(b"x")
    mapped = ("::ffff:127.0.0.1", v4.getsockname()[1], 0, 0)
    batch = RecvBatch(addresses=True)
    sock.recv_batch(batch)
    assert batch.addresses() == [mapped, v6.getsockname(), mapped]
    v4.send(b"x")
    assert sock.recvfrom_many() == [(b"x", mapped)]


@every_call
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_unix(unix_pair, call, kind):
    receiver, sender = unix_pair(kind)
    for payload in (b"a", b"", b"x" * 30_000):
        sender.send(payload)
        assert call(receiver) == payload


def test_unix_peers_by_name(closing, tmp_path):
    sock = closing(Socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sock.bind(str(tmp_path / "receiver"))
    sock.settimeout(10)
    names = [str(tmp_path / "named"), b"\0fastsock-test-%d" % id(sock), None]
    for name in names:
        sender = closing(Socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        if name is not None:
            sender.bind(name)
        assert sender.sendto(b"x", str(tmp_path / "receiver")) == 1
    assert sock.recvfrom_many() == [(b"x", name) for name in names]


@pytest.mark.parametrize("queued", [0, 1, 2, 62, 63, 64, 65, 127, 128])
def test_end_of_file_of_a_seqpacket_socket_is_one_empty_payload(unix_pair, queued):
    receiver, sender = unix_pair(socket.SOCK_SEQPACKET)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for receive in ("recv_batch", "recv_many"):
        assert sender.send_many([b"x"] * queued) == queued
        if receive == "recv_many":
            sender.close()
            assert payloads_of(receiver, receive, 1000, 100) == [b"x"] * queued + [b""]
        elif queued:
            assert payloads_of(receiver, receive, 1000, 100) == [b"x"] * queued
    for receive in ("recv_batch", "recv_many", "recvfrom_many"):
        assert payloads_of(receiver, receive, 64, 100) == [b""]


def test_empty_datagrams_of_a_seqpacket_socket_are_not_end_of_file(unix_pair):
    receiver, sender = unix_pair(socket.SOCK_SEQPACKET)
    payloads = [b"", b"", b"x", b"", b""]
    assert sender.send_many(payloads) == 5
    assert receiver.recv_many() == payloads
