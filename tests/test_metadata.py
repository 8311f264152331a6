"""What the kernel tells of each datagram: decoded from memory against a model, and from sockets."""

import socket
import struct
import time
from collections.abc import Callable
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET
from typing import Any, NamedTuple

import pytest
from conftest import needs, needs_ipv6
from hypothesis import given
from hypothesis import strategies as st

import fastsock
from fastsock import RecvBatch, Socket
from fastsock import _constants as k

Item = tuple[int, int, bytes]

IPV6_PKTINFO = socket.IPV6_PKTINFO
TIMESTAMPNS, TIMESTAMPING = k.SO_TIMESTAMPNS, k.SO_TIMESTAMPING  # SCM_ has the same numbers

# attribute of a Datagram, what the batch has for all, the argument of bind_udp
ATTRIBUTES = [
    ("timestamp_ns", "timestamps_ns", "timestamps=True"),
    ("hardware_timestamp_ns", "hardware_timestamps_ns", "timestamps='hardware'"),
    ("ecn", "ecn", "ecn=True"),
    ("dscp", "dscp", "ecn=True"),
    ("ttl", "ttls", "ttl=True"),
    ("local_address", "local_addresses", "pktinfo=True"),
    ("interface_index", "interface_indexes", "pktinfo=True"),
    ("drop_counter", "drop_counters", "drop_counter=True"),
]


def column(batch: RecvBatch, name: str) -> list[Any]:
    found = getattr(batch, name)
    return found() if callable(found) else found.tolist()


def refusal(call: Callable[[], Any]) -> ValueError | None:
    try:
        call()
    except ValueError as error:
        return error
    return None


def recorded(batch: RecvBatch) -> dict[str, list[Any]]:
    """Every attribute that was recorded; columns and Datagrams say the same, or both refuse."""
    found = {}
    for one, all_, option in ATTRIBUTES:
        refusals = {str(error) for error in (refusal(lambda d=d, one=one: getattr(d, one)) for d in batch)}
        refusals.add(str(refusal(lambda all_=all_: column(batch, all_))))
        if refusals == {"None"}:
            nothing = None if one.endswith("timestamp_ns") else 0
            found[one] = column(batch, all_)
            assert [getattr(d, one) for d in batch] == [nothing if value == 0 else value for value in found[one]]
        else:
            assert refusals == {f"not recorded: make the socket with bind_udp(..., {option}), and receive from it"}
    return found


# --- decoding, against a model ----------------------------------------------------------------------


def as_ns(raw: bytes) -> int:
    seconds, nanoseconds = struct.unpack("@ll", raw)
    return (seconds * 10**9 + nanoseconds + (1 << 63)) % (1 << 64) - (1 << 63)


def model(items: list[Item]) -> dict[str, Any]:
    """What a batch should record of one message with these items in its control buffer."""
    found: dict[str, Any] = {}
    local6 = False
    for level, kind, data in items:
        number = struct.unpack("i", data[:4])[0] if len(data) >= 4 else None
        if (level, kind) == (SOL_SOCKET, TIMESTAMPNS):
            found.setdefault("timestamp_ns", 0)
            if len(data) >= 16:
                found["timestamp_ns"] = as_ns(data[:16])
        elif (level, kind) == (SOL_SOCKET, TIMESTAMPING):
            found.setdefault("timestamp_ns", 0)
            found.setdefault("hardware_timestamp_ns", 0)
            if len(data) >= 48:
                found["timestamp_ns"] = as_ns(data[:16]) or found["timestamp_ns"]
                found["hardware_timestamp_ns"] = as_ns(data[32:48])
        elif (level, kind) == (SOL_SOCKET, k.SO_RXQ_OVFL):
            found.setdefault("drop_counter", 0)
            if number is not None:
                found["drop_counter"] = number & 0xFFFFFFFF
        elif (level, kind) in ((IPPROTO_IP, k.IP_PKTINFO), (IPPROTO_IPV6, IPV6_PKTINFO)):
            found.setdefault("interface_index", 0)
            found.setdefault("local_address", None)
            if kind == IPV6_PKTINFO and level == IPPROTO_IPV6 and len(data) >= 20:
                found["local_address"] = socket.inet_ntop(AF_INET6, data[:16])
                found["interface_index"] = struct.unpack("i", data[16:20])[0]
                local6 = True
            elif level == IPPROTO_IP and len(data) >= 12 and found["local_address"] is None and not local6:
                found["local_address"] = socket.inet_ntop(AF_INET, data[8:12])
                found["interface_index"] = number
        elif (level, kind) in ((IPPROTO_IP, socket.IP_TOS), (IPPROTO_IPV6, socket.IPV6_TCLASS)):
            found.setdefault("ecn", 0)
            found.setdefault("dscp", 0)
            if level == IPPROTO_IP and data:
                found.update(ecn=data[0] & 3, dscp=data[0] >> 2)
            elif level == IPPROTO_IPV6 and number is not None:
                found.update(ecn=number & 3, dscp=(number & 255) >> 2)
        elif (level, kind) in ((IPPROTO_IP, socket.IP_TTL), (IPPROTO_IPV6, socket.IPV6_HOPLIMIT)):
            found.setdefault("ttl", 0)
            if number is not None:
                found["ttl"] = number & 255
    return found


