"""The stream that ``fastsock send`` sends, and what ``fastsock recv`` finds out from it.

Payload: four little-endian 64-bit words at the start of each datagram, then zero padding.

    magic       b"fastsock"
    stream      random, one per sender
    sequence    from 0; with the top bit set, an end marker: the rest is the datagrams sent
    sent_ns     CLOCK_REALTIME when the burst was handed to the kernel

Headers are read and written a column at a time, through strided memoryviews: no Python loop
over datagrams as long as a stream comes in order. No sockets. May import histogram and
report, and fastsock for the type of a batch.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import sub
from typing import Any, NamedTuple

from fastsock import RecvBatch
from fastsock.cli.histogram import Histogram
from fastsock.cli.report import delay_fields

HEADER = struct.Struct("<8sQQQ")
MAGIC = b"fastsock"
NO_HEADER = (b"", 0, 0, 0)
END_FLAG = 1 << 63
END_MARKERS = 3
MAX_STREAMS = 4096
MAX_GAPS = 1_000_000
MAX_SPAN = 1024  # datagrams that are looked at together
WORD = 8


def encode_header(stream_id: int, sequence: int, sent_ns: int) -> bytes:
    """The first 32 bytes of a stream's datagram."""
    return HEADER.pack(MAGIC, stream_id, sequence, sent_ns)


@lru_cache(maxsize=256)
def ramp(count: int) -> tuple[int, int]:
    """Integers of `count` 64-bit lanes: 1 in each, and 0, 1, 2 ..."""
    ones = int.from_bytes((1).to_bytes(WORD, "little") * count, "little")
    numbers = array("Q", range(count))
    if sys.byteorder == "big":
        numbers.byteswap()
    return ones, int.from_bytes(numbers.tobytes(), "little")


def encode_run(first: int, count: int) -> bytes:
    """The words first, first + 1 ... : `count` of them, at most MAX_SPAN, all below 2**64.

    One multiplication for all of them: five times faster than an array of a range.
    """
    ones, numbers = ramp(count)
    return (first * ones + numbers).to_bytes(WORD * count, "little")


@dataclass(frozen=True, slots=True)
class StreamResult:
    """All streams together. Delays are nanoseconds, negative where the clocks disagree."""

    streams: int
    sent: int | None
    """What the end markers say; None until every stream's has come."""
    received: int
    """Different datagrams, without duplicates and end markers."""
    lost: int
    duplicated: int
    reordered: int
    end_markers: int
    approximate: bool
    """Some late arrivals were too old to tell from duplicates, or streams too many to follow."""
    delay_min_ns: int | None
    delay_p50_ns: int | None
    delay_p90_ns: int | None
    delay_p99_ns: int | None
    delay_p99_9_ns: int | None
    delay_max_ns: int | None


class Stream:
    """One sender's sequence numbers.

    Numbers not seen yet lie in gaps ``starts[i] <= number < ends[i]``, ascending. A late
    number is reordered (RFC 4737: below the next expected) where a gap holds it, which it
    then leaves, and a duplicate where none does. The newest MAX_GAPS gaps are kept; a number
    older than those counts as a duplicate and makes the result approximate.
    """

    def __init__(self) -> None:
        self.lowest: int | None = None
        self.expected = 0  # the highest number seen, plus 1
        self.received = self.duplicated = self.reordered = 0
        self.total: int | None = None  # from the end marker
        self.approximate = False
        self._starts = array("Q")
        self._ends = array("Q")
        self._forgotten_below = 0  # gaps below it may have been dropped

    @property
    def lost(self) -> int:
        if self.total is not None:
            # A total below what came would be a sender's lie; nothing is lost then.
            return max(0, self.total - self.received)
        return 0 if self.lowest is None else self.expected - self.lowest - self.received

    def take(self, sequences: list[int]) -> None:
        """Account for datagrams in the order of their arrival; no end markers among them."""
        if self.lowest is None:
            self.lowest = self.expected = sequences[0]
        expected = self.expected
        after = expected + len(sequences)
        if sequences == list(range(expected, after)):
            self.expected = after
            self.received += len(sequences)
            return
        for number in sequences:
            if number == expected:
                expected += 1
            elif number > expected:
                self._add_gap(len(self._starts), expected, number)
                expected = number + 1
            else:
                self._take_late(number)
                continue
            self.received += 1
        self.expected = expected

    def take_run(self, first: int, count: int) -> None:
        """The same for consecutive numbers."""
        if self.lowest is None:
            self.lowest = self.expected = first
        late = max(0, min(count, self.expected - first))
        for number in range(first, first + late):
            self._take_late(number)
        if late < count:
            if first > self.expected:
                self._add_gap(len(self._starts), self.expected, first)
            self.expected = first + count
            self.received += count - late

    def _take_late(self, number: int) -> None:
        assert self.lowest is not None
        if number < self.lowest:
            if number + 1 < self.lowest:
                self._add_gap(0, number + 1, self.lowest)
            self.lowest = number
        else:
            i = bisect_right(self._starts, number) - 1
            if i < 0 or number >= self._ends[i]:
                self.duplicated += 1
                self.approximate |= number < self._forgotten_below
                return
            self._cut_gap(i, number)
        self.received += 1
        self.reordered += 1

    def _add_gap(self, i: int, start: int, end: int) -> None:
        self._starts.insert(i, start)
        self._ends.insert(i, end)
        if len(self._starts) > MAX_GAPS:
            # Many at a time, because taking from the front moves all that follows.
            drop = MAX_GAPS // 8 + 1
            self._forgotten_below = max(self._forgotten_below, self._ends[drop - 1])
            del self._starts[:drop], self._ends[:drop]

    def _cut_gap(self, i: int, number: int) -> None:
        """Take `number` out of gap `i`."""
        start, end = self._starts[i], self._ends[i]
        if start == number and end == number + 1:
            del self._starts[i], self._ends[i]
        elif start == number:
            self._starts[i] = number + 1
        else:
            self._ends[i] = number
            if number + 1 < end:
                self._add_gap(i + 1, number + 1, end)


