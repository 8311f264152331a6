"""A log-linear histogram of integers: bounded memory, percentiles within 1 %.

Pure. Each power of two is divided into 64 buckets, and a bucket answers with its middle, so
that a percentile is off by at most 1/128 of its value; magnitudes below 128, the minimum and
the maximum are exact. 64-bit values fill at most 7,552 buckets. Imports only the standard library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

SUB_BITS = 7  # significant bits that a bucket keeps
HALF = 1 << SUB_BITS - 1


class Histogram:
    """Counts of integers, negative ones too."""

    def __init__(self) -> None:
        self.count = 0
        self.minimum: int | None = None
        self.maximum: int | None = None
        self._buckets: dict[int, int] = {}

    def add(self, value: int, count: int = 1) -> None:
        """Count `value` so many times."""
        key = bucket_of(value)
        self._buckets[key] = self._buckets.get(key, 0) + count
        self.count += count
        if self.minimum is None or value < self.minimum:
            self.minimum = value
        if self.maximum is None or value > self.maximum:
            self.maximum = value

    def update(self, values: Iterable[int]) -> None:
        """Count each of `values`."""
        for value, count in Counter(values).items():
            self.add(value, count)

    def percentile(self, percent: float) -> int | None:
        """The smallest value that at least `percent` of the values do not exceed; None when empty."""
        if self.minimum is None or self.maximum is None:
            return None
        seen = 0
        for key in sorted(self._buckets):
            seen += self._buckets[key]
            if seen * 100 >= percent * self.count:
                return min(max(middle_of(key), self.minimum), self.maximum)
        return self.maximum

    def buckets(self, per_octave: int = HALF) -> list[tuple[int, int]]:
        """The lowest value of each bucket and its count, in order, those that are empty left out.

        Args:
            per_octave: Buckets to a power of two: 1, 2, 4 ... 64. Fewer make a coarser histogram. No value may
                be negative.
        """
        found: Counter[int] = Counter()
        for key, count in self._buckets.items():
            found[lowest_of(key, per_octave)] += count
        return sorted(found.items())


def bucket_of(value: int) -> int:
    """The number of the bucket of `value`; buckets are numbered in the order of their values."""
    if value < 0:
        return -bucket_of(-value)
    if value < 2 * HALF:
        return value
    shift = value.bit_length() - SUB_BITS
    return shift * HALF + (value >> shift)


def middle_of(key: int) -> int:
    """The value in the middle of a bucket."""
    if key < 0:
        return -middle_of(-key)
    if key < 2 * HALF:
        return key
    shift = key // HALF - 1
    low = (key % HALF + HALF) << shift
    return low + ((1 << shift) - 1) // 2


def lowest_of(key: int, per_octave: int) -> int:
    """The lowest value of the coarser bucket that a bucket lies in."""
    value = middle_of(key)
    step = max(1, (1 << value.bit_length() >> 1) // per_octave)
    return value // step * step