def room(items: list[Item]) -> int:
    return sum(socket.CMSG_SPACE(len(data)) for _, _, data in items)


def check(messages: list[list[Item]]) -> None:
    batch = RecvBatch(8, 16)
    try:
        batch.load([b"x"] * len(messages), ancdata=messages)
    except ValueError:  # more than everything at once would take
        assert max(map(room, messages)) > 300
        return
    models = [model(items) for items in messages]
    found = recorded(batch)
    assert set(found) == set().union(*models)
    for i, expected in enumerate(models):
        for name, values in found.items():
            assert values[i] == expected.get(name, None if name == "local_address" else 0), name


STAMP = struct.pack("@ll", 1_700_000_000, 123_456_789)
OTHER = struct.pack("@ll", 1_600_000_000, 987_654_321)
NONE = bytes(16)
LOOPBACK = struct.pack("i4s4s", 1, bytes(4), bytes([127, 1, 2, 3]))
MAPPED = socket.inet_pton(AF_INET6, "::ffff:127.1.2.3") + struct.pack("i", 1)
LINK_LOCAL = socket.inet_pton(AF_INET6, "fe80::1") + struct.pack("i", 7)

TABLE = {
    "nothing": [[]],
    "timestamp": [[(SOL_SOCKET, TIMESTAMPNS, STAMP)]],
    "software half": [[(SOL_SOCKET, TIMESTAMPING, STAMP + NONE + NONE)]],
    "hardware half": [[(SOL_SOCKET, TIMESTAMPING, NONE + NONE + OTHER)]],
    "both halves": [[(SOL_SOCKET, TIMESTAMPING, STAMP + NONE + OTHER)]],
    "both options": [[(SOL_SOCKET, TIMESTAMPNS, STAMP), (SOL_SOCKET, TIMESTAMPING, NONE + NONE + OTHER)]],
    "the obsolete middle": [[(SOL_SOCKET, TIMESTAMPING, NONE + STAMP + NONE)]],
    "a cut timespec": [[(SOL_SOCKET, TIMESTAMPNS, STAMP[:15])]],
    "a cut scm_timestamping": [[(SOL_SOCKET, TIMESTAMPING, STAMP * 3), (SOL_SOCKET, TIMESTAMPING, OTHER * 2)]],
    "before 1970": [[(SOL_SOCKET, TIMESTAMPNS, struct.pack("@ll", -1, 5))]],
    "no time that there is": [[(SOL_SOCKET, TIMESTAMPNS, struct.pack("@ll", 2**63 - 1, -(2**63)))]],
    "v4 destination": [[(IPPROTO_IP, k.IP_PKTINFO, LOOPBACK)]],
    "v6 destination": [[(IPPROTO_IPV6, IPV6_PKTINFO, LINK_LOCAL)]],
    "dual stack, both": [
        [(IPPROTO_IPV6, IPV6_PKTINFO, MAPPED), (IPPROTO_IP, k.IP_PKTINFO, LOOPBACK)],
        [(IPPROTO_IP, k.IP_PKTINFO, LOOPBACK), (IPPROTO_IPV6, IPV6_PKTINFO, MAPPED)],
    ],
    "a cut destination": [[(IPPROTO_IP, k.IP_PKTINFO, LOOPBACK[:11])], [(IPPROTO_IPV6, IPV6_PKTINFO, MAPPED[:19])]],
    "TOS of one byte": [[(IPPROTO_IP, socket.IP_TOS, b"\xb9")]],
    "TCLASS of four": [[(IPPROTO_IPV6, socket.IPV6_TCLASS, struct.pack("i", 0xB9))]],
    "TCLASS of one": [[(IPPROTO_IPV6, socket.IPV6_TCLASS, b"\xb9")]],
    "dual stack, TOS and TCLASS": [
        [(IPPROTO_IP, socket.IP_TOS, b"\x02")],
        [(IPPROTO_IPV6, socket.IPV6_TCLASS, struct.pack("i", 0xFF))],
        [],
    ],
    "TTL and hop limit": [
        [(IPPROTO_IP, socket.IP_TTL, struct.pack("i", 255))],
        [(IPPROTO_IPV6, socket.IPV6_HOPLIMIT, struct.pack("i", 1))],
    ],
    "drops": [[(SOL_SOCKET, k.SO_RXQ_OVFL, struct.pack("I", 2**32 - 1))], [(SOL_SOCKET, k.SO_RXQ_OVFL, b"abc")]],
    "the same number at another level": [[(IPPROTO_IPV6, k.SO_RXQ_OVFL, b"abcd"), (IPPROTO_IP, TIMESTAMPNS, STAMP)]],
}