class Span(NamedTuple):
    """Datagrams of a batch that follow each other at the same distance, none shorter than a header."""

    start: int
    """The first one's index in the batch."""
    datagrams: int
    at: int
    """The first one's place in ``batch.buffer``."""
    step: int
    """Bytes from one to the next."""


class StreamTracker:
    """Follows every fastsock stream in the batches it is shown.

    A run of datagrams costs a few C calls on whole columns where it holds one stream in
    order, and a loop over its datagrams where it does not.

    Args:
        columns: Read 64-bit words straight from the batch: little-endian machines only.
    """

    def __init__(self, columns: bool = sys.byteorder == "little") -> None:
        self.streams: dict[int, Stream] = {}
        self.delays = Histogram()
        self.datagrams = 0  # of streams, duplicates included, end markers not
        self.end_markers = 0
        self.others = 0  # datagrams that belong to no stream
        self._columns = columns
        self._untracked = False
        self._batch: RecvBatch | None = None
        self._bytes = self._words = memoryview(b"")

    def feed(self, batch: RecvBatch, arrival_ns: int | None) -> None:
        """Account for all datagrams of `batch`.

        Args:
            batch: As it was received, with UDP GRO or without.
            arrival_ns: When, by CLOCK_REALTIME; None for each datagram's own time stamp.
        """
        if batch.slot_size < HEADER.size:
            self.others += len(batch)
            return
        if batch is not self._batch:
            self._batch = batch
            self._bytes = batch.buffer
            self._words = self._bytes.cast("Q")
        if not self._columns:
            self._feed_each(batch, 0, len(batch), arrival_ns)
            return
        taken = 0
        for span in spans(batch):
            if span.start > taken:
                self._feed_each(batch, taken, span.start, arrival_ns)
            taken = span.start + span.datagrams
            self._feed_span(batch, span, arrival_ns)
        if taken < len(batch):
            self._feed_each(batch, taken, len(batch), arrival_ns)

    def _feed_span(self, batch: RecvBatch, span: Span, arrival_ns: int | None) -> None:
        start, count, at, step = span
        if step % WORD:
            # Words cannot be read at such distances: the headers go side by side first.
            payloads = self._bytes[at : at + count * step]
            headers = struct.iter_unpack(f"{HEADER.size}s{step - HEADER.size}x", payloads)
            words, at, step = memoryview(b"".join([header for (header,) in headers])).cast("Q"), 0, HEADER.size
        else:
            words = self._words
        at //= WORD
        step //= WORD
        end = at + count * step  # no column gets so far: each has `count` words
        tags, stream_ids = words[at:end:step].tobytes(), words[at + 1 : end : step].tobytes()
        if tags == MAGIC * count and stream_ids == stream_ids[:WORD] * count:
            stream = self._stream(words[at + 1], count)
            if stream:
                self._feed_one(stream, batch, span, words[at + 2 : end : step], words[at + 3 : end : step], arrival_ns)
        elif MAGIC not in tags:
            self.others += count
        else:
            self._feed_each(batch, start, start + count, arrival_ns)

    def _feed_one(
        self,
        stream: Stream,
        batch: RecvBatch,
        span: Span,
        sequences: memoryview,
        times: memoryview,
        arrival_ns: int | None,
    ) -> None:
        """Account for a span of one stream."""
        start, count = span.start, span.datagrams
        first = sequences[0]
        if first + count <= END_FLAG and sequences.tobytes() == encode_run(first, count):
            stream.take_run(first, count)
        else:
            numbers = sequences.tolist()
            if max(numbers) >= END_FLAG:
                self._feed_each(batch, start, start + count, arrival_ns)
                return
            stream.take(numbers)
        self.datagrams += count
        sent = times.tobytes()
        if arrival_ns is None and span.step < batch.stride:  # one message, one time stamp
            arrival_ns = batch.timestamps_ns[start]
        if arrival_ns and sent == sent[:WORD] * count:
            # A sender stamps whole bursts.
            self.delays.add(arrival_ns - times[0], count)
        else:
            self._add_delays(times.tolist(), arrivals(batch, start, count, arrival_ns))

    def _feed_each(self, batch: RecvBatch, start: int, end: int, arrival_ns: int | None) -> None:
        """Look at datagrams `start` to `end`, wherever they lie and however short."""
        headers = [
            HEADER.unpack_from(self._bytes, offset) if length >= HEADER.size else NO_HEADER
            for offset, length in zip(batch.offsets[start:end], batch.lengths[start:end], strict=True)
        ]
        self._sort(headers, arrivals(batch, start, end - start, arrival_ns))

    def _sort(self, headers: Iterable[tuple[Any, ...]], received: Iterable[int]) -> None:
        """Account for datagrams by their streams; `received` is when each was, 0 where nobody knows."""
        found: dict[int, tuple[list[int], list[int], list[int]]] = {}
        for (magic, stream_id, sequence, sent_ns), arrival_ns in zip(headers, received, strict=True):
            if magic != MAGIC:
                self.others += 1
                continue
            sequences, times, arrived = found.setdefault(stream_id, ([], [], []))
            if sequence < END_FLAG:
                sequences.append(sequence)
                times.append(sent_ns)
                arrived.append(arrival_ns)
            elif stream := self._stream(stream_id, 1):
                self.end_markers += 1
                stream.total = sequence - END_FLAG
        for stream_id, (sequences, times, arrived) in found.items():
            if sequences and (stream := self._stream(stream_id, len(sequences))):
                stream.take(sequences)
                self.datagrams += len(sequences)
                self._add_delays(times, arrived)

    def _stream(self, stream_id: int, count: int) -> Stream | None:
        """The stream of `count` datagrams; None where there are too many, and they count as others."""
        stream = self.streams.get(stream_id)
        if stream is None:
            if len(self.streams) == MAX_STREAMS:
                self.others += count
                self._untracked = True
                return None
            stream = self.streams[stream_id] = Stream()
        return stream

    def _add_delays(self, times: list[int], received: Sequence[int]) -> None:
        if 0 in received:
            known = [pair for pair in zip(times, received, strict=True) if pair[1]]
            times, received = [pair[0] for pair in known], [pair[1] for pair in known]
        for delay_ns, count in Counter(map(sub, received, times)).items():
            self.delays.add(delay_ns, count)

    def result(self) -> StreamResult | None:
        """What the streams came to so far; None when there were none."""
        if not self.streams:
            return None
        streams = self.streams.values()
        totals = [stream.total for stream in streams if stream.total is not None]
        return StreamResult(
            streams=len(streams),
            sent=sum(totals) if len(totals) == len(streams) else None,
            received=sum(stream.received for stream in streams),
            lost=self.lost,
            duplicated=sum(stream.duplicated for stream in streams),
            reordered=sum(stream.reordered for stream in streams),
            end_markers=self.end_markers,
            approximate=self._untracked or any(stream.approximate for stream in streams),
            **delay_fields(self.delays),
        )

    @property
    def lost(self) -> int:
        return sum(stream.lost for stream in self.streams.values())


