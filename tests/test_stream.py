"""The stream's payload, the tracker that reads it, columns of words, and the pacing of senders."""

import socket
import struct
import sys
from array import array
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsock import RecvBatch
from fastsock._constants import SO_TIMESTAMPNS, SOL_UDP, UDP_GRO
from fastsock.cli import stream as stream_module
from fastsock.cli.columns import MAX_SPAN, Words, counting_end, encode_run, equal_end, spans
from fastsock.cli.send import MAX_ARREARS_S, Pacer
from fastsock.cli.stream import (
    END_FLAG,
    HEADER,
    MAGIC,
    MAX_MIXED,
    Stream,
    StreamTracker,
    encode_header,
)

ARRIVAL_NS = 1_000_000


def datagram(sequence: int, stream_id: int = 7, sent_ns: int = ARRIVAL_NS - 100, padding: int = 8) -> bytes:
    return encode_header(stream_id, sequence, sent_ns) + bytes(padding)


def end_marker(total: int, stream_id: int = 7) -> bytes:
    return datagram(END_FLAG | total, stream_id)


def track(datagrams: list[bytes], vlen: int = 4, columns: bool = True, slot_size: int = 64) -> StreamTracker:
    """Feed the datagrams in batches of `vlen`, all through the same slots."""
    tracker = StreamTracker(columns)
    batch = RecvBatch(vlen, slot_size)
    for start in range(0, len(datagrams), vlen):
        batch.load(datagrams[start : start + vlen])
        tracker.feed(batch, ARRIVAL_NS)
    return tracker


class SideBySide:
    """A batch as a ring holds it with UDP GRO: datagrams lie densely, from any byte on."""

    stride = 0

    def __init__(self, payloads: Iterable[bytes], start: int = 0, times: Iterable[int] = (), cut: int = 2048) -> None:
        memory = bytearray(start)
        self.slot_size = cut
        offsets, lengths = array("q"), array("i")
        for payload in payloads:
            offsets.append(len(memory))
            lengths.append(min(len(payload), cut))
            memory += payload
        self.buffer, self.offsets, self.lengths = memoryview(memory), memoryview(offsets), memoryview(lengths)
        self.timestamps_ns = memoryview(array("q", times))


def counts(tracker: StreamTracker) -> tuple[Any, ...]:
    return tracker.result(), tracker.datagrams, tracker.others, tracker.end_markers


def joined(*sizes: int) -> list[list[tuple[int, int, bytes]]]:
    """Ancillary data of messages that UDP GRO joined from datagrams of such sizes."""
    return [[(SOL_UDP, UDP_GRO, size.to_bytes(4, sys.byteorder))] for size in sizes]


def stamped(*times: int) -> list[list[tuple[int, int, bytes]]]:
    """Ancillary data of messages that the kernel received then."""
    seconds = [divmod(ns, 10**9) for ns in times]
    return [[(socket.SOL_SOCKET, SO_TIMESTAMPNS, struct.pack("@qq", *pair))] for pair in seconds]


