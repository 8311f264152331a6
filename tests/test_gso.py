"""Segmentation on the way out (UDP_SEGMENT): the datagrams are those that were handed over.

How runs are made of them is pure; what arrives is compared with segmentation on and off.
"""

import array
import socket
import sys

import pytest
from conftest import drain, needs_large_buffers
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsock
from fastsock import SendBatch, Socket
from fastsock._gather import runs
from fastsock._gso import max_segments

MAX_PAYLOAD = 65507

needs_gso = pytest.mark.skipif(not fastsock.probe().gso, reason="UDP_SEGMENT is Linux 4.18")


def cut(payload: bytes, segment_size: int) -> list[bytes]:
    return [bytes(payload[at : at + segment_size]) for at in range(0, len(payload), segment_size)]


def pattern(length: int) -> bytes:
    """Bytes that tell where in the payload they were."""
    return b"".join(i.to_bytes(4, "big") for i in range(length // 4 + 1))[:length]


# --- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [1]),
        ([0], [1]),
        ([5, 5, 5], [3]),
        ([5, 5, 3], [3]),  # a shorter one may be the last
        ([5, 3, 3], [2, 1]),
        ([5, 3, 5], [2, 1]),
        ([3, 5, 5], [1, 2]),
        ([5, 5, 0], [2, 1]),  # an empty one never
        ([0, 0, 0], [1, 1, 1]),
        ([0, 5, 5], [1, 2]),
        ([5, 0, 5], [1, 1, 1]),
        ([32753, 32753], [2]),
        ([32754, 32753], [2]),  # one IP packet: 65507 bytes
        ([32754, 32754], [1, 1]),
        ([65507, 1], [1, 1]),
        ([65506, 1, 1], [2, 1]),
        ([70000, 70000], [1, 1]),
        ([1] * 9, [4, 4, 1]),
        ([1] * 8 + [0], [4, 4, 1]),
        ([2, 2, 2, 2, 1], [4, 1]),
    ],
)
def test_runs(sizes, expected):
    assert runs(sizes, [7] * len(sizes), 4) == expected


@pytest.mark.parametrize(
    ("peers", "expected"),
    [([1, 1, 1, 1], [4]), ([1, 2, 1, 2], [1, 1, 1, 1]), ([1, 1, 2, 2], [2, 2]), ([1, 2, 2, 1], [1, 2, 1])],
)
def test_another_peer_begins_another_run(peers, expected):
    assert runs([9] * 4, peers, 64) == expected


def test_limits_of_runs():
    assert runs([10] * 300, [1] * 300, 128) == [128, 128, 44]
    assert runs([10] * 5, [1] * 5, 1) == [1] * 5
    assert runs([1400] * 50, [1] * 50, 64) == [46, 4]  # 46 * 1400 <= 65507
    assert runs([10, 10, 9, 9], [1] * 4, 64, 9) == [1, 1, 2]
    assert runs([10, 9, 9], [1] * 3, 64, 10) == [2, 1]
    assert runs([10, 10], [1] * 2, 64, 0) == [1, 1]


def may_be_one(sizes: list[int], peers: list[int], segments: int, segment_size: int) -> bool:
    """Whether the kernel takes these as one message: net/ipv4/udp.c, udp_send_skb."""
    return len(sizes) == 1 or (
        len(sizes) <= segments
        and len(set(peers)) == 1
        and len(set(sizes[:-1])) == 1
        and 0 < sizes[-1] <= sizes[0] <= segment_size
        and sum(sizes) <= MAX_PAYLOAD
    )


SIZES = st.sampled_from([0, 1, 2, 3, 700, 1400, 21835, 21836, 32753, 32754, 65507])


@settings(max_examples=400)
@given(st.lists(st.tuples(SIZES, st.integers(0, 1))), st.integers(1, 5), st.sampled_from([0, 2, 1399, 1400, 65507]))
def test_each_run_is_the_longest_that_the_kernel_takes(datagrams, segments, segment_size):
    sizes, peers = [size for size, _ in datagrams], [peer for _, peer in datagrams]
    found = runs(sizes, peers, segments, segment_size)
    assert sum(found) == len(sizes)
    at = 0
    for run in found:
        fits = [
            may_be_one(sizes[at : at + count], peers[at : at + count], segments, segment_size)
            for count in range(1, len(sizes) - at + 1)
        ]
        assert fits[:run] == [True] * run
        assert not any(fits[run:])
        at += run


# --- send_segments ----------------------------------------------------------------------------------


@pytest.fixture(params=["segmented", "plain"])
def gso(request) -> bool:
    return request.param == "segmented"