def spans(batch: RecvBatch) -> Iterator[Span]:
    """The runs of datagrams, none shorter than a header, between which equal distances lie.

    Without GRO that is the whole batch; with it, each message: its datagrams are of one
    size, but for the last. Runs longer than MAX_SPAN come in parts.
    """
    offsets, lengths, stride = batch.offsets, batch.lengths, batch.stride
    total = len(offsets)
    if not total:
        return
    if offsets[-1] == (total - 1) * stride:  # each in a slot of its own
        if min(lengths) >= HEADER.size:
            for start in range(0, total, MAX_SPAN):
                yield Span(start, min(MAX_SPAN, total - start), start * stride, stride)
        return
    start = count = 0
    while start < total:
        at = offsets[start]
        behind = at // stride * stride + stride  # the next message's slot
        # Messages of one sender hold equally many datagrams, as a rule.
        if not (start + count < total and offsets[start + count] == behind):
            count = bisect_left(offsets, behind, start, min(total, start + stride)) - start
        size = lengths[start]
        whole = count if lengths[start + count - 1] == size else count - 1
        if size >= HEADER.size and whole:
            for first in range(start, start + whole, MAX_SPAN):
                yield Span(first, min(MAX_SPAN, start + whole - first), at + (first - start) * size, size)
        start += count


def arrivals(batch: RecvBatch, start: int, count: int, arrival_ns: int | None) -> Sequence[int]:
    """When each datagram was received: at `arrival_ns`, or by its own time stamp."""
    return [arrival_ns] * count if arrival_ns is not None else batch.timestamps_ns[start : start + count].tolist()
