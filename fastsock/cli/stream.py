"""The stream that ``fastsock send`` sends, and what ``fastsock recv`` finds out from it.

Payload: four little-endian 64-bit words at the start of each datagram, then zero padding.

    magic       b"fastsock"
    stream      random, one per sender
    sequence    from 0; with the top bit set, an end marker: the rest is the datagrams sent
    sent_ns     CLOCK_REALTIME when the burst was handed to the kernel

Headers are read a column at a time: no Python loop over datagrams as long as streams come in
order. No sockets. May import columns, histogram and report.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, groupby, repeat
from operator import sub
from typing import Any

from fastsock.bench.histogram import Histogram
from fastsock.cli.columns import SHORT, WORD, Batch, Span, Words, counting_end, equal_end, spans
from fastsock.cli.report import delay_fields

HEADER = struct.Struct("<8sQQQ")
MAGIC = b"fastsock"
NO_HEADER = (b"", 0, 0, 0)
END_FLAG = 1 << 63
END_MARKERS = 3
MAX_STREAMS = 4096
MAX_GAPS = 1_000_000
FEW_RUNS = 2  # short ones, before a column is taken for out of order
MAX_MIXED = 8  # streams whose datagrams alternate, and are told apart by columns


def encode_header(stream_id: int, sequence: int, sent_ns: int) -> bytes:
    """The first 32 bytes of a stream's datagram."""
    return HEADER.pack(MAGIC, stream_id, sequence, sent_ns)


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


class StreamTracker:
    """Follows every fastsock stream in the batches it is shown, and keeps no view of them.

    A run of datagrams costs a few C calls on whole columns where it holds streams in order,
    and a loop over its datagrams where it does not.

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

    def feed(self, batch: Batch, arrival_ns: int | None) -> None:
        """Account for all datagrams of `batch`.

        Args:
            batch: As it was received, with UDP GRO or without.
            arrival_ns: When, by CLOCK_REALTIME; None for each datagram's own time stamp.
        """
        total = len(batch.offsets)
        if batch.slot_size < HEADER.size:
            self.others += total
            return
        taken = 0
        if self._columns:
            words = Words(batch.buffer)
            for span in spans(batch, HEADER.size):
                if taken < span.start:
                    self._feed_each(batch, taken, span.start, arrival_ns)
                self._feed_span(batch, words, span, arrival_ns)
                taken = span.start + span.datagrams
        if taken < total:
            self._feed_each(batch, taken, total, arrival_ns)

    def _feed_span(self, batch: Batch, words: Words, span: Span, arrival_ns: int | None) -> None:
        start, count, at, step = span
        magic, ids, sequences, times = words.columns(at, step, count, HEADER.size // WORD)
        tags = magic.tobytes()
        if MAGIC not in tags:
            self.others += count
            return
        if tags != MAGIC * count or not sequences.tobytes()[WORD - 1 :: WORD].isascii():
            # Not all of streams, or end markers among them: their top bit is set.
            self._feed_each(batch, start, start + count, arrival_ns)
            return
        arrived = arrivals(batch, start, count, arrival_ns)
        if ids.tobytes() == ids[:1].tobytes() * count:
            self._feed_stream(ids[0], sequences, times, arrived)
        else:
            self._feed_mixed(ids.tolist(), sequences, times, arrived)

    def _feed_mixed(self, ids: list[int], sequences: memoryview, times: memoryview, arrived: memoryview) -> None:
        """Account for datagrams of several streams."""
        runs = [(stream_id, len(list(group))) for stream_id, group in groupby(ids)]
        different = dict.fromkeys(ids)
        if len(runs) * SHORT <= len(ids):
            start = 0
            for stream_id, count in runs:
                run = slice(start, start + count)
                self._feed_stream(stream_id, sequences[run], times[run], arrived[run])
                start += count
        elif len(different) <= MAX_MIXED:
            for stream_id in different:
                chosen = list(map(stream_id.__eq__, ids))
                self._feed_stream(stream_id, *(choose(column, chosen) for column in (sequences, times, arrived)))
        else:
            self._sort(zip(repeat(MAGIC), ids, sequences, times, strict=False), arrived)

    def _feed_stream(self, stream_id: int, sequences: memoryview, times: memoryview, arrived: memoryview) -> None:
        """Account for datagrams of one stream; no end markers among them."""
        total = len(sequences)
        stream = self._stream(stream_id, total)
        if stream is None:
            return
        self.datagrams += total
        start = runs = 0
        while start < total and runs <= FEW_RUNS + start // SHORT:
            end = counting_end(sequences, start)
            stream.take_run(sequences[start], end - start)
            start, runs = end, runs + 1
        if start < total:
            stream.take(sequences[start:].tolist())
        start = runs = 0
        while start < total and runs <= FEW_RUNS + start // SHORT:
            # A sender stamps whole bursts, the kernel whole messages.
            end = min(equal_end(times, start), equal_end(arrived, start))
            if arrived[start]:
                self.delays.add(arrived[start] - times[start], end - start)
            start, runs = end, runs + 1
        if start < total:
            self._add_delays(times[start:].tolist(), arrived[start:].tolist())

    def _feed_each(self, batch: Batch, start: int, end: int, arrival_ns: int | None) -> None:
        """Look at datagrams `start` to `end`, wherever they lie and however short."""
        memory = batch.buffer
        headers = [
            HEADER.unpack_from(memory, offset) if length >= HEADER.size else NO_HEADER
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


def arrivals(batch: Batch, start: int, count: int, arrival_ns: int | None) -> memoryview:
    """When each datagram was received: at `arrival_ns`, or by its own time stamp."""
    if arrival_ns is None:
        return batch.timestamps_ns[start : start + count]
    return memoryview(array("q", [arrival_ns]) * count)


def choose(column: memoryview, chosen: list[bool]) -> memoryview:
    """The words of a column that are chosen."""
    return memoryview(array(column.format, compress(column, chosen)))
