"""The fixture that both benchmark files share: one contestant on one link, under pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastsock.cli.contestants import Link
from fastsock.cli.paired import WARM_COUNT, Contestant

ROUNDS = 100

Race = Callable[[int, Callable[[Link], Contestant]], None]


@pytest.fixture
def race(benchmark: BenchmarkFixture) -> Iterator[Race]:
    """Time one contestant, on a link of its own; the benchmark's extra_info says how many datagrams."""
    with ExitStack() as stack:

        def start(size: int, build: Callable[[Link], Contestant]) -> None:
            link = stack.enter_context(Link(size))
            contestant = build(link)
            count = link.fitting()
            moved = []

            def setup() -> None:
                contestant.prepare(WARM_COUNT + count)
                contestant.run(WARM_COUNT)

            def target() -> None:
                moved.append(contestant.run(count))

            def teardown() -> None:
                contestant.settle(WARM_COUNT + count)

            benchmark.pedantic(  # type: ignore[no-untyped-call]
                target, setup=setup, teardown=teardown, rounds=ROUNDS, warmup_rounds=2
            )
            assert set(moved) == {count}
            benchmark.extra_info["datagrams"] = count
            if benchmark.stats is not None:  # None under --benchmark-disable
                benchmark.extra_info["ns_per_datagram"] = benchmark.stats.stats.median / count * 1e9

        yield start