@pytest.mark.parametrize("messages", TABLE.values(), ids=TABLE)
def test_decoding(messages):
    check(messages)


KNOWN = [
    (SOL_SOCKET, TIMESTAMPNS, 16),
    (SOL_SOCKET, TIMESTAMPING, 48),
    (SOL_SOCKET, k.SO_RXQ_OVFL, 4),
    (IPPROTO_IP, k.IP_PKTINFO, 12),
    (IPPROTO_IPV6, IPV6_PKTINFO, 20),
    (IPPROTO_IP, socket.IP_TOS, 1),
    (IPPROTO_IPV6, socket.IPV6_TCLASS, 4),
    (IPPROTO_IP, socket.IP_TTL, 4),
    (IPPROTO_IPV6, socket.IPV6_HOPLIMIT, 4),
]


@st.composite
def items(draw: Callable[[Any], Any]) -> Item:
    """One known item: whole, or cut, or longer than it should be; or rubbish."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.integers(0, 50)), draw(st.integers(200, 300)), draw(st.binary(max_size=30))
    level, kind, size = draw(st.sampled_from(KNOWN))
    size += draw(st.sampled_from([0, 0, 0, 0, -1, 1, -size, 8]))
    return level, kind, draw(st.binary(min_size=max(0, size), max_size=max(0, size)))


@given(st.lists(st.lists(items(), max_size=9), min_size=1, max_size=4))
def test_any_items_in_any_order(messages):
    check(messages)


@given(st.lists(st.lists(items(), max_size=3), min_size=2, max_size=5))
def test_one_batch_from_message_to_message(messages):
    # What one receive recorded must not show in the next, nor change what is held of the last.
    batch = RecvBatch(2, 16)
    held = []
    for one in messages:
        batch.load([b"x"], ancdata=[one])
        expected = model(one)
        found = recorded(batch)
        assert {name: values[0] for name, values in found.items()} == expected
        held.append((batch[0], expected))
    for datagram, expected in held:
        for name, value in expected.items():
            assert getattr(datagram, name) == (value or None if name.endswith("timestamp_ns") else value)


def test_everything_at_once_fits():
    everything = [(level, kind, bytes(size)) for level, kind, size in KNOWN] + [(k.SOL_UDP, k.UDP_GRO, bytes(4))]
    batch = RecvBatch(1, 16)
    batch.load([b"x"], ancdata=[everything])
    assert set(recorded(batch)) == {one for one, _, _ in ATTRIBUTES}


# --- on sockets -------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """Where a receiver binds, and how its peer finds and is seen by it."""

    bind: tuple[str, int]
    options: dict[str, Any]
    target: str
    local: str
    peer: str


NETWORKS = {
    "v4": Network(("", 0), {"family": AF_INET}, "127.3.2.1", "127.3.2.1", "127.0.0.1"),
    "v6": Network(("::", 0), {"family": AF_INET6}, "::1", "::1", "::1"),
    "dual-stack": Network(("::", 0), {"dualstack_ipv6": True}, "127.3.2.1", "::ffff:127.3.2.1", "::ffff:127.0.0.1"),
}
ASKED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "timestamps": ({"timestamps": True}, {"timestamp_ns"}),
    "hardware": ({"timestamps": "hardware"}, {"timestamp_ns", "hardware_timestamp_ns"}),
    "pktinfo": ({"pktinfo": True}, {"local_address", "interface_index"}),
    "ecn": ({"ecn": True}, {"ecn", "dscp"}),
    "ttl": ({"ttl": True}, {"ttl"}),
    "drop_counter": ({"drop_counter": True}, {"drop_counter"}),
    "all": (
        {"timestamps": "hardware", "pktinfo": True, "ecn": True, "ttl": True, "drop_counter": True},
        {one for one, _, _ in ATTRIBUTES},
    ),
}
TOS, TTL = 0b101110_10, 77


@pytest.fixture(
    params=[pytest.param(net, id=name, marks=[needs_ipv6] * (name != "v4")) for name, net in NETWORKS.items()]
)
def network(request: pytest.FixtureRequest) -> Network:
    return request.param


def connect(receiver: Socket, network: Network, **options: Any) -> Socket:
    """A sender with a TOS and a TTL of its own."""
    sender = fastsock.connect_udp((network.target, receiver.getsockname()[1]), **options)
    if sender.family == AF_INET:
        sender.setsockopt(IPPROTO_IP, socket.IP_TOS, TOS)
        sender.setsockopt(IPPROTO_IP, socket.IP_TTL, TTL)
    else:
        sender.setsockopt(IPPROTO_IPV6, socket.IPV6_TCLASS, TOS)
        sender.setsockopt(IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, TTL)
    return sender


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "plain"])
@pytest.mark.parametrize("gro", [True, False], ids=["gro", "single"])
@pytest.mark.parametrize("asked", ASKED)
@needs("timestamps", "drop_marks")
def test_metadata(network, gro, gso, asked, closing):
    options, names = ASKED[asked]
    receiver = closing(fastsock.bind_udp(network.bind, gro=gro, **options, **network.options))
    receiver.settimeout(10)
    sender = closing(connect(receiver, network, gso=gso))
    batch = RecvBatch(16, 65535, addresses=True)
    before = time.time_ns()
    assert sender.send_segments(b"abcd" * 7, 8) == 28
    assert receiver.recv_batch(batch) == 4
    after = time.time_ns()
    assert batch.payloads() == [b"abcdabcd"] * 3 + [b"abcd"]
    assert {address[0] for address in batch.addresses()} == {network.peer}
    found = recorded(batch)
    assert set(found) == names
    stamps = found.pop("timestamp_ns", [before])
    assert all(before <= stamp <= after for stamp in stamps)
    assert stamps == sorted(stamps)
    expected = {
        "hardware_timestamp_ns": 0,
        "ecn": TOS & 3,
        "dscp": TOS >> 2,
        "ttl": TTL,
        "local_address": network.local,
        "interface_index": socket.if_nametoindex("lo"),
        "drop_counter": 0,
    }
    for name, values in found.items():
        assert values == [expected[name]] * 4, name
    held = list(batch)
    # A list has no place for it, and is not disturbed by it.
    sender.send_segments(b"abcd" * 7, 8)
    assert receiver.recv_many() == [b"abcdabcd"] * 3 + [b"abcd"]
    sender.send_segments(b"abcd" * 7, 8)
    assert [payload for payload, _ in receiver.recvfrom_many()] == [b"abcdabcd"] * 3 + [b"abcd"]
    sender.send(b"next")
    assert receiver.recv_batch(batch) == 1
    for name, values in found.items():
        assert [getattr(datagram, name) for datagram in held] == [
            value if name[:8] != "hardware" else None for value in values
        ]
    if "timestamp_ns" in names:
        assert [datagram.timestamp_ns for datagram in held] == stamps < [batch[0].timestamp_ns]


@needs_ipv6
def test_where_the_kernel_puts_it_on_a_dual_stack_socket(closing):
    network = NETWORKS["dual-stack"]
    options = {"pktinfo": True, "ecn": True, "ttl": True}
    receiver = closing(fastsock.bind_udp(network.bind, **options, **network.options))
    receiver.settimeout(10)
    sender = closing(connect(receiver, network))
    sender.send(b"x")
    _, ancdata, _, _ = receiver.recvmsg(10, 500)
    # The destination at level IPV6 and mapped; TOS, in one byte, and TTL at level IP.
    assert {(level, kind): len(data) for level, kind, data in ancdata} == {
        (IPPROTO_IPV6, IPV6_PKTINFO): 20,
        (IPPROTO_IP, socket.IP_TOS): 1,
        (IPPROTO_IP, socket.IP_TTL): 4,
    }
    native = closing(fastsock.connect_udp(("::1", receiver.getsockname()[1])))
    native.send(b"x")
    sender.send(b"x")
    batch = RecvBatch(4)
    assert receiver.recv_batch(batch) == 2
    assert batch.local_addresses() == ["::1", network.local]
    assert batch.dscp.tolist() == [0, TOS >> 2]
    assert batch.ttls[1] == TTL != batch.ttls[0]
    # IP_PKTINFO beside it says the same.
    receiver.setsockopt(IPPROTO_IP, k.IP_PKTINFO, 1)
    sender.send(b"x")
    assert receiver.recv_batch(batch) == 1
    assert batch[0].local_address == network.local


@needs("timestamps", "drop_marks")
def test_options_set_by_hand_dropped_duplicated_and_adopted(closing, udp_pair, family):
    receiver, sender = udp_pair
    level, option = (IPPROTO_IP, k.IP_RECVTTL) if family.family == AF_INET else (IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT)
    batch = RecvBatch()

    def names(sock: Socket) -> set[str]:
        sender.send(b"x")
        sock.settimeout(10)
        sock.recv_batch(batch)
        return set(recorded(batch))

    assert names(receiver) == set()
    receiver.setsockopt(level, option, 1)
    receiver.setsockopt(SOL_SOCKET, TIMESTAMPNS, 1)
    assert names(receiver) == {"ttl", "timestamp_ns"}
    assert names(closing(receiver.dup())) == {"ttl", "timestamp_ns"}
    assert names(closing(Socket(fileno=socket.dup(receiver.fileno())))) == {"ttl", "timestamp_ns"}
    receiver.setsockopt(level, option, 0)
    assert names(receiver) == {"timestamp_ns"}
    receiver.setsockopt(SOL_SOCKET, TIMESTAMPNS, 0)
    assert names(receiver) == set()


@pytest.mark.parametrize("stamps", [True, "software"])
@needs("transmit_timestamps")
def test_receive_stamps_beside_transmit_stamps(closing, stamps):
    options = {"timestamps": stamps, "transmit_timestamps": True}
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0), **options))
    sock.settimeout(10)
    batch = RecvBatch()
    before = time.time_ns()
    sock.sendto(b"x", sock.getsockname())
    sock.recv_batch(batch)
    assert before <= batch.timestamps_ns[0] == batch[0].timestamp_ns <= time.time_ns()


@pytest.mark.parametrize("stamps", ["software", "hardware"])
@needs("timestamps", "drop_marks")
def test_no_datagram_is_too_early_for_a_stamp(closing, stamps):
    # The kernel switches stamping on by a work queue; what it missed it fills in for
    # SO_TIMESTAMPNS alone. Beside a busy process one in a hundred first datagrams had none.
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0), timestamps=stamps))
    assert sock.getsockopt(SOL_SOCKET, TIMESTAMPNS)
    assert bool(sock.getsockopt(SOL_SOCKET, TIMESTAMPING)) == (stamps == "hardware")


@pytest.mark.parametrize("wrong", ["", "Hardware", "all", 5])
def test_stamps_that_there_are_not(wrong):
    if wrong == "":
        fastsock.bind_udp(("127.0.0.1", 0), timestamps=wrong).close()  # as False
        return
    with pytest.raises(ValueError, match="timestamps must be True, 'software' or 'hardware'"):
        fastsock.bind_udp(("127.0.0.1", 0), timestamps=wrong)