@pytest.mark.parametrize(
    ("length", "segment_size"),
    [
        (0, 1),
        (1, 1),
        (1, 65535),
        (2, 1),
        (99, 100),
        (100, 100),
        (101, 100),
        (1000, 100),
        (1099, 100),
        (63, 1),
        (64, 1),
        (65, 1),
        (127, 1),
        (128, 1),
        (129, 1),
        (200, 1),
        (65507, 65507),
        (65508, 65507),
        (65507, 65506),
        (80_000, 40_000),
        (60_001, 40_000),
        (130_000, 32_753),
        (130_000, 32_754),
        (100_000, 1472),
    ],
)
def test_send_segments(udp_pair, gso, length, segment_size):
    receiver, sender = udp_pair
    sender.gso = gso
    payload = pattern(length)
    expected = cut(payload, segment_size)
    assert sender.send_segments(payload, segment_size) == length
    assert sender.stats.sent == len(expected)
    assert drain(receiver) == expected
    assert sender.send_segments(payload, segment_size, receiver.getsockname()) == length
    assert drain(receiver) == expected
    # Over IPv6 what fills a packet of IPv4 is more than the loopback device's MTU.
    assert sender.stats.gso_fallbacks == 0 or segment_size > 65_000


@needs_large_buffers
@pytest.mark.parametrize("segment_size", [1472, 8000, 40_000])
def test_send_segments_of_megabytes(closing, family, gso, segment_size):
    receiver = closing(fastsock.bind_udp(family.address(), rcvbuf=32 << 20))
    sender = closing(fastsock.connect_udp(receiver.getsockname(), gso=gso))
    payload = pattern(3_000_001)
    assert sender.send_segments(payload, segment_size) == len(payload)
    assert drain(receiver) == cut(payload, segment_size)


@needs_large_buffers
def test_send_segments_beyond_1024_messages(closing):
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0), rcvbuf=32 << 20))
    sender = closing(fastsock.connect_udp(receiver.getsockname(), gso=False))
    payload = pattern(2500 * 8 + 3)
    assert sender.send_segments(payload, 8) == len(payload)
    assert drain(receiver) == cut(payload, 8)
    assert sender.stats.sent == 2501


@pytest.mark.parametrize(
    "payload",
    [
        bytes(range(100)),
        bytearray(range(100)),
        memoryview(bytes(range(100))),
        memoryview(bytearray(range(102)))[1:-1],
        array.array("I", range(25)),
        memoryview(array.array("d", range(12))),
    ],
    ids=["bytes", "bytearray", "memoryview", "slice", "array", "doubles"],
)
def test_send_segments_of_any_contiguous_buffer(udp_pair, payload):
    receiver, sender = udp_pair
    flat = bytes(memoryview(payload).cast("B"))
    assert sender.send_segments(payload, 7) == len(flat)
    assert drain(receiver) == cut(flat, 7)


def test_send_segments_lets_go_of_its_buffer(udp_pair):
    payload = bytearray(200)
    udp_pair.sender.send_segments(payload, 100)
    payload.append(0)
    udp_pair.sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
    with pytest.raises(OverflowError):
        udp_pair.sender.send_segments(payload, 100, ("127.0.0.1", 70_000))
    payload.append(0)


@pytest.mark.parametrize("size", [0, -1, 65536, 2**31, 2**70, -(2**70)])
def test_segment_size_out_of_range(udp_pair, size):
    for call in (
        udp_pair.sender.send_segments,
        lambda data, size: udp_pair.sender.send_zerocopy(data, segment_size=size),
    ):
        with pytest.raises(ValueError, match=f"segment_size must be 1 to 65535, not {size}"):
            call(b"x", size)
    with pytest.raises(ValueError, match="segment_size"):
        SendBatch().append(b"x", segment_size=size)
    assert drain(udp_pair.receiver) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("text", 1), TypeError),
        ((5, 1), TypeError),
        ((b"x", 1.5), TypeError),
        ((b"x", None), TypeError),
        ((b"x", "1"), TypeError),
        ((memoryview(bytes(8))[::2], 1), BufferError),
        ((b"x", 1, ("127.0.0.1", 70_000)), (OverflowError, socket.gaierror)),
        ((b"x", 1, 5), TypeError),
        ((b"x", 1, None, "flags"), TypeError),
        ((b"x",), TypeError),
    ],
)
def test_send_segments_refuses(udp_pair, arguments, error):
    with pytest.raises(error):
        udp_pair.sender.send_segments(*arguments)
    assert drain(udp_pair.receiver) == []


def test_send_segments_without_a_peer_or_on_a_stream(family, closing):
    with pytest.raises(OSError, match="Destination"):
        closing(Socket(family.family, socket.SOCK_DGRAM)).send_segments(b"x" * 10, 3)
    with pytest.raises(OSError, match=r"send_segments\(\) is for datagram"):
        closing(Socket(family.family)).send_segments(b"x", 1)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_send_segments_on_unix_sockets_goes_plainly(unix_pair, kind):
    receiver, sender = unix_pair(kind)
    assert not sender.gso
    assert sender.send_segments(pattern(59), 10) == 59
    assert drain(receiver) == cut(pattern(59), 10)