@pytest.fixture(params=[True, False], ids=["columns", "struct"])
def columns(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_header_is_as_documented() -> None:
    assert encode_header(1, 2, 3) == b"fastsock" + bytes([1, *[0] * 7, 2, *[0] * 7, 3, *[0] * 7])
    assert HEADER.size == 32


@pytest.mark.parametrize(
    ("sequences", "total", "received", "lost", "duplicated", "reordered"),
    [
        pytest.param([0, 1, 2, 3, 4], None, 5, 0, 0, 0, id="in order"),
        pytest.param([10, 11, 12], None, 3, 0, 0, 0, id="joined late, no end marker"),
        pytest.param([10, 11, 12], 13, 3, 10, 0, 0, id="joined late, end marker"),
        pytest.param([0, 1, 4, 5], None, 4, 2, 0, 0, id="gap"),
        pytest.param([0, 1, 2], 5, 3, 2, 0, 0, id="tail lost"),
        pytest.param([], 5, 0, 5, 0, 0, id="all lost"),
        pytest.param([0, 0, 1, 1, 1], None, 2, 0, 3, 0, id="duplicates"),
        pytest.param([0, 2, 1, 3], None, 4, 0, 0, 1, id="one late"),
        pytest.param([3, 2, 1, 0], None, 4, 0, 0, 3, id="backwards"),
        pytest.param([0, 4, 2, 2, 3], None, 4, 1, 1, 2, id="late, then its duplicate"),
        pytest.param([5, 0, 9], None, 3, 7, 0, 1, id="below the lowest"),
        pytest.param([0, 1 << 62], None, 2, (1 << 62) - 1, 0, 0, id="huge gap"),
    ],
)
def test_losses(
    sequences: list[int], total: int | None, received: int, lost: int, duplicated: int, reordered: int, columns: bool
) -> None:
    markers = [] if total is None else [end_marker(total)] * 3
    tracker = track([datagram(number) for number in sequences] + markers, columns=columns)
    result = tracker.result()
    assert result is not None
    assert (result.received, result.lost, result.duplicated, result.reordered) == (
        received,
        lost,
        duplicated,
        reordered,
    )
    assert (result.sent, result.end_markers, result.approximate) == (total, len(markers), False)
    assert tracker.datagrams == len(sequences)


def test_streams_are_told_apart_and_summed(columns: bool) -> None:
    mixed = [datagram(number, stream_id) for number in (0, 1, 3) for stream_id in (1, 2)]
    tracker = track([*mixed, end_marker(5, 1)], columns=columns)
    result = tracker.result()
    assert result is not None
    assert (result.streams, result.received, result.lost, result.sent) == (2, 6, 2 + 1, None)


def test_foreign_datagrams_are_no_stream(columns: bool) -> None:
    foreign = [b"", b"x" * 64, MAGIC, b"FASTSOCK" + bytes(56), datagram(0)[:31]]
    tracker = track(foreign * 3, vlen=5, columns=columns)
    assert (tracker.others, tracker.datagrams, tracker.result()) == (15, 0, None)


def test_short_datagrams_are_not_read_from_what_a_slot_held_before(columns: bool) -> None:
    tracker = track([datagram(0), datagram(1), MAGIC, b""], vlen=2, columns=columns)
    assert (tracker.datagrams, tracker.others) == (2, 2)


def test_slots_smaller_than_the_header_hold_no_stream() -> None:
    tracker = track([datagram(0)], slot_size=31)
    assert (tracker.others, tracker.result()) == (1, None)


def test_delays_may_be_negative(columns: bool) -> None:
    early, late = datagram(0, sent_ns=ARRIVAL_NS + 50), datagram(1, sent_ns=ARRIVAL_NS - 50)
    result = track([early, late], columns=columns).result()
    assert result is not None
    assert (result.delay_min_ns, result.delay_max_ns, result.delay_p50_ns) == (-50, 50, -50)


def test_forgotten_gaps_make_late_arrivals_approximate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_GAPS", 8)
    stream = Stream()
    stream.take(list(range(0, 40, 2)))  # 19 gaps
    assert (stream.lost, stream.approximate) == (19, False)
    stream.take([37])
    assert (stream.reordered, stream.duplicated, stream.approximate) == (1, 0, False)
    stream.take([1])
    assert (stream.reordered, stream.duplicated, stream.approximate) == (1, 1, True)


def test_streams_beyond_the_bound_are_counted_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_STREAMS", 2)
    tracker = track([datagram(0, stream_id) for stream_id in range(5)])
    result = tracker.result()
    assert result is not None
    assert (result.streams, tracker.others, result.approximate) == (2, 3, True)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[int]]:
    """(sent, sequence numbers in the order of their arrival), lost, doubled and shuffled at random."""
    total = draw(st.integers(1, 60))
    first = draw(st.integers(0, 1000))
    numbers = range(first, first + total)
    kept = [number for number in numbers for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2, 3])))]
    # Everything is late by a little: mostly in order, as networks are.
    lateness = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 30]), min_size=len(kept), max_size=len(kept)))
    order = sorted(range(len(kept)), key=lambda i: (i + lateness[i], i))
    return first + total, [kept[i] for i in order]


@given(arrivals(), st.integers(1, 9), st.booleans(), st.booleans(), st.booleans())
def test_against_a_simple_model(
    arrived: tuple[int, list[int]], vlen: int, ended: bool, noisy: bool, columns: bool
) -> None:
    total, sequences = arrived
    datagrams = [datagram(number) for number in sequences]
    if noisy:
        datagrams = [noise for i, one in enumerate(datagrams) for noise in ([one, b"noise"] if i % 3 else [one])]
    tracker = track(datagrams + [end_marker(total)] * ended, vlen, columns)
    result = tracker.result()
    if not sequences and not ended:
        assert result is None
        return
    assert result is not None
    distinct = set(sequences)
    late = sum(
        number not in sequences[:i] and number < max(sequences[:i], default=0) for i, number in enumerate(sequences)
    )
    span = total if ended else max(distinct) - min(distinct) + 1
    assert result.received == len(distinct)
    assert result.duplicated == len(sequences) - len(distinct)
    assert result.reordered == late
    assert result.lost == span - len(distinct)
    assert not result.approximate
    assert tracker.others == len(datagrams) - len(sequences)


