"""What goes with a datagram of a SendBatch: ECN, DSCP, source, interface, time to send, segment size.

Seen from the receiving side, over IPv4, IPv6, and from an IPv6 socket to an IPv4 peer.
"""

import socket
import time
from typing import Any, NamedTuple

import pytest
from conftest import drain, needs, needs_ipv6

import fastsock
from fastsock import RecvBatch, SendBatch, Socket

LO = socket.if_nametoindex("lo")


class Way(NamedTuple):
    """From a socket of one family to a receiver, by addresses that the sender takes."""

    receiver: Socket
    sender: Socket
    peer: tuple[Any, ...]
    source: str

    def receive(self) -> RecvBatch:
        batch = RecvBatch(64, addresses=True)
        self.receiver.recv_batch(batch)
        return batch


@pytest.fixture(params=["v4", pytest.param("v6", marks=needs_ipv6), pytest.param("mapped", marks=needs_ipv6)])
def way(request, closing) -> Way:
    host = "::1" if request.param == "v6" else "127.0.0.1"
    receiver = closing(fastsock.bind_udp((host, 0), ecn=True, pktinfo=True, ttl=True))
    receiver.settimeout(10)
    port = receiver.getsockname()[1]
    family = socket.AF_INET if request.param == "v4" else socket.AF_INET6
    sender = closing(Socket(family, socket.SOCK_DGRAM))
    if request.param == "v4":
        return Way(receiver, sender, ("127.0.0.1", port), "127.0.0.9")
    sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if request.param == "v6":
        return Way(receiver, sender, ("::1", port), "::1")
    return Way(receiver, sender, ("::ffff:127.0.0.1", port), "127.0.0.9")


@pytest.fixture(params=["to", "connected"])
def address(request, way) -> tuple[Any, ...] | None:
    """What append is given: the peer, or None on a connected socket."""
    if request.param == "to":
        return way.peer
    way.sender.connect(way.peer)
    return None


# --- ECN and DSCP -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "ecn", "dscp"),
    [
        ({}, 0, 0),
        ({"ecn": 0}, 0, 0),
        ({"ecn": 1}, 1, 0),
        ({"ecn": 3}, 3, 0),
        ({"ecn": True}, 1, 0),
        ({"dscp": 46}, 0, 46),
        ({"dscp": 63, "ecn": 2}, 2, 63),
        ({"dscp": 0, "ecn": 3}, 3, 0),
    ],
)
def test_ecn_and_dscp(way, address, options, ecn, dscp):
    batch = SendBatch()
    batch.append(b"x", address, **options)
    assert way.sender.send_batch(batch) == 1
    datagram = way.receive()[0]
    assert (datagram.ecn, datagram.dscp, bytes(datagram)) == (ecn, dscp, b"x")


def test_each_datagram_has_its_own(way, address):
    # Equal in size, they are joined only where all of it is equal.
    batch = SendBatch()
    expected = [(0, 0), (0, 0), (1, 0), (1, 0), (1, 5), (2, 5), (2, 5), (0, 0)]
    for i, (ecn, dscp) in enumerate(expected):
        batch.append(b"%d" % i, address, **({"ecn": ecn, "dscp": dscp} if (ecn, dscp) != (0, 0) else {}))
    for _ in range(2):  # sent, and replayed
        assert way.sender.send_batch(batch) == 8
        found = way.receive()
        assert [(datagram.ecn, datagram.dscp) for datagram in found] == expected
        assert found.payloads() == [b"%d" % i for i in range(8)]
    # What a slot was told before must not stay in it.
    batch.clear()
    for _ in range(8):
        batch.append(b"plain", address)
    assert way.sender.send_batch(batch) == 8
    assert {(datagram.ecn, datagram.dscp) for datagram in way.receive()} == {(0, 0)}


# --- source and interface ---------------------------------------------------------------------------


def test_source(way, address):
    batch = SendBatch()
    batch.append(b"x", address, source=way.source)
    batch.append(b"y", address, source=way.source, interface=LO, ecn=1)
    assert way.sender.send_batch(batch) == 2
    datagrams = list(way.receive())
    assert [datagram.address[0] for datagram in datagrams] == [way.source] * 2
    assert [datagram.ecn for datagram in datagrams] == [0, 1]


@pytest.mark.parametrize("form", [str, str.encode, lambda host: bytearray(host.encode())])
def test_forms_of_a_source(way, form):
    batch = SendBatch()
    batch.append(b"x", way.peer, source=form(way.source))
    assert way.sender.send_batch(batch) == 1
    assert way.receive()[0].address[0] == way.source


def test_an_answer_goes_out_by_the_address_that_was_asked(closing, way):
    server = closing(fastsock.bind_udp(("", 0), family=way.receiver.family, pktinfo=True, ecn=True))
    server.settimeout(10)
    host = "127.0.0.77" if way.receiver.family == socket.AF_INET else "::1"
    way.receiver.sendto(b"question", (host, server.getsockname()[1]))
    questions, answers = RecvBatch(addresses=True), SendBatch()
    server.recv_batch(questions)
    for question in questions:
        answers.append(b"answer", question.address, source=question.local_address, interface=question.interface_index)
    assert server.send_batch(answers) == 1
    assert way.receive()[0].address[:2] == (host, server.getsockname()[1])


