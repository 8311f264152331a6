"""A log-linear histogram of integers: bounded memory, percentiles within 1 %.

Pure. Each power of two is divided into 64 buckets, and a bucket answers with its middle, so
that a percentile is off by at most 1/128 of its value; magnitudes below 128, the minimum and
the maximum are exact. 64-bit values fill at most 7,552 buckets. Imports nothing.
"""

from __future__ import annotations

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