@pytest.mark.parametrize("wait_s", [0, 0.01])
def test_send_segments_counts_exactly_when_the_queue_is_full(unix_pair, wait_s):
    receiver, sender = unix_pair(socket.SOCK_SEQPACKET)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    sender.settimeout(wait_s)
    payload = pattern(100_003)
    left, found, calls = memoryview(payload), [], 0
    while left:
        sent = sender.send_segments(left, 40)
        assert sent % 40 == 0 or sent == len(left)
        left, calls = left[sent:], calls + 1
        if left:
            with pytest.raises(BlockingIOError if wait_s == 0 else TimeoutError):
                sender.send_segments(left, 40)
        found += drain(receiver)
    assert calls > 1
    assert found == cut(payload, 40)
    assert sender.stats.sent == len(found)


# --- the same datagrams, on or off ------------------------------------------------------------------------


def by_send_many(sender, payloads, peers):
    return sender.send_many(payloads)


def by_sendto_many(sender, payloads, peers):
    return sender.sendto_many(payloads, peers)


def by_batch(sender, payloads, peers):
    batch = SendBatch(max(1, len(payloads)), 9000)
    for payload, peer in zip(payloads, peers, strict=True):
        batch.append(payload, peer)
    return sender.send_batch(batch)


@pytest.mark.parametrize("send", [by_send_many, by_sendto_many, by_batch])
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 8, 8, 8, 100, 100, 101, 1472]), st.integers(0, 1), st.integers(1, 6)),
        max_size=12,
    ),
    st.booleans(),
)
def test_what_arrives_is_what_was_sent(send, groups, gso):
    # Groups of equal sizes, so that there is something to join.
    datagrams = [(size, peer) for size, peer, repeats in groups for _ in range(repeats)]
    payloads = [(b"%d-" % i * size)[:size] for i, (size, _) in enumerate(datagrams)]
    with (
        fastsock.bind_udp(("127.0.0.1", 0)) as first,
        fastsock.bind_udp(("127.0.0.1", 0)) as second,
        fastsock.connect_udp(first.getsockname(), gso=gso) as sender,
    ):
        receivers = [first, first if send is by_send_many else second]
        peers = [receivers[peer].getsockname() for _, peer in datagrams]
        assert send(sender, payloads, peers) == len(payloads)
        assert sender.stats.sent == len(payloads)
        assert sender.stats.gso_fallbacks == 0
        for receiver in {first, second}:
            name = receiver.getsockname()
            assert drain(receiver) == [payload for payload, peer in zip(payloads, peers, strict=True) if peer == name]


def test_a_batch_with_segment_sizes_among_others(udp_pair, gso):
    receiver, sender = udp_pair
    sender.gso = gso
    batch = SendBatch(8, 9000)
    expected = []
    for size, segment_size in [(8, None), (8, None), (1000, 100), (8, 8), (8, 9), (1001, 100), (0, 5), (100, 1)]:
        payload = pattern(size)
        batch.append(payload, segment_size=segment_size)
        expected += cut(payload, segment_size or 9000) or [b""]
    for _ in range(2):
        assert sender.send_batch(batch) == 8
        assert drain(receiver) == expected
    assert sender.stats.sent == 2 * len(expected)


def test_a_segmented_payload_above_one_message(udp_pair, gso):
    # More than 65507 bytes, or than 64 segments: the kernel cannot cut it at one go.
    receiver, sender = udp_pair
    sender.gso = gso
    batch = SendBatch(3, 100_000)
    payloads = [(pattern(66_000), 33_000), (pattern(140), 1), (pattern(10), 3)]
    for payload, segment_size in payloads:
        batch.append(payload, segment_size=segment_size)
    assert sender.send_batch(batch) == 3
    assert drain(receiver) == [part for payload, segment_size in payloads for part in cut(payload, segment_size)]


# --- the switch ----------------------------------------------------------------------------------------


@needs_gso
def test_the_switch(udp_pair, unix_pair, closing):
    receiver, sender = udp_pair
    assert (sender.gso, sender.stats.gso) == (True, True)
    sender.gso = False
    assert (sender.gso, sender.stats.gso) == (False, False)
    sender.gso = True
    assert sender.gso
    assert closing(fastsock.connect_udp(receiver.getsockname(), gso=False)).gso is False
    assert closing(fastsock.bind_udp(("127.0.0.1", 0), gso=False)).gso is False
    # What has no UDP_SEGMENT never has it on.
    for other in (unix_pair().sender, closing(Socket()), closing(Socket(socket.AF_INET, socket.SOCK_DGRAM, 136))):
        other.gso = True
        assert not other.gso


@needs_gso
def test_max_segments_is_the_kernels(udp_pair):
    most = max_segments()
    assert most in (64, 128)
    item = (fastsock._constants.SOL_UDP, fastsock._constants.UDP_SEGMENT, (1).to_bytes(2, sys.byteorder))
    assert udp_pair.sender.sendmsg([bytes(most)], [item]) == most
    with pytest.raises(OSError, match=r"Invalid|too long"):
        udp_pair.sender.sendmsg([bytes(most + 1)], [item])