@pytest.mark.parametrize("interface", ["lo", LO, 0])
def test_interface(way, address, interface):
    batch = SendBatch()
    batch.append(b"x", address, interface=interface)
    assert way.sender.send_batch(batch) == 1
    assert way.receive()[0].interface_index == LO


@needs_ipv6
def test_an_interface_on_sockets_connected_to_either_family(closing):
    # An IPv4 peer of an IPv6 socket takes no unspecified IPv6 source, and the other way round:
    # what the batch, or the slot, was used for before must not decide.
    v4 = closing(fastsock.bind_udp(("127.0.0.1", 0), pktinfo=True))
    v6 = closing(fastsock.bind_udp(("::1", 0), pktinfo=True))
    mapped = ("::ffff:127.0.0.1", v4.getsockname()[1])
    batch, found = SendBatch(), RecvBatch()
    batch.append(b"x", interface="lo")
    for receiver, peer in [(v4, mapped), (v6, v6.getsockname()), (v4, mapped), (v4, v4.getsockname())]:
        receiver.settimeout(10)
        with Socket(socket.AF_INET if "." in peer[0][:4] else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            if sender.family == socket.AF_INET6:
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sender.connect(peer)
            assert sender.send_batch(batch) == 1
            assert receiver.recv_batch(found) == 1
            assert found[0].interface_index == LO
    with Socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        batch.clear()
        batch.append(b"to the IPv4 peer", mapped, interface=LO)
        assert sender.send_batch(batch) == 1
        sender.connect(v6.getsockname())
        batch.clear()
        batch.append(b"to the IPv6 peer", interface=LO)
        assert sender.send_batch(batch) == 1
    assert v4.recv(100) == b"to the IPv4 peer"
    assert v6.recv(100) == b"to the IPv6 peer"


# --- what is wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ecn": 4}, ValueError, "ecn must be 0 to 3, not 4"),
        ({"ecn": -1}, ValueError, "ecn must be 0 to 3, not -1"),
        ({"ecn": 2**80}, ValueError, "ecn must be 0 to 3"),
        ({"ecn": "1"}, TypeError, "integer"),
        ({"ecn": ""}, TypeError, "integer"),
        ({"ecn": 0.0}, TypeError, "integer"),
        ({"dscp": 64}, ValueError, "dscp must be 0 to 63, not 64"),
        ({"dscp": []}, TypeError, "integer"),
        ({"interface": -1}, ValueError, "interface must be 0 to 2147483647, not -1"),
        ({"interface": 2**31}, ValueError, "interface must be 0 to"),
        ({"interface": b"lo"}, TypeError, "integer"),
        ({"interface": []}, TypeError, "integer"),
        ({"interface": "nosuch0"}, OSError, "no interface 'nosuch0'"),
        ({"interface": ""}, OSError, "no interface ''"),
        ({"txtime_ns": -1}, ValueError, "txtime_ns must be 0 to 9223372036854775807, not -1"),
        ({"txtime_ns": 2**63}, ValueError, "txtime_ns must be 0 to"),
        ({"txtime_ns": 1.0}, TypeError, "integer"),
        ({"segment_size": 0}, ValueError, "segment_size must be 1 to 65535, not 0"),
        ({"segment_size": 65536}, ValueError, "segment_size must be 1 to 65535, not 65536"),
        ({"segment_size": ""}, TypeError, "integer"),
        ({"segments": 1}, TypeError, "segments"),
    ],
)
def test_wrong_options_add_nothing(options, error, text):
    batch = SendBatch()
    with pytest.raises(error, match=text):
        batch.append(b"x", **options)
    assert len(batch) == 0


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"source": "::1"}, ValueError),
        ({"source": "localhost"}, ValueError),
        ({"source": ""}, ValueError),
        ({"source": b"127.0.0.1\0"}, TypeError),
        ({"source": 5}, TypeError),
        ({"source": "203.0.113.77"}, OSError),  # not one of ours
        ({"interface": 2**31 - 1}, OSError),
        ({"txtime_ns": 5}, OSError),  # without SO_TXTIME
    ],
)
@pytest.mark.parametrize("gso", [True, False])
def test_what_the_socket_cannot_use_is_an_error_of_that_datagram(closing, bad, error, gso):
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    sender = closing(fastsock.connect_udp(receiver.getsockname(), gso=gso))
    batch = SendBatch()
    for payload, options in [(b"1", {}), (b"2", {"ecn": 1}), (b"3", bad), (b"4", {"ecn": 1}), (b"5", {})]:
        batch.append(payload, **options)
    for _ in range(2):  # sent, and replayed
        assert sender.send_batch(batch) == 2
        for _ in range(2):
            with pytest.raises(error):
                sender.send_batch(batch)
            assert batch.unsent == 3
        batch.skip()
        assert sender.send_batch(batch) == 2
        assert batch.unsent == 0
        assert drain(receiver) == [b"1", b"2", b"4", b"5"]
    assert sender.gso == gso
    assert sender.stats.gso_fallbacks == 0


