"""Across a link: what a loopback device never does. Two namespaces and a veth pair, no root's own network."""

import errno
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Family, needs
from namespaces import LEFT, RIGHT, Link, linked, skip_unless_linked

import fastsock
from fastsock import RecvBatch, Socket

SLOT = 65535
V4 = socket.AF_INET
pytestmark = pytest.mark.skipif(
    not (fastsock.probe().gro and fastsock.probe().gso), reason="the kernel neither joins nor cuts datagrams"
)


@pytest.fixture(scope="module")
def can_link() -> None:
    skip_unless_linked()


@pytest.fixture
def link(can_link: None) -> Iterator[Link]:
    with linked() as made:
        yield made


@pytest.fixture
def bind(link: Link, family: Family, closing: Callable[[Any], Any]) -> Callable[..., Socket]:
    """A socket on the right, which waits 10 s at most."""

    def make(host: str = RIGHT[family.family], **options: Any) -> Socket:
        with link.right.entered():
            sock = closing(fastsock.bind_udp((host, 0), family=family.family, **options))
        sock.settimeout(10)
        return sock

    return make


@pytest.fixture
def connect(link: Link, closing: Callable[[Any], Any]) -> Callable[..., Socket]:
    """A socket on the left, connected to one on the right."""

    def make(receiver: Socket, host: str | None = None, **options: Any) -> Socket:
        with link.left.entered():
            return closing(
                fastsock.connect_udp((host or receiver.getsockname()[0], receiver.getsockname()[1]), **options)
            )

    return make


def receive(sock: Socket, count: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < count:
        got += sock.recv_many()
    return got


# --- segments and fragments ---------------------------------------------------------------------------


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "plain"])
@pytest.mark.parametrize("gro", [True, False], ids=["gro", "single"])
@pytest.mark.parametrize("segment_size", [100, 1400, 1452])
@needs("drop_counter")
def test_segments_cross_the_link(bind, connect, segment_size, gro, gso):
    receiver = bind(gro=gro)
    sender = connect(receiver, gso=gso)
    stream = b"".join(i.to_bytes(4, "big") for i in range(15_000))[: min(50_001, 150 * segment_size + 1)]
    for _ in range(3):
        assert sender.send_segments(stream, segment_size) == len(stream)
        expected = [stream[at : at + segment_size] for at in range(0, len(stream), segment_size)]
        assert receive(receiver, len(expected)) == expected
    assert receiver.drops == 0
    assert sender.gso == gso


def test_what_the_device_joins(link, bind, connect):
    # The sender cuts nothing here: the receiving device's own GRO joins, or not, as it polls.
    try:
        link.join_datagrams()
    except OSError as error:
        pytest.skip(f"the device does not join datagrams: {error}")
    receiver = bind(gro=True, ttl=True, ecn=True)
    sender = connect(receiver, gso=False)
    level, option = (socket.IPPROTO_IP, socket.IP_TOS) if receiver.family == V4 else (socket.IPPROTO_IPV6, 67)
    batch, joined, turn = RecvBatch(1, SLOT), 0, 0
    deadline = time.monotonic() + 20
    while joined < 20:
        assert time.monotonic() < deadline, "nothing was ever joined"
        turn += 1
        sent, got = [], []
        for part in range(4):
            sender.setsockopt(level, option, 4 * turn % 64 + part % 3)
            # Sizes that end a run, and one that goes on with the size before it.
            payloads = [b"%06d" % (turn * 100 + i) * (30 if i != 6 else 10) for i in range(8)]
            assert sender.send_many(payloads) == 8
            sent += [(payload, part % 3, (4 * turn % 64) >> 2) for payload in payloads]
        while len(got) < len(sent):
            count = receiver.recv_batch(batch)
            joined += count > 1
            got += [(bytes(d), d.ecn, d.dscp) for d in batch]
        assert got == sent
    assert receiver.drops == 0