# --- joined datagrams, and their times -----------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=30))
def test_a_run_is_taken_as_its_numbers_are(steps: list[tuple[bool, int, int]]) -> None:
    at_once, singly = Stream(), Stream()
    position = 100
    for backwards, distance, count in steps:
        position = max(0, position - distance if backwards else position + distance)
        at_once.take_run(position, count)
        for number in range(position, position + count):
            singly.take([number])
        position += count
        for name in ("lowest", "expected", "received", "duplicated", "reordered", "lost"):
            assert getattr(at_once, name) == getattr(singly, name), name


@given(
    st.lists(st.tuples(st.integers(32, 90), st.integers(1, 20), st.integers(0, 89)), min_size=1, max_size=4),
    st.lists(st.sampled_from([*["next"] * 9, "gap", "again", "other", "noise", "end"]), max_size=90),
    st.integers(0, 9),
)
def test_joined_datagrams_are_tracked_as_single_ones(
    messages: list[tuple[int, int, int]], kinds: list[str], start: int
) -> None:
    """Messages of any size, with a shorter last datagram or not, in order or in a mess."""
    kinds = kinds + ["next"] * 100
    number = 0
    payloads, singles = [], []
    for size, count, tail in messages:
        sizes = [size] * count + ([tail % size] if tail % size else [])
        parts = []
        for length in sizes:
            kind = kinds.pop(0)
            number += kind == "gap"
            header = {
                "noise": b"n" * HEADER.size,
                "end": encode_header(7, END_FLAG | 50, ARRIVAL_NS),
                "again": encode_header(7, max(0, number - 1), ARRIVAL_NS - 5),
                "other": encode_header(8, number, ARRIVAL_NS - 7),
            }.get(kind, encode_header(7, number, ARRIVAL_NS - size))
            number += kind in ("next", "gap")
            parts.append(header.ljust(length, b"p")[:length])
        payloads.append(b"".join(parts))
        singles += parts
    batch = RecvBatch(4, 65535)
    assert batch.load(payloads, ancdata=joined(*(size for size, *_ in messages))) == len(singles)
    plain = StreamTracker(columns=False)
    single = RecvBatch(len(singles), 128)
    single.load(singles)
    plain.feed(single, ARRIVAL_NS)
    for joint in (batch, SideBySide(singles, start)):
        tracker = StreamTracker()
        tracker.feed(joint, ARRIVAL_NS)
        assert counts(tracker) == counts(plain)