@needs_ipv6
def test_a_mapped_source_to_an_ipv6_peer(closing):
    receiver = closing(fastsock.bind_udp(("::1", 0)))
    sender = closing(Socket(socket.AF_INET6, socket.SOCK_DGRAM))
    batch = SendBatch()
    batch.append(b"x", receiver.getsockname(), source="127.0.0.1")
    with pytest.raises(OSError, match=r"Invalid|Network"):
        sender.send_batch(batch)


@pytest.mark.parametrize("options", [{"ecn": 1}, {"dscp": 1}, {"source": "127.0.0.1"}, {"interface": LO}])
def test_unix_sockets_do_not_pass_over_it(unix_pair, options):
    receiver, sender = unix_pair()
    batch = SendBatch()
    batch.append(b"1")
    batch.append(b"2", **options)
    batch.append(b"3", segment_size=10)
    assert sender.send_batch(batch) == 1
    with pytest.raises(ValueError, match="are for IP sockets"):
        sender.send_batch(batch)
    batch.skip()
    assert sender.send_batch(batch) == 1
    assert drain(receiver) == [b"1", b"3"]


@needs_ipv6
def test_one_batch_on_sockets_of_both_families(closing):
    pairs = []
    for host in ("127.0.0.1", "::1"):
        receiver = closing(fastsock.bind_udp((host, 0), ecn=True))
        receiver.settimeout(10)
        pairs.append((receiver, closing(fastsock.connect_udp(receiver.getsockname()))))
    batch, found = SendBatch(), RecvBatch()
    batch.append(b"x", ecn=1, interface="lo")
    batch.append(b"y", dscp=9)
    for receiver, sender in pairs * 2:
        assert sender.send_batch(batch) == 2
        assert receiver.recv_batch(found) == 2
        assert [(datagram.ecn, datagram.dscp) for datagram in found] == [(1, 0), (0, 9)]


# --- segments with metadata ---------------------------------------------------------------------------


@pytest.mark.parametrize("gso", [True, False])
def test_every_segment_has_it(way, address, gso):
    way.sender.gso = gso
    batch = SendBatch(2, 5000)
    batch.append(bytes(range(100)) * 10, address, ecn=2, dscp=3, source=way.source, segment_size=100)
    batch.append(b"last", address, ecn=1)
    assert way.sender.send_batch(batch) == 2
    found = way.receive()
    assert [(datagram.ecn, datagram.dscp) for datagram in found] == [(2, 3)] * 10 + [(1, 0)]
    assert {datagram.address[0] for datagram in list(found)[:10]} == {way.source}
    assert found.payloads() == [bytes(range(100))] * 10 + [b"last"]
    assert way.sender.stats.sent == 11


# --- a time to send at ---------------------------------------------------------------------------------------


@needs("txtime")
def test_txtime_arrives(family, closing):
    # The loopback device has no queue that would wait: that the kernel takes it is what can be seen.
    receiver = closing(fastsock.bind_udp(family.address()))
    receiver.settimeout(10)
    sender = closing(fastsock.connect_udp(receiver.getsockname(), txtime="monotonic"))
    batch = SendBatch()
    now = time.monotonic_ns()
    for i, txtime_ns in enumerate([0, now, now, now + 10**6, 2**63 - 1, None]):
        batch.append(b"%d" % i, txtime_ns=txtime_ns, ecn=1)
    for _ in range(2):
        assert sender.send_batch(batch) == 6
        assert receiver.recv_many() == [b"%d" % i for i in range(6)]
    assert sender.recv_errors() == []


@pytest.mark.parametrize("txtime", ["real", "", 5, True])
def test_unknown_clocks(txtime):
    with pytest.raises(ValueError, match="txtime must be one of monotonic, tai"):
        fastsock.bind_udp(("127.0.0.1", 0), txtime=txtime)


# --- encoded once ------------------------------------------------------------------------------------------------


def test_a_replay_encodes_nothing_anew(closing):
    class Port:
        asked = 0

        def __index__(self) -> int:
            Port.asked += 1
            return receiver.getsockname()[1]

    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    sender = closing(Socket(socket.AF_INET, socket.SOCK_DGRAM))
    batch = SendBatch()
    for payload in (b"1", b"2", b"3"):
        batch.append(payload, ("127.0.0.1", Port()))
    for _ in range(3):
        assert sender.send_batch(batch) == 3
    assert Port.asked == 3
    # What was skipped may not have been encoded: the next round sees to it, once.
    batch.clear()
    for payload in (b"4", b"5"):
        batch.append(payload, ("127.0.0.1", Port()))
    batch.skip()
    for count in (1, 2, 2, 2):
        assert sender.send_batch(batch) == count
    assert Port.asked == 3 + 1 + 2
    assert drain(receiver) == [b"1", b"2", b"3"] * 3 + [b"5"] + [b"4", b"5"] * 3
