"""Columns of 64-bit words out of a batch's datagrams, without a Python loop over them.

Where datagrams lie at equal distances, the words at one place of each are a strided memoryview; so
columns are compared, copied and written in a few C calls. Pure: no sockets, and only the standard library.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from math import gcd
from operator import sub
from typing import NamedTuple, Protocol

WORD = 8
MAX_SPAN = 1024  # datagrams that are looked at together
SHORT = 8  # a run of fewer costs more than its datagrams one by one
STEP = 16  # ramps are made for multiples of it


@lru_cache(maxsize=MAX_SPAN // STEP)
def ramp(count: int) -> tuple[int, int]:
    """Integers of `count` 64-bit lanes: 1 in each, and 0, 1, 2 ..."""
    ones = int.from_bytes((1).to_bytes(WORD, "little") * count, "little")
    numbers = array("Q", range(count))
    if sys.byteorder == "big":
        numbers.byteswap()
    return ones, int.from_bytes(numbers.tobytes(), "little")


def encode_run(first: int, count: int) -> bytes:
    """The words first, first + 1 ... : `count` of them, at most MAX_SPAN; first + MAX_SPAN <= 2**64.

    One multiplication for all of them: three times faster than an array of a range.
    """
    lanes = -(-count // STEP) * STEP
    ones, numbers = ramp(lanes)
    return (first * ones + numbers).to_bytes(WORD * lanes, "little")[: WORD * count]


class Batch(Protocol):
    """What is read of a RingBatch or RecvBatch."""

    @property
    def buffer(self) -> memoryview: ...
    @property
    def offsets(self) -> memoryview: ...
    @property
    def lengths(self) -> memoryview: ...
    @property
    def timestamps_ns(self) -> memoryview: ...
    @property
    def slot_size(self) -> int: ...
    @property
    def stride(self) -> int: ...


class Span(NamedTuple):
    """Datagrams of a batch that follow each other at the same distance."""

    start: int
    """The first one's index in the batch."""
    datagrams: int
    at: int
    """The first one's place in ``batch.buffer``."""
    step: int
    """Bytes from one to the next."""


def spans(batch: Batch, shortest: int) -> Iterator[Span]:
    """The runs of datagrams, none shorter than so many bytes, between which equal distances lie.

    They come in their order, and at most MAX_SPAN long; what is in no run lies between them.
    """
    offsets, lengths = batch.offsets, batch.lengths
    total = len(offsets)
    if not total:
        return
    distance = offsets[-1] - offsets[0]
    sizes = lengths.tobytes()
    equal = sizes == sizes[: lengths.itemsize] * total
    # Offsets ascend, by a slot or by a datagram at least: their sum tells whether by no more.
    if distance == (total - 1) * batch.stride:
        runs: Iterator[tuple[int, int]] = iter([(0, total)])
    elif equal and distance == (total - 1) * lengths[0]:
        runs = iter([(0, total)])
    else:
        runs = equal_distances(offsets.tolist())
    for first, end in runs:
        if (lengths[0] if equal else min(lengths[first:end])) < shortest:
            continue
        step = offsets[first + 1] - offsets[first] if end - first > 1 else lengths[first]
        for start in range(first, end, MAX_SPAN):
            yield Span(start, min(MAX_SPAN, end - start), offsets[start], step)


def equal_distances(offsets: list[int]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of offsets at equal distances, SHORT or longer; they do not overlap."""
    last = taken = 0
    for _, distances in groupby(map(sub, offsets[1:], offsets)):
        first = max(last, taken)
        last += len(list(distances))
        if last + 1 - first >= SHORT:
            taken = last + 1
            yield first, taken


class Words:
    """The words in a batch's memory, which it keeps from being overwritten. Little-endian machines only."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._views: dict[int, memoryview] = {}  # by how far they are from the start of a word

    def columns(self, at: int, step: int, count: int, width: int) -> list[memoryview]:
        """The first `width` words of `count` datagrams, which lie at `at`, `at` + `step` ... bytes; may be copies."""
        if step % WORD == 0:
            words, first, stride = self._view(at % WORD), at // WORD, step // WORD or 1
            last = first + (count - 1) * stride + 1
            return [words[first + i : last + i : stride] for i in range(width)]
        # Of so many datagrams in turn, each is the first of some that lie at whole words' distance.
        turns = WORD // gcd(step, WORD)
        columns = [memoryview(bytearray(count * WORD)).cast("Q") for _ in range(width)]
        for turn in range(min(turns, count)):
            part = self.columns(at + turn * step, turns * step, -((turn - count) // turns), width)
            for column, words in zip(columns, part, strict=True):
                column[turn::turns] = words
        return columns

    def _view(self, shift: int) -> memoryview:
        view = self._views.get(shift)
        if view is None:
            size = (self._memory.nbytes - shift) // WORD * WORD
            view = self._views[shift] = self._memory[shift : shift + size].cast("Q")
        return view


def counting_end(words: memoryview, start: int) -> int:
    """The end of a run of consecutive numbers from `start` on, the longest where they ascend."""
    first, rest = words[start], len(words) - start
    count = rest
    if words[-1] != first + rest - 1:
        # With gaps, they run ahead of their places ever further.
        count = bisect_right(range(rest), 0, key=lambda i: words[start + i] - first - i)
    whole = words[start : start + count].tobytes() == encode_run(first, count)
    return start + (count if whole else 1)


def equal_end(words: memoryview, start: int) -> int:
    """The end of a run of equal words from `start` on, the longest where they ascend."""
    end = bisect_right(words, words[start], start)
    run = words[start:end].tobytes()
    return end if run == run[:WORD] * (end - start) else start + 1