@pytest.mark.parametrize("size", [1473, 9000, 65507])
@pytest.mark.parametrize("gro", [True, False], ids=["gro", "single"])
def test_payloads_beyond_the_mtu_go_as_fragments(bind, connect, size, gro):
    receiver = bind(gro=gro, pktinfo=True)
    sender = connect(receiver)
    payload = b"".join(i.to_bytes(4, "big") for i in range(size // 4 + 1))[:size]
    assert sender.send(payload) == size
    assert receiver.recv_many() == [payload]
    assert sender.send_many([payload, b"x", payload]) == 3
    assert receive(receiver, 3) == [payload, b"x", payload]


def test_segments_beyond_the_mtu_go_as_fragments(bind, connect):
    receiver = bind(gro=True)
    sender = connect(receiver)
    stream = bytes(range(256)) * 100
    assert sender.send_segments(stream, 4000) == len(stream)
    assert receive(receiver, 7) == [stream[at : at + 4000] for at in range(0, len(stream), 4000)]


# --- who was meant, by which device, how far --------------------------------------------------------------


def test_the_destination_and_the_device_by_name(link, family, bind, connect):
    other = {V4: "10.77.0.9", socket.AF_INET6: "fd77::9"}[family.family]
    link.right.ip(f"addr add {other}/{24 if family.family == V4 else 64} dev right nodad")
    receiver = bind("" if family.family == V4 else "::", pktinfo=True, ttl=True)
    level, option = (
        (socket.IPPROTO_IP, socket.IP_TTL) if family.family == V4 else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    )
    batch = RecvBatch(4, addresses=True)
    with link.right.entered():
        near = fastsock.connect_udp((family.host, receiver.getsockname()[1]))
    with near:
        for host, ttl in ((RIGHT[family.family], 1), (other, 64), (other, 255)):
            sender = connect(receiver, host)
            sender.setsockopt(level, option, ttl)
            sender.send(b"x")
            assert receiver.recv_batch(batch) == 1
            datagram = batch[0]
            assert (datagram.local_address, datagram.ttl) == (host, ttl)
            assert datagram.address[0] == LEFT[family.family]
            with link.right.entered():
                assert socket.if_indextoname(datagram.interface_index) == "right"
            near.send(b"x")
            assert receiver.recv_batch(batch) == 1
            assert batch.local_addresses() == [family.host]
            with link.right.entered():
                assert socket.if_indextoname(batch.interface_indexes[0]) == "lo"


def test_a_link_local_destination(link, closing):
    def address(namespace: Any, device: str) -> str:
        with namespace.entered(), open("/proc/net/if_inet6") as lines:
            (raw,) = [line.split()[0] for line in lines if line.split()[3:6:2] == ["20", device]]
        return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(raw))

    try:
        for namespace, device in ((link.left, "left"), (link.right, "right")):
            namespace.ip(f"addr add fe80::{device == 'left':d}00:77/64 dev {device} nodad scope link")
    except OSError:
        pytest.skip("no IPv6")
    with link.right.entered():
        receiver = closing(fastsock.bind_udp(("::", 0), pktinfo=True))
        index = socket.if_nametoindex("right")
    receiver.settimeout(10)
    with link.left.entered():
        sender = closing(Socket(socket.AF_INET6, socket.SOCK_DGRAM))
        scope = socket.if_nametoindex("left")
    sender.sendto(b"x", ("fe80::77", receiver.getsockname()[1], 0, scope))
    batch = RecvBatch(1, addresses=True)
    receiver.recv_batch(batch)
    assert batch[0].local_address == "fe80::77"
    assert batch[0].interface_index == index
    assert batch[0].address[3] == index  # the peer is of the same link


# --- peers that are not there -----------------------------------------------------------------------------


def records(sock: Socket, count: int) -> list[fastsock.ErrorRecord]:
    found: list[fastsock.ErrorRecord] = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        assert time.monotonic() < deadline, f"{count} records expected: {found}"
        found += sock.recv_errors()
        time.sleep(0.001)
    return found


def test_a_closed_port_and_an_unreachable_host(link, family, bind, closing):
    v4 = family.family == V4
    far, width = ("10.88.0.1", 32) if v4 else ("fd88::1", 128)
    link.right.sysctl(f"net/{'ipv4/ip_forward' if v4 else 'ipv6/conf/all/forwarding'}", 1)
    link.right.ip(f"route add unreachable {far}/{width}" if v4 else f"-6 route add unreachable {far}/{width}")
    link.left.ip(f"route add {far}/{width} via {RIGHT[family.family]}")
    receiver = bind()
    dead = bind()
    closed = dead.getsockname()
    dead.close()
    with link.left.entered():
        sender = closing(fastsock.bind_udp((LEFT[family.family], 0), error_queue=True))
    sender.settimeout(10)
    sender.sendto(b"to nobody", closed)
    sender.sendto(b"to nowhere", (far, 9))
    by_number = {record.errno: record for record in records(sender, 2)}
    # The same route answers "host unreachable" over IPv4, "no route" over IPv6.
    nowhere = errno.EHOSTUNREACH if v4 else errno.ENETUNREACH
    assert set(by_number) == {errno.ECONNREFUSED, nowhere}
    for number, address, payload in (
        (errno.ECONNREFUSED, closed[:2], b"to nobody"),
        (nowhere, (far, 9), b"to nowhere"),
    ):
        record = by_number[number]
        assert record.origin == ("icmp" if v4 else "icmp6")
        assert record.address[:2] == address
        assert record.offender == RIGHT[family.family]
        assert record.payload == payload
    # Those who are there are served as before.
    sender.sendto(b"hello", receiver.getsockname())
    payload, peer = receiver.recvfrom(10)
    assert payload == b"hello"
    receiver.sendto(b"answer", peer)
    assert sender.recv(10) == b"answer"


def test_a_receive_goes_on_behind_the_errors_of_others(family, link, bind, closing):
    receiver, dead = bind(), bind()
    closed = dead.getsockname()
    dead.close()
    with link.left.entered():
        sock = closing(fastsock.bind_udp((LEFT[family.family], 0), error_queue=True, gro=True))
    sock.settimeout(10)
    batch = RecvBatch(4, SLOT)
    for receives in (lambda: sock.recv_many(), lambda: sock.recv_batch(batch) and batch.payloads()):
        sock.sendto(b"x", closed)
        found = records(sock, 1)
        assert [record.errno for record in found] == [errno.ECONNREFUSED]
        sock.sendto(b"x", closed)
        sock.sendto(b"ping", receiver.getsockname())
        payload, peer = receiver.recvfrom(10)
        receiver.sendto(payload, peer)
        assert receives() == [b"ping"]
        assert len(records(sock, 1)) == 1


def test_a_connected_socket_hears_of_it(bind, connect):
    receiver = bind()
    sender = connect(receiver, error_queue=True)
    sender.settimeout(10)
    receiver.close()
    sender.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        sender.recv_many()
    assert [record.errno for record in records(sender, 1)] == [errno.ECONNREFUSED]