@given(
    st.integers(32, 80),
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.sampled_from([0, 0, 0, 1, -3, 50])), max_size=12),
    st.booleans(),
)
def test_streams_side_by_side(size: int, start: int, runs: list[tuple[int, int, int]], stamped: bool) -> None:
    """Runs of several streams, with gaps and what comes late, of datagrams of one size."""
    payloads, times = [], []
    following = [0, 0, 100, 1 << 40]
    for number, (stream_id, count, skip) in enumerate(runs):
        first = max(0, following[stream_id] + skip)
        following[stream_id] = first + count
        payloads += [
            encode_header(stream_id, sequence, ARRIVAL_NS - number // 3).ljust(size, b"p")
            for sequence in range(first, first + count)
        ]
        times += [0 if number == 5 else ARRIVAL_NS + number // 2] * count
    tracker, plain = StreamTracker(), StreamTracker(columns=False)
    for either in (tracker, plain):
        either.feed(SideBySide(payloads, start, times), None if stamped else ARRIVAL_NS)
    assert counts(tracker) == counts(plain)


@pytest.mark.parametrize("streams", [2, MAX_MIXED, MAX_MIXED + 1])
def test_streams_whose_datagrams_alternate(streams: int) -> None:
    payloads = [datagram(number, stream_id) for number in range(60) for stream_id in range(streams)]
    tracker = StreamTracker()
    tracker.feed(SideBySide(payloads, times=[ARRIVAL_NS] * len(payloads)), None)
    result = tracker.result()
    assert result is not None
    assert (result.streams, result.received, result.lost, result.reordered) == (streams, 60 * streams, 0, 0)
    assert (result.delay_min_ns, result.delay_max_ns, tracker.delays.count) == (100, 100, 60 * streams)


def test_a_datagram_that_was_cut_has_its_header() -> None:
    tracker = StreamTracker()
    tracker.feed(SideBySide([datagram(number) for number in range(20)], cut=32), ARRIVAL_NS)
    assert counts(tracker)[1:] == (20, 0, 0)


def test_the_tracker_keeps_no_view_of_a_batch() -> None:
    memory = bytearray(b"".join(datagram(number) for number in range(50)))
    batch = SideBySide([])
    tracker = StreamTracker()
    batch.buffer = memoryview(memory)
    batch.offsets, batch.lengths = memoryview(array("q", range(0, 2000, 40))), memoryview(array("i", [40] * 50))
    tracker.feed(batch, ARRIVAL_NS)
    batch.buffer.release()
    memory.clear()  # BufferError while there is a view
    assert tracker.datagrams == 50


def test_long_batches_come_in_parts(columns: bool) -> None:
    tracker = track([datagram(i) for i in range(2 * MAX_SPAN + 1)], 4 * MAX_SPAN, columns)
    assert (tracker.datagrams, tracker.lost, tracker.others) == (2 * MAX_SPAN + 1, 0, 0)


def test_delay_by_the_kernels_time_stamps(columns: bool) -> None:
    tracker = StreamTracker(columns)
    batch = RecvBatch(3, 64)
    batch.load([datagram(0), datagram(1), datagram(2)], ancdata=stamped(ARRIVAL_NS, ARRIVAL_NS + 50, 0))
    tracker.feed(batch, None)
    result = tracker.result()
    assert result is not None
    # The third has no time stamp.
    assert (result.delay_min_ns, result.delay_max_ns, tracker.delays.count) == (100, 150, 2)
    assert tracker.datagrams == 3


def test_delay_of_joined_datagrams(columns: bool) -> None:
    tracker = StreamTracker(columns)
    batch = RecvBatch(2, 65535)
    controls = [a + b for a, b in zip(joined(40, 40), stamped(ARRIVAL_NS + 20, 0), strict=True)]
    batch.load([datagram(0) + datagram(1), datagram(2) + datagram(3)], ancdata=controls)
    tracker.feed(batch, None)
    assert (tracker.delays.minimum, tracker.delays.maximum, tracker.delays.count) == (120, 120, 2)
    assert tracker.datagrams == 4


# --- columns of words -------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 2**40 - 3, 2**64 - MAX_SPAN])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, MAX_SPAN])
def test_runs_of_numbers(first: int, count: int) -> None:
    assert encode_run(first, count) == b"".join(n.to_bytes(8, "little") for n in range(first, first + count))


def test_a_joined_message_is_one_span() -> None:
    batch = RecvBatch(3, 65535)
    messages = [datagram(0) * 60, datagram(0) * 60 + datagram(0)[:35], datagram(0) * 9]
    batch.load(messages, ancdata=joined(40, 40, 40))
    assert [tuple(span) for span in spans(batch, 32)] == [
        (0, 60, 0, 40),
        (60, 61, batch.stride, 40),  # its last datagram is shorter, and as far from the one before
        (121, 9, 2 * batch.stride, 40),
    ]
    batch.load([datagram(0) * 9] * 3, ancdata=joined(40, 40, 40))
    assert [tuple(span) for span in spans(batch, 32)] == [(9 * i, 9, batch.stride * i, 40) for i in range(3)]


def test_messages_side_by_side_are_one_span() -> None:
    message = [b"x" * 40] * 60
    assert [tuple(span) for span in spans(SideBySide(message * 2, 3), 32)] == [(0, 120, 3, 40)]
    assert [tuple(span) for span in spans(SideBySide([*message, b"y" * 35, *message], 3), 32)] == [
        (0, 61, 3, 40),
        (61, 60, 3 + 60 * 40 + 35, 40),
    ]
    # Each shorter one is as far from the one before, and the next elsewhere.
    sizes = [40] * 9 + [39, 41] + [40] * 9
    assert [tuple(span)[:3] for span in spans(SideBySide([b"x" * size for size in sizes]), 32)] == [
        (0, 10, 0),
        (11, 9, 400 + 40),
    ]
    sizes = [40] * 9 + [50] * 10
    assert [tuple(span) for span in spans(SideBySide([b"x" * size for size in sizes]), 32)] == [
        (0, 10, 0, 40),
        (10, 9, 360 + 50, 50),
    ]
    assert [tuple(span) for span in spans(SideBySide(message, 3, cut=33), 32)] == [(0, 60, 3, 40)]
    assert [tuple(span) for span in spans(SideBySide(message[:1], 3), 32)] == [(0, 1, 3, 40)]
    long = SideBySide(message * 20)
    assert [(span.start, span.datagrams) for span in spans(long, 32)] == [(0, MAX_SPAN), (MAX_SPAN, 1200 - MAX_SPAN)]


def test_what_is_too_short_is_in_no_span() -> None:
    assert list(spans(SideBySide([b"x" * 31] * 20), 32)) == []
    assert list(spans(SideBySide([b""] * 20), 32)) == []
    assert list(spans(SideBySide([]), 32)) == []
    batch = RecvBatch(20, 64)
    batch.load([b"x" * 40] * 19 + [b"x" * 31])
    assert list(spans(batch, 32)) == []


@given(st.integers(0, 20), st.integers(16, 70), st.integers(1, 40), st.binary(min_size=3000, max_size=3000))
def test_columns_of_words_anywhere(at: int, step: int, count: int, memory: bytes) -> None:
    columns = Words(memoryview(memory)).columns(at, step, count, 2)
    assert [column.tolist() for column in columns] == [
        [int.from_bytes(memory[start : start + 8], "little") for start in range(at + i, at + i + count * step, step)]
        for i in (0, 8)
    ]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), min_size=1, max_size=6), st.booleans())
