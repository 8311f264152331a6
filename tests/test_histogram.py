"""The histogram of latencies and delays: how far off its percentiles are, and what it counts."""

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from fastsock.bench.histogram import HALF, Histogram, bucket_of, middle_of


@given(st.integers(-(1 << 65), 1 << 65))
def test_a_bucket_answers_within_one_percent(value: int) -> None:
    assert abs(middle_of(bucket_of(value)) - value) * 100 <= abs(value)


@given(st.integers(-(1 << 65), 1 << 65))
@example(-1)
def test_buckets_are_in_the_order_of_their_values(value: int) -> None:
    assert bucket_of(value) <= bucket_of(value + 1) <= bucket_of(value) + 1


@given(st.lists(st.integers(-(1 << 40), 1 << 40), min_size=1), st.sampled_from([0, 1, 50, 90, 99, 99.9, 100]))
def test_percentiles_against_sorting(values: list[int], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = next(value for i, value in enumerate(sorted(values), 1) if i * 100 >= percent * len(values))
    found = histogram.percentile(percent)
    assert found is not None
    assert abs(found - exact) * 100 <= abs(exact)
    assert (histogram.minimum, histogram.maximum, histogram.count) == (min(values), max(values), len(values))


def test_an_empty_histogram_has_no_percentile() -> None:
    assert Histogram().percentile(50) is None


def test_buckets_are_bounded() -> None:
    assert bucket_of((1 << 64) - 1) - bucket_of(-(1 << 64) + 1) < 7552


@given(st.lists(st.integers(0, 1 << 40)))
def test_update_counts_as_add_does(values: list[int]) -> None:
    one, many = Histogram(), Histogram()
    for value in values:
        one.add(value)
    many.update(values)
    assert vars(one) == vars(many)


@given(st.lists(st.integers(0, 1 << 40)), st.sampled_from([1, 2, 8, HALF]))
def test_coarser_buckets_hold_what_lies_in_them(values: list[int], per_octave: int) -> None:
    def lowest(value: int) -> int:
        """By the definition: each power of two in so many equal parts, of one at least."""
        octave = 1 << value.bit_length() - 1 if value else 1
        part = max(1, octave // per_octave)
        return max(low for low in range(octave, 2 * octave, part) if low <= value) if value else 0

    histogram = Histogram()
    histogram.update(values)
    assert histogram.buckets(per_octave) == sorted(Counter(map(lowest, values)).items())


def test_buckets_of_one_magnitude() -> None:
    histogram = Histogram()
    histogram.update([0, 1, 2, 3, 64, 127, 128, 255, 256])
    assert histogram.buckets(1) == [(0, 1), (1, 1), (2, 2), (64, 2), (128, 2), (256, 1)]
    assert histogram.buckets(2) == [(0, 1), (1, 1), (2, 1), (3, 1), (64, 1), (96, 1), (128, 1), (192, 1), (256, 1)]
