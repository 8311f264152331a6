"""UDP GRO without a socket: joined messages, loaded from memory, against a model that splits them."""

import socket
import struct
from socket import IPPROTO_IP, SOL_SOCKET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsock import RecvBatch
from fastsock._constants import IP_PKTINFO, SO_RXQ_OVFL, SO_TIMESTAMPNS, SOL_UDP, UDP_GRO

np = pytest.importorskip("numpy")

SLOT = 65535
"""What a slot must hold on a socket with UDP GRO; load takes smaller ones too."""


def joined(segment_size: int) -> list[tuple[int, int, bytes]]:
    """The ancillary data of a joined message: udp(7), UDP_GRO."""
    return [(SOL_UDP, UDP_GRO, struct.pack("i", segment_size))]


def pattern(size: int) -> bytes:
    """Bytes no two stretches of which are alike."""
    return b"".join(i.to_bytes(4, "big") for i in range(size // 4 + 1))[:size]


def split(payload: bytes, segment_size: int, slot_size: int) -> list[tuple[bytes, bool]]:
    """The model: (payload, truncated) of every datagram in one message."""
    kept = payload[:slot_size]
    step = segment_size if 0 < segment_size < len(kept) else max(1, len(kept))
    pieces = [kept[at : at + step] for at in range(0, len(kept), step)] or [b""]
    return [(piece, i == len(pieces) - 1 and len(payload) > slot_size) for i, piece in enumerate(pieces)]


def check(batch: RecvBatch, messages: list[tuple[bytes, int]], peers: list[tuple[str, int]] | None = None) -> None:
    """Every way to look at the batch agrees with the model."""
    parts = [split(payload, segment_size, batch.slot_size) for payload, segment_size in messages]
    expected = [payload for part in parts for payload, _ in part]
    truncated = [cut for part in parts for _, cut in part]
    starts = []
    for i, part in enumerate(parts):
        at = i * batch.stride
        for payload, _ in part:
            starts.append(at)
            at += len(payload)
    assert len(batch) == len(expected)
    assert batch.offsets.tolist() == starts
    assert batch.lengths.tolist() == [len(one) for one in expected]
    assert batch.truncated.tolist() == truncated
    assert batch.payloads() == expected
    assert batch.nbytes == sum(map(len, expected))
    assert [bytes(d) for d in batch] == [bytes(batch[i]) for i in range(len(batch))] == expected
    assert [d.truncated for d in batch] == truncated
    assert [bytes(d) for d in batch[::-2]] == expected[::-2]
    assert [bytes(batch[i - len(expected)]) for i in range(len(expected))] == expected
    with pytest.raises(IndexError):
        batch[len(expected)]
    if peers is not None:
        names = [peer for peer, part in zip(peers, parts, strict=True) for _ in part]
        assert batch.addresses() == [d.address for d in batch] == names


# --- by table ---------------------------------------------------------------------------------------

TABLE = [
    [(b"", 4)],
    [(b"", 0)],
    [(b"a", 1)],
    [(b"ab", 1)],
    [(b"abcd", 4)],
    [(b"abcd", 5)],
    [(b"abcd", 3)],
    [(b"abcde", 2), (b"", 2), (b"xyz", 0), (b"123456", 3)],
    [(b"abcd", 0)],
    [(b"abcd", -1)],
    [(b"abcd", -(2**31))],
    [(b"abcd", 2**31 - 1)],
    [(pattern(65535), 1472)],
    [(pattern(65507), 65506)],
    [(pattern(64), 1)] * 4,
]


@pytest.mark.parametrize("messages", TABLE, ids=lambda messages: f"{len(messages[0][0])}by{messages[0][1]}")
def test_splitting(messages):
    batch = RecvBatch(4, SLOT)
    assert batch.load([payload for payload, _ in messages], ancdata=[joined(size) for _, size in messages]) == len(
        batch
    )
    check(batch, messages)


@pytest.mark.parametrize(
    "data", [b"", b"\2", b"\2\0", b"\2\0\0", struct.pack("q", 2), struct.pack("i", 2) + b"rest of a longer one"]
)
def test_segment_size_of_another_width(data):
    # The kernel's is an int; a header that knows more would go on behind it.
    batch = RecvBatch(1, 16)
    batch.load([b"abcd"], ancdata=[[(SOL_UDP, UDP_GRO, data)]])
    check(batch, [(b"abcd", 2 if len(data) >= 4 else 0)])


def test_what_another_level_says_is_no_segment_size():
    batch = RecvBatch(2, 16)
    batch.load([b"abcd", b"efgh"], ancdata=[[(1, UDP_GRO, struct.pack("i", 2))], [(SOL_UDP, 103, struct.pack("i", 2))]])
    check(batch, [(b"abcd", 0), (b"efgh", 0)])


@pytest.mark.parametrize("segment_size", [3, 4, 5, 7, 8, 100])
def test_a_message_longer_than_its_slot_is_cut_and_only_its_last_datagram_marked(segment_size):
    messages = [(b"0123456789ab", segment_size), (b"01234567", segment_size)]
    batch = RecvBatch(2, 8)
    batch.load([payload for payload, _ in messages], ancdata=[joined(segment_size)] * 2)
    check(batch, messages)


# --- against the model --------------------------------------------------------------------------------

SEGMENT_SIZES = st.one_of(st.integers(-2, 70), st.sampled_from([-(2**31), 2**31 - 1, 65535, 1472]))
MESSAGES = st.lists(st.tuples(st.binary(max_size=80), SEGMENT_SIZES), max_size=6)


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.integers(1, 90))
def test_any_messages_again_and_again(turns, slot_size):
    batch = RecvBatch(6, slot_size, addresses=True)
    for messages in turns:
        peers = [(f"10.0.0.{i}", 1000 + i) for i in range(len(messages))]
        pairs = [(payload, peer) for (payload, _), peer in zip(messages, peers, strict=True)]
        batch.load(pairs, ancdata=[joined(size) for _, size in messages])
        if messages:
            check(batch, messages, peers)
        else:
            assert len(batch) == 0


@given(st.lists(st.tuples(st.booleans(), MESSAGES), min_size=2, max_size=6))
def test_joined_and_plain_messages_in_turn(turns):
    batch = RecvBatch(6, 48)
    for joining, messages in turns:
        payloads = [payload for payload, _ in messages]
        if joining:
            batch.load(payloads, ancdata=[joined(size) for _, size in messages])
            check(batch, messages)
        else:
            batch.load(payloads)
            check(batch, [(payload, 0) for payload in payloads])
            assert np.asarray(batch).shape == (len(payloads), 48)


# --- columns that grow --------------------------------------------------------------------------------


def test_more_segments_than_the_columns_had_room_for():
    batch = RecvBatch(2, SLOT, addresses=True)
    batch.load([(b"abcd", ("10.0.0.1", 1))] * 2, ancdata=[joined(2)] * 2)
    before = (batch.offsets, batch.lengths, batch.truncated)
    lists = [column.tolist() for column in before]
    held = batch[3]
    payload = pattern(SLOT)
    for _ in range(3):
        count = batch.load([(payload, ("10.0.0.2", 2))] * 2, ancdata=[joined(1)] * 2)
        assert count == len(batch) == 2 * SLOT
        assert np.array_equal(np.asarray(batch.lengths), np.ones(count, np.int32))
        # Where each lies, and what is there.
        stream = np.asarray(batch.buffer)[np.asarray(batch.offsets)].tobytes()
        assert stream == payload * 2
        assert b"".join(batch.payloads()) == stream
        assert batch[-1].address == ("10.0.0.2", 2)
    # The views taken before the columns grew are memory still, and show the receive they were of.
    assert [column.tolist() for column in before] == lists
    assert (len(held), held.address) == (2, ("10.0.0.1", 1))
    batch.load([(b"abc", ("10.0.0.3", 3))], ancdata=[joined(2)])
    assert [bytes(d) for d in batch] == [b"ab", b"c"]


def test_columns_that_grow_between_two_messages_keep_the_first():
    messages = [(b"abc", 2), (pattern(3000), 1), (b"x", 0), (pattern(9000), 1)]
    peers = [("10.0.0.1", i) for i in range(4)]
    everything = [
        (SOL_SOCKET, SO_TIMESTAMPNS, lambda i: struct.pack("@ll", 1 + i, i)),
        (SOL_SOCKET, SO_RXQ_OVFL, lambda i: struct.pack("I", i)),
        (IPPROTO_IP, IP_PKTINFO, lambda i: struct.pack("i4s4s", i, bytes(4), bytes([10, 0, 0, i]))),
        (IPPROTO_IP, socket.IP_TOS, lambda i: bytes([5 * i])),
        (IPPROTO_IP, socket.IP_TTL, lambda i: struct.pack("i", 60 + i)),
    ]
    batch = RecvBatch(4, SLOT, addresses=True)
    batch.load(
        [(payload, peer) for (payload, _), peer in zip(messages, peers, strict=True)],
        ancdata=[
            joined(size) + [(level, kind, data(i)) for level, kind, data in everything]
            for i, (_, size) in enumerate(messages)
        ],
    )
    check(batch, messages, peers)
    of = [i for i, (payload, size) in enumerate(messages) for _ in split(payload, size, SLOT)]
    assert batch.timestamps_ns.tolist() == [(1 + i) * 10**9 + i for i in of]
    assert batch.drop_counters.tolist() == batch.interface_indexes.tolist() == of
    assert batch.local_addresses() == [f"10.0.0.{i}" for i in of]
    assert batch.ecn.tolist() == [5 * i & 3 for i in of]
    assert batch.dscp.tolist() == [5 * i >> 2 for i in of]
    assert batch.ttls.tolist() == [60 + i for i in of]


def test_iteration_while_the_columns_grow():
    batch = RecvBatch(1, SLOT)
    batch.load([b"abcd"], ancdata=[joined(2)])
    seen = []
    for datagram in batch:
        if not seen:
            batch.load([b"x" * 1000], ancdata=[joined(1)])
        seen.append(bytes(datagram))
        if len(seen) == 5:
            batch.load([])
    assert seen == [b"xx", b"x", b"x", b"x", b"x"]


def test_an_index_that_makes_the_columns_grow():
    batch = RecvBatch(1, SLOT)
    batch.load([b"abcd"], ancdata=[joined(2)])

    class Index:
        def __index__(self) -> int:
            batch.load([b"x" * 5000], ancdata=[joined(1)])
            return 1

    assert bytes(batch[Index()]) in (b"xx", b"x")
    assert [bytes(d) for d in batch[: Index()]] in ([b"xx"], [b"x"])


# --- the batch as an array ------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"abcdefgh", b"abcdefg", b""], ids=["even", "uneven", "empty"])
def test_a_batch_of_joined_datagrams_is_no_array(payload):
    # NumPy takes a refused buffer for a sequence: it copied even segments, and blamed uneven ones.
    batch = RecvBatch(2, 64)
    batch.load([payload], ancdata=[joined(4)])
    for make in (np.asarray, np.array, lambda one: np.asarray(one, dtype=np.uint8), memoryview):
        with pytest.raises(BufferError, match="use buffer, offsets and lengths"):
            make(batch)
    batch.load([b"ab"])
    assert np.asarray(batch).shape == (1, 64)


def test_a_view_of_the_slots_outlives_the_change_to_joined_datagrams():
    batch = RecvBatch(2, 64)
    batch.load([b"plain", b"plain"])
    array = np.asarray(batch)
    batch.load([b"abcdefgh"], ancdata=[joined(4)])
    assert array.shape == (2, 64)
    assert array[0, :8].tobytes() == b"abcdefgh"


# --- load itself ------------------------------------------------------------------------------------------


def test_ancillary_data_that_does_not_fit():
    batch = RecvBatch(2, 64)
    with pytest.raises(ValueError, match="2 datagrams with ancillary data for 1"):
        batch.load([b"a", b"b"], ancdata=[joined(1)])
    with pytest.raises(ValueError, match="ancillary data of datagram 1 is too large"):
        batch.load([b"ab", b"cd"], ancdata=[joined(1), joined(1) * 100])
    assert len(batch) == 0
    for bad in ([[(1, 2)]], [5], [[(1, 2, "text")]], [[("1", 2, b"")]]):
        with pytest.raises((TypeError, ValueError)):
            batch.load([b"a"], ancdata=bad)
    with pytest.raises(OverflowError):
        batch.load([b"a"], ancdata=[[(2**31, 0, b"")]])
    batch.load([b"abcd"], ancdata=[joined(3)])
    check(batch, [(b"abcd", 3)])