def test_ends_of_runs(runs: list[tuple[int, int]], mixed: bool) -> None:
    """The longest run where a column ascends; where it does not, still one."""
    numbers, equals = [0], [0]
    for gap, count in runs:
        numbers += range(numbers[-1] + 1 + gap, numbers[-1] + 1 + gap + count)
        equals += [equals[-1] + gap] * count
    if mixed:
        numbers[len(numbers) // 2] = equals[len(equals) // 2] = 0
    for find, column, step in ((counting_end, numbers, 1), (equal_end, equals, 0)):
        whole = [i for i in range(1, len(column)) if column[i] != column[i - 1] + step] + [len(column)]
        end = find(memoryview(array("Q", column)), 0)
        assert end in ((1, whole[0]) if mixed else (whole[0],))
        assert column[:end] == [column[0] + step * i for i in range(end)]


# --- pacing ----------------------------------------------------------------------------------------


def test_a_pacer_gives_what_is_due() -> None:
    pacer = Pacer(1000, 10.0)
    assert pacer.due(10.0, 64) == 1
    pacer.count(1)
    assert pacer.due(10.0, 64) == 0
    assert pacer.wait_s(10.0) == pytest.approx(0.001)
    assert pacer.due(10.0105, 64) == 10
    assert pacer.due(10.0105, 4) == 4
    assert pacer.behind_s == 0


def test_a_pacer_gives_up_what_is_too_far_behind() -> None:
    pacer = Pacer(1000, 0.0)
    assert pacer.due(5.0, 10_000) == pytest.approx(1000 * MAX_ARREARS_S, abs=2)
    assert pacer.behind_s == pytest.approx(5.0 - MAX_ARREARS_S)


@given(st.floats(1, 1e7), st.lists(st.floats(0, 0.04), min_size=1, max_size=50))
@example(250_000.0, [0.03125, 0.03125])
def test_a_pacer_that_keeps_up_keeps_the_rate(rate: float, waits: list[float]) -> None:
    pacer = Pacer(rate, 0.0)
    now_s = 0.0
    sent = 0
    for wait_s in waits:
        now_s += wait_s
        burst = pacer.due(now_s, 1 << 62)
        pacer.count(burst)
        sent += burst
        # The next one is due later; rounding may leave one over.
        assert pacer.wait_s(now_s) > 0 or pacer.due(now_s, 9) <= 1
    assert sent == pytest.approx(rate * now_s, abs=2)


def test_an_unpaced_pacer_always_gives_a_whole_burst() -> None:
    pacer = Pacer(0, 0.0)
    pacer.count(1_000_000)
    assert (pacer.due(0.0, 64), pacer.wait_s(0.0)) == (64, 0.0)
