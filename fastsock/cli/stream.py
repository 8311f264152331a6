"""The stream that ``fastsock send`` sends, and what ``fastsock recv`` finds out from it.

Payload: four little-endian 64-bit words at the start of each datagram, then zero padding.

    magic       b"fastsock"
    stream      random, one per sender
    sequence    from 0; with the top bit set, an end marker: the rest is the datagrams sent
    sent_ns     CLOCK_REALTIME when the burst was handed to the kernel

No sockets. May import histogram, and fastsock for the type of a batch.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

from fastsock import RecvBatch
from fastsock.cli.histogram import Histogram

HEADER = struct.Struct("<8sQQQ")
MAGIC = b"fastsock"
MAGIC_WORD = int.from_bytes(MAGIC, "little")
END_FLAG = 1 << 63
END_MARKERS = 3
MAX_STREAMS = 4096
MAX_GAPS = 1_000_000


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
    """Follows every fastsock stream in the batches it is shown.

    A batch costs a few C calls on whole columns where it holds one stream in order, and a
    loop over its datagrams where it does not.

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
        self._words = memoryview(b"")

    def feed(self, batch: RecvBatch, arrival_ns: int) -> None:
        """Account for all datagrams of `batch`, taken at `arrival_ns` of CLOCK_REALTIME."""
        count = len(batch)
        if batch.slot_size < HEADER.size:
            self.others += count
            return
        # A short datagram leaves what an earlier one wrote in the rest of its slot.
        if not self._columns or min(batch.lengths) < HEADER.size:
            self._feed_each(batch, arrival_ns)
            return
        if batch is not self._batch:
            self._batch = batch
            self._words = batch.buffer.cast("Q")
        step = batch.stride // 8
        words = self._words
        end = count * step
        matching = words[:end:step].tolist().count(MAGIC_WORD)
        if matching == 0:
            self.others += count
            return
        stream_ids = words[1 : 1 + end : step].tolist()
        if matching == count and stream_ids.count(stream_ids[0]) == count:
            sequences = words[2 : 2 + end : step].tolist()
            self._account(stream_ids[0], sequences, words[3 : 3 + end : step].tolist(), arrival_ns)
        else:
            self._feed_each(batch, arrival_ns)

    def _feed_each(self, batch: RecvBatch, arrival_ns: int) -> None:
        """Sort the datagrams by their streams."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for offset, length in zip(batch.offsets, batch.lengths, strict=True):
            if length >= HEADER.size:
                magic, stream_id, sequence, sent_ns = HEADER.unpack_from(batch.buffer, offset)
                if magic == MAGIC:
                    sequences, times = found.setdefault(stream_id, ([], []))
                    sequences.append(sequence)
                    times.append(sent_ns)
                    continue
            self.others += 1
        for stream_id, (sequences, times) in found.items():
            self._account(stream_id, sequences, times, arrival_ns)

    def _account(self, stream_id: int, sequences: list[int], times: list[int], arrival_ns: int) -> None:
        """Account for datagrams of one stream."""
        stream = self.streams.get(stream_id)
        if stream is None:
            if len(self.streams) == MAX_STREAMS:
                self.others += len(sequences)
                self._untracked = True
                return
            stream = self.streams[stream_id] = Stream()
        if max(sequences) >= END_FLAG:
            for marker in (number for number in sequences if number >= END_FLAG):
                self.end_markers += 1
                stream.total = marker - END_FLAG
            kept = [pair for pair in zip(sequences, times, strict=True) if pair[0] < END_FLAG]
            if not kept:
                return
            sequences, times = [pair[0] for pair in kept], [pair[1] for pair in kept]
        stream.take(sequences)
        self.datagrams += len(sequences)
        # A sender stamps whole bursts: few different times.
        if times.count(times[0]) == len(times):
            self.delays.add(arrival_ns - times[0], len(times))
        else:
            for sent_ns, count in Counter(times).items():
                self.delays.add(arrival_ns - sent_ns, count)

    def result(self) -> StreamResult | None:
        """What the streams came to so far; None when there were none."""
        if not self.streams:
            return None
        streams = self.streams.values()
        totals = [stream.total for stream in streams if stream.total is not None]
        delays = self.delays
        return StreamResult(
            streams=len(streams),
            sent=sum(totals) if len(totals) == len(streams) else None,
            received=sum(stream.received for stream in streams),
            lost=self.lost,
            duplicated=sum(stream.duplicated for stream in streams),
            reordered=sum(stream.reordered for stream in streams),
            end_markers=self.end_markers,
            approximate=self._untracked or any(stream.approximate for stream in streams),
            delay_min_ns=delays.minimum,
            delay_p50_ns=delays.percentile(50),
            delay_p90_ns=delays.percentile(90),
            delay_p99_ns=delays.percentile(99),
            delay_p99_9_ns=delays.percentile(99.9),
            delay_max_ns=delays.maximum,
        )

    @property
    def lost(self) -> int:
        return sum(stream.lost for stream in self.streams.values())
