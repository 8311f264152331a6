"""The fixture of the benchmarks: one contestant of a race, under pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastsock.bench.contestants import Race

ROUNDS = 100


@pytest.fixture
def alone(benchmark: BenchmarkFixture) -> Iterator[Callable[[Race, int, str], None]]:
    """Time one contestant of a race; extra_info says how many datagrams."""
    with ExitStack() as stack:

        def start(race: Race, size: int, name: str) -> None:
            contestants, count = stack.enter_context(race.open(size))
            contestant = next(one for one in contestants if one.name == name)
            moved = []

            def setup() -> None:
                contestant.prepare(race.warm_count + count)
                contestant.run(race.warm_count)

            def target() -> None:
                moved.append(contestant.run(count))

            def teardown() -> None:
                contestant.settle(race.warm_count + count)

            benchmark.pedantic(  # type: ignore[no-untyped-call]
                target, setup=setup, teardown=teardown, rounds=ROUNDS, warmup_rounds=2
            )
            assert set(moved) == {count}
            benchmark.extra_info["datagrams"] = count
            if benchmark.stats is not None:  # None under --benchmark-disable
                benchmark.extra_info["ns_per_datagram"] = benchmark.stats.stats.median / count * 1e9

        yield start
